"""Formats to export to: a further one is one file here, and one line in ``FORMATS``."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecrafter.export.parts import Graph


@dataclass(frozen=True)
class Options:
    """What a format needs besides the graph."""

    precision: str = "fp32"
    """fp32, fp16 or int8"""
    metadata: dict[str, Any] = field(default_factory=dict)
    """goes into the file where the format can hold it"""
    calibration: Any = None
    """``calibration.Calibration``, for int8"""
    opset: int | None = None
    """of ONNX files; None: the format's own"""


@dataclass(frozen=True)
class Format:
    """What is known of a format."""

    module: str
    """in this package; its ``write(graph, folder, options)`` writes ``<part><suffix>`` for every part"""
    suffix: str
    runtime: str
    """in ``deployed.infer.SESSIONS``; empty: nothing here can run it"""
    needs: tuple[str, ...]
    """modules that have to be there to write it"""
    extra: str
    """of this package, which brings them"""
    precisions: tuple[str, ...] = ("fp32",)
    dynamic: bool = False
    """whether it takes any number of images"""
    graphs: tuple[str, ...] = ("full", "raw", "npu")
    opset: bool = False
    """whether it is made by way of ONNX, so that the opset can be chosen"""
    single: bool = False
    """whether it takes one image per call only"""

    def describe(self, paths: Sequence[Path], metadata: dict[str, Any]) -> None:
        """Put the metadata into files that were written, where the format can take them afterwards."""
        describe: Callable[[Path, dict[str, Any]], None] | None = getattr(self._module(), "describe", None)
        for path in paths if describe else ():
            describe(path, metadata)  # type: ignore[misc]

    def write(self, graph: Graph, folder: Path, options: Options) -> None:
        """Write the parts into ``folder``. Raises ValueError where a tool is missing."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(
                f"format={self.module}: {', '.join(missing)} cannot be imported here. "
                f"Install it: pip install 'edgecrafter[{self.extra}]'"
            )
        self._module().write(graph, folder, options)

    def _module(self) -> Any:
        return importlib.import_module(f"edgecrafter.export.formats.{self.module}")


VIA_ONNX = ("onnx", "onnxscript")
"""what every format needs that is made of an ONNX file"""
ALL = ("fp32", "fp16", "int8")
FORMATS = {
    "onnx": Format("onnx", ".onnx", "onnxruntime", (*VIA_ONNX, "onnxruntime"), "onnx", ALL, dynamic=True, opset=True),
    "onnxruntime": Format(
        "onnxruntime",
        ".onnx",
        "onnxruntime",
        (*VIA_ONNX, "onnxruntime"),
        "onnx",
        ("fp32", "int8"),
        dynamic=True,
        graphs=("full", "raw"),
        opset=True,
    ),
    "openvino": Format(
        "openvino", ".xml", "openvino", (*VIA_ONNX, "openvino"), "openvino", ALL, dynamic=True, opset=True
    ),
    "litert": Format(
        "litert",
        ".tflite",
        "litert",
        ("litert_torch", "ai_edge_quantizer", "ai_edge_litert"),
        "litert",
        ("fp32", "int8"),
    ),
    "executorch": Format("executorch", ".pte", "executorch", ("executorch",), "executorch"),
    "coreml": Format("coreml", ".mlpackage", "coreml", ("coremltools",), "coreml", ("fp32", "fp16")),
    "ncnn": Format("ncnn", ".param", "ncnn", ("pnnx", "ncnn"), "ncnn", ("fp32", "fp16"), graphs=("npu",), single=True),
    "rknn": Format("rknn", ".rknn", "", VIA_ONNX, "rknn", ("fp16", "int8"), graphs=("npu",)),
    "tensorrt": Format(
        "tensorrt",
        ".engine",
        "tensorrt",
        (*VIA_ONNX, "onnxruntime", "tensorrt"),
        "tensorrt",
        ("fp32", "fp16"),
        dynamic=True,
        opset=True,
    ),
}
