"""Core ML, for iPhone, iPad and Mac: an ``.mlpackage`` of the kind ``mlprogram``."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgecrafter.export.formats import Options
from edgecrafter.export.parts import Graph, Part

KEPT = {
    "softmax", "layer_norm", "topk", "resample", "sigmoid", "exp", "log", "reduce_mean", "reduce_sum", "sin", "cos",
    "pow", "sqrt", "real_div", "floor_div", "mod", "cast", "gather_along_axis",
}  # fmt: skip
"""operators that stay in 32 bits"""


def write(graph: Graph, folder: Path, options: Options) -> None:
    """Write ``<part>.mlpackage`` for every part, of static shapes; the metadata are in each.

    Converting works on Linux and macOS, running on macOS only (iOS 17, macOS 14 or later).
    """
    import coremltools as ct

    precision = ct.precision.FLOAT32
    if options.precision == "fp16":
        precision = ct.transform.FP16ComputePrecision(op_selector=lambda op: op.op_type not in KEPT)
    for part in graph.parts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = ct.convert(
                program(part),
                outputs=[ct.TensorType(name, dtype=None if name == "labels" else np.float32) for name in part.outputs],
                convert_to="mlprogram",
                minimum_deployment_target=ct.target.iOS17,
                compute_precision=precision,
            )
            _name_inputs(ct, made, list(part.inputs))
            made.user_defined_metadata["edgecrafter"] = json.dumps(options.metadata)
            made.save(str(folder / f"{part.name}.mlpackage"))


def program(part: Part) -> Any:
    """The part as an ``ExportedProgram`` without what coremltools 9 does not know."""
    aten = torch.ops.aten
    with torch.no_grad():
        inputs = tuple(each.clone() for each in part.inputs.values())
        found = torch.export.export(part.module, inputs, strict=False).run_decompositions({})
    for node in list(found.graph.nodes):
        if node.target in (aten.alias.default, aten.detach.default):
            _skip(found, node)
        elif node.target is aten._assert_tensor_metadata.default:
            found.graph.erase_node(node)
        elif node.target is aten.__and__.Tensor:  # of truth values
            node.target = aten.logical_and.default
        elif node.target is aten.floor_divide.default:  # would become a float, which is no index
            with found.graph.inserting_after(node):
                whole = found.graph.call_function(aten._to_copy.default, (node,), {"dtype": torch.int32})
            whole.meta = dict(node.meta)
            node.replace_all_uses_with(whole, delete_user_cb=lambda user, whole=whole: user is not whole)
        elif node.target is aten.where.ScalarOther:
            with found.graph.inserting_before(node):
                other = found.graph.call_function(aten.full_like.default, (node.args[1], node.args[2]))
            other.meta = dict(node.args[1].meta)
            node.target, node.args = aten.where.self, (node.args[0], node.args[1], other)
    return found


def _skip(found: Any, node: Any) -> None:
    """Take out a node that gives what it gets."""
    before = node.args[0]
    node.replace_all_uses_with(before)
    for output in found.graph_signature.output_specs:
        if output.arg.name == node.name:
            output.arg.name = before.name
    found.graph.erase_node(node)


def _name_inputs(ct: Any, made: Any, names: list[str]) -> None:
    """The converter names inputs after the arguments of ``forward``."""
    spec = made.get_spec()
    for name, given in zip(names, list(spec.description.input), strict=True):
        if given.name != name:
            ct.utils.rename_feature(spec, given.name, name)
