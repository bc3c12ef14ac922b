"""An export predicts and is scored like the network that it was made of, and refuses everything else in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import annotations, picture
from small_exports import CASES, LABELS, SIZE, copied, spread, tiny, write

import edgecrafter as ec
from edgecrafter import hub
from edgecrafter.cli import main
from edgecrafter.deployed import network
from edgecrafter.evaluate import evaluate
from edgecrafter.export import metadata
from edgecrafter.infer import detect
from edgecrafter.results import Result
from edgecrafter.start import origin
from edgecrafter.types import InputSpec

PICTURES = [picture((90, 140), 0), picture((200, 120), 1), picture((64, 64), 2)]


def same(found: Result, wanted: Result, pixels: float = 1e-2) -> None:
    assert found.labels.tolist() == wanted.labels.tolist() and found.boxes_from == wanted.boxes_from
    torch.testing.assert_close(found.scores, wanted.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.boxes, wanted.boxes, atol=pixels, rtol=0)
    if wanted.keypoints is not None:
        torch.testing.assert_close(found.keypoints, wanted.keypoints, atol=pixels, rtol=0)
    if wanted.masks is not None:
        assert found.masks is not None and (found.masks.array() != wanted.masks.array()).mean() < 1e-3


@pytest.mark.parametrize("task, kind", CASES)
def test_an_export_predicts_as_torch_does(task: str, kind: str) -> None:
    folder, predictor = tiny(task, kind)
    loaded = ec.load(folder)
    assert loaded.names == predictor.info.labels.names and loaded.info.task == task
    assert loaded.device == torch.device("cpu")
    for options in ({"conf": 0.3}, {"conf": 0.3, "batch": 3}, {"conf": 0.2, "classes": [1]}):
        wanted = predictor(PICTURES, **options)  # type: ignore[arg-type]
        assert any(map(len, wanted))
        for ours, theirs in zip(loaded.predict(PICTURES, **options), wanted, strict=True):  # type: ignore[arg-type]
            same(ours, theirs)


def test_pairs_that_a_full_graph_left_out_are_not_found() -> None:
    loaded, predictor = ec.load(tiny("segment", "full")[0]), tiny("segment", "full")[1]
    for ours, theirs in zip(
        loaded.predict(PICTURES, conf=0, classes=[2]), predictor(PICTURES, 0, classes=[2]), strict=True
    ):
        assert (ours.scores > 0).all()
        same(ours, theirs)


def test_an_export_is_scored_as_torch_is(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for index in range(6):
        picture((60, 90), index).save(tmp_path / f"{index}.png")
        low = rng.uniform(0, 40, (3, 2))
        rows.append([(row % 3, (*low[row], *(low[row] + 15)), False) for row in range(3)])
    truth = annotations(LABELS, rows, [(60, 90)] * 6, tmp_path)
    folder, predictor = tiny("detect", "raw")
    wanted = evaluate(predictor.network, predictor.info, truth, batch=4, progress=False)
    found = evaluate(*network.load(folder), truth, batch=4, progress=False)
    assert found.overall == pytest.approx(wanted.overall, abs=1e-6, nan_ok=True)
    assert len(found.scorer.results()) == len(wanted.scorer.results())


def test_an_export_is_given_by_its_folder_or_a_file(tmp_path: Path) -> None:
    folder, predictor = tiny("detect", "raw")
    alone = tmp_path / "renamed.onnx"
    alone.write_bytes((folder / "model.onnx").read_bytes())  # what describes it is inside, too
    wanted = predictor(PICTURES[0])[0]
    for path in (folder, folder / "model.onnx", str(alone), folder / metadata.FILE):
        if path != folder / metadata.FILE:
            assert hub.is_export(path)
        same(ec.Model(*network.load(path)).predict(PICTURES[0])[0], wanted)
    assert not hub.is_export(tmp_path) and not hub.is_export("ecdet-s") and not hub.is_export(tmp_path / "no.onnx")


def test_a_strange_file_is_refused(tmp_path: Path) -> None:
    import onnx

    folder, _ = tiny("detect", "raw")
    proto = onnx.load(folder / "model.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "strange.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    for name, words in (("strange.onnx", "not exported by edgecrafter"), ("broken.onnx", "not a readable ONNX file")):
        with pytest.raises(ValueError, match=words):
            ec.load(tmp_path / name)
    copied(folder, tmp_path)  # the metadata beside it are of another file
    with pytest.raises(ValueError, match="not exported by edgecrafter"):
        ec.load(tmp_path / "strange.onnx")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="onnxruntime cannot open it"):
        ec.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a file nor a known model"):
        ec.load(tmp_path / "absent.onnx")


def test_what_does_not_fit_an_export_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = tiny("segment", "raw")
    loaded = ec.load(folder)
    refused = "is an export, which can predict and be scored"
    for call in (loaded.fuse, loaded.summary, lambda: loaded.save(tmp_path / "x.safetensors"), loaded.export):
        with pytest.raises(ValueError, match=refused):
            call()
    for given in (folder, folder / "model.onnx"):
        for read in (hub.locate, hub.load, hub.resolve, origin):
            with pytest.raises(ValueError, match=refused):
                read(given)
    with pytest.raises(ValueError, match="mask_blocks: .* takes no such options"):
        ec.load(folder, mask_blocks=0)
    with pytest.raises(ValueError, match="runs where its runtime does"):
        ec.load(folder, "cuda")
    with pytest.raises(ValueError, match="takes 64 x 96 only"):
        loaded.predict(PICTURES[0], imgsz=64)
    same(loaded.predict(PICTURES[0], imgsz=SIZE)[0], loaded.predict(PICTURES[0])[0])
    with pytest.raises(ValueError, match="precision: an export has the one that it was written in, fp32"):
        detect(loaded.network, loaded.info.input, torch.zeros(1, 3, *SIZE, dtype=torch.uint8), [SIZE], precision="bf16")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        ec.load(folder)


def test_the_commands_take_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = tiny("detect", "raw")
    PICTURES[0].save(tmp_path / "street.png")
    words = ["predict", str(folder / "model.onnx"), str(tmp_path / "street.png"), "--conf", "0.1"]
    assert main([*words, "--project", str(tmp_path / "runs")]) == 0
    assert "street.png: " in capsys.readouterr().out and list((tmp_path / "runs").rglob("street.png"))
    data = tmp_path / "data"
    (data / "images" / "val").mkdir(parents=True)
    (data / "labels" / "val").mkdir(parents=True)
    (data / "data.yaml").write_text(f"path: {data}\ntrain: images/val\nval: images/val\nnames: [cat, dog, bird]\n")
    PICTURES[0].save(data / "images" / "val" / "a.png")
    (data / "labels" / "val" / "a.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    words = ["val", "--model", str(folder), "--data", str(data), "--workers", "0", "--project", str(tmp_path / "runs")]
    assert main(words) == 0
    assert "AP" in capsys.readouterr().out
    for more, said in (
        (["--fuse"], "is an export"),
        (["--precision", "bf16"], "precision"),
        (["--imgsz", "32"], "64 x 96"),
    ):
        assert main([*words, *more]) == 1
        assert said in capsys.readouterr().err
    assert main(["info", str(folder)]) == 1 and "is an export" in capsys.readouterr().err


def test_pictures_that_keep_their_ratio_are_padded() -> None:
    loaded, info = network.load(tiny("detect", "raw")[0])
    assert info.input == InputSpec(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    seen = {}

    class Spy:
        size = SIZE

        def run(self, images: np.ndarray, valid: np.ndarray) -> dict[str, np.ndarray]:
            seen.update(images=images, valid=valid)
            return {"logits": np.zeros((1, 2, 3), np.float32), "boxes": np.ones((1, 2, 4), np.float32)}

    loaded.session = Spy()  # type: ignore[assignment]
    loaded.meta = {**loaded.meta, "input": {**loaded.meta["input"], "resize": "keep"}}
    loaded(torch.ones(1, 3, 40, 96), None)
    assert seen["images"].shape == (1, 3, *SIZE) and seen["images"].sum() == 3 * 40 * 96
    assert seen["valid"].sum() == 40 * 96 and seen["valid"][0, :40].all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raw", "full", "npu"])
@pytest.mark.parametrize("name", ["ecdet-n", "ecinsseg-n", "ecpose-n"])
def test_real_networks(name: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made, info = spread(*hub.create(name, depth=4))
    write(made, info, kind, None if kind != "npu" else 1, tmp_path / "export")
    loaded, wanted = ec.load(tmp_path / "export"), ec.Model(made, info).predict(PICTURES, conf=0.1)  # type: ignore[arg-type]
    scripted = network.infer.Model(tmp_path / "export").predict(PICTURES, conf=0.1)
    for ours, theirs, script in zip(loaded.predict(PICTURES, conf=0.1), wanted, scripted, strict=True):
        assert len(theirs) > 20
        same(ours, theirs, pixels=0.5)  # random weights make much of rounding
        assert script.labels.tolist() == ours.labels.tolist()
        assert script.boxes == pytest.approx(ours.boxes.numpy(), abs=1e-3)  # the same file ran
