"""Where decoders look: what is recorded is what is read, it lands in the right cells, and the pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import edgecrafter
from edgecrafter import hub
from edgecrafter.attention import CELL, answers, attention, chosen, heat, look, overlay, recorded, within
from edgecrafter.cli import main
from edgecrafter.geometry.splat import splat
from edgecrafter.model import Model
from edgecrafter.models.detr.dab import ConditionalCrossAttention
from edgecrafter.nn.attention import Looks
from edgecrafter.nn.deformable import DeformableAttention, PointAttention, Projected, split_heads
from edgecrafter.sheet import GAP
from edgecrafter.types import InputSpec, Labels, LayerOutput, Skeleton

SIZE = (64, 96)
QUICK = {"device": "cpu", "conf": 0.0, "max_det": 5}
LABELS = Labels(("ball", "kite"), skeleton=Skeleton(("top", "left", "right")))
NAMES = (
    "ecdet-p",
    "ecinsseg-p",
    "ecpose-p",
    "rtdetrv4-p",
    "dfine-s",
    "rtdetrv2-r18",
    "dino-r18",
    "deformable-detr-r18",
    "dab-detr-r18",
)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(values).resize((90, 60), Image.Resampling.BICUBIC)


def made(name: str = "ecdet-p", seed: int = 0) -> Model:
    torch.manual_seed(seed)
    spec = InputSpec(size=SIZE, resize="keep" if "detr-" in name or name.startswith("dino") else "stretch")
    network, info = hub.create(name, LABELS, spec)
    for module in network.get_submodule("decoder").modules():
        if isinstance(module, (DeformableAttention, PointAttention)):  # they begin alike for all queries and layers
            nn.init.normal_(module.offsets.weight, std=0.05)
            nn.init.normal_(module.weights.weight, std=0.05)
    return Model(network.eval(), info)


def seen(seed: int = 0, count: int = 1) -> Tensor:
    return torch.randint(256, (count, 3, *SIZE), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_a_weight_at_a_centre_stays_in_its_cell_and_between_two_it_is_shared() -> None:
    places = torch.tensor([[2.5 / 8, 3.5 / 4], [4 / 8, 0.5 / 4]], dtype=torch.float64)
    found = splat(places, torch.tensor([2.0, 1.0], dtype=torch.float64), (4, 8))
    wanted = torch.zeros(4, 8, dtype=torch.float64)
    wanted[3, 2], wanted[0, 3], wanted[0, 4] = 2, 0.5, 0.5
    assert torch.allclose(found, wanted, atol=1e-12)


def test_splat_is_the_reverse_of_what_the_networks_read() -> None:
    random = torch.Generator().manual_seed(0)
    places = torch.rand(200, 2, generator=random, dtype=torch.float64) * 1.6 - 0.3  # some beyond the border
    weights, values = (torch.rand(shape, generator=random, dtype=torch.float64) for shape in ((200,), (5, 7)))
    read = F.grid_sample(values[None, None], (2 * places - 1)[None, None], align_corners=False)[0, 0, 0]
    assert torch.allclose((splat(places, weights, (5, 7)) * values).sum(), (read * weights).sum(), atol=1e-9)
    assert 0.3 * weights.sum() < splat(places, weights, (5, 7)).sum() < 0.9 * weights.sum()


@pytest.mark.parametrize("kind", [DeformableAttention, PointAttention])
def test_points_and_weights_are_those_that_are_read(kind: type[DeformableAttention] | type[PointAttention]) -> None:
    torch.manual_seed(0)
    attend = Projected(kind(32, 4, (2, 3)), 32)
    for part in (attend.points.offsets, attend.points.weights):
        nn.init.normal_(part.weight, std=0.2)
    query, places = torch.randn(2, 5, 32), torch.rand(2, 5, 4 if kind is DeformableAttention else 2)
    memory = [torch.randn(2, 32, 6, 8), torch.randn(2, 32, 3, 4)]
    found = attend.looks(query, places, memory)
    assert found.places is not None and found.places.shape == (2, 5, 4, 5, 2)
    values = split_heads([attend.value(level.flatten(2).mT).mT.unflatten(2, level.shape[2:]) for level in memory], 4)
    read = torch.zeros(2, 4, 8, 5)  # [B, heads, D / heads, Q], point by point
    for point, level in enumerate([0, 0, 1, 1, 1]):
        at = (2 * found.places[:, :, :, point] - 1).transpose(1, 2).flatten(0, 1)[:, None]
        here = F.grid_sample(values[level], at, align_corners=False)[:, :, 0].unflatten(0, (2, 4))
        read += here * found.weights[:, :, :, point].permute(0, 2, 1)[:, :, None]
    assert torch.allclose(attend.output(read.permute(0, 3, 1, 2).flatten(2)), attend(query, places, memory), atol=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_dense_weights_are_those_that_are_read_and_padding_has_none(first: bool) -> None:
    torch.manual_seed(0)
    attend = ConditionalCrossAttention(32, 4, first)
    given = [torch.randn(2, count, 32) for count in (5, 5, 5, 12, 12)]
    real = torch.ones(2, 1, 1, 12, dtype=torch.bool)
    real[1, ..., 7:] = False
    weights = attend.looks(*given, real).weights
    assert weights.shape == (2, 5, 4, 12) and torch.equal(weights[1] > 0, real[1, 0].expand(5, 4, 12))
    values = attend.value(given[3]).unflatten(-1, (4, 8))
    wanted = torch.einsum("bqhn,bnhd->bqhd", weights, values).flatten(2)
    assert torch.allclose(attend.output(wanted), attend(*given, real), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_decoder_is_recorded_and_undisturbed(name: str) -> None:
    model = made(name)
    looks, layer, level = look(model, model.info.input, seen())
    assert len(looks) == len(list(model.network.get_submodule("decoder.layers").children()))
    queries = layer.logits.shape[1]
    for each in looks:
        assert each.weights.shape[1] in (queries, 4 * queries)  # pose: an object and three keypoints
        assert torch.allclose(each.weights.sum(-1), torch.ones(()), atol=1e-5)
        few = chosen(each, queries, torch.tensor([3, 0]))
        given = few if few.places is None else Looks(few.weights, few.places.clamp(0.2, 0.8))  # nothing is lost then
        assert heat(given, level).shape == level and float(heat(given, level).sum()) == pytest.approx(2)
    assert (looks[-1].places is None) == (name == "dab-detr-r18")
    with torch.inference_mode():
        again = model.network(model.info.input.normalise(seen())).layers[-1]
    assert torch.equal(again.logits, layer.logits)
    assert len(looks) == len(list(model.network.get_submodule("decoder.layers").children()))  # hooks are gone


def test_the_tokens_of_a_pose_belong_to_its_query() -> None:
    places = torch.arange(12.0)[None, :, None, None, None].expand(1, 12, 2, 3, 2)  # 3 queries of 4 tokens
    found = chosen(Looks(torch.full((1, 12, 2, 3), 1 / 3), places), 3, torch.tensor([2]))
    assert found.places is not None and found.places.unique().tolist() == [8, 9, 10, 11]
    assert found.weights.shape == (1, 1, 8, 3)


def still(model: Model) -> Model:
    """All points of a query at its own place."""
    for name, module in model.network.named_modules():
        if name.startswith("decoder") and hasattr(module, "offsets"):
            nn.init.zeros_(module.offsets.weight)
            nn.init.zeros_(module.offsets.bias)
    return model


def test_padding_moves_points_along_with_the_picture() -> None:
    model = still(made("deformable-detr-r18"))
    valid = torch.zeros(1, 64, 96, dtype=torch.bool)
    valid[:, :64, :48] = True
    with torch.inference_mode(), recorded(model.network) as looks:
        model.network(torch.zeros(1, 3, 64, 96))
        model.network(torch.zeros(1, 3, 64, 96), valid=valid)
    alone, padded = looks[0].places, looks[6].places
    assert len(looks) == 12 and alone is not None and padded is not None and alone.std(dim=(2, 3)).max() < 1e-6
    ratios = torch.tensor([6 / 12, 3 / 6, 2 / 3, 1 / 2]).repeat_interleave(4)  # of tokens in a row that are picture
    assert torch.allclose(padded[..., 0], alone[..., 0] * ratios) and torch.allclose(padded[..., 1], alone[..., 1])


def test_a_network_that_keeps_ratios_sees_the_picture_alone(picture: Image.Image) -> None:
    model = made("dab-detr-r18")
    images = torch.zeros(1, 3, *model.info.input.fitted(60, 90), dtype=torch.uint8)
    looks, _, level = look(model, model.info.input, images)
    assert level == (2, 3) and looks[-1].weights.shape[-1] == 6 and (looks[-1].weights > 0).all()
    (found,) = attention(model, picture, **QUICK)
    assert found.notes == ()


def test_a_token_and_a_point_lie_in_their_cell_of_the_picture() -> None:
    tokens = torch.zeros(1, 1, 2, 32, dtype=torch.float64)
    tokens[..., 3 * 8 + 2] = 1
    point = torch.tensor([2.5 / 8, 3.5 / 4], dtype=torch.float64).expand(1, 1, 2, 1, 2)
    paper, bright = Image.new("RGB", (160, 80)), []
    for looks in (Looks(tokens), Looks(torch.ones(1, 1, 2, 1, dtype=torch.float64), point)):
        drawn = np.asarray(overlay(paper, heat(looks, (4, 8)), torch.zeros(0, 4))).sum(-1)
        rows, columns = drawn.nonzero()
        bright.append((rows.min(), rows.max(), columns.min(), columns.max()))
    assert bright == 2 * [(60, 79, 40, 59)]


def test_how_much_is_read_in_the_own_box() -> None:
    places = torch.tensor([[0.1, 0.1], [0.4, 0.6]], dtype=torch.float64).expand(1, 2, 1, 2, 2)
    looks = Looks(torch.tensor([0.25, 0.75], dtype=torch.float64).expand(1, 2, 1, 2), places)
    boxes = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.3, 0.5, 0.5, 0.7]])
    assert within(looks, boxes, (4, 4)) == pytest.approx((0.25 + 0.75) / 2)
    tokens = Looks(torch.full((1, 1, 2, 16), 1 / 16, dtype=torch.float64))
    assert within(tokens, torch.tensor([[0.0, 0.0, 0.5, 0.3]]), (4, 4)) == pytest.approx(2 / 16)


def test_answers_are_queries_of_one_class_each() -> None:
    scores = torch.tensor([[[0.9, 0.8, 0.1], [0.2, 0.3, 0.99], [0.1, 0.6, 0.2], [0.1, 0.2, 0.3]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4]] * 4]) + torch.arange(4)[None, :, None] * 0.01
    layer, labels = LayerOutput(torch.logit(scores), boxes), Labels(("a", "b", "c"), unused=(2,))
    found = answers(layer, labels, 0.5, 10)
    assert found.queries.tolist() == [0, 2] and found.best == pytest.approx(0.9)
    assert torch.allclose(found.boxes[0], torch.tensor([0.4, 0.3, 0.6, 0.7]))
    assert torch.allclose(found.boxes[1], torch.tensor([0.41, 0.31, 0.63, 0.73]))
    assert answers(layer, labels, 0.0, 3).queries.tolist() == [0, 2, 1]
    none = answers(layer, labels, 0.95, 10)
    assert len(none.boxes) == 0 and none.best == pytest.approx(0.9)


def column(picture: Image.Image, place: int) -> np.ndarray:
    """Of a sheet with one row and headings of one line: the cells of a column, without their upper and lower border."""
    left = GAP + place * (CELL + GAP)
    return np.asarray(picture.crop((left, 100, left + CELL, 380)))


def test_identical_networks_have_identical_columns(picture: Image.Image) -> None:
    model = made()
    (twice,) = attention([model, model], picture, **QUICK)
    assert np.array_equal(column(twice.picture, 1), column(twice.picture, 2))
    (mixed,) = attention([model, made(seed=1)], picture, **QUICK)
    assert np.array_equal(column(mixed.picture, 1), column(twice.picture, 1))
    assert not np.array_equal(column(mixed.picture, 1), column(mixed.picture, 2))
    assert twice.picture.width == GAP + 3 * (CELL + GAP)


def test_layers_are_rows(picture: Image.Image) -> None:
    model = made()
    last, third, first, all_ = (
        attention(model, picture, layer=layer, **QUICK)[0].picture for layer in (None, 3, 1, [1, 2, 3])
    )
    assert np.array_equal(column(last, 1), column(third, 1)) and not np.array_equal(column(last, 1), column(first, 1))
    assert np.array_equal(column(all_, 1), column(first, 1)) and all_.height > 2 * last.height


def test_where_nothing_is_found_it_is_said(picture: Image.Image) -> None:
    (found,) = attention(made(), picture, device="cpu", conf=0.9)
    assert found.notes == ("1 ecdet-p: no answer of 0.9 or more, the best has 0.01: lower conf.",)
    drawn = column(found.picture, 1)
    assert (drawn == drawn[..., :1]).all() and drawn.max() < 128  # the dark picture, without boxes


@pytest.mark.parametrize(
    "models, options, message",
    [
        ([], {}, "no model given"),
        (["ecvit-p"], {}, "ecvit-p, random: has no decoder"),
        (["ecdet-p"], {"layer": 4}, r"layer=4: the decoder of ecdet-p, random weights has layers 1 to 3"),
        (["ecdet-p"], {"layer": [1, 0]}, r"layer=0: the decoder"),
        (["ecdet-p"], {"conf": 1.5}, "conf=1.5: the least score"),
        (["ecdet-p"], {"max_det": 0}, "max_det=0: expected 1 or more"),
        (["ecdet-p"], {"weights": "auto"}, "has no released weights"),
        (["ecdet-q"], {}, "unknown model 'ecdet-q'"),
    ],
)
def test_errors_say_what_is_expected(models: list, options: dict, message: str, picture: Image.Image) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        attention(models, picture, device="cpu", **{"weights": "none", **options})  # type: ignore[arg-type]


def test_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], picture: Image.Image
) -> None:
    monkeypatch.chdir(tmp_path)
    picture.save("a.png")
    words = ["--model", "ecdet-p", "--model", "ecpose-p", "a.png", "--weights", "none", "--imgsz", "64,96"]
    assert main(["attention", *words, "--device", "cpu", "--conf", "0", "--max_det", "5", "--layer", "1,3"]) == 0
    assert capsys.readouterr().out == "runs/attention/attention/a.png\n"
    (wanted,) = edgecrafter.attention(
        ["ecdet-p", "ecpose-p"], "a.png", weights="none", imgsz=SIZE, layer=[1, 3], **QUICK
    )
    with Image.open("runs/attention/attention/a.png") as drawn:
        assert np.array_equal(drawn, wanted.picture)
    assert main(["attention", "a.png"]) == 2 and "no model given" in capsys.readouterr().err
    assert main(["attention", "--model", "ecdet-p"]) == 2 and "no pictures given" in capsys.readouterr().err
