"""ONNX models in 16 bits, with what would overflow or round too much kept in 32."""

from __future__ import annotations

from typing import Any

OPERATORS = (
    "Softmax", "LayerNormalization", "GridSample", "TopK", "Sigmoid", "Exp", "Log", "ReduceMean", "ReduceSum", "Sin",
    "Cos", "Resize", "Range", "Pow", "Sqrt", "Gelu",
)  # fmt: skip
"""operators that stay in 32 bits wherever they are"""
MODULES = (
    "network.decoder.boxes", "network.decoder.first_box", "network.decoder.quality", "network.decoder.position",
    "network.decoder.enc_box", "network.decoder.enc_pose", "network.decoder.first_pose", "network.decoder.poses",
    "cross_attn.offsets",
)  # fmt: skip
"""modules that stay in 32 bits: reference points, offsets to them, distributions of edges and their decoding"""
LOOSE = ("", "network.decoder", "network")
"""scopes whose own operators, outside of submodules, stay in 32 bits: selection, decoding, normalisation"""


def halved(proto: Any) -> Any:
    """The model in 16 bits; inputs and outputs keep 32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    kept = [node.name for node in proto.graph.node if _kept(node.name.rpartition("/")[0])]
    return convert_float_to_float16(
        proto, keep_io_types=True, op_block_list=list(OPERATORS), node_block_list=kept, disable_shape_infer=True
    )


def _kept(scope: str) -> bool:
    return scope in LOOSE or any(name in scope for name in MODULES)
