"""The numbers that compare teachers, on cases whose answers are known, and the table of a small comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_data
import torch

from edgecrafter import advise as advising
from edgecrafter.advise import Advice, advise
from edgecrafter.distill import advise as numbers
from edgecrafter.distill.teacher import Teacher
from edgecrafter.train.distill_config import DistillConfig


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ridge_finds_a_linear_teacher_whole() -> None:
    x, new_x, weights = noise(400, 8), noise(100, 8, seed=1), noise(8, 20, seed=2)
    found = numbers.ridge(x, [x @ weights + 3], new_x, [new_x @ weights + 3])
    assert found == pytest.approx(1, abs=1e-6)


def test_ridge_serves_all_blocks_with_one_answer() -> None:
    """Two blocks m + d and m - d: what is lost of each is d, whatever the student knows."""
    x, new_x = noise(400, 8), noise(200, 8, seed=1)
    weights, other = noise(8, 20, seed=2), noise(8, 20, seed=3)
    found = numbers.ridge(
        x, [x @ (weights + other), x @ (weights - other)], new_x, [new_x @ (weights + other), new_x @ (weights - other)]
    )
    mean, spread = new_x @ weights, new_x @ other
    blocks = torch.stack([mean + spread, mean - spread])
    variance = ((blocks - blocks.mean(1, keepdim=True)) ** 2).sum()
    assert found == pytest.approx(float(1 - 2 * (spread**2).sum() / variance), abs=1e-4)


def test_ridge_of_a_teacher_that_has_nothing_to_do_with_the_student() -> None:
    """Held out, noise cannot be told from noise: about 0, and never as good as the fit to the same rows would look."""
    found = numbers.ridge(noise(600, 16), [noise(600, 20, seed=5)], noise(600, 16, seed=6), [noise(600, 20, seed=7)])
    assert -0.05 < found < 0.01


def test_ridge_shrinks_where_there_are_fewer_rows_than_channels() -> None:
    """40 rows, 60 channels, much noise: least squares would do far worse than the mean, the chosen penalty does not."""
    x, new_x = noise(40, 60), noise(500, 60, seed=1)
    found = numbers.ridge(x, [noise(40, 5, seed=2)], new_x, [noise(500, 5, seed=3)])
    plain = torch.linalg.lstsq(x, noise(40, 5, seed=2)).solution
    error = ((new_x @ plain - noise(500, 5, seed=3)) ** 2).sum() / (noise(500, 5, seed=3) ** 2).sum()
    assert found > 1 - float(error) and found > -0.8


def test_ceiling() -> None:
    low = noise(300, 4) @ noise(4, 20, seed=1) + 7
    assert numbers.ceiling([low], 4) == pytest.approx(1, abs=1e-9)
    assert numbers.ceiling([low], 3) < 0.99
    # variances 4, 1, 1 of three channels: two directions have five sixths
    q, _ = torch.linalg.qr(noise(200, 3) - noise(200, 3).mean(0))
    y = q * torch.tensor([2.0, 1.0, 1.0])
    assert numbers.ceiling([y], 2) == pytest.approx(5 / 6)
    assert numbers.ceiling([y], 3) == pytest.approx(1)
    # two blocks m + d, m - d in the same three channels: their difference is lost in any case
    d = q[:, [1, 2, 0]] * 0.5
    blocks = torch.stack([y + d, y - d])
    variance = float((blocks**2).sum())
    assert numbers.ceiling([y + d, y - d], 3) == pytest.approx(1 - 2 * 0.75 / variance)


def test_ceiling_bounds_what_a_fit_to_the_same_rows_gives() -> None:
    x, blocks = noise(300, 6), [noise(300, 20, seed=1), noise(300, 20, seed=2)]
    assert numbers.ridge(x, blocks, x, blocks) <= numbers.ceiling(blocks, 6) + 1e-9


def test_cka() -> None:
    x = noise(500, 6)
    turn, _ = torch.linalg.qr(noise(6, 6, seed=1))
    assert numbers.cka(x, 3 * x @ turn + 5) == pytest.approx(1)
    assert numbers.cka(x, noise(500, 6, seed=2)) < 0.1
    y = noise(500, 9, seed=3) + x[:, :1]
    centre = np.eye(500) - 1 / 500
    k, m = (centre @ z.numpy() @ z.numpy().T @ centre for z in (x, y))
    assert numbers.cka(x, y) == pytest.approx((k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m))
    assert numbers.cka(x, torch.ones(500, 3)) == 0


def test_tokens_of_the_same_places() -> None:
    maps = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    where = numbers.places(2, (4, 5), 6, seed=0)
    assert where.shape == (2, 6) and all(len(set(row.tolist())) == 6 for row in where)
    assert numbers.places(2, (4, 5), 99, seed=0).shape == (2, 20)
    found = numbers.tokens(maps, (4, 5), where).reshape(2, 6, 3)
    for picture in range(2):
        for i, place in enumerate(where[picture].tolist()):
            assert torch.equal(found[picture, i], maps[picture, :, place // 5, place % 5])
    assert numbers.tokens(maps, (8, 10), numbers.places(2, (8, 10), 80, seed=0)).shape == (160, 3)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(9):
        small_data.picture((50, 70), i).save(folder / f"{i}.jpg")
    (folder / "broken.jpg").write_bytes((folder / "0.jpg").read_bytes()[:200])
    return folder


def options(pictures: Path, *names: str, **changes: object) -> DistillConfig:
    given = {"student": "ecvit-p", "imgsz": 64, "device": "cpu", "teacher_weights": "none"}
    return DistillConfig(images=[str(pictures)], advise=list(names), **{**given, **changes})  # type: ignore[arg-type]


def test_a_small_comparison(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = advise(options(pictures, "timm:test_vit", str(pictures / "no.pt"), "timm:no_such_model"))
    said = capsys.readouterr().out
    first, *others = found
    assert first.width == 64 and first.reason == "" and first.licence
    assert first.ceiling is not None and 0.5 < first.ceiling <= 1
    assert first.ridge is not None and first.ridge <= first.ceiling
    assert first.cka is not None and 0 <= first.cka <= 1
    assert first.images_per_second > 0 and 0.2e6 < first.parameters < 0.5e6
    assert all(row.ceiling is None and row.reason for row in others)
    assert "timm has no model 'no_such_model'" in others[1].reason
    assert "9 pictures are looked at, 4 to fit and 5 to test" in said
    assert "random weights of seed 0" in said and "None of this predicts AP" in said
    assert sum(line.startswith("timm:") for line in said.splitlines()) == 3  # two rows and a reason
    again = advise(options(pictures, "timm:test_vit"))[0]
    assert (again.ceiling, again.ridge, again.cka) == (first.ceiling, first.ridge, first.cka)


def test_a_teacher_that_the_student_copies(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student itself as its teacher: a ridge regression gives its last block whole."""

    def itself(*_: object) -> Teacher:
        return Teacher(advising._student(options(pictures))[0], advising.InputSpec(), "itself", blocks=1)

    monkeypatch.setattr(advising, "find_teacher", itself)
    (found,) = advise(options(pictures, "itself", imgsz=128))  # 256 tokens to fit, 96 channels
    assert found.cka == pytest.approx(1) and found.ceiling == pytest.approx(1)
    assert found.ridge is not None and found.ridge > 0.99


def test_too_few_pictures(tmp_path: Path) -> None:
    for i in range(3):
        small_data.picture((20, 20), i).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="3 pictures that can be read are too few to compare"):
        advise(options(tmp_path, "timm:test_vit"))


def test_table() -> None:
    rows = [Advice("a", 64, 1_500_000, 0.5, -0.25, 0.125, 12.34, 256.4), Advice("long name", reason="is not there")]
    lines = advising.table(rows).splitlines()
    assert lines[0].split() == ["teacher", "width", "parameters", "ceiling", "ridge", "cka", "images/s", "memory"]
    assert lines[1].split() == ["a", "64", "1.5", "M", "0.500", "-0.250", "0.125", "12.3", "256", "MB"]
    assert lines[2].split() == ["long", "name", *"-------"] and lines[3] == "long name: is not there"
