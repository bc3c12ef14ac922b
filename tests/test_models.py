"""Every row of the size table: any input size, every parameter reached, fused equals unfused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from edgecrafter import hub
from edgecrafter.geometry import bins
from edgecrafter.models.fuse import fuse
from edgecrafter.models.sizes import SIZES
from edgecrafter.models.vit import ECViT
from edgecrafter.tasks import TASKS
from edgecrafter.train.steps import SupervisedStep
from edgecrafter.types import Batch, InputSpec, Labels, QueryGroup, Skeleton, Target

POINTS = Skeleton(("top", "left", "right"), flip_pairs=((1, 2),))
LABELS = Labels(("cup", "plate", "spoon"), skeleton=POINTS)
EVERY_TASK = pytest.mark.parametrize("task", TASKS)


def network(size="p", task="detect", **options):
    torch.manual_seed(0)
    return hub.create(f"{TASKS[task].prefix}-{size}", LABELS, InputSpec((64, 64)), **options)[0]


def some_targets(counts, classes=3, seed=0, side=(64, 64)):
    """Objects with everything that can be known of them: masks are their boxes, keypoints lie inside."""
    random = torch.Generator().manual_seed(seed)
    targets = []
    for count in counts:
        centre = torch.rand(count, 2, generator=random) * 0.6 + 0.2
        extent = torch.rand(count, 2, generator=random) * 0.3 + 0.05
        labels = torch.randint(classes, (count,), generator=random)
        target = Target(labels, torch.cat([centre, extent], dim=1), area=extent.prod(1))
        low, high = centre - extent / 2, centre + extent / 2
        rows, columns = (torch.arange(length)[None] / length for length in side)
        inside_y = (rows >= low[:, 1:]) & (rows < high[:, 1:])
        inside_x = (columns >= low[:, :1]) & (columns < high[:, :1])
        bits = (inside_y[:, :, None] & inside_x[:, None]).numpy()
        target.masks = torch.from_numpy(np.packbits(bits, axis=-1))
        points = low[:, None] + torch.rand(count, 3, 2, generator=random) * extent[:, None]
        seen = torch.tensor([2.0, 1.0, 0.0]).expand(count, 3)[..., None]
        target.keypoints = torch.cat([points * (seen > 0), seen], dim=-1)
        targets.append(target)
    return targets


def losses(model, targets, side=(64, 64), labels=LABELS, budget=100, task="detect"):
    chosen = TASKS[task]
    group = chosen.denoise(targets, labels, torch.Generator().manual_seed(1), budget, "paper")
    images = torch.rand(len(targets), 3, *side, generator=torch.Generator().manual_seed(2))
    random = torch.Generator().manual_seed(3)
    outputs = model.train()(images, [group])
    return chosen.loss(labels, SIZES["s"])(outputs, targets, lambda shape: torch.rand(shape, generator=random))


@EVERY_TASK
@pytest.mark.parametrize("size", SIZES)
def test_every_parameter_gets_a_gradient(size, task):
    model = network(size, task)
    sum(losses(model, some_targets([2, 3]), task=task).values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


@EVERY_TASK
@pytest.mark.parametrize("counts", ([0, 3], [0, 0], [1, 1]))
def test_images_without_objects(counts, task):
    model = network(task=task)
    found = losses(model, some_targets(counts), task=task)
    assert set(found) == set(losses(model, some_targets([2, 2]), task=task))
    total = sum(found.values())
    assert torch.isfinite(total)
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_a_thousand_objects_stay_within_the_budget():
    model = network()
    targets = some_targets([1000, 3])
    group = TASKS["detect"].denoise(targets, LABELS, torch.Generator().manual_seed(0), 100, "paper")
    assert group.labels.shape[1] == 200
    assert torch.isfinite(sum(losses(model, targets).values()))


def test_one_class():
    labels = Labels(("only",))
    model = hub.create("ecdet-p", labels)[0]
    assert torch.isfinite(sum(losses(model, some_targets([2, 0], classes=1), labels=labels).values()))


@EVERY_TASK
@pytest.mark.parametrize("side", ((64, 96), (96, 64), (32, 160)))
def test_any_input_size(side, task):
    model = network(task=task)
    assert torch.isfinite(sum(losses(model, some_targets([1, 2], side=side), side, task=task).values()))
    with torch.inference_mode():
        outputs = model.eval()(torch.rand(3, 3, *side))
    last = outputs.layers[-1]
    tokens = sum((side[0] // s) * (side[1] // s) for s in (8, 16, 32))
    count = min(60 if task == "pose" else 100, tokens)
    found, shape = (last.keypoints, (3, count, 3, 2)) if task == "pose" else (last.boxes, (3, count, 4))
    assert len(outputs.layers) == 1 and found.shape == shape and found.isfinite().all()
    if last.masks is not None:
        assert last.masks.dense().shape == (3, count, side[0] // 4, side[1] // 4)


def test_sides_must_be_multiples_of_32():
    with pytest.raises(ValueError, match="multiples of 32"):
        network()(torch.rand(1, 3, 60, 64))


@EVERY_TASK
@pytest.mark.parametrize("size", SIZES)
def test_fused_equals_unfused(size, task):
    """In float32; and under autocast the precision of the tokens is the same."""
    model = network(size, task).train()
    with torch.no_grad():  # statistics that are not those of the start
        for _ in range(2):
            model(torch.rand(2, 3, 64, 64))
    before = copy.deepcopy(model.eval().state_dict())
    fused = fuse(model)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        one, two = model(images).layers[-1], fused(images).layers[-1]
    torch.testing.assert_close(one.logits, two.logits, atol=2e-4, rtol=1e-4)
    if task == "pose":
        torch.testing.assert_close(one.keypoints, two.keypoints, atol=1e-4, rtol=1e-4)
    else:
        torch.testing.assert_close(one.boxes, two.boxes, atol=2e-5, rtol=1e-4)
    if task == "segment":
        torch.testing.assert_close(one.masks.dense(), two.masks.dense(), atol=1e-3, rtol=1e-3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "fuse changed the original"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert fused.backbone.vit(images)[0].dtype == model.backbone.vit(images)[0].dtype


@pytest.mark.parametrize(
    "options",
    [
        {"registers": 0},
        {"registers": 4},
        {"fused": 1},
        {"fused": 4},
        {"fusion": "concat"},
        {"stem": "vanilla"},
        {"dilation": 2},
        {"queries": 7},
    ],
    ids=str,
)
def test_options_of_the_ablations(options):
    model = network(**options)
    sum(losses(model, some_targets([2, 1])).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_options_of_table_9_add_what_the_paper_says():
    """Concatenation adds 0.3 M parameters to M (Table 9); the vanilla stem takes 0.2 M away (Table 8)."""

    def millions(**options):
        with torch.device("meta"):
            model = hub.create("ecdet-m", **options)[0]
        return sum(p.numel() for p in model.parameters()) / 1e6

    plain = millions()
    assert millions(fusion="concat") - plain == pytest.approx(0.3, abs=0.05)
    assert plain - millions(stem="vanilla") == pytest.approx(0.2, abs=0.05)


def test_unknown_option_names_the_known():
    with pytest.raises(ValueError, match="unknown model option 'register'.*registers"):
        network(register=2)
    with pytest.raises(ValueError, match="concat"):
        network(fusion="sum")


@EVERY_TASK
def test_own_queries_do_not_see_the_groups(task):
    """What the network answers does not depend on the denoising queries."""
    model = network(task=task).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    images = torch.rand(2, 3, 64, 64)
    group = TASKS[task].denoise(some_targets([2, 3]), LABELS, None, 100, "paper")
    with torch.no_grad():
        alone, together = model(images), model(images, [group])
    torch.testing.assert_close(alone.layers[-1].logits, together.layers[-1].logits, atol=1e-5, rtol=1e-5)


def test_isolated_groups_do_not_see_the_own_queries():
    model = network().eval()
    images = torch.rand(1, 3, 64, 64)
    ask = QueryGroup(torch.tensor([[1, 2]]), torch.full((1, 2, 4), 0.4), torch.tensor([0, 1]), sees_own=False)
    alone = QueryGroup(torch.tensor([[1]]), torch.full((1, 1, 4), 0.4), torch.tensor([0]), sees_own=False)
    with torch.no_grad():
        both, one = model(images, [ask]), model(images, [alone])
    torch.testing.assert_close(both.groups[0].layers[-1].logits[:, :1], one.groups[0].layers[-1].logits)


def test_registers_are_dropped_and_not_rotated():
    vit = ECViT(96, 3, 2, depth=2, registers=2).eval()
    with torch.no_grad():
        maps = vit(torch.rand(1, 3, 64, 32))
    assert [tuple(m.shape) for m in maps] == [(1, 96, 4, 2)] * 2


@pytest.mark.parametrize("precision", ("bf16", "fp16"))
@EVERY_TASK
def test_half_precision(task, precision):
    """The network under autocast, the losses in float32, as ``SupervisedStep`` does it: finite gradients everywhere."""
    step = SupervisedStep(network(task=task), TASKS[task], LABELS, InputSpec((64, 64)), precision=precision)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    found = step(Batch(images, some_targets([2, 3])))
    assert all(value.dtype == torch.float32 for value in found.values())
    sum(found.values()).backward()
    assert all(p.grad.isfinite().all() for p in step.parameters() if p.requires_grad)


def test_mask_blocks_of_training_and_evaluation():
    """All blocks by default, then the last layer's masks are the same in both modes; released weights use one."""
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for blocks, equal in ((0, True), (3, True), (1, False)):
            model = network(task="segment", mask_blocks=blocks)
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
            trained = model(images).layers[-1].masks.dense()
            used = model.eval()(images).layers[-1].masks.dense()
            assert torch.allclose(trained, used, atol=1e-4) == equal
    with pytest.raises(ValueError, match="mask_blocks=4: the mask head has 3 blocks"):
        network(task="segment", mask_blocks=4)


def test_chosen_masks_are_those_of_all_masks():
    model = network(task="segment").eval()
    with torch.no_grad():
        masks = model(torch.rand(2, 3, 64, 64)).layers[-1].masks
        image, query = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 3, 9, 3])
        for counts in ([1, 3], [1, 3, 0]):
            found = masks.of(image, query, counts)
            torch.testing.assert_close(found, masks.dense()[image, query], atol=1e-4, rtol=1e-4)
        assert masks.of(image[:0], query[:0], []).shape == (0, 16, 16)


@pytest.mark.parametrize("size, curvature, other", [("x", 8.0, 4.0), ("s", 4.0, 8.0)])
def test_boxes_of_rtdetrv4_are_decoded_with_the_curvature_of_the_size(size, curvature, other):
    """From the edges that every layer says, in training, in use and fused; the file says it, too."""
    torch.manual_seed(0)
    narrow = {"width": 64, "csp_width": 16, "csp_depth": 1, "enc_ffn": 64, "det_ffn": 64, "det_layers": 2, "queries": 9}
    narrow |= {"dec_width": 32} if size == "x" else {}
    model, _ = hub.create(f"rtdetrv4-{size}", LABELS, backbone="timm:hgnetv2_b0", **narrow)
    assert model.state_dict()["decoder.curvature"].item() == curvature
    for box in model.decoder.boxes:
        torch.nn.init.normal_(box.layers[-1].weight, std=5)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        every = [*model(images).layers, *fuse(model)(images).layers, *model.eval()(images).layers]
    assert len(every) == 4
    for layer in every:
        right, wrong = (
            bins.decode(layer.base, bins.distances(layer.edges, torch.tensor(bins.weighting(curvature=c))), c)
            for c in (curvature, other)
        )
        torch.testing.assert_close(layer.boxes, right)
        assert (layer.boxes - wrong).abs().max() > 5e-4
