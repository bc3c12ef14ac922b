"""Every row of the size table: any input size, every parameter reached, fused equals unfused."""

from __future__ import annotations

import copy

import pytest
import torch

from edgecrafter import hub
from edgecrafter.models.fuse import fuse
from edgecrafter.models.sizes import SIZES
from edgecrafter.models.vit import ECViT
from edgecrafter.tasks import TASKS
from edgecrafter.types import InputSpec, Labels, QueryGroup, Target

LABELS = Labels(("cup", "plate", "spoon"))


def network(size="p", **options):
    torch.manual_seed(0)
    return hub.create(f"ecdet-{size}", LABELS, InputSpec((64, 64)), **options)[0]


def some_targets(counts, classes=3, seed=0):
    random = torch.Generator().manual_seed(seed)
    targets = []
    for count in counts:
        centre = torch.rand(count, 2, generator=random) * 0.6 + 0.2
        side = torch.rand(count, 2, generator=random) * 0.3 + 0.05
        labels = torch.randint(classes, (count,), generator=random)
        targets.append(Target(labels, torch.cat([centre, side], dim=1)))
    return targets


def losses(model, targets, side=(64, 64), labels=LABELS, budget=100):
    task = TASKS["detect"]
    group = task.denoise(targets, labels, torch.Generator().manual_seed(1), budget)
    images = torch.rand(len(targets), 3, *side, generator=torch.Generator().manual_seed(2))
    return task.loss(labels)(model.train()(images, [group]), targets)


@pytest.mark.parametrize("size", SIZES)
def test_every_parameter_gets_a_gradient(size):
    model = network(size)
    sum(losses(model, some_targets([2, 3])).values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


@pytest.mark.parametrize("counts", ([0, 3], [0, 0], [1, 1]))
def test_images_without_objects(counts):
    model = network()
    found = losses(model, some_targets(counts))
    assert set(found) == set(losses(model, some_targets([2, 2])))
    total = sum(found.values())
    assert torch.isfinite(total)
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_a_thousand_objects_stay_within_the_budget():
    model = network()
    targets = some_targets([1000, 3])
    group = TASKS["detect"].denoise(targets, LABELS, torch.Generator().manual_seed(0), 100)
    assert group.labels.shape[1] == 200
    assert torch.isfinite(sum(losses(model, targets).values()))


def test_one_class():
    labels = Labels(("only",))
    model = hub.create("ecdet-p", labels)[0]
    assert torch.isfinite(sum(losses(model, some_targets([2, 0], classes=1), labels=labels).values()))


@pytest.mark.parametrize("side", ((64, 96), (96, 64), (32, 160)))
def test_any_input_size(side):
    model = network()
    assert torch.isfinite(sum(losses(model, some_targets([1, 2]), side).values()))
    with torch.inference_mode():
        outputs = model.eval()(torch.rand(3, 3, *side))
    last = outputs.layers[-1]
    tokens = sum((side[0] // s) * (side[1] // s) for s in (8, 16, 32))
    assert last.boxes.shape == (3, min(100, tokens), 4)
    assert len(outputs.layers) == 1 and last.boxes.isfinite().all()


def test_sides_must_be_multiples_of_32():
    with pytest.raises(ValueError, match="multiples of 32"):
        network()(torch.rand(1, 3, 60, 64))


@pytest.mark.parametrize("size", SIZES)
def test_fused_equals_unfused(size):
    """In float32; and under autocast the precision of the tokens is the same."""
    model = network(size).train()
    with torch.no_grad():  # statistics that are not those of the start
        for _ in range(2):
            model(torch.rand(2, 3, 64, 64))
    before = copy.deepcopy(model.eval().state_dict())
    fused = fuse(model)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        one, two = model(images).layers[-1], fused(images).layers[-1]
    torch.testing.assert_close(one.logits, two.logits, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(one.boxes, two.boxes, atol=2e-5, rtol=1e-4)
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
            model = hub.create("ecdet-m", hub.COCO, **options)[0]
        return sum(p.numel() for p in model.parameters()) / 1e6

    plain = millions()
    assert millions(fusion="concat") - plain == pytest.approx(0.3, abs=0.05)
    assert plain - millions(stem="vanilla") == pytest.approx(0.2, abs=0.05)


def test_unknown_option_names_the_known():
    with pytest.raises(ValueError, match="unknown model option 'register'.*registers"):
        network(register=2)
    with pytest.raises(ValueError, match="concat"):
        network(fusion="sum")


def test_own_queries_do_not_see_the_groups():
    """What the network answers does not depend on the denoising queries."""
    model = network().train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    images = torch.rand(2, 3, 64, 64)
    group = TASKS["detect"].denoise(some_targets([2, 3]), LABELS, None, 100)
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
