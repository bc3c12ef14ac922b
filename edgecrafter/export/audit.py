"""Which operators an ONNX file has, and which of them stand in the way of neural processing units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RANK = 4
"""most dimensions of a tensor"""
NEVER = (
    *("GridSample", "TopK", "NonZero", "Unique", "NonMaxSuppression", "ScatterND", "ScatterElements", "Scatter"),
    *("If", "Loop", "Scan", "Einsum", "RoiAlign"),
)
INDEXED = ("Gather", "GatherElements", "GatherND")
"""forbidden where the indices are computed"""


@dataclass
class Audit:
    """What is in a file."""

    name: str
    operators: dict[str, int] = field(default_factory=dict)
    """operator -> how often, the most frequent first"""
    rank: int = 0
    """most dimensions that a tensor has"""
    opset: int = 0
    forbidden: list[str] = field(default_factory=list)
    """what an NPU is not expected to run, with the names of nodes and tensors"""

    def table(self) -> str:
        """The audit as text, one operator per line."""
        width = max((len(name) for name in self.operators), default=0)
        lines = [f"  {name:<{width}} {count:>5}" for name, count in self.operators.items()]
        total = sum(self.operators.values())
        head = f"{self.name}: opset {self.opset}, {total} nodes, tensors of up to {self.rank} dimensions"
        tail = [f"  not for NPUs: {each}" for each in self.forbidden] or ["  nothing in it is forbidden on NPUs"]
        return "\n".join([head, *lines, *tail])

    def require(self) -> None:
        """Raises ValueError with the names, where there is something forbidden."""
        if self.forbidden:
            shown = "; ".join(self.forbidden[:10])
            more = f"; and {len(self.forbidden) - 10} more" if len(self.forbidden) > 10 else ""
            raise ValueError(f"{self.name} is not a graph for NPUs: {shown}{more}. Use graph=raw or graph=full instead")


def audit(file: Any, name: str = "") -> Audit:
    """Look at every node of an ONNX file (its path, or an ``onnx.ModelProto`` with a name), also of nested graphs.

    Forbidden are the operators of ``NEVER``, those of ``INDEXED`` with computed indices, operators of other domains
    than ONNX's, tensors of more than 4 dimensions, shapes that are not known before run time, and arithmetic on whole
    numbers.
    """
    import onnx

    given = onnx.load(file) if isinstance(file, (str, Path)) else file
    model = onnx.shape_inference.infer_shapes(given, strict_mode=True, data_prop=True)
    nodes = list(_nodes(model.graph))
    counts = Counter(node.op_type for node in nodes)
    shapes, whole = _tensors(model.graph)
    found = [f"{node.op_type} ({node.name or node.output[0]})" for node in nodes if node.op_type in NEVER]
    found += _indexed(model.graph, nodes)
    found += [f"{n.domain}.{n.op_type} ({n.name or n.output[0]})" for n in nodes if n.domain not in ("", "ai.onnx")]
    found += _ranks(nodes, shapes)
    found += _dynamic(nodes, shapes)
    found += [
        f"whole numbers from {node.op_type} ({node.name or node.output[0]})"
        for node in nodes
        if node.op_type != "Constant" and node.op_type not in NEVER and whole & set(node.output)
    ]
    return Audit(
        name=name or (Path(file).name if isinstance(file, (str, Path)) else model.graph.name),
        operators=dict(counts.most_common()),
        rank=max((len(shape) for shape in shapes.values()), default=0),
        opset=next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0),
        forbidden=found,
    )


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those of the branches of an If and the body of a Loop as well."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _tensors(graph: Any) -> tuple[dict[str, list[int | None]], set[str]]:
    """Shapes of the tensors that are known, with None for sides that are not, and the names of those of int64."""
    shapes: dict[str, list[int | None]] = {each.name: list(each.dims) for each in graph.initializer}
    whole = set()
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            shapes[value.name] = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
        if kind.elem_type in (6, 7):  # TensorProto.INT32 and INT64
            whole.add(value.name)
    return shapes, whole


def _indexed(graph: Any, nodes: list[Any]) -> list[str]:
    fixed = {each.name for each in graph.initializer} | {n.output[0] for n in nodes if n.op_type == "Constant"}
    return [
        f"{node.op_type} with computed indices ({node.name or node.output[0]})"
        for node in nodes
        if node.op_type in INDEXED and node.input[1] not in fixed
    ]


def _ranks(nodes: list[Any], shapes: dict[str, list[int | None]]) -> list[str]:
    found = []
    for node in nodes:
        for name in node.output:
            rank = len(shapes.get(name, ()))
            if rank > RANK:
                found.append(f"{rank} dimensions from {node.op_type} ({node.name or name})")
    return found


def _dynamic(nodes: list[Any], shapes: dict[str, list[int | None]]) -> list[str]:
    return [
        f"unknown shape from {node.op_type} ({node.name or name})"
        for node in nodes
        for name in node.output
        if name and (name not in shapes or None in shapes[name])
    ]
