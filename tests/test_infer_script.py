"""The script that travels with an export finds what the package finds, with neither torch nor the package."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import picture
from small_exports import CASES, SIZE, copied, tiny
from torch.nn import functional as F

from edgecrafter.deployed import infer
from edgecrafter.export import npu
from edgecrafter.geometry import runs
from edgecrafter.results import Result
from edgecrafter.types import InputSpec

BLOCKED = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "edgecrafter"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
script, *sys.argv[1:] = sys.argv[1:]
sys.path[:] = [place for place in sys.path if place]
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of every kind: on their side, gray, of 16 bits, with a palette, and more than eight of them."""
    folder, exif = tmp_path_factory.mktemp("photos"), Image.Exif()
    exif[0x0112] = 6
    picture((90, 140), 0).save(folder / "turned.jpg", exif=exif)
    exif[0x0112] = 4
    picture((70, 50), 6).save(folder / "mirrored.tif", exif=exif)
    picture((200, 120), 1).convert("L").save(folder / "gray.png")
    deep = np.asarray(picture((50, 60), 2).convert("L")).astype(np.uint16) * 200
    Image.fromarray(deep).save(folder / "deep.png")
    picture((64, 96), 3).convert("P").save(folder / "palette.gif")
    picture((33, 301), 4).convert("RGBA").save(folder / "wide.webp", lossless=True)
    for index in range(3):
        picture((100 + index, 120), 10 + index).save(folder / f"{index}.jpg")
    return folder


def same(found: infer.Found, wanted: Result) -> None:
    """The same detections but for rounding; pixels of masks may differ at their edge."""
    assert found.size == wanted.size and len(found.labels) == len(wanted)
    assert found.labels.tolist() == wanted.labels.tolist()
    assert found.scores == pytest.approx(wanted.scores.numpy(), abs=1e-5)
    assert found.boxes == pytest.approx(wanted.boxes.numpy(), abs=1e-3)
    assert (found.keypoints is None) == (wanted.keypoints is None) and (found.masks is None) == (wanted.masks is None)
    if wanted.keypoints is not None:
        assert found.keypoints == pytest.approx(wanted.keypoints.numpy(), abs=1e-3)
    if wanted.masks is not None:
        ours = np.array([mask.array() for mask in found.masks or []]).reshape(-1, *found.size)
        assert (ours != wanted.masks.array()).mean() < 1e-4


@functools.cache
def wanted_of(task: str, kind: str, photos: Path) -> list[Result]:
    return tiny(task, kind)[1](photos, conf=0.3)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("task, kind", CASES)
def test_the_script_finds_what_torch_finds(task: str, kind: str, batch: int, photos: Path) -> None:
    folder, _ = tiny(task, kind)
    wanted = wanted_of(task, kind, photos)
    assert len(wanted) == 9 and all(0 < len(each) < 40 for each in wanted)
    for ours, theirs in zip(infer.Model(folder).predict(photos, conf=0.3, batch=batch), wanted, strict=True):
        same(ours, theirs)
    if task == "segment":
        covers = np.concatenate([each.masks.array().mean((1, 2)) for each in wanted if each.masks])
        assert 0.02 < covers.mean() < 0.9 and covers.std() > 0.02  # there is something to compare
    if task == "pose":
        assert all((each.keypoints[each.labels == 2][:, 1:3] == 0).all() for each in wanted)  # type: ignore[index]


@pytest.mark.parametrize("task, kind", [("segment", "raw"), ("pose", "raw")])
@pytest.mark.parametrize("options", [{"max_det": 5}, {"classes": [1]}, {"classes": ["dog", "bird"]}, {"conf": 0.0}])
def test_options_mean_the_same(task: str, kind: str, options: dict[str, Any], photos: Path) -> None:
    folder, predictor = tiny(task, kind)
    if "dog" in options.get("classes", []) and task == "pose":
        options = {"classes": ["fish"]}
    given = [picture((90, 140), 0), np.asarray(picture((60, 60), 5)), str(photos / "gray.png")]
    for ours, theirs in zip(infer.Model(folder).predict(given, **options), predictor(given, **options), strict=True):
        same(ours, theirs)


def test_a_fixed_batch_is_filled_and_cut(photos: Path, tmp_path: Path) -> None:
    folder, predictor = tiny("detect", "raw")
    meta = json.loads((folder / "metadata.json").read_text())
    copied(folder, tmp_path, input={**meta["input"], "batch": 2})
    for batch in (1, 3):
        for ours, theirs in zip(infer.Model(tmp_path).predict(photos, batch=batch), predictor(photos), strict=True):
            same(ours, theirs)


@pytest.mark.parametrize("task, kind", [("segment", "full"), ("pose", "raw")])
def test_it_runs_without_torch_and_without_the_package(task: str, kind: str, photos: Path, tmp_path: Path) -> None:
    folder, wanted = tiny(task, kind)[0], wanted_of(task, kind, photos)
    words = [str(folder / "infer.py"), str(photos), "--conf", "0.3", "--json", "found.json", "--draw", "drawn"]
    command = [sys.executable, "-c", BLOCKED, *words, "--threads", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 9 and "9 pictures" in done.stderr
    assert len(list((tmp_path / "drawn").glob("*.jpg"))) == 9
    for ours, theirs in zip(json.loads((tmp_path / "found.json").read_text()), wanted, strict=True):
        said = theirs.to_dict()
        assert ours["path"] == said["path"] and ours["size"] == said["size"]
        for found, other in zip(ours["detections"], said["detections"], strict=True):
            assert list(found) == list(other) and found["name"] == other["name"]
            assert found["box"] == pytest.approx(other["box"], abs=1e-3)
            points = [[point["name"] for point in each.get("keypoints", [])] for each in (found, other)]
            assert points[0] == points[1]


def test_the_script_imports_little() -> None:
    names = set()
    for node in ast.walk(ast.parse(Path(infer.__file__).read_text(encoding="utf-8"))):
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
    others = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert others == {"numpy", "PIL"}


@pytest.mark.parametrize("cells", [(1, 1), (5, 7), (24, 16)])
@pytest.mark.parametrize("size", [(1, 1), (13, 40), (97, 64), (200, 11)])
def test_masks_are_those_of_torch(cells: tuple[int, int], size: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(cells) + sum(size))
    for shift in (-3.0, -1.5, 0.0, 3.0):
        logits = (rng.normal(size=cells) + shift).astype(np.float32)
        values = F.interpolate(torch.from_numpy(logits)[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        found, clear = infer.mask(logits, size), (values.abs() > 1e-5).numpy()
        assert found.array().shape == size
        assert (found.array() == (values > 0).numpy())[clear].all()
        assert found.to_coco() == runs.from_array(found.array()[None]).to_coco()[0]


@pytest.mark.parametrize("sizes", [[0.05, 0.1], None])
def test_the_host_chooses_as_torch_does(sizes: list[float] | None) -> None:
    facts = {"queries": 5, "levels": [[4, 6], [2, 3]], "anchor_sizes": sizes, "margin": 0.1, "outside": 100.0}
    if sizes:  # torch makes three levels' sizes by itself
        facts["anchor_sizes"] = [npu.ANCHOR_SIZE * 2.0**level for level in range(2)]
        facts["margin"] = npu.MARGIN
    rng = np.random.default_rng(0)
    found = {"proposals": rng.normal(size=(2, 30)), "tokens": rng.normal(size=(2, 30, 3)), "memory_0": np.ones((2, 3))}
    found = {name: value.astype(np.float32) for name, value in found.items()}
    wanted = npu.chosen({name: torch.from_numpy(value) for name, value in found.items()}, facts)
    ours = infer.choose(found, facts)
    assert set(ours) == set(wanted)
    for name, value in ours.items():
        assert value == pytest.approx(wanted[name].numpy(), abs=1e-5), name


@pytest.mark.parametrize("size", [(30, 90), (90, 30), (64, 96), (500, 20)])
def test_pictures_that_keep_their_ratio_lie_in_the_frame(size: tuple[int, int]) -> None:
    meta = {"input": {"size": list(SIZE), "resize": "keep"}}
    pixels, valid = infer.prepare(picture(size), meta)
    h, w = InputSpec(SIZE, resize="frame").fitted(*size)
    assert pixels.shape == (3, *SIZE) and valid[:h, :w].all() and valid.sum() == h * w
    assert (h == 64 or w == 96) and h <= 64 and w <= 96


def _no_metadata(folder: Path) -> None:
    (folder / "metadata.json").unlink()


def _changed(**values: Any) -> Callable[[Path], None]:
    return lambda folder: copied(folder, folder, **values)


def _no_model(folder: Path) -> None:
    (folder / "model.onnx").unlink()


@pytest.mark.parametrize(
    "change, error, words",
    [
        (_no_metadata, FileNotFoundError, "metadata.json is missing"),
        (_no_model, FileNotFoundError, "model.onnx is missing"),
        (_changed(edgecrafter=99), ValueError, "another version"),
        (
            _changed(parts=[{"file": "../../secret.onnx", "inputs": {}, "outputs": []}]),
            FileNotFoundError,
            "secret.onnx",
        ),
        (_changed(runtime="abacus", format="beads"), ValueError, "'beads' cannot be run here"),
        (lambda folder: (folder / "metadata.json").write_text("[1]"), ValueError, "not hold the metadata"),
        (_changed(input={"batch": 1}), ValueError, "damaged"),
        (_changed(input={"size": [10**6, 10**6], "batch": 1}), ValueError, "damaged"),
        (_changed(parts=[]), ValueError, "damaged"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"x"), ValueError, "onnxruntime cannot open it"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(
    change: Callable[[Path], object], error: type[Exception], words: str, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    copied(tiny("detect", "raw")[0], folder)
    change(folder)
    with pytest.raises(error, match=words):
        infer.Model(folder)


def test_what_is_wrong_with_a_call_is_said(tmp_path: Path) -> None:
    model = infer.Model(tiny("pose", "raw")[0])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for given, options, error in [
        (tmp_path / "absent.png", {}, FileNotFoundError),
        (tmp_path / "broken.png", {}, ValueError),
        (np.zeros((4, 4, 3)), {}, ValueError),
        (picture((9, 9)), {"classes": "cow"}, ValueError),
        (picture((9, 9)), {"classes": 0}, ValueError),  # stands for nothing
        (picture((9, 9)), {"conf": 2}, ValueError),
        (picture((9, 9)), {"max_det": 0}, ValueError),
        (picture((9, 9)), {"batch": 0}, ValueError),
    ]:
        with pytest.raises(error):
            model.predict(given, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes 64 x 96 only"):
        model.session.run(np.zeros((1, 3, 96, 64), np.float32))
    assert model.predict(tmp_path) == []  # found in a folder, and passed over


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = tiny("detect", "raw")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        infer.Model(folder)
    assert all(session.modules and session.package for session in infer.SESSIONS.values())
    assert not infer.SESSIONS["coreml"].available() or sys.platform == "darwin"
