"""Run lengths: the same masks as pixels, whatever the sizes, and the same strings as COCO's own tools."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgecrafter.geometry import runs

SIZES = [(1, 1), (1, 7), (9, 1), (3, 3), (5, 8), (13, 20), (33, 77), (100, 60), (40, 40), (201, 199)]


def dense(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def assert_same(logits: Tensor, size: tuple[int, int]) -> None:
    """The masks are the dense ones, but for pixels whose value is rounded to either side of zero."""
    found, values = runs.from_logits(logits, size), dense(logits, size)
    wrong = found.array() != (values > 0).numpy()
    assert not wrong[values.abs().numpy() > 1e-5 * float(logits.abs().max())].any()
    for counts in found.counts:
        assert counts.sum() == size[0] * size[1] and (counts[1:] > 0).all() and counts[0] >= 0


def blobs(count: int, cells: tuple[int, int], grain: int, seed: int = 0) -> Tensor:
    """Smooth noise with many edges, half of it in."""
    noise = torch.randn(count, 1, grain, grain, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, cells, mode="bicubic")[:, 0]


@pytest.mark.parametrize("cells", [(1, 1), (1, 5), (5, 1), (4, 4), (7, 9), (20, 13), (40, 40)])
def test_same_as_dense_resizing(cells: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(6, *cells, generator=generator)
    shifted = noise + torch.tensor([-9, 9, 1.5, -1.5, 0, -0.5])[:, None, None]  # all out, all in, few edges
    for size in SIZES:
        assert_same(noise, size)
        assert_same(shifted, size)
        assert_same(noise.round(), size)  # many are zero


def test_zero_is_out() -> None:
    logits = torch.tensor([[[1.0], [0.0], [2.0], [-1.0], [0.0]], [[0.0], [0.0], [0.0], [1.0], [1.0]]])
    assert runs.from_logits(logits, (5, 1)).array()[..., 0].tolist() == [
        [True, False, True, False, False],
        [False, False, False, True, True],
    ]
    # 3 rows for a cell: between 0 and 1 only the centre of the zero is out, and what lies above it
    grown = runs.from_logits(torch.tensor([[[0.0], [1.0]]]), (6, 1)).array()[0, :, 0]
    assert grown.tolist() == [False, False, True, True, True, True]


def test_edges_that_fall_between_two_rows_of_a_smaller_picture() -> None:
    stripes = torch.tensor([1.0, -1, -1, 1, 1, 1, 1, -1]).reshape(1, 8, 1)  # rows sample between 0|1, 2|3, 4|5, 6|7
    assert dense(stripes, (4, 1))[0, :, 0].tolist() == [0, 0, 1, 0]
    assert runs.from_logits(stripes, (4, 1)).counts[0].tolist() == [2, 1, 1]
    assert runs.from_logits(stripes, (1, 1)).counts[0].tolist() == [0, 1]
    fine = torch.where(torch.arange(64) % 2 == 0, 3.0, -1.0).reshape(1, 64, 1)
    assert_same(fine, (5, 3))


@pytest.mark.parametrize("chunk", [1, 40 * 77 * 2, 1 << 30])
def test_chunks_change_nothing(chunk: int) -> None:
    logits = blobs(7, (40, 50), 6)
    whole, parts = runs.from_logits(logits, (33, 77)), runs.from_logits(logits, (33, 77), chunk)
    assert all((a == b).all() for a, b in zip(whole.counts, parts.counts, strict=True))
    assert len(runs.from_logits(logits[:0], (33, 77), chunk)) == 0


def test_full_and_empty_masks() -> None:
    found = runs.from_logits(torch.tensor([1.0, -1.0, 0.0])[:, None, None].expand(3, 4, 4), (6, 9))
    assert [counts.tolist() for counts in found.counts] == [[0, 54], [54], [54]]
    assert found.areas().tolist() == [54, 0, 0]
    assert found.boxes().tolist() == [[0, 0, 9, 6], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_half_precision_and_gradients_are_taken() -> None:
    logits = blobs(2, (10, 10), 4).half().requires_grad_()
    assert_same(logits.detach().float(), (30, 20))
    assert (runs.from_logits(logits, (30, 20)).array() == runs.from_logits(logits.float(), (30, 20)).array()).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_are_finite(value: float) -> None:
    logits = torch.zeros(2, 3, 3)
    logits[1, 2, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        runs.from_logits(logits, (5, 5))


def random_pixels(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.random((shape[0], -(-shape[1] // 5), -(-shape[2] // 5))) > 0.6
    blocks = coarse.repeat(5, axis=1).repeat(5, axis=2)[:, : shape[1], : shape[2]]
    return blocks ^ (rng.random(shape) > 0.97)


@pytest.mark.parametrize("shape", [(20, 50, 40), (3, 1, 9), (3, 9, 1), (2, 1, 1), (0, 4, 5), (4, 300, 470)])
def test_pixels_and_runs(shape: tuple[int, int, int]) -> None:
    pixels = random_pixels(shape)
    found = runs.from_array(pixels)
    assert found.array().shape == shape and (found.array() == pixels).all()
    assert found.areas().tolist() == pixels.sum(axis=(1, 2)).tolist()
    for box, mask in zip(found.boxes().tolist(), pixels, strict=True):
        y, x = np.nonzero(mask)
        assert box == ([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0])


def test_a_run_into_the_next_column_has_the_whole_height() -> None:
    pixels = np.zeros((1, 4, 3), dtype=bool)
    pixels[0, 3, 0] = pixels[0, 0, 1] = True  # one run of two pixels
    assert runs.from_array(pixels).counts[0].tolist() == [3, 2, 7]
    assert runs.from_array(pixels).boxes().tolist() == [[0, 0, 2, 4]]


def test_chosen_masks() -> None:
    found = runs.from_array(random_pixels((5, 20, 30)))
    for index in (torch.tensor([3, 0, 3]), np.array([3, 0, 3]), [3, 0, 3]):
        assert (found[index].array() == found.array()[[3, 0, 3]]).all()
    assert (found[torch.tensor([True, False, False, True, False])].array() == found.array()[[0, 3]]).all()
    assert (found[1:3].array() == found.array()[1:3]).all()
    assert len(found[[]]) == len(found[torch.zeros(0, dtype=torch.int64)]) == len(found[torch.zeros(5).bool()]) == 0


@pytest.mark.parametrize("kind", [int, np.int64, torch.tensor])
def test_one_mask_by_its_number(kind: Callable[[int], int]) -> None:
    found = runs.from_array(random_pixels((5, 20, 30)))
    for row in (0, 3, 4, -1, -5):
        one = found[kind(row)]
        assert len(one) == 1 and one.size == (20, 30) and (one.array()[0] == found.array()[row]).all()
    for row in (5, -6):
        with pytest.raises(IndexError, match="size 5"):
            found[kind(row)]


def test_masks_one_by_one() -> None:
    found = runs.from_array(random_pixels((5, 20, 30)))
    for one, pixels in zip(found, found.array(), strict=True):
        assert len(one) == 1 and (one.array() == pixels).all()
    assert list(found[[]]) == []


def test_coco_strings_are_those_of_pycocotools() -> None:
    tool = pytest.importorskip("pycocotools.mask")
    pixels = np.concatenate(
        [random_pixels((20, 300, 470)), np.zeros((1, 300, 470), bool), np.ones((1, 300, 470), bool)]
    )
    found = runs.from_array(pixels)
    codes = found.to_coco()
    for code, mask in zip(codes, pixels, strict=True):
        wanted = tool.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert code == {"size": [300, 470], "counts": wanted["counts"].decode()}
    again = runs.decode([code["counts"].encode() for code in codes])
    assert all(np.array_equal(a, b) for a, b in zip(again, found.counts, strict=True))


def test_coco_strings_of_any_lengths() -> None:
    tool = pytest.importorskip("pycocotools.mask")
    powers = [1 << bits for bits in range(25)]
    edges = np.array([1, *(value + step for value in powers for step in (-1, 0, 1)), 5, 7, 3], dtype=np.int64)
    mixed = np.random.default_rng(0).permutation(edges)
    lists = [edges, mixed, edges[::-1].copy(), np.array([9]), np.array([0, 9]), np.array([2, 3, 4])]
    codes = runs.encode(lists)
    for counts, code in zip(lists, codes, strict=True):
        size = (int(counts.sum()), 1)
        assert code == tool.frPyObjects({"size": size, "counts": counts.tolist()}, *size)["counts"]
    assert all((a == b).all() for a, b in zip(runs.decode(codes), lists, strict=True))
    assert runs.encode([]) == [] and runs.decode([]) == []


def test_a_large_photo_equals_the_dense_computation() -> None:
    """Some of the 100 masks of 4000 x 3000 pixels that ``benchmarks/masks.py`` takes."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 160), torch.linspace(-1, 1, 160), indexing="ij")
    logits = torch.cat([blobs(1, (160, 160), 24), (0.64 - x.square() - y.square())[None]])
    assert_same(logits, (3000, 4000))
    assert 0.4 < runs.from_logits(logits, (3000, 4000)).areas().mean() / 12e6 < 0.6


@pytest.mark.skipif(sys.platform != "linux", reason="the memory is read from /proc")
@pytest.mark.parametrize("kind", ["disc", "noise"])
def test_a_hundred_masks_of_a_large_photo_take_little(kind: str) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "masks.py"
    words = [sys.executable, str(script), "--only", "ours", "--kind", kind, "--rounds", "3", "--threads", "1"]
    told = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True).stdout
    numbers = json.loads(told.splitlines()[-1])
    print(f"100 masks of 4000 x 3000 pixels, {kind}: {numbers}")
    assert numbers["megabytes"] < 1500 and numbers["seconds"] < 2
