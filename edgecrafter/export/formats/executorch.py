"""ExecuTorch, for phones and other small machines: CPU kernels of XNNPACK, the rest by its portable ones."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from edgecrafter.export.formats import Options
from edgecrafter.export.parts import Graph


def write(graph: Graph, folder: Path, options: Options) -> None:
    """Write ``<part>.pte`` for every part, of static shapes; its method ``edgecrafter`` gives the metadata."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    for part in graph.parts:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(part.module, tuple(part.inputs.values()), strict=False)
            lowered = to_edge_transform_and_lower(
                program,
                partitioner=[XnnpackPartitioner()],
                constant_methods={"edgecrafter": json.dumps(options.metadata)},
            )
            made = lowered.to_executorch()
        (folder / f"{part.name}.pte").write_bytes(made.buffer)
