"""LiteRT (formerly TensorFlow Lite), for phones and small boards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgecrafter.export.calibration import Calibration
from edgecrafter.export.formats import Options
from edgecrafter.export.parts import Graph, Part

QUANTISED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
WHERE = r".*_(backbone|encoder)/.*"
"""tensors are named after their modules, ``...Backbone_backbone/...``; the decoder stays in floating point"""
SIGNATURE = "serving_default"


def write(graph: Graph, folder: Path, options: Options) -> None:
    """Write ``<part>.tflite`` for every part, of static shapes; the metadata are in each.

    int8: weights and activations of convolutions and linear layers outside of the decoder.
    """
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    import litert_torch

    for part in graph.parts:
        with torch.no_grad():
            inputs = tuple(each.clone() for each in part.inputs.values())
            made = litert_torch.convert(Readable(part).eval(), inputs)
        path = folder / f"{part.name}.tflite"
        made.export(str(path))
        if options.precision == "int8" and "images" in part.inputs:
            quantise(path, list(part.inputs), options.calibration, len(part.inputs["images"]))
        _describe(path, options.metadata)


class Readable(nn.Module):
    """A part whose ``topk`` is LiteRT's own operator: left alone it becomes a sort that the interpreter lacks."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.module = part.module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with _Own():
            return self.module(*inputs)  # type: ignore[no-any-return]


class _Own(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.topk, Tensor.topk):
            values, places = torch.ops.tfl.topk_v2(args[0], args[1])  # of the last axis, the largest, in order
            return torch.return_types.topk((values, places.long()))
        if func in (torch.split, Tensor.split) and _whole(*args, **kwargs):
            return (args[0],)
        return func(*args, **kwargs)


def _whole(x: Tensor, size: int | list[int], dim: int = 0) -> bool:
    """Whether a split leaves one part, which the converter fails at."""
    return size >= x.shape[dim] if isinstance(size, int) else len(size) == 1


def quantise(path: Path, names: list[str], calibration: Calibration, batch: int) -> None:
    """Replace a model by its quantised form, with ranges from the calibration pictures."""
    from ai_edge_quantizer import qtyping, quantizer

    tool = quantizer.Quantizer(str(path))
    for operator in QUANTISED:
        tool.add_static_config(WHERE, qtyping.TFLOperationName(operator), activation_num_bits=8, weight_num_bits=8)
    feeds = [{f"args_{i}": feed[name] for i, name in enumerate(names)} for feed in calibration.feeds(names, batch)]
    found = tool.calibrate({SIGNATURE: feeds}, num_threads=torch.get_num_threads())
    tool.quantize(found).export_model(str(path), overwrite=True)


def _describe(path: Path, metadata: dict[str, Any]) -> None:
    """Put the metadata into the file, as JSON under ``edgecrafter``."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    raw = path.read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(raw, 0))
    for buffer in model.buffers:
        if buffer.offset > 1:  # kept behind the model, where packing would lose it
            buffer.data = np.frombuffer(raw, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    text, entry = schema.BufferT(), schema.MetadataT()
    text.data = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    entry.name, entry.buffer = "edgecrafter", len(model.buffers)
    model.buffers.append(text)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
