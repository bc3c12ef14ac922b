"""Feature maps as colours: the directions that are found, which maps share them, and the pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import edgecrafter
from edgecrafter import hub, vits
from edgecrafter.cli import main
from edgecrafter.features import colour, features
from edgecrafter.geometry import principal
from edgecrafter.maps import levels
from edgecrafter.model import Model
from edgecrafter.predict import pixels
from edgecrafter.sheet import CELL, EMPTY, GAP, Cell, Row, sheet
from edgecrafter.teachers import teacher
from edgecrafter.types import InputSpec, Labels, Outputs

SIZE = (64, 96)
QUICK = {"device": "cpu", "imgsz": SIZE}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(values).resize((90, 60), Image.Resampling.BICUBIC)


def made(name: str = "ecdet-p", seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model(*hub.create(name, Labels(("ball", "kite")), InputSpec(size=SIZE)))


def known(channels: int = 16, cells: tuple[int, int] = (8, 8), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A map [D, h, w] that is made of three directions [3, D] with coordinates [N, 3] that fall off in strength."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(channels, 3, generator=generator, dtype=torch.float64))[0].T
    places = torch.randn(cells[0] * cells[1], 3, generator=generator, dtype=torch.float64)
    places = torch.linalg.qr(places - places.mean(0))[0] * torch.tensor([5.0, 3.0, 1.0], dtype=torch.float64)
    features = places @ axes + torch.randn(channels, generator=generator, dtype=torch.float64)
    return features.T.reshape(channels, *cells), axes, places


def test_known_directions_come_back() -> None:
    features, wanted, places = known()
    cells = principal.tokens(features)
    axes = principal.directions([cells])
    assert torch.allclose((axes @ wanted.T).abs(), torch.eye(3, dtype=torch.float64), atol=1e-9)
    found = cells @ axes.T
    signs = (axes * wanted).sum(1).sign()
    assert torch.allclose(found * signs * places.square().sum(1).mean().sqrt(), places, atol=1e-9)
    assert principal.share(cells, axes) == pytest.approx(1)
    assert principal.share(cells, axes[:1]) == pytest.approx(25 / 35)


def test_colours_are_the_coordinates_on_the_scale_of_a_byte() -> None:
    features, _, _ = known()
    cells = principal.tokens(features)
    coordinates = cells @ principal.directions([cells]).T
    (found,) = principal.colours([coordinates])
    for wanted, values in zip(coordinates.T, found.double().T, strict=True):
        inside = (values > 0) & (values < 255)
        assert inside.sum() >= len(values) - 6  # what lies beyond the percentiles is cut off
        steps = torch.stack([wanted[inside], torch.ones(int(inside.sum()), dtype=torch.float64)], 1)
        line = torch.linalg.lstsq(steps, values[inside, None]).solution
        assert (steps @ line - values[inside, None]).abs().max() < 1


def test_a_direction_points_to_its_largest_entry_and_there_may_be_few() -> None:
    features, _, _ = known()
    axes = principal.directions([principal.tokens(features)], 5)
    assert axes.shape == (5, 16) and not axes[3:].any()  # the map has three
    assert (axes[:3].gather(1, axes[:3].abs().argmax(1, keepdim=True)) > 0).all()
    assert torch.equal(axes[:3], principal.directions([principal.tokens(features)]))
    assert principal.directions([principal.tokens(features[:2])]).shape == (3, 2)


def test_scale_offset_and_number_of_tokens_do_not_matter() -> None:
    """A network with features ten times as large, or a map with more cells, must not crowd out the others."""
    first, second = known(seed=1)[0], known(seed=2)[0]
    axes = principal.directions([principal.tokens(each) for each in (first, second)])
    larger = (10 * first + 7).repeat(1, 2, 1)
    assert torch.allclose(axes, principal.directions([principal.tokens(each) for each in (larger, second)]), atol=1e-9)


def test_a_map_without_structure_is_gray() -> None:
    for constant in (torch.full((8, 2, 2), 0.1), torch.zeros(8, 2, 2), torch.randn(8, 1, 1)):
        (cell,), _ = colour([constant])
        assert set(np.asarray(cell.picture).flat) == {128} and cell.caption.endswith(" 0 %")


def test_maps_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        principal.tokens(torch.full((4, 2, 2), torch.nan))


def test_one_basis_where_channels_agree_and_else_each_its_own() -> None:
    first, second, wide = known(seed=1)[0], known(seed=2)[0], known(24)[0]
    (a, _), said = colour([first, second])
    (alone,), only = colour([first])
    assert "one basis for the 2 maps" in said and only == "no other map shares the basis"
    assert a.caption.endswith(" %") and not a.caption.endswith(" 100 %") and alone.caption.endswith(" 100 %")
    assert not np.array_equal(a.picture, alone.picture)
    for maps, joint, words in (([first, wide], True, "16 and 24 channels"), ([first, second], False, "as asked for")):
        (own, _), said = colour(maps, joint)
        assert words in said and np.array_equal(own.picture, alone.picture)


def test_levels_are_named_by_their_stride() -> None:
    memory = [torch.zeros(1, 4, 64 // stride, 96 // stride) for stride in (8, 16, 32, 64)]
    assert list(levels(Outputs([], memory=memory[2:3]), 64)) == ["P5"]
    assert list(levels(Outputs([], aifi=memory[2], memory=memory), 64)) == ["F5", "P3", "P4", "P5", "P6"]


def test_maps_are_those_of_the_network(picture: Image.Image) -> None:
    model = made()
    (found,) = features(model, picture, basis="own", device="cpu")
    with torch.no_grad():
        outputs = model.network.eval()(model.info.input.normalise(pixels(picture, SIZE)[None]))
    assert outputs.aifi is not None
    for place, features_ in enumerate([outputs.aifi, *outputs.memory], 1):
        (cell,), _ = colour([features_[0]])
        wanted = cell.picture.resize((CELL, round(CELL * 64 / 96)), Image.Resampling.NEAREST)
        assert np.array_equal(wanted, cut(found.picture, place, 0))


def cut(picture: Image.Image, column: int, row: int) -> Image.Image:
    """One cell of a sheet: rows are found by the left edge of the input, which is not paper."""
    height = round(CELL * SIZE[0] / SIZE[1])
    left = GAP + column * (CELL + GAP)
    paper = (np.asarray(picture)[:, GAP : GAP + CELL] == 255).all((1, 2))
    dense = [top for top in range(len(paper) - height) if not paper[top : top + height].any()]
    tops = [top for top in dense if top - 1 not in dense]
    return picture.crop((left, tops[row], left + CELL, tops[row] + height))


def colours_of(picture: Image.Image) -> set[object]:
    return {colour for _, colour in picture.getcolors(1 << 20) or []}


def test_the_same_network_twice_gives_the_same_row_and_again(picture: Image.Image) -> None:
    model, other = made(), made(seed=1)
    (twice,) = features([model, model], picture, **QUICK)
    (again,) = features([model, model], picture, **QUICK)
    assert np.array_equal(twice.picture, again.picture)
    (mixed,) = features([model, other], picture, **QUICK)
    for column in range(1, 5):
        first, second = (np.asarray(cut(twice.picture, column, row)) for row in (0, 1))
        assert np.array_equal(first, second) and len(np.unique(first.reshape(-1, 3), axis=0)) > 5
        different = [np.asarray(cut(mixed.picture, column, row)) for row in (0, 1)]
        assert not np.array_equal(*different)
    assert "F5, P3, P4, P5: one basis for the 2 maps" in twice.notes[0]


def test_other_widths_tasks_and_teachers_in_one_picture(picture: Image.Image) -> None:
    given = ["ecdet-p", "ecpose-n", "ecseg-p", "timm:vit_tiny_patch16_224", teacher("ecvit-p", 2, weights="none")]
    gray = picture.convert("L")
    (found,) = features(given, gray, weights="none", **QUICK)
    assert found.picture.width == GAP + 6 * (CELL + GAP)
    assert "F5, P3, P4, P5: each map has a basis of its own (they have 64 and 128 channels)" in found.notes[0]
    assert "last block: each map has a basis of its own (they have 96 and 192 channels)" in found.notes[1]
    empty = [[colours_of(cut(found.picture, column, row)) == {EMPTY} for column in range(1, 6)] for row in range(5)]
    assert empty == 3 * [[False] * 4 + [True]] + 2 * [[True] * 4 + [False]]


def test_random_weights_are_those_of_the_seed_and_files_keep_theirs(tmp_path: Path, picture: Image.Image) -> None:
    model = made(seed=5)
    hub.save(model.network, model.info, tmp_path / "run/weights/best.safetensors")
    (loaded,) = features(tmp_path / "run", picture, weights="none", **QUICK)
    (plain,) = features(model, picture, **QUICK)
    assert np.array_equal(cut(loaded.picture, 1, 0), cut(plain.picture, 1, 0))
    state = torch.get_rng_state()
    rows = [features(["ecdet-p"], picture, weights="none", seed=seed, **QUICK)[0].picture for seed in (1, 1, 2)]
    assert np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[0], rows[2])
    assert torch.equal(state, torch.get_rng_state())


def test_a_vision_transformer_alone_is_a_teacher(tmp_path: Path, picture: Image.Image) -> None:
    vit = made().network.get_submodule("backbone.vit")
    file = tmp_path / "run/weights/backbone.safetensors"
    vits.save(vit, vits.row_of("ecvit-p")[1], file, {})
    rows = [features(each, picture, **QUICK)[0] for each in (file, tmp_path / "run")]
    assert rows[0].notes == ("last block: no other map shares the basis.",)
    assert np.array_equal(cut(rows[0].picture, 1, 0), cut(rows[1].picture, 1, 0))


class NoAttention(nn.Module):
    """The encoder of a detector, without F5."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, levels: list[Tensor]) -> tuple[list[Tensor], None]:
        return self.encoder(levels)[0], None


def test_a_detector_without_f5_is_said(picture: Image.Image) -> None:
    model = made()
    model.network.encoder = NoAttention(model.network.encoder)
    (found,) = features([model, made()], picture, **QUICK)
    assert found.notes[-1] == "1 ecdet-p: has no F5." and "F5: no other map shares the basis." in found.notes
    first, second = (colours_of(cut(found.picture, 1, row)) for row in (0, 1))
    assert first == {EMPTY} != second


def test_a_sheet_keeps_the_pixels_of_small_pictures_and_shrinks_large_ones() -> None:
    small, large = Image.new("RGB", (2, 1), (255, 0, 0)), Image.new("RGB", (2 * CELL, CELL), (0, 0, 255))
    small.putpixel((1, 0), (0, 255, 0))
    drawn = sheet(["a", "b"], [Row("first", (1, 2), {"a": Cell(small), "b": Cell(large)})], ["word " * 400])
    colours = {colour: count for count, colour in drawn.getcolors(1 << 20) or []}
    half = CELL * CELL // 4
    assert colours[255, 0, 0] == colours[0, 255, 0] == half and colours[0, 0, 255] == 2 * half
    assert drawn.width == 2 * CELL + 3 * GAP


@pytest.mark.parametrize(
    "models, images, options, message",
    [
        ([], "x.png", {}, "no model given"),
        (["ecdet-p"], [], {}, "no pictures given"),
        (["ecdet-p"], "nowhere.png", {}, "nowhere.png: there is no such file"),
        (["ecdet-q"], "x.png", {}, "neither a file nor a known model"),
        (["ecdet-q"], "x.png", {"weights": "none"}, "unknown model 'ecdet-q'"),
        (["ecdet-p"], "x.png", {}, "has no released weights"),
        (["ecdet-p"], "x.png", {"weights": "best"}, "weights=best: expected auto"),
        (["ecdet-p"], "x.png", {"basis": "mine"}, "basis=mine: expected joint"),
    ],
)
def test_errors_say_what_is_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: list, images: object, options: dict, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("x.png")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        features(models, images, device="cpu", **options)  # type: ignore[arg-type]


def test_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], picture: Image.Image
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a.jpg"):
        picture.save(name)
    words = ["--model", "ecdet-p", "--model", "ecvit-p", "a.png", "a.jpg", "--weights", "none"]
    assert main(["features", *words, "--imgsz", "64,96", "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in said] == [f"runs/features/features/{name}.png" for name in ("a", "a_2")]
    assert "F5, P3, P4, P5, last block: no other map shares the basis." in said[0]
    (wanted, _) = edgecrafter.features(["ecdet-p", "ecvit-p"], ["a.png", "a.jpg"], weights="none", **QUICK)
    with Image.open("runs/features/features/a.png") as drawn:
        assert np.array_equal(drawn, wanted.picture)
    assert main(["features", "a.png"]) == 2 and "no model given" in capsys.readouterr().err
    assert main(["features", "--model", "ecdet-p"]) == 2 and "no pictures given" in capsys.readouterr().err
