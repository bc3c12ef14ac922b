"""Exports to ONNX: what is written, that it answers as torch does, and that a wrong one is caught."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_int8 import traced_once

import edgecrafter as ec
from edgecrafter import hub
from edgecrafter.cli import main
from edgecrafter.export import parity
from edgecrafter.export.config import ExportConfig
from edgecrafter.export.formats import FORMATS, Format, Options
from edgecrafter.export.graph import GRAPHS, graph
from edgecrafter.export.run import ParityError
from edgecrafter.model import Model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(autouse=True, scope="module")
def traced() -> Iterator[None]:
    with traced_once():
        yield


def lively(name: str, **small: int) -> Model:
    """A network of random weights, none of them zero, whose scores are spread: the best are the best by far."""
    torch.manual_seed(3)
    network, info = hub.create(name, **small)
    with torch.no_grad():
        decoder: Any = network.decoder
        for parameter in decoder.parameters():
            if parameter.dim() > 1 and not parameter.any():
                parameter.normal_(std=0.1)
        for head in (decoder.enc_score, *decoder.scores):
            head.weight.mul_(20)
    return Model(network.eval(), info)


@pytest.fixture(scope="module")
def model() -> Model:
    return lively("ecdet-p", depth=2, det_layers=2, queries=60)


@pytest.fixture(scope="module")
def exported(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "raw"
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    kinds = [type(module) for module in model.network.modules()]
    found = model.export(graph="raw", batch="dynamic", imgsz=[64, 96], folder=str(folder))
    assert found.parity is not None and found.parity.passed and found.parity.detections >= 20, found
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
    assert [type(module) for module in model.network.modules()] == kinds, "the live model is left alone"
    return found.folder


def test_the_folder_says_what_the_model_is(model: Model, exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == ["infer.py", "metadata.json", "model.onnx"]
    beside = json.loads((exported / "metadata.json").read_text())
    proto = onnx.load(exported / "model.onnx")
    within = json.loads({entry.key: entry.value for entry in proto.metadata_props}["edgecrafter"])
    assert beside["parity"]["passed"] and beside["parity"]["images"] == 4
    assert beside == within, "the proof included"
    assert beside["model"]["labels"]["names"] == list(model.names)
    assert beside["licence"] == model.info.licence and beside["source"] == model.info.source
    assert beside["input"]["size"] == [64, 96] and beside["input"]["batch"] is None
    assert beside["input"]["normalisation"]["mean"] == pytest.approx(model.info.input.mean)
    assert len(beside["sha256"]) == 64 and beside["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_any_batch_answers_as_torch(model: Model, exported: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    module = graph(model.network, model.info, "raw", (64, 96), None).parts[0].module
    for count in (1, 3, 8):
        images = torch.rand(count, 3, 64, 96, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            expected = module(images)
        for ours, theirs in zip(session.run(None, {"images": images.numpy()}), expected, strict=True):
            rows = np.isclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-3).all(-1)
            assert rows.mean() > 0.98, "all but queries whose tokens are chosen with almost equal scores"


def test_the_graph_is_the_network(model: Model) -> None:
    """With pixels in 0..1, normalised inside."""
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    part = graph(model.network, model.info, "raw", (64, 64), 2).parts[0]
    with torch.inference_mode():
        expected = model.network(model.info.input.normalise(images)).layers[-1]
        logits, boxes = part.module(images)
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(boxes, expected.boxes, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["ecdet-p", "ecinsseg-p", "ecpose-p", "rtdetrv4-p"])
def test_the_full_graph_chooses_as_prediction_does(name: str) -> None:
    from edgecrafter.postprocess import decode

    model = lively(name)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    part = graph(model.network, model.info, "full", (64, 64), 2).parts[0]
    with torch.inference_mode():
        found = dict(zip(part.outputs, part.module(images), strict=True))
        layer = model.network(model.info.input.normalise(images)).layers[-1]
    used = torch.tensor(model.info.labels.used) if model.info.labels.unused else None
    for i, ours in enumerate(decode(layer, [(1, 1)] * 2, classes=used)):
        torch.testing.assert_close(found["scores"][i], ours.scores, atol=1e-5, rtol=1e-4)
        best = ours.scores > ours.scores[20]  # further down the order of equals is anyone's
        assert torch.equal(found["labels"][i][: len(best)][best], ours.labels[best])
        torch.testing.assert_close(found["boxes"][i][: len(best)][best], ours.boxes[best], atol=1e-4, rtol=1e-3)
        if ours.keypoints is not None:
            points = found["keypoints"][i][: len(best)][best]
            torch.testing.assert_close(points, ours.keypoints[best][..., :2], atol=1e-4, rtol=1e-3)
    assert ("masks" in found) == (model.info.task == "segment")


def test_keypoints_that_a_class_lacks_are_zero_and_not_in_its_box() -> None:
    model = lively("ecpose-p")
    owned = ((0, 1, 2), (0, 5))
    info = replace(model.info, labels=replace(model.info.labels, keypoints=owned, unused=()))
    part = graph(model.network, info, "full", (64, 64), 1).parts[0]
    with torch.inference_mode():
        found = dict(zip(part.outputs, part.module(torch.rand(1, 3, 64, 64)), strict=True))
    for label, box, points in zip(found["labels"][0], found["boxes"][0], found["keypoints"][0], strict=True):
        own = list(owned[int(label)])
        assert points[[i for i in range(17) if i not in own]].abs().max() == 0
        torch.testing.assert_close(box, torch.cat([points[own].amin(0), points[own].amax(0)]))


def test_half_precision_keeps_what_would_overflow(model: Model, tmp_path: Path) -> None:
    found = model.export(half=True, graph="raw", imgsz=64, folder=str(tmp_path / "half"))
    assert found.parity is not None and found.parity.passed
    proto = onnx.load(found.folder / "model.onnx")
    halves = {tensor.name for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    assert len(halves) > 50
    shapes = onnx.shape_inference.infer_shapes(proto)
    kinds = {value.name: value.type.tensor_type.elem_type for value in shapes.graph.value_info}
    for node in proto.graph.node:
        if node.op_type in ("Softmax", "LayerNormalization", "GridSample", "TopK"):
            assert kinds.get(node.input[0]) != onnx.TensorProto.FLOAT16, node.name
    assert found.metadata["precision"] == "fp16"


def damaged(kind: Format) -> Format:
    """The format, but one weight of every file is wrong."""

    class Damaged(Format):
        def write(self, *given: Any) -> None:
            kind.write(*given)
            path = given[1] / "model.onnx"
            proto = onnx.load(path)
            for tensor in proto.graph.initializer:
                if tensor.name.endswith("decoder.bin_values"):  # how far the edges of a box move
                    values = onnx.numpy_helper.to_array(tensor)
                    tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))
            onnx.save(proto, path)

    return Damaged(**vars(kind))


def test_a_corrupted_model_is_refused_and_kept(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(FORMATS, "onnx", damaged(FORMATS["onnx"]))
    with pytest.raises(ParityError, match="parity FAILED"):
        model.export(graph="raw", imgsz=64, folder=str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out_failed"]
    beside = json.loads((tmp_path / "out_failed" / "metadata.json").read_text())
    assert beside["parity"]["passed"] is False and beside["parity"]["worst"]
    weights = model.save(tmp_path / "weights.safetensors")
    code = main(["export", str(weights), "--graph", "raw", "--imgsz", "64", "--folder", str(tmp_path / "cli")])
    assert code == 1 and "out" not in {path.name for path in tmp_path.iterdir()}
    assert "cli_failed" in capsys.readouterr().err


def test_what_cannot_be_proved_is_kept(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the model that was given is as it was, also where it was in training."""

    def fails(*given: Any) -> Any:
        raise RuntimeError("not finite")

    monkeypatch.setattr(parity, "compare", fails)
    monkeypatch.setitem(FORMATS, "onnx", Empty("onnx", ".onnx", "onnxruntime", (), "onnx"))
    model.network.train()
    try:
        with pytest.raises(ParityError, match="cannot be proved.*files are kept in .*out_failed"):
            model.export(imgsz=64, folder=str(tmp_path / "out"))
        assert model.network.training
    finally:
        model.network.eval()
    assert (tmp_path / "out_failed" / "model.onnx").is_file()


class Empty(Format):
    """Writes files that no runtime can read."""

    def write(self, graph: Any, folder: Path, options: Options) -> None:
        (folder / "model.onnx").write_bytes(b"")

    def describe(self, paths: Any, metadata: Any) -> None:
        pass


def test_onnx_runtime_has_operators_of_its_own(model: Model, tmp_path: Path) -> None:
    found = model.export(format="onnxruntime", graph="raw", batch="dynamic", imgsz=64, folder=str(tmp_path / "own"))
    assert found.parity is not None and found.parity.passed and found.parity.detections >= 20
    proto = onnx.load(found.folder / "model.onnx")
    within = json.loads({entry.key: entry.value for entry in proto.metadata_props}["edgecrafter"])
    assert within == found.metadata, "the proof included"
    kinds = [node.op_type for node in proto.graph.node if node.domain == "com.microsoft"]
    assert sorted(set(kinds)) == ["MultiHeadAttention", "RotaryEmbedding"] and len(kinds) == 3 * len(
        model.network.backbone.vit.blocks  # type: ignore[union-attr, arg-type]
    )
    pictures = parity.pictures([], [])
    torch.testing.assert_close(
        ec.load(found.folder).predict(pictures, conf=0.0, max_det=5)[0].boxes,
        model.predict(pictures, conf=0.0, max_det=5, imgsz=64)[0].boxes,
        atol=0.01,
        rtol=1e-4,
    )


def test_half_precision_of_the_npu_graph_keeps_the_same_heads(model: Model) -> None:
    from edgecrafter.export.formats.onnx import prepared
    from edgecrafter.export.half import halved

    part = graph(model.network, model.info, "npu", (64, 64), 1)
    proto = halved(prepared(part, part.parts[1], Options("fp16")))
    halves = {t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    assert len(halves) > 10
    assert not [name for name in halves if "boxes" in name or "quality" in name or "position" in name]


def test_a_wrong_answer_of_one_picture_is_found(model: Model) -> None:
    """Also by what is missing, shifted, or scored differently."""
    from edgecrafter.predict import Predictor

    picture = parity.pictures([], [])
    info = replace(model.info, input=replace(model.info.input, size=(64, 64)))
    same, large = Predictor(model.network, info), Predictor(model.network, model.info)
    tolerance = parity.TOLERANCES["fp32"]
    assert not parity.compare(same, large, picture, (64, 64), tolerance).passed, "another input size"

    class Shifted(Predictor):
        change: Any = None

        def stream(self, *given: Any, **options: Any) -> Any:
            for number, each in enumerate(super().stream(*given, **options)):
                if number == 1:
                    self.change(each)
                yield each

    def boxes(each: Any) -> None:
        each.boxes = each.boxes + 8

    def scores(each: Any) -> None:
        each.scores = each.scores - 0.02

    def labels(each: Any) -> None:
        each.labels = each.labels * 0 + 79

    def nothing(each: Any) -> None:
        pass

    for change, passes in ((nothing, True), (boxes, False), (scores, False), (labels, False)):
        other = Shifted(model.network, info)
        other.change = change
        found = parity.compare(same, other, picture, (64, 64), tolerance)
        assert found.passed is passes, change
        assert passes or found.worst == "picture_0001.jpg"


@pytest.mark.parametrize(
    "options, says",
    [
        ({"format": "nope"}, "format='nope' is not known"),
        ({"graph": "nope"}, "takes graph="),
        ({"batch": "0"}, "batch=0"),
        ({"batch": "many"}, "batch=many"),
        ({"graph": "npu", "batch": "dynamic"}, "fixed shapes"),
        ({"half": True, "int8": True}, "half and int8"),
        ({"int8": True}, "give data="),
        ({"max_drop": 0.01}, "max_drop is for int8"),
        ({"imgsz": -1}, "imgsz=-1"),
        ({"opset": 16}, "opset=16"),
        ({"preset": "nope"}, "preset='nope'"),
        ({"preset": "latency", "imgsz": 64}, "preset=latency means imgsz=640, not 64"),
        ({"calibrate": 4}, "calibrate is for int8"),
        ({"format": "executorch", "opset": 17}, "not made of an ONNX file"),
        ({"format": "ncnn", "graph": "npu", "batch": "4"}, "one image per call"),
        ({"formats": "onnx"}, "Did you mean 'format'"),
    ],
)
def test_options_that_cannot_be(model: Model, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        model.export(**{"folder": str(tmp_path / "out"), "imgsz": 64, **options})
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_missing_tool_is_named(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "onnx", Format("onnx", ".onnx", "", ("no_such_tool",), "onnx"))
    with pytest.raises(ValueError, match=r"no_such_tool.*pip install 'edgecrafter\[onnx\]'"):
        model.export(imgsz=64, folder=str(tmp_path / "out"))


def test_options_are_known_and_graphs_are_documented() -> None:
    text = (Path(ec.__file__).parent / "export" / "config.py").read_text()
    assert all(name in text for name in (*FORMATS, *GRAPHS))
    assert ExportConfig().format in FORMATS


def test_poses_of_random_weights_find_their_partners(tmp_path: Path) -> None:
    """Their keypoints lie almost in one point, so that boxes say nothing."""
    torch.manual_seed(0)
    found = Model(*hub.create("ecpose-p")).export(graph="raw", imgsz=64, folder=str(tmp_path / "pose"))
    assert found.parity is not None and found.parity.passed and found.parity.missing == 0


@pytest.mark.slow
def test_a_classic_detector_keeps_the_ratio(tmp_path: Path) -> None:
    """Two inputs, the second says where the pictures are."""
    import onnxruntime

    network, info = hub.create("dino-r18")
    network.eval()
    part = graph(network, info, "raw", (64, 96), None).parts[0]
    assert list(part.inputs) == ["images", "valid"]
    FORMATS["onnx"].write(graph(network, info, "raw", (64, 96), None), tmp_path, Options())
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images, valid = torch.rand(count, 3, 64, 96), torch.ones(count, 64, 96)
        valid[0, :, 64:] = 0
        with torch.inference_mode():
            expected = part.module(images, valid)
        ours = session.run(None, {"images": images.numpy(), "valid": valid.numpy()})
        for a, b in zip(ours, expected, strict=True):
            assert np.isclose(a, b.numpy(), rtol=1e-3, atol=1e-3).all(-1).mean() > 0.98
