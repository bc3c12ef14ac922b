"""Random views of pictures without labels: what they show, that they can be had again, and what cannot be read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_data
import torch
from numpy.typing import NDArray
from PIL import Image

from edgecrafter.data import images, loader, scenes, unlabelled
from edgecrafter.data.dataset import Draw, generator
from edgecrafter.data.mixing import mix
from edgecrafter.data.placement import Placement
from edgecrafter.data.unlabelled import Paths, gather
from edgecrafter.data.views import Strength, Views, blur, crop, jitter, middle, needed

STILL = Strength(jitter=0.0, gray=0.0, blur=0.0, flip=0.0, mixup=0.0)
"""only the crop is random"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 pictures, JPEG and PNG, of several sizes."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(11):
        size = (60 + 9 * i, 130 - 7 * i)
        small_data.picture(size, i).save(root / f"{i:02}.{'png' if i % 3 == 0 else 'jpg'}")
    return root


def batches(paths: Paths, epoch: int = 0, **options: Any) -> list[torch.Tensor]:
    found = loader.views(paths, (32, 48), 4, **{"strength": Strength(), **options})
    found.set_epoch(epoch)
    return [batch.images for batch in found]


def test_same_seed_epoch_and_number_same_views_whoever_loads_them(folder: Path) -> None:
    paths, _ = gather([folder])
    first = batches(paths)
    assert len(first) == 2 and first[0].shape == (4, 3, 32, 48) and first[0].dtype == torch.uint8
    for again in (batches(paths), batches(paths, workers=2)):
        assert all(map(torch.equal, first, again))
    for other in (batches(paths, epoch=1), batches(paths, seed=1)):
        assert not any(map(torch.equal, first, other))


def test_ranks_share_the_batches_of_one_process(folder: Path) -> None:
    paths, _ = gather([folder])
    whole = loader.views(paths, (32, 32), 4, strength=STILL)
    parts = [loader.views(paths, (32, 32), 2, strength=STILL, rank=rank, world=2) for rank in range(2)]
    for batch, one, other in zip(whole, *parts, strict=True):
        assert torch.equal(batch.images[0::2], one.images) and torch.equal(batch.images[1::2], other.images)
        assert [t.path for t in batch.targets][1::2] == [t.path for t in other.targets]


def test_every_picture_once_in_an_epoch(folder: Path) -> None:
    paths, _ = gather([folder])
    shown = [t.path for b in loader.views(paths, (32, 32), 1, strength=Strength()) for t in b.targets]
    assert sorted(shown) == [str(path) for path in paths]
    plain = [b for b in loader.views(paths, (32, 32), 4)]
    assert [t.path for b in plain for t in b.targets] == [str(path) for path in paths]
    assert [len(b.targets) for b in plain] == [4, 4, 3]
    assert all(len(t.labels) == 0 and t.boxes.shape == (0, 4) for b in plain for t in b.targets)


def test_without_strength_the_middle_is_shown(tmp_path: Path) -> None:
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = (10, 200, 90)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    (batch,) = loader.views(Paths([tmp_path / "wide.png"]), (40, 40), 1)
    assert (batch.images[0].permute(1, 2, 0) == torch.tensor([10, 200, 90], dtype=torch.uint8)).all()
    assert middle((40, 100), (20, 40)).view == (10, 0, 90, 40)


def crops(size: tuple[int, int], canvas: tuple[int, int], strength: Strength, count: int = 500) -> Iterator[Placement]:
    for i in range(count):
        yield crop(size, canvas, strength, np.random.default_rng(i))


def test_crops() -> None:
    """Inside the picture, of 14 to 100 % of its area, of 3:4 to 4:3 of the view's aspect, half of them mirrored."""
    height, width, canvas = 300, 400, (64, 96)
    areas, ratios, mirrored = [], [], 0
    for placement in crops((height, width), canvas, Strength()):
        left, top, right, bottom = placement.view
        assert 0 <= left < right <= width + 1e-9 and 0 <= top < bottom <= height + 1e-9
        assert placement.onto == (0, 0, 96, 64)
        areas.append((right - left) * (bottom - top) / (height * width))
        ratios.append((right - left) / (bottom - top) / 1.5)
        mirrored += placement.mirrored
    assert 0.14 - 1e-9 <= min(areas) < 0.16 and 0.9 < max(areas) <= 1
    assert 0.75 - 1e-9 <= min(ratios) < 0.78 and 1.28 < max(ratios) <= 4 / 3 + 1e-9
    assert 200 < mirrored < 300
    # nothing of such an aspect fits into a strip: its middle then
    strip = next(crops((10, 1000), (32, 32), Strength(), 1))
    assert strip.view == (495, 0, 505, 10)


class Pixels:
    """Counts what is decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded: list[tuple[tuple[int, int] | None, tuple[int, int]]] = []
        read = images.read

        def counted(path: Path, min_size: tuple[int, int] | None = None) -> Image.Image:
            picture = read(path, min_size)
            self.decoded.append((min_size, picture.size[::-1]))
            return picture

        monkeypatch.setattr(images, "read", counted)


def test_a_picture_is_decoded_once_and_as_small_as_the_view_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.jpg"
    small_data.picture((800, 1200)).save(path)
    for least, scale in ((1.0, 8), (0.3, 4), (0.08, 2), (0.005, 1)):
        strength = replace(STILL, least_area=least, aspect=1.0001)
        seen = Pixels(monkeypatch)
        views = Views(Paths([path]), (64, 64), strength=strength)
        canvas = np.empty((64, 64, 3), np.uint8)
        for number in range(20):
            rng = np.random.default_rng(number)
            placement = crop((800, 1200), (64, 64), strength, np.random.default_rng(number))
            views._paint(path, rng, canvas)
            height = seen.decoded[-1][1][0]
            left, _, right, _ = placement.view
            shrunk = 800 / height
            # at least one decoded pixel for each of the view, and half of them would be too few, or 1/8 is the least
            assert (right - left) / shrunk >= 63.9 or shrunk == 1
            assert (right - left) / (2 * shrunk) < 64.1 or shrunk == 8
        assert len(seen.decoded) == 20
        assert max(800 // size[0] for _, size in seen.decoded) >= scale
        monkeypatch.undo()


def test_small_pictures_are_not_enlarged_before_the_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.jpg"
    small_data.picture((20, 30)).save(path)
    seen = Pixels(monkeypatch)
    batches(Paths([path, path]))
    assert {size for _, size in seen.decoded} == {(20, 30)}
    assert all(wanted is not None and wanted[0] <= 20 and wanted[1] <= 30 for wanted, _ in seen.decoded)
    assert needed(Placement((0, 0, 15, 10), (0, 0, 48, 32)), (20, 30)) == (20, 30)
    assert needed(Placement((0, 0, 300, 200), (0, 0, 30, 40)), (200, 300)) == (40, 30)


def test_a_view_shows_what_its_crop_says(tmp_path: Path) -> None:
    """Against cutting and resizing with Pillow; a mirrored view is the same turned around."""
    picture = small_data.picture((90, 120), 3)
    picture.save(tmp_path / "a.png")
    for number in range(6):
        strength = replace(STILL, flip=float(number % 2))
        canvas = np.empty((32, 32, 3), np.uint8)
        Views(Paths([tmp_path / "a.png"]), (32, 32), strength=strength)._paint(
            tmp_path / "a.png", np.random.default_rng(number), canvas
        )
        view = crop((90, 120), (32, 32), strength, np.random.default_rng(number)).view
        wanted = picture.crop(tuple(map(round, view))).resize((32, 32), Image.Resampling.BILINEAR)  # type: ignore[arg-type]
        found = canvas[:, ::-1] if number % 2 else canvas
        assert np.abs(found.astype(int) - np.asarray(wanted)).max() <= 2


YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def drawn(strength: Strength, count: int = 2000) -> list[NDArray[np.float64] | None]:
    found = (jitter(strength, np.random.default_rng(i)) for i in range(count))
    return [None if each is None else np.array(each).reshape(3, 4) for each in found]


def test_colour_jitter_is_a_linear_map_in_the_stated_ranges() -> None:
    """Gray stays gray: it is scaled by brightness x contrast about 114; the rest is in the chroma plane."""
    matrices = [m for m in drawn(replace(Strength(), jitter=1.0, gray=0.0)) if m is not None]
    assert len(matrices) == 2000
    contrasts, gains, chromas, angles = [], [], [], []
    for m in matrices:
        offset, turned = m[0, 3], YIQ @ m[:, :3] @ np.linalg.inv(YIQ)
        assert m[:, 3] == pytest.approx([offset] * 3)
        np.testing.assert_allclose(turned[0, 1:], 0, atol=1e-9)
        np.testing.assert_allclose(turned[1:, 0], 0, atol=1e-9)
        contrast = 1 - offset / 114
        contrasts.append(contrast)
        gains.append(turned[0, 0] / contrast)
        chromas.append(math.hypot(turned[1, 1], turned[2, 1]) / turned[0, 0])
        angles.append(math.atan2(turned[2, 1], turned[1, 1]) / (2 * math.pi))
    for values, low, high in ((gains, 0.6, 1.4), (contrasts, 0.6, 1.4), (chromas, 0.8, 1.2), (angles, -0.1, 0.1)):
        width = high - low
        assert low - 1e-9 <= min(values) < low + 0.01 * width and high - 0.01 * width < max(values) <= high + 1e-9
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=0.02 * width)


def test_gray_and_how_often() -> None:
    for m in drawn(replace(Strength(), jitter=0.0, gray=1.0), 5):
        assert m is not None
        np.testing.assert_allclose(m[:, :3], np.tile(YIQ[0], (3, 1)), atol=1e-9)
        np.testing.assert_allclose(m[:, 3], 0, atol=1e-9)
    found = drawn(Strength())
    unchanged = sum(m is None for m in found) / len(found)
    grays = sum(m is not None and np.allclose(m[0], m[1]) for m in found) / len(found)
    assert unchanged == pytest.approx(0.2 * 0.8, abs=0.03) and grays == pytest.approx(0.2, abs=0.03)


def test_blur() -> None:
    found = np.array([blur(Strength(), np.random.default_rng(i)) for i in range(2000)])
    assert np.mean(found == 0) == pytest.approx(0.5, abs=0.03)
    some = found[found > 0]
    assert 0.1 <= some.min() < 0.12 and 1.98 < some.max() <= 2.0 and some.mean() == pytest.approx(1.05, abs=0.03)


def test_blurred_views_are_smoother(folder: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "noise.png")
    try:
        spread = []
        for sigma in (0.0, 0.5, 2.0):
            strength = replace(STILL, least_area=1.0, aspect=1.0001, blur=float(sigma > 0), sigma=(sigma, sigma))
            views = Views(Paths([folder / "noise.png"] * 2), (64, 64), strength=strength)
            canvas = np.empty((64, 64, 3), np.uint8)
            views._paint(folder / "noise.png", np.random.default_rng(1), canvas)
            spread.append(canvas.std())
        assert spread[0] > spread[1] > 2 * spread[2]
    finally:
        (folder / "noise.png").unlink()


def test_mixup_of_a_batch(folder: Path) -> None:
    """Every view with the one before it, one share for the batch, drawn uniformly from 0 to 1."""
    paths, _ = gather([folder])
    plain, mixed = (batches(paths, strength=replace(STILL, mixup=p)) for p in (0.0, 1.0))
    for step, (before, after) in enumerate(zip(plain, mixed, strict=True)):
        rng = generator(Draw.BATCH, 0, 0, step)
        rng.random()
        share = rng.uniform(0, 1)
        wanted = share * before.float() + (1 - share) * before.roll(1, 0).float()
        assert (after.float() - wanted).abs().max() <= 1.5  # the share is rounded to 1/256, the result to a whole
    shares = []
    for step in range(1000):
        rng = generator(Draw.BATCH, 0, 0, step)
        rng.random()
        pair = np.array([255, 0], np.uint8).reshape(2, 1, 1, 1).repeat(3, axis=1)
        mix(pair, rng.uniform(0, 1))
        shares.append(pair[0, 0, 0, 0] / 255)
    assert np.histogram(shares, 4, (0, 1))[0] == pytest.approx([250] * 4, abs=45)


BROKEN = {
    "empty.jpg": b"",
    "text.jpg": b"no picture at all",
    "folder.jpg": None,
    "short.jpg": "cut",
    "short.png": "cut",
}


@pytest.fixture
def mixed_folder(folder: Path, tmp_path: Path) -> Path:
    """Three good pictures and all kinds of broken ones."""
    for i in range(3):
        small_data.picture((40, 50), i).save(tmp_path / f"good{i}.jpg")
    small_data.picture((40, 50)).save(tmp_path / "good.png")
    for name, content in BROKEN.items():
        if content is None:
            (tmp_path / name).mkdir()
        else:
            whole = (tmp_path / f"good.{name[-3:]}" if name[-3:] == "png" else tmp_path / "good0.jpg").read_bytes()
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    return tmp_path


def test_unreadable_pictures_are_replaced_and_listed(mixed_folder: Path) -> None:
    paths, _ = gather([mixed_folder])
    assert "folder.jpg" not in [path.name for path in paths] and len(paths) == 8
    found = loader.views(paths, (32, 32), 8, strength=STILL)
    for _ in range(2):
        (batch,) = found
        assert len(batch.targets) == 8
        assert all(Path(t.path).name.startswith("good") for t in batch.targets)
        unreadable = found.dataset.unreadable  # type: ignore[attr-defined]
        assert sorted(Path(name).name for name in unreadable) == ["empty.jpg", "short.jpg", "short.png", "text.jpg"]
    assert "the file is empty" in unreadable[str(mixed_folder / "empty.jpg")]
    assert all("\n" not in why and str(mixed_folder) not in why for why in unreadable.values())


def test_nothing_readable(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(b"nothing")
    paths, _ = gather([tmp_path])
    with pytest.raises(ValueError, match=r"3 pictures in a row cannot be read, the last: .*\.jpg: not a picture"):
        next(iter(loader.views(paths, (32, 32), 2, strength=STILL)))
    with pytest.raises(ValueError, match=r"none of 3 pictures can be read, the first: .*b\.jpg: not a picture"):
        unlabelled.readable(paths, [1, 0, 2], 2)
    many = Paths([tmp_path / "a.jpg"] * 500)
    with pytest.raises(ValueError, match="none of 1 pictures"):  # the same one, 100 times
        unlabelled.readable(many, range(500), 2)


def test_readable_ones_are_found(mixed_folder: Path) -> None:
    paths, _ = gather([mixed_folder])
    found, failed = unlabelled.readable(paths, range(8), 4)
    assert [paths[i].name for i in found] == ["good.png", "good0.jpg", "good1.jpg", "good2.jpg"]
    assert [Path(name).name for name in failed] == ["empty.jpg"]
    found, failed = unlabelled.readable(paths, range(8), 99)
    assert len(found) == 4 and len(failed) == 4


def test_pictures_of_all_kinds(shared_data: Path) -> None:
    """Real files as they come: gray, CMYK, 16 bits, EXIF turned, animated; and broken ones."""
    paths, _ = gather([shared_data / "bad" / "images"])
    found = loader.views(paths, (32, 32), len(paths), strength=STILL)
    (batch,) = found
    bad = {Path(name).name for name in found.dataset.unreadable}  # type: ignore[attr-defined]
    assert {"text.jpg", "truncated.jpg", "zero_byte.jpg", "header_only.jpg", "huge_header.png"} <= bad
    assert {"ok_0.jpg", "gray.jpg", "cmyk.jpg", "gray16.png", "exif6.jpg", "one_pixel.png"}.isdisjoint(bad)
    assert {Path(t.path).name for t in batch.targets}.isdisjoint(bad)


def test_paths_hold_any_name() -> None:
    names = ["/a/b.jpg", "/ä/中 é.JPG", os.fsdecode(b"/latin/\xe9.png"), "/" + "x" * 300]
    paths = Paths(names)
    assert [str(path) for path in paths] == names and len(paths) == 4
    assert str(paths[-1]) == names[3] and str(paths.subset([2, 0])[1]) == names[0]
    assert os.fsencode(paths[2]) == b"/latin/\xe9.png"
    for index in (4, -5):
        with pytest.raises(IndexError):
            paths[index]
    assert len(Paths([])) == 0 and list(Paths([])) == []


def test_gather(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco = scenes.write(tmp_path / "coco", train=3, val=2, size=64)
    nested = tmp_path / "nested"
    for name in ("a.JPG", "deep/er/b.webp", "deep/notes.txt", ".hidden.jpg", ".cache/c.jpg", "other/é.png"):
        (nested / name).parent.mkdir(parents=True, exist_ok=True)
        (nested / name).write_bytes(b"never opened")
    (nested / "link").symlink_to(nested / "deep", target_is_directory=True)  # and so seen already
    (nested / "elsewhere").symlink_to(folder, target_is_directory=True)
    (nested / "deep" / "round").symlink_to(nested, target_is_directory=True)
    paths, lines = gather([nested])
    assert [path.name for path in paths][:3] == ["a.JPG", "b.webp", "00.png"] and len(paths) == 3 + 11
    assert lines == [f"{nested}: 14 pictures (a folder and what is below)"]
    paths, lines = gather([coco, nested / "other"])
    assert len(paths) == 4 and lines[0] == f"{coco}: 3 pictures (training pictures of a data set)"
    one = sorted(folder.glob("*.jpg"))[0]
    listed = nested / "list.txt"
    listed.write_text(f"a.JPG\n\n{one}\n  other/é.png  \n", encoding="utf-8")
    paths, lines = gather([listed, one.parent])
    assert [path.name for path in paths][:3] == ["a.JPG", one.name, "é.png"]
    assert lines[1] == f"{folder}: 10 pictures (a folder and what is below)"  # one of them was listed
    assert len(gather([one])[0]) == 1
    monkeypatch.chdir(nested)
    paths, _ = gather(["deep", "other"])
    assert all(path.is_absolute() for path in paths)


def test_yolo_data_sets_give_their_training_pictures(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(count):
            small_data.picture((20, 20), i).save(tmp_path / "images" / split / f"{i}.jpg")
            (tmp_path / "labels" / split / f"{i}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [thing]\n")
    for source in (tmp_path, tmp_path / "data.yaml"):
        paths, lines = gather([source])
        assert len(paths) == 3 and all(path.parent.name == "train" for path in paths)
        assert "training pictures of a data set" in lines[0]


def test_gather_finds_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pictures given: images=FOLDER"):
        gather([])
    with pytest.raises(FileNotFoundError, match=r"images=.*nowhere: there is no such file or folder"):
        gather([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"no pictures there \(a folder and what is below\)"):
        gather([tmp_path])
    with pytest.raises(ValueError, match="or all of them were named before"):
        gather([folder, folder])
    (tmp_path / "page.html").write_text("no list")
    with pytest.raises(ValueError, match="expected a folder, a COCO .json or a YOLO .yaml"):
        gather([tmp_path / "page.html"])
