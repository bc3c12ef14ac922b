"""The layers of an exported graph by name, and in groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgecrafter.models.eightbit import PRODUCTS

PARTS = ("backbone", "encoder", "decoder")
"""the outermost modules of a network; what a graph puts around them is no part of a layer's name"""


def layer_of(node: str) -> str:
    """The module of a node of an exported graph: ``network.encoder.aifi.linear1/node_MatMul_3`` ->
    ``encoder.aifi.linear1``."""
    names = node.rpartition("/")[0].split(".")
    first = next((i for i, name in enumerate(names) if name in PARTS), 0)
    return ".".join(names[first:])


def layers_of(proto: Any) -> dict[str, str]:
    """Of an ONNX model, the nodes that could take 8 bits -> their layers: convolutions and matrix products."""
    fixed = {each.name for each in proto.graph.initializer}
    fixed |= {name for node in proto.graph.node if node.op_type == "Constant" for name in node.output}
    found = {}
    for node in proto.graph.node:
        if node.op_type in ("Conv", "Gemm") or (node.op_type == "MatMul" and fixed & set(node.input)):
            found[node.name] = layer_of(node.name)
        elif node.op_type == "MatMul":
            found[node.name] = f"{layer_of(node.name)}.{PRODUCTS}"
    return found


def groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Layers by what they are, and blocks of a backbone also by their depth: group -> its layers.

    Numbers become stars (``backbone.vit.blocks.*.fc1``), and of convolutional parts the first two names are kept.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        for group in _groups(name):
            found.setdefault(group, []).append(name)
    return found


def _groups(name: str) -> list[str]:
    parts = name.split(".")
    kind = ["*" if part.isdigit() else part for part in parts]
    if kind[0] == "decoder" and "layers" in kind[2:]:
        kind = kind[: kind.index("layers", 2)]  # a perceptron as a whole
    elif kind[0] in ("encoder", "backbone") and "blocks" not in kind and kind[1] != "aifi":
        kind = kind[:3] if kind[0] == "backbone" else kind[:2]
    deep = kind[0] == "backbone" and "blocks" in kind
    return [".".join(kind), *([".".join(parts[: parts.index("blocks") + 2])] if deep else [])]
