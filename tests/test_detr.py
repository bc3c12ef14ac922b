"""What has to hold of DAB-DETR, Deformable DETR and DINO alike: padding, groups, gradients, sizes, files, training."""

from __future__ import annotations

import math

import pytest
import torch
from detr_oracles import LABELS, NAMES, close, every_layer, padded, small, some
from torch import nn

from edgecrafter import hub, load
from edgecrafter.data import scenes
from edgecrafter.metrics import speed
from edgecrafter.models import foreign
from edgecrafter.models.detr.padding import sine_of_boxes, sine_of_mask
from edgecrafter.models.foreign import Foreign
from edgecrafter.models.fuse import fuse
from edgecrafter.models.sizes import DAB, DEFORMABLE, DINO
from edgecrafter.start import origin, start
from edgecrafter.tasks import DETECT
from edgecrafter.train import optim
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.log import read_rows
from edgecrafter.train.recipes import recipe_for, resolve
from edgecrafter.train.run import train
from edgecrafter.types import QueryGroup

ARCHS = tuple(NAMES)


def test_sine_codes_by_hand():
    mask = torch.zeros(1, 3, 4, dtype=torch.bool)
    mask[0, :2, :3] = True
    for temperature, shift in ((20.0, 0.0), (10000.0, -0.5)):
        codes = sine_of_mask(mask, 8, temperature, shift)
        for y, x in ((0, 0), (1, 2), (0, 1)):
            wanted = []
            for place, count in ((y, 2), (x, 3)):  # the second half of the four is slower
                angle = 2 * math.pi * (place + 1 + shift) / count
                for slower in (1, temperature**0.5):
                    wanted += [math.sin(angle / slower), math.cos(angle / slower)]
            close(codes[0, :, y, x], torch.tensor(wanted), 1e-5)
    box = torch.tensor([0.1, 0.2, 0.3, 0.4])
    wanted = [f(2 * math.pi * value) for value in (0.2, 0.1, 0.3, 0.4) for f in (math.sin, math.cos)]
    close(sine_of_boxes(box, 2), torch.tensor(wanted), 1e-6)
    assert sine_of_boxes(box[:2], 4).shape == (8,)


class Patches(nn.Module):
    """Maps of stride 8, 16 and 32 whose cells see their own pixels only, and give nothing where there is nothing."""

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(3, 16 * i, 4 << i, 4 << i, bias=False) for i in (1, 2, 3))

    def forward(self, images):
        return [level(images) * 8 for level in self.levels]


@pytest.mark.parametrize("arch", ARCHS)
def test_padding_changes_nothing(arch):
    """But for three things of the originals, left out here: convolutions of the backbone reach across the
    border, group norms of the neck see the padding, and DINO's codes are of boxes relative to the padded picture."""
    torch.manual_seed(0)
    _, info = small(arch)
    network = hub.build(info, foreign.adopt(Patches()))
    for module in network.backbone.modules():
        if isinstance(module, nn.Sequential) and isinstance(module[-1], nn.GroupNorm):
            module[-1] = nn.Identity()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(
                torch.randn_like(parameter) * (parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.05)
            )
        if arch == "dino":
            network.decoder.position.layers[-1].weight.zero_()
        images, valid = padded(((128, 192), (64, 128)))
        together = every_layer(network, images, valid=valid)
        for i, (h, w) in enumerate(((128, 192), (64, 128))):
            alone = every_layer(network, images[i : i + 1, :, :h, :w])
            for one, other in zip(alone.layers, together.layers, strict=True):
                close(one.logits[0], other.logits[i], 1e-5)
                close(one.boxes[0], other.boxes[i], 1e-5)
                assert one.logits.std(1).mean() > 1e-3
        ignored = every_layer(network, images).layers[-1]
    assert (ignored.boxes[1] - together.layers[-1].boxes[1]).abs().max() > 1e-3  # the mask is not idle


def own_questions(network, outputs):
    """The network's own queries, put in from outside."""
    decoder, B = network.decoder, len(outputs.layers[0].logits)
    rows = decoder.queries.weight.expand(B, -1, -1)
    more = {"labels": torch.zeros(B, rows.shape[1], dtype=torch.int64), "segment": torch.zeros(rows.shape[1]).long()}
    if outputs.encoder is not None:
        return QueryGroup(boxes=outputs.encoder.boxes, content=rows, sees_own=False, **more)
    if rows.shape[2] == 4:
        content = rows.new_zeros(B, rows.shape[1], decoder.norm.normalized_shape[0])
        return QueryGroup(boxes=rows.sigmoid(), content=content, sees_own=False, **more)
    position, content = rows.chunk(2, dim=-1)
    points = decoder.point(position).sigmoid()
    return QueryGroup(boxes=torch.cat([points, points], -1), content=content, position=position, sees_own=False, **more)


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_groups_that_see_only_themselves(arch):
    """They change nothing, get the answers of the network's own queries to the same questions, and those that they get
    alone (specification, T11 and T14)."""
    network, info = small(arch)
    images, valid = padded()
    targets = some((2, 3))
    plain = every_layer(network, images, valid=valid)
    noisy = [DETECT.denoise(targets, LABELS, torch.Generator().manual_seed(1), 10, "paper")] if arch == "dino" else []
    own = own_questions(network, plain)
    half = slice(0, 5)
    other = QueryGroup(
        labels=own.labels[:, half],
        boxes=own.boxes[:, half].flip(1),
        segment=torch.tensor([0, 0, 1, 1, 1]),
        sees_own=False,
        content=torch.randn(own.content[:, half].shape),
        position=None if own.position is None else torch.randn(own.position[:, half].shape),
    )
    before = every_layer(network, images, noisy, valid)
    after = every_layer(network, images, [*noisy, own, other], valid)
    alone = every_layer(network, images, [other], valid)
    assert len(plain.layers) == 3
    for i, layer in enumerate(plain.layers):
        for name in ("logits", "boxes"):
            wanted, repeated = getattr(layer, name), getattr(after.groups[-2].layers[i], name)
            close(getattr(after.layers[i], name), wanted, 1e-5)
            close(repeated, wanted, 1e-4 if arch == "dino" else 1e-5)  # boxes of groups are kept 1e-5 from the border
            close(getattr(after.groups[-1].layers[i], name), getattr(alone.groups[0].layers[i], name), 1e-5)
            assert (getattr(after.groups[-1].layers[i], name) - wanted[:, half]).abs().max() > 1e-2
    loss = DETECT.loss(LABELS, info.size)
    after.groups = after.groups[: len(noisy)]
    first, second = loss(before, targets), loss(after, targets)
    assert first.keys() == second.keys() and len(first) == (21 if arch == "dino" else 9)
    for name, value in first.items():
        assert value.item() == pytest.approx(second[name].item(), abs=1e-4, rel=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("counts", ([2, 3], [0, 3], [0, 0]))
def test_every_trained_parameter_gets_a_gradient(arch, counts):
    network, info = small(arch, queries=6)
    targets = some(counts)
    group = DETECT.denoise(targets, LABELS, torch.Generator().manual_seed(1), 10 if arch == "dino" else 0, "paper")
    images, valid = padded()
    losses = DETECT.loss(LABELS, info.size)(network.train()(images, [group], valid=valid), targets)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    still = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert len(still) == 5 and all(
        name.startswith(("backbone.vit.network.conv1", "backbone.vit.network.layer1")) for name in still
    )
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert not [n for n, p in network.named_parameters() if ".bn" in n or "downsample.1" in n]
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None and parameter.grad.isfinite().all()) == parameter.requires_grad, name


PUBLISHED = {  # specification, 4.3: millions of parameters and billions of multiply-adds at 402 x 1333
    "dab-detr": {"r18": (31, 31), "r50": (44, 56), "r101": (63, 98)},
    "deformable-detr": {"r18": (24, 79), "r50": (40, 106), "r101": (59, 148)},
    "dino": {"r18": (31, 128), "r50": (47, 155), "r101": (66, 197)},
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_counts_of_the_paper(family):
    for size, (parameters, products) in PUBLISHED[family].items():
        with torch.device("meta"):
            network, _ = hub.create(f"{family}-{size}")
        counted = speed.parameters(network) / 1e6
        print(f"\n{family}-{size}: {counted:.1f} M parameters")
        assert counted == pytest.approx(parameters, abs=1)
        if size == "r18":
            assert multiply_adds(network) == pytest.approx(products, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("family", PUBLISHED)
@pytest.mark.parametrize("size", ["r50", "r101"])
def test_products_of_the_paper(family, size):
    with torch.device("meta"):
        network, _ = hub.create(f"{family}-{size}")
    assert multiply_adds(network) == pytest.approx(PUBLISHED[family][size][1], rel=0.05)


def multiply_adds(network):
    """Billions, at 402 x 1333."""
    counted = speed.flops(network, (402, 1333)).all_products / 2e9
    print(f"\n{counted:.1f} G multiply-adds")
    return counted


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_fused_and_kept_in_a_file(arch, tmp_path):
    network, info = small(arch)
    images, valid = padded()
    again, same = hub.load(hub.save(network, info, tmp_path / "a.safetensors"))
    assert same == info and info.input.resize == "keep"
    (wanted,) = network(images, valid=valid).layers
    for other in (fuse(network), again):
        (found,) = other(images, valid=valid).layers
        close(found.logits, wanted.logits, 1e-5)
        close(found.boxes, wanted.boxes, 1e-5)
    with pytest.raises(ValueError, match="no released layout"):
        hub.convert(tmp_path / "a.safetensors", tmp_path / "a.pth")


@pytest.mark.parametrize("family, epochs, drop", [("dab-detr", 50, 40), ("deformable-detr", 50, 40), ("dino", 12, 11)])
def test_a_constant_rate_and_a_tenth_of_it_at_the_end(family, epochs, drop):
    for size in ("r18", "r50", "r101"):
        recipe = recipe_for(f"{family}-{size}")
        plan = resolve(TrainConfig(data="x"), recipe, recipe.batch * 1000)
        assert (plan.epochs, plan.steps, plan.ema, plan.clip) == (epochs, 1000, 0.0, 0.1) and plan.augment.shortest
        assert plan.lr == 10 * plan.backbone_lr == (2e-4 if family == "deformable-detr" else 1e-4)
        facts = plan.total, plan.warmup, plan.flat, plan.plain_steps, plan.gamma, plan.warmup_power
        rates = [optim.factor(step + 1, *facts) for step in range(plan.total)]
        assert rates == [1.0] * (drop * 1000) + [0.1] * ((epochs - drop) * 1000)


TABLES = {"dab": DAB, "deformable": DEFORMABLE, "dino": DINO}


@pytest.mark.parametrize("arch", ARCHS)
def test_it_trains_from_nothing(arch, tmp_path, monkeypatch):
    """With a random backbone nothing is frozen, and a line says so."""
    options = {"width": 64, "enc_ffn": 48, "det_ffn": 48, "enc_layers": 2, "det_layers": 2, "queries": 20}
    monkeypatch.setitem(TABLES[arch], "r18", TABLES[arch]["r18"].changed(backbone="timm:resnet10t", **options))
    data = scenes.write(tmp_path / "data", train=4, val=2, size=64)
    options = {"weights": "none", "epochs": 1, "batch": 2, "imgsz": [64, 96], "workers": 0, "device": "cpu"}
    trained = train(TrainConfig(model=NAMES[arch], data=str(data), project=str(tmp_path / "runs"), **options))
    (line,) = read_rows(trained.folder / "results.csv")
    assert all(float(line[name]) > 0 for name in ("focal", "l1", "giou"))
    model = load(trained.best)
    assert not model.info.size.frozen and model.info.size.arch == arch
    norms = [m for m in model.network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and norms[0].running_mean.abs().max() > 0
    (result,) = model.predict(next((tmp_path / "data").rglob("*.[jp][pn]g")), conf=0.0)
    assert len(result.boxes) and result.boxes.isfinite().all()


def test_what_is_frozen_is_said():
    begun = start(origin("dino-r18"), LABELS, weights="none", backbone_weights="none")
    assert begun.random_vit and not begun.info.size.frozen
    assert any("norms, stem and first stage are trained too" in line for line in begun.lines)
    assert all(p.requires_grad for p in begun.network.parameters())
    network, _ = hub.create("dino-r18", LABELS)
    assert isinstance(network.backbone.vit, Foreign) and not network.backbone.vit.network.conv1.weight.requires_grad
