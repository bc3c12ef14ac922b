"""NCNN, for phones and single-board computers, through pnnx: the npu graph, as it has neither TopK nor Gather."""

from __future__ import annotations

import copy
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from edgecrafter.export.formats import Options
from edgecrafter.export.npu_sampling import Largest
from edgecrafter.export.parts import Graph, Part

STEEP, TIMES = 60000.0, 3
"""a difference times this, this often, is 0 or beyond 1; a number that float16 holds"""


def write(graph: Graph, folder: Path, options: Options) -> None:
    """Write ``<part>.param`` and ``<part>.bin`` for every part; fp16 is how the weights are stored.

    Raises ValueError with pnnx's own words where it cannot take a part.
    """
    import pnnx

    for part in graph.parts:
        with tempfile.TemporaryDirectory() as temporary:
            _traced(part).save(str(Path(temporary) / "part.pt"))
            shapes = ",".join(str(list(each.shape)).replace(" ", "") for each in part.inputs.values())
            half = int(options.precision == "fp16")
            command = [pnnx.EXEC_PATH, "part.pt", f"inputshape={shapes}", f"fp16={half}"]
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, check=False)
            _check(part, done.stdout + done.stderr, Path(temporary) / "part.ncnn.param")
            for suffix in ("param", "bin"):
                (folder / f"{part.name}.{suffix}").write_bytes((Path(temporary) / f"part.ncnn.{suffix}").read_bytes())


def _traced(part: Part) -> torch.jit.ScriptModule:
    module = copy.deepcopy(part.module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Largest):
                setattr(parent, name, LargestByProducts(child))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, tuple(part.inputs.values()), check_trace=False)  # type: ignore[no-any-return, no-untyped-call]


def _check(part: Part, said: str, written: Path) -> None:
    """pnnx leaves what it does not know in the file, for ncnn to refuse."""
    kinds = {line.split()[0] for line in written.read_text().splitlines()[2:]} if written.is_file() else set()
    unknown = sorted(kind for kind in kinds if "." in kind)
    if not kinds or unknown:
        raise ValueError(f"ncnn: pnnx cannot convert {part.name} ({', '.join(unknown) or said[-500:]}); use graph=npu")


class LargestByProducts(nn.Module):
    """``Largest`` without comparisons, masks and sorting: ncnn has none of them."""

    def __init__(self, largest: Largest) -> None:
        super().__init__()
        self.top = largest.top
        self.register_buffer("places", largest.places)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] -> [..., top]."""
        found: Tensor | float = 0.0
        count: Tensor | float = 0.0
        before: Tensor | float = 0.0
        for i in range(self.top):
            best = x.amax(-1, keepdim=True)
            below = x - best
            for _ in range(TIMES):
                below = (below * STEEP).clamp(-1, 0)
            equal = 1 + below
            count = count + equal.sum(-1, keepdim=True)
            filled = (count - self.places).clamp(0, 1)  # type: ignore[operator]
            found = found + best * (filled - before)
            before = filled
            if i < self.top - 1:
                x = x - equal * STEEP
        assert isinstance(found, Tensor)
        return found
