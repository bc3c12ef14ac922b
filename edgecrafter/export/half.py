"""ONNX models in 16 bits, with what would overflow or round too much kept in 32.

The converters of onnxruntime and onnxconverter-common cast a value that two kept nodes read twice under one name, which
no runtime loads; hence this one.
"""

from __future__ import annotations

from typing import Any

from edgecrafter.export.layers import layer_of

OPERATORS = {
    "Add", "AveragePool", "Clip", "Concat", "Conv", "Div", "Expand", "Flatten", "Gelu", "Gemm", "Identity", "MatMul",
    "MaxPool", "Mul", "Neg", "Pad", "Relu", "Reshape", "Sigmoid", "Slice", "Split", "Squeeze", "Sub", "Tanh",
    "Transpose", "Unsqueeze",
}  # fmt: skip
"""operators that are computed in 16 bits; all others, softmax, norms, sums, sampling and selection among them, in 32"""
MODULES = (
    "decoder.boxes", "decoder.first_box", "decoder.quality", "decoder.position", "decoder.enc_box", "decoder.enc_pose",
    "decoder.first_pose", "decoder.poses", "cross_attn",
)  # fmt: skip
"""modules that stay in 32 bits: reference points, offsets to them, distributions of edges"""
LOOSE = ("", "decoder", "network")
"""modules whose own operators, outside of submodules, stay in 32 bits: selection, decoding, normalisation"""


def halved(proto: Any) -> Any:
    """The model in 16 bits; inputs and outputs keep 32. Nodes have the names that ``formats.onnx.model`` gives."""
    import onnx

    work = _Halving(onnx, proto)
    for node in proto.graph.node:
        work.add(node)
    work.finish()
    return proto


class _Halving:
    """Every value in the precisions that somebody reads it in, each made once."""

    def __init__(self, onnx: Any, proto: Any) -> None:
        self.onnx, self.graph = onnx, proto.graph
        known = onnx.shape_inference.infer_shapes(proto).graph
        floating = onnx.TensorProto.FLOAT
        values = [*known.value_info, *known.input, *known.output]
        self.floats = {value.name for value in values if value.type.tensor_type.elem_type == floating}
        self.constants = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.data_type == floating}
        self.floats |= set(self.constants)
        self.names = {False: {name: name for name in self.floats}, True: {}}
        """whether in 16 bits -> value -> its name"""
        self.nodes: list[Any] = []

    def add(self, node: Any) -> None:
        """A node, with casts in front of it where its inputs are of the other precision."""
        layer = layer_of(node.name)
        kept = layer in LOOSE or any(name in layer for name in MODULES)
        small = node.op_type in OPERATORS and not kept
        inputs = [self.read(name, small) if name in self.floats else name for name in node.input]
        del node.input[:]
        node.input.extend(inputs)
        self.nodes.append(node)
        for place, name in enumerate(node.output):
            if name in self.floats and small:
                self.names[False].pop(name)
                self.names[True][name] = node.output[place] = f"{name}.16"

    def read(self, value: str, small: bool) -> str:
        """The name of a value in a precision."""
        if value not in self.names[small]:
            name = f"{value}.16" if small else value
            if small and value in self.constants:
                array = self.onnx.numpy_helper.to_array(self.constants[value]).astype("float16")
                self.graph.initializer.append(self.onnx.numpy_helper.from_array(array, name))
            else:
                self.cast(self.names[not small][value], name, small)
            self.names[small][value] = name
        return str(self.names[small][value])

    def cast(self, source: str, target: str, small: bool) -> None:
        kinds = self.onnx.TensorProto
        kind = kinds.FLOAT16 if small else kinds.FLOAT
        self.nodes.append(self.onnx.helper.make_node("Cast", [source], [target], f"cast/{target}", to=kind))

    def finish(self) -> None:
        """Outputs in 32 bits; what nobody reads goes."""
        for output in self.graph.output:
            if output.name in self.floats:
                self.read(output.name, False)
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
