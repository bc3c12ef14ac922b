"""What travels with an exported model."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata as installed
from pathlib import Path
from typing import Any

from torch import nn

from edgecrafter.export.formats import Format
from edgecrafter.export.parts import Graph
from edgecrafter.files import written_beside
from edgecrafter.hub import ModelInfo

FILE = "metadata.json"
TOOLS = ("edgecrafter", "torch", "onnx", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "executorch", "tensorrt")


def described(
    graph: Graph,
    network: nn.Module,
    info: ModelInfo,
    kind: Format,
    size: tuple[int, int],
    batch: int | None,
    precision: str,
) -> dict[str, Any]:
    """The metadata of an export, before it has been checked."""
    given = info.input
    return {
        "edgecrafter": 1,
        "model": json.loads(info.to_json()),
        "format": kind.module,
        "runtime": kind.runtime,
        "graph": graph.kind,
        "precision": precision,
        "input": {
            "size": list(size),
            "batch": batch,
            "resize": given.resize,
            "range": "RGB 0..1",
            "normalisation": {"mean": list(given.mean), "std": list(given.std), "inside": True},
        },
        "parts": [
            {
                "file": f"{part.name}{kind.suffix}",
                "inputs": {name: _shape(tensor.shape, graph.dynamic) for name, tensor in part.inputs.items()},
                "outputs": list(part.outputs),
            }
            for part in graph.parts
        ],
        "facts": graph.facts,
        "licence": info.licence,
        "source": info.source,
        "sha256": weights_hash(network),
        "versions": {name: version for name in TOOLS if (version := _version(name))},
    }


def write(folder: Path, content: dict[str, Any]) -> None:
    """``metadata.json`` in ``folder``."""
    with written_beside(folder / FILE) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def weights_hash(network: nn.Module) -> str:
    """SHA-256 of the names and values of all weights: the same for every file that holds them."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _shape(shape: Any, dynamic: bool) -> list[int | None]:
    return [None if dynamic and not axis else int(side) for axis, side in enumerate(shape)]


def _version(name: str) -> str | None:
    try:
        return installed.version(name)
    except installed.PackageNotFoundError:
        return None


def script() -> str:
    """``infer.py``, as it goes into every export."""
    import edgecrafter.deployed

    return (Path(edgecrafter.deployed.__file__).parent / "infer.py").read_text(encoding="utf-8")
