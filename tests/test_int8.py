"""Eight bits: which layers take them, what it costs, and that too much is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_int8 as small
import torch
from PIL import Image

from edgecrafter.data import formats
from edgecrafter.evaluate import evaluate
from edgecrafter.export import layers
from edgecrafter.export.calibration import Calibration
from edgecrafter.export.config import ExportConfig
from edgecrafter.export.run import Exported, ParityError, export
from edgecrafter.hub import ModelInfo
from edgecrafter.models.eightbit import kept, stays
from edgecrafter.models.network import Detector
from edgecrafter.types import InputSpec

onnx = pytest.importorskip("onnx")
SIZE = (small.SIDE, small.SIDE)


@pytest.fixture(scope="module")
def model() -> tuple[Detector, ModelInfo]:
    return small.model()


@pytest.fixture(scope="module")
def data(model: tuple[Detector, ModelInfo], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures on which the model's AP is 1."""
    folder = small.write(tmp_path_factory.mktemp("data") / "data", *model)
    truth = formats.load(folder, "val", model[1].labels)
    assert evaluate(*model, truth, progress=False).overall["AP"] > 0.99
    return folder


@pytest.fixture(scope="module")
def traced() -> Iterator[None]:
    """torch's exporter runs once for all tests here, which takes seconds."""
    with small.traced_once():
        yield


@pytest.fixture(scope="module")
def exported(
    model: tuple[Detector, ModelInfo], data: Path, traced: None, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """For ONNX Runtime."""
    return made(model, data, tmp_path_factory.mktemp("exports") / "onnx")


def made(model: tuple[Detector, ModelInfo], data: Path, folder: Path, **options: Any) -> Exported:
    config = {"format": "onnx", "graph": "raw", "int8": True, "data": str(data), "folder": str(folder), **options}
    return export(*model, ExportConfig(**config))


def test_layers_are_called_after_their_modules() -> None:
    assert layers.layer_of("network.backbone.vit.blocks.3.fc1/node_MatMul_7") == "backbone.vit.blocks.3.fc1"
    assert layers.layer_of("stem.decoder.scores.3/x") == "decoder.scores.3"
    names = ["backbone.vit.blocks.0.fc1", "backbone.vit.blocks.1.fc1", "decoder.boxes.1.layers.0"]
    found = layers.groups([*names, "encoder.top_down.0.merge.0", "encoder.aifi.attention.out_proj"])
    assert found["backbone.vit.blocks.*.fc1"] == names[:2]
    assert found["backbone.vit.blocks.1"] == [names[1]]
    assert found["decoder.boxes.*"] == [names[2]]
    assert {"encoder.top_down", "encoder.aifi.attention.out_proj"} <= set(found)


@pytest.mark.parametrize("arch", ["ec", "rt", "dfine", "rtdetrv2", "dino"])
def test_presets_leave_heads_and_products_alone(arch: str) -> None:
    patterns = kept(arch)
    for layer in (
        "backbone.vit.blocks.1.products",
        "decoder.boxes.0.layers.2",
        "decoder.enc_score",
        "decoder.scores.1",
    ):
        assert stays(layer, patterns)
    assert not stays("backbone.vit.blocks.1.fc2", patterns)


def test_calibration_pictures_are_chosen_by_a_seed(model: tuple[Detector, ModelInfo], data: Path) -> None:
    one, same, other = (Calibration.of(data, model[1], SIZE, 3, seed) for seed in (0, 0, 1))
    assert one == same and len(one.paths) == 3 and set(one.paths) != set(other.paths)
    assert all("train" in path.name for path in one.paths)  # the validation split is for judging
    feeds = list(one.feeds(["images"], 2))
    assert [feed["images"].shape for feed in feeds] == [(2, 3, *SIZE)] * 2  # the last one is filled up
    assert feeds[0]["images"].min() >= 0 and feeds[0]["images"].max() <= 1
    with pytest.raises(ValueError, match="calibrate=0"):
        Calibration.of(data, model[1], SIZE, 0)


def test_calibration_pads_pictures_that_keep_their_ratio(tmp_path: Path) -> None:
    Image.new("RGB", (80, 40), "white").save(tmp_path / "a.png")
    calibration = Calibration((tmp_path / "a.png",), InputSpec((800, 1333), resize="keep"), (64, 64))
    (feed,) = calibration.feeds(["images", "valid"])
    assert feed["valid"].sum() == 32 * 64, "as at run time: the largest that lies inside the frame"
    np.testing.assert_array_equal(feed["images"][0, 0], feed["valid"][0])


def test_the_cost_is_stated(exported: Exported, model: tuple[Detector, ModelInfo]) -> None:
    int8 = json.loads((exported.folder / "metadata.json").read_text())["int8"]
    assert int8["AP_fp32"] > 0.99 and 0.3 < int8["AP"] <= 1
    assert int8["drop"] == pytest.approx(int8["AP_fp32"] - int8["AP"], abs=1e-4)
    assert int8["kept"] == list(kept(model[1].size.arch))
    assert int8["text"] in str(exported)


def test_kept_layers_have_no_8_bits_and_others_have(exported: Exported, model: tuple[Detector, ModelInfo]) -> None:
    proto = onnx.load(exported.folder / "model.onnx")
    sources = {name: node for node in proto.graph.node for name in node.output}
    patterns = kept(model[1].size.arch)
    counts = {True: 0, False: 0}
    for name, layer in layers.layers_of(proto).items():
        node = next(node for node in proto.graph.node if node.name == name)
        before = [sources[each].op_type for each in node.input if each in sources]
        stayed = "DequantizeLinear" not in before
        layer = layer.replace(".products", "") if before.count("DequantizeLinear") > 1 else layer
        assert stayed == stays(layer, patterns), (layer, before)
        counts[stayed] += 1
    assert min(counts.values()) > 10


def test_products_run_on_8_bit_kernels(exported: Exported, tmp_path: Path) -> None:
    """ONNX Runtime makes a Gemm of product and bias, which it has no such kernel for, unless kept from it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(exported.folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("MatMulIntegerToFloat") > 20 and kinds.count("QLinearConv") > 10


def test_a_bad_quantisation_is_refused(
    model: tuple[Detector, ModelInfo], data: Path, traced: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges of nearly black pictures cut off everything."""
    feeds = Calibration.feeds

    def black(self: Calibration, *args: Any) -> Iterator[dict[str, Any]]:
        return ({name: value * 0.02 for name, value in feed.items()} for feed in feeds(self, *args))

    monkeypatch.setattr(Calibration, "feeds", black)
    with pytest.raises(ParityError, match=r"int8 costs 0\.\d+ AP, more than max_drop=0.01"):
        made(model, data, tmp_path / "bad", max_drop=0.01)
    (kept_files,) = tmp_path.iterdir()
    assert kept_files.name == "bad_failed" and (kept_files / "model.onnx").is_file()


@pytest.mark.slow
def test_openvino_int8(model: tuple[Detector, ModelInfo], data: Path, traced: None, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    found = made(model, data, tmp_path / "openvino", format="openvino")
    text = (found.folder / "model.xml").read_text()
    assert text.count('type="FakeQuantize"') > 30
    assert found.metadata["execution"] == {} and found.metadata["int8"]["AP"] > 0.3
    assert (found.folder / "model.bin").stat().st_size < 0.6 * sum(p.numel() for p in model[0].parameters()) * 4


@pytest.mark.slow
def test_sensitivity_sees_every_group(model: tuple[Detector, ModelInfo], data: Path, traced: None) -> None:
    from edgecrafter.export.sensitivity import ALL, PRESET, sensitivity, table

    pictures = [str(path) for path in sorted((data / "images").glob("val*"))]
    groups = (ALL, PRESET, "backbone.vit.blocks.*.fc1", "decoder.boxes.*")
    calibration = Calibration.of(data, model[1], SIZE, 4)
    rows = list(sensitivity(*model, calibration, pictures, only=groups))
    assert [row.group for row in rows] == list(groups)
    every, preset, *parts = rows
    assert every.layers > preset.layers > max(row.layers for row in parts)
    assert every.place + every.score >= preset.place + preset.score > 0
    assert "| `decoder.boxes.*` |" in table(rows)
    assert torch.get_default_dtype() == torch.float32
