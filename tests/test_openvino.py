"""OpenVINO: the same answers as torch, its metadata inside, 16 bits and free batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import small_int8 as small
import torch

from edgecrafter.deployed.infer import SESSIONS
from edgecrafter.deployed.network import load
from edgecrafter.export import metadata
from edgecrafter.export.formats import FORMATS, Options
from edgecrafter.export.formats.openvino import EXECUTION
from edgecrafter.export.graph import graph

pytest.importorskip("openvino")
SIZE = (small.SIDE, 96)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A raw graph of any batch."""
    with small.traced_once():
        yield write(tmp_path_factory.mktemp("openvino"), "fp32")


def write(folder: Path, precision: str) -> Path:
    network, info = small.model()
    made = graph(network, info, "raw", SIZE, None)
    content = metadata.described(made, network, info, FORMATS["openvino"], SIZE, None, precision)
    FORMATS["openvino"].write(made, folder, Options(precision, content))
    metadata.write(folder, content)
    return folder


def answers(folder: Path, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    layer = load(folder)[0](images).layers[-1]
    return layer.logits.numpy(), layer.boxes.numpy()


@pytest.mark.parametrize("batch", [1, 3])
def test_answers_are_those_of_torch(written: Path, batch: int) -> None:
    network, info = small.model()
    images = torch.rand(batch, 3, *SIZE, generator=torch.Generator().manual_seed(batch))
    with torch.inference_mode():
        wanted = network(info.input.normalise(images)).layers[-1]
    logits, boxes = answers(written, images)
    np.testing.assert_allclose(logits, wanted.logits.numpy(), atol=2e-3)
    np.testing.assert_allclose(boxes, wanted.boxes.numpy(), atol=1e-4)


def test_metadata_are_inside_and_say_how_to_run(written: Path) -> None:
    import openvino

    model = openvino.Core().read_model(written / "model.xml")
    inside = json.loads(model.get_rt_info(["edgecrafter"]).value)
    beside = json.loads((written / "metadata.json").read_text())
    assert inside == beside
    assert beside["execution"] == EXECUTION["fp32"] == {"INFERENCE_PRECISION_HINT": "f32"}


def test_the_runtime_is_told_the_precision(written: Path) -> None:
    """OpenVINO would take bfloat16 by itself where the CPU has it."""
    assert precision_of(written) == "float"
    path = written / "metadata.json"
    text = path.read_text()
    try:
        path.write_text(text.replace('"INFERENCE_PRECISION_HINT": "f32"', '"INFERENCE_PRECISION_HINT": "bf16"'))
        assert "bf" in precision_of(written)
    finally:
        path.write_text(text)


def precision_of(folder: Path) -> str:
    """What OpenVINO computes in, as its own name of the type."""
    import openvino

    meta = json.loads((folder / "metadata.json").read_text())
    config = {"INFERENCE_NUM_THREADS": 1, **meta["execution"]}
    compiled = openvino.Core().compile_model(str(folder / "model.xml"), "CPU", config)
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string()).replace("f32", "float")


def test_half_stores_weights_in_16_bits_and_computes_in_32(written: Path, tmp_path: Path) -> None:
    half = write(tmp_path, "fp16")
    sizes = [(folder / "model.bin").stat().st_size for folder in (half, written)]
    assert sizes[0] < 0.6 * sizes[1]
    assert precision_of(half) == "float"
    images = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(5))
    ours, theirs = answers(written, images), answers(half, images)
    assert 0 < np.abs(ours[0] - theirs[0]).max() < 0.1
    assert SESSIONS["openvino"].available()
