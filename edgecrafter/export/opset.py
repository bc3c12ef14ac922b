"""ONNX files for tools that are older than torch's exporter, whose least opset is 18."""

from __future__ import annotations

from typing import Any

LEAST = 17
"""layer norms are operators from here on; as sums and squares they would overflow in half precision"""
ATTRIBUTES = {
    "Split": ("num_outputs",),
    "Resize": ("antialias", "axes", "keep_aspect_ratio_policy"),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceL2"), ("noop_with_empty_axes",)),
}
"""of opset 18 only; at the values that the exporter writes they mean what opset 17 does without them"""


def lowered(model: Any) -> Any:
    """A copy of an ``onnx.ModelProto`` of opset 18 that says the same in opset 17.

    Reductions have their axes as an attribute there, and a few attributes are not known. (The converters of onnx and
    onnxscript leave such attributes in place, or do nothing: 1.23 and 0.5.) Raises ValueError for a model that uses
    what opset 17 lacks.
    """
    import onnx

    given = _opset(model)
    if given <= LEAST:
        return model
    if given > LEAST + 1:
        raise ValueError(f"a model of opset {given} cannot be lowered to {LEAST}: export it with opset {LEAST + 1}")
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    constants = {each.name: each for each in copied.graph.initializer}
    for node in copied.graph.node:
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.input) > 1:
            if node.input[1] not in constants:
                raise ValueError(f"{node.name}: axes that are computed are not in opset {LEAST}; use opset 18")
            axes = onnx.numpy_helper.to_array(constants[node.input[1]])
            node.attribute.append(onnx.helper.make_attribute("axes", axes.tolist()))
            del node.input[1]
        for name in ATTRIBUTES.get(node.op_type, ()):
            kept = [each for each in node.attribute if each.name != name]
            del node.attribute[:]
            node.attribute.extend(kept)
    for each in copied.opset_import:
        if each.domain in ("", "ai.onnx"):
            each.version = LEAST
    copied.ir_version = min(copied.ir_version, 8)
    _drop_unused(copied.graph)
    try:
        onnx.checker.check_model(copied, full_check=True)
    except Exception as error:
        raise ValueError(f"the model cannot be written in opset {LEAST} ({error}); use opset 18") from error
    return copied


def _opset(model: Any) -> int:
    return next(int(each.version) for each in model.opset_import if each.domain in ("", "ai.onnx"))


def _drop_unused(graph: Any) -> None:
    """Constants that no node reads any more."""
    used = {name for node in graph.node for name in node.input} | {each.name for each in graph.output}
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
