"""Formats whose tools are large: what is asked of them, what is said without them, and answers where one is here."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_exports import LABELS, SIZE, Tiny
from torch import Tensor, nn

from edgecrafter import hub
from edgecrafter.deployed.infer import SESSIONS, open_session
from edgecrafter.export import metadata
from edgecrafter.export.config import ExportConfig
from edgecrafter.export.formats import FORMATS, Options, coreml, ncnn, rknn, tensorrt
from edgecrafter.export.graph import graph
from edgecrafter.export.npu_sampling import Largest
from edgecrafter.export.parts import Graph, Part
from edgecrafter.export.run import PRESETS
from edgecrafter.hub import ModelInfo
from edgecrafter.models.sizes import SIZES
from edgecrafter.types import InputSpec

HERE = ("litert", "executorch", "ncnn")  # with a runtime on x86 Linux
CONVERTED = (*HERE, "coreml")
TOOLS = {"litert": "litert_torch", "executorch": "executorch.exir", "ncnn": "pnnx", "coreml": "coremltools"}


def tiny(batch: int | None = 1) -> tuple[Graph, ModelInfo, nn.Module]:
    network = Tiny("detect", LABELS).eval()
    info = ModelInfo("tiny", "detect", SIZES["p"], LABELS, InputSpec(SIZE))
    return graph(network, info, "raw", SIZE, batch), info, network  # type: ignore[arg-type]


def written(name: str, made: Graph, info: ModelInfo, network: nn.Module, folder: Path, precision: str = "fp32") -> Path:
    """Files of a format, and metadata.json."""
    size = tuple(next(iter(made.parts[0].inputs.values())).shape[2:])
    content = metadata.described(made, network, info, FORMATS[name], size, 1, precision)  # type: ignore[arg-type]
    FORMATS[name].write(made, folder, Options(precision, content))
    metadata.write(folder, content)
    return folder


# Without the tools


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "rknn"])
def test_a_missing_tool_is_named_with_the_command_that_brings_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=rf"{name}.*cannot be imported.*pip install 'edgecrafter\[{FORMATS[name].extra}\]'"
    ):
        FORMATS[name].write(Graph("raw", [], False), tmp_path, Options())


def test_extras_and_sessions_of_all_formats_exist() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    for name, kind in FORMATS.items():
        assert re.search(rf"^{kind.extra} = \[", text, re.MULTILINE), name
        assert not kind.runtime or kind.runtime in SESSIONS, name


def test_the_latency_preset_is_the_protocol_of_the_papers() -> None:
    preset = ExportConfig(**PRESETS["latency"])
    assert (preset.format, preset.half, preset.batch, preset.imgsz) == ("tensorrt", True, "1", 640)
    assert "fp16" in FORMATS["tensorrt"].precisions


def test_rknn_says_that_its_toolkit_lives_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RKNN_PYTHON", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install rknn-toolkit2.*RKNN_PYTHON"):
        rknn.toolkit_python()
    monkeypatch.setenv("RKNN_PYTHON", "/no/such/python")
    with pytest.raises(ValueError, match="/no/such/python"):
        rknn.toolkit_python()


TOOLKIT = """
import json, sys
class RKNN:
    def __init__(self, verbose): self.said = {}
    def config(self, **given): self.said["config"] = given
    def load_onnx(self, model): self.said["model"] = len(open(model, "rb").read()); return 0
    def build(self, do_quantization, dataset):
        lines = open(dataset).read().split() if dataset else None
        self.said["build"] = [do_quantization, lines]
        return CODE
    def export_rknn(self, path): open(path, "w").write(json.dumps(self.said)); return 0
    def release(self): pass
"""


class Fed:
    """Calibration pictures."""

    def feeds(self, names: list[str], batch: int) -> Any:
        return iter([{name: np.zeros((batch, 3, *SIZE), np.float32) for name in names}] * 2)


@pytest.fixture(scope="module")
def proto() -> Any:
    """The ONNX model of ``tiny``, made once."""
    pytest.importorskip("onnxscript")
    return rknn.onnx_format.model(tiny()[0].parts[0], False, 17)


def toolkit(folder: Path, proto: Any, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> None:
    """A stand-in for rknn-toolkit2 in the Python that runs the tests."""
    monkeypatch.setattr(rknn.onnx_format, "model", lambda *given: proto)
    (folder / "rknn").mkdir(parents=True)
    (folder / "rknn" / "__init__.py").touch()
    (folder / "rknn" / "api.py").write_text(TOOLKIT.replace("CODE", str(code)), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("RKNN_PYTHON", sys.executable)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_rknn_is_built_by_another_python(
    precision: str, proto: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit(tmp_path / "site", proto, monkeypatch)
    options = Options(precision, {"edgecrafter": 1}, Fed())
    rknn.write(tiny()[0], tmp_path, options)
    said = json.loads((tmp_path / "model.rknn").read_text())
    assert said["config"] == {"target_platform": "rk3588", "custom_string": '{"edgecrafter": 1, "name": ""}'}
    assert said["model"] > 1000
    quantised, files = said["build"]
    assert quantised == (precision == "int8") and (files is None or len(files) == 2)


def test_what_rknn_says_is_passed_on(proto: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit(tmp_path / "site", proto, monkeypatch, code=-1)
    with pytest.raises(ValueError, match=r"could not convert model.*build failed \(-1\)"):
        rknn.write(tiny()[0], tmp_path, Options("fp16"))


class Recorder:
    """A stand-in for the module ``tensorrt``: notes what is asked, and says what it was told to."""

    STRONG = 3

    def __init__(self, parses: bool = True, gpu: bool = True) -> None:
        self.parses, self.gpu = parses, gpu
        self.asked: list[tuple[Any, ...]] = []
        self.Logger = type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None})
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=self.STRONG)
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self.BuilderFlag = SimpleNamespace(TF32="tf32")

    def __getattr__(self, name: str) -> Any:
        def note(*given: Any) -> Any:
            self.asked.append((name, *given))
            return self

        return note

    def Builder(self, logger: object) -> "Recorder":
        if not self.gpu:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return self

    def parse(self, model: bytes) -> bool:
        self.asked.append(("parse", len(model)))
        return self.parses

    num_errors = 1

    def get_error(self, place: int) -> str:
        return f"error {place}: no importer for GridSample"

    def build_serialized_network(self, network: object, config: object) -> bytes:
        return b"engine"


def test_tensorrt_networks_are_strongly_typed_and_take_a_range_of_batches() -> None:
    part = Part("model", nn.Identity(), {"images": torch.zeros(2, 3, 64, 96)}, ("logits",))
    asked = Recorder()
    assert tensorrt.build(asked, b"onnx", part, dynamic=True) == b"engine"
    assert ("create_network", 1 << Recorder.STRONG) in asked.asked
    assert ("clear_flag", "tf32") in asked.asked
    assert ("set_shape", "images", (1, 3, 64, 96), (8, 3, 64, 96), (32, 3, 64, 96)) in asked.asked
    asked = Recorder()
    tensorrt.build(asked, b"onnx", part, dynamic=False)
    assert not any(name in ("set_shape", "add_optimization_profile") for name, *_ in asked.asked)


@pytest.mark.parametrize(
    ("parses", "gpu", "words"),
    [(False, True, "cannot take model.*no importer for GridSample.*graph=npu"), (True, False, "NVIDIA GPU")],
)
def test_tensorrt_says_what_is_wrong(parses: bool, gpu: bool, words: str) -> None:
    part = Part("model", nn.Identity(), {"images": torch.zeros(1, 3, 64, 96)}, ("logits",))
    with pytest.raises(ValueError, match=words):
        tensorrt.build(Recorder(parses, gpu), b"onnx", part, dynamic=False)


def test_the_largest_by_products_are_those_of_topk_ties_included() -> None:
    x = torch.rand(2, 5, 4, 33, generator=torch.Generator().manual_seed(0)).softmax(-1)
    x[0, 0, 0, :7] = x[0, 0, 0].max()
    x[1, 2, 3] = 1 / 33
    found = ncnn.LargestByProducts(Largest(4))(x)
    torch.testing.assert_close(found, x.topk(4, dim=-1).values, rtol=0, atol=1e-6)


def test_what_pnnx_does_not_know_is_named(tmp_path: Path) -> None:
    path = tmp_path / "part.ncnn.param"
    path.write_text("7767517\n2 2\nInput in0 0 1 in0\ntorch.topk topk_0 1 1 in0 out0\n")
    part = Part("model", nn.Identity(), {}, ())
    with pytest.raises(ValueError, match=r"cannot convert model \(torch.topk\).*graph=npu"):
        ncnn._check(part, "", path)
    with pytest.raises(ValueError, match="segmentation fault"):
        ncnn._check(part, "segmentation fault", tmp_path / "none")


def test_core_ml_gets_a_program_without_what_it_does_not_know() -> None:
    class Aliases(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            inside = (x > 0.2) & (x < 0.8)
            return torch.ops.aten.alias(x * inside), x.detach() + 1

    x = torch.rand(2, 3)
    found = coreml.program(Part("model", Aliases(), {"x": x}, ("a", "b")))
    names = {str(node.target) for node in found.graph.nodes}
    assert not names & {"aten.alias.default", "aten.detach.default", "aten.__and__.Tensor"}, names
    for answer, wanted in zip(found.module()(x), Aliases()(x), strict=True):
        assert torch.equal(answer, wanted)


# With them


@pytest.mark.parametrize("name", CONVERTED)
def test_a_small_network_is_written_and_answers_as_torch(name: str, tmp_path: Path) -> None:
    pytest.importorskip(TOOLS[name], reason=f"pip install 'edgecrafter[{name}]'")
    made, info, network = tiny()
    folder = written(name, made, info, network, tmp_path)
    assert (folder / f"model{FORMATS[name].suffix}").exists()
    if name not in HERE:
        return
    images = torch.rand(2, 3, *SIZE)
    found = open_session(folder, json.loads((folder / metadata.FILE).read_text()), 1).run(images.numpy())
    with torch.no_grad():
        wanted = dict(zip(made.parts[0].outputs, made.parts[0].module(images), strict=True))
    for output, value in wanted.items():
        np.testing.assert_allclose(found[output], value.numpy(), atol=1e-4, err_msg=output)


def lively(size: int) -> tuple[nn.Module, ModelInfo, Tensor, dict[str, np.ndarray]]:
    """A network with random weights, pictures, and what torch answers."""
    torch.manual_seed(0)
    network, info = hub.create("ecdet-p")
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    part = graph(network.eval(), info, "raw", (size, size), 1).parts[0]
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        answers = dict(zip(part.outputs, part.module(images), strict=True))
    return network, info, images, {name: value.numpy() for name, value in answers.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
def test_a_detector_answers_as_torch(name: str, tmp_path: Path) -> None:
    pytest.importorskip(TOOLS[name], reason=f"pip install 'edgecrafter[{name}]'")
    network, info, images, wanted = lively(64)
    made = graph(network, info, "npu", (64, 64), 1)  # type: ignore[arg-type]
    folder = written(name, made, info, network, tmp_path)
    found = open_session(folder, json.loads((folder / metadata.FILE).read_text()), 1).run(images.numpy())
    both = [np.concatenate([each["logits"], each["boxes"]], -1)[0] for each in (wanted, found)]
    apart = np.abs(both[0][:, None] - both[1][None]).max(-1)  # equal scores may come in another order
    assert apart.min(1).max() < 1e-3 and apart.min(0).max() < 1e-3


def test_the_script_for_rknn_needs_nothing_of_this_package() -> None:
    script = Path(rknn.__file__).with_name("rknn_build.py")
    code = f"import runpy, sys; runpy.run_path({str(script)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-I", "-c", code], check=True)
