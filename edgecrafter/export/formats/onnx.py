"""ONNX, through torch's exporter."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from edgecrafter.export.audit import audit
from edgecrafter.export.formats import Options
from edgecrafter.export.opset import LEAST, lowered
from edgecrafter.export.parts import Graph, Part
from edgecrafter.files import written_beside

OPSET = 20
"""GridSample and Gelu are operators of their own from here on; 17 is the least in which layer norms are"""
EXPORTED = 18
"""the least that torch's exporter writes by itself"""


def write(graph: Graph, folder: Path, options: Options) -> None:
    """Write ``<part>.onnx`` for every part; the metadata are in each. Raises what ``prepared`` does."""
    import onnx

    for part in graph.parts:
        proto = prepared(graph, part, options)
        if options.precision == "fp16":
            from edgecrafter.export.half import halved

            proto = halved(proto)
        path = folder / f"{part.name}.onnx"
        if options.precision == "int8":
            from edgecrafter.export.int8 import onnx_int8

            onnx_int8(proto, path, part, options.calibration)
        else:
            onnx.save(proto, path)
        describe(path, options.metadata)


def describe(path: Path, metadata: dict[str, Any]) -> None:
    """Put the metadata into a file, as the property ``edgecrafter``."""
    import onnx

    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {"edgecrafter": json.dumps(metadata)})
    with written_beside(path) as beside:
        onnx.save(proto, beside)


def prepared(graph: Graph, part: Part, options: Options) -> Any:
    """One part of a graph as ``onnx.ModelProto``, in 32 bits; the operators of an npu graph are listed and looked at.

    Raises ValueError for an opset below 17, where layer norms fall apart and overflow in half precision, and for an npu
    graph with operators that NPUs are not expected to have.
    """
    npu = graph.kind == "npu"
    proto = model(part, graph.dynamic, options.opset or (LEAST if npu else OPSET))
    if npu:
        found = audit(proto, part.name)
        print(found.table())
        found.require()
        options.metadata.setdefault("audit", {})[part.name] = found.operators
    return proto


def model(part: Part, dynamic: bool, opset: int | None = None) -> Any:
    """One part as ``onnx.ModelProto``; the nodes are named after the modules that they come from."""
    opset = OPSET if opset is None else opset
    if opset < LEAST:
        raise ValueError(f"opset={opset}: layer norms are operators from {LEAST} on; give {LEAST} or more")
    batch = torch.export.Dim("batch", min=1, max=1024)
    shapes = tuple({0: batch} for _ in part.inputs) if dynamic else None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            part.module,
            tuple(part.inputs.values()),
            dynamo=True,
            opset_version=max(opset, EXPORTED),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    fixed = [each.name for each in proto.graph.input if each.type.tensor_type.shape.dim[0].dim_value]
    if dynamic and fixed:
        raise ValueError(f"batch=dynamic: the batch of {', '.join(fixed)} cannot be left free; give a number")
    for node in proto.graph.node:
        node.name = f"{_scope(node)}/{node.name}"
        del node.metadata_props[:]
        node.doc_string = ""
    for value in proto.graph.value_info:
        del value.metadata_props[:]
    return proto if opset >= EXPORTED else lowered(proto)


def _scope(node: Any) -> str:
    """The module that a node comes from: ``network.backbone.vit.blocks.0.attn``."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            names: list[str] = json.loads(entry.value.replace("'", '"'))
            return names[-2] if len(names) > 1 else ""
    return ""
