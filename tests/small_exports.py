"""Exports of a tiny network that answers differently for every picture, made once for all tests of a process."""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.export import metadata
from edgecrafter.export.formats import FORMATS, Options
from edgecrafter.export.graph import graph
from edgecrafter.hub import ModelInfo
from edgecrafter.models.sizes import SIZES
from edgecrafter.predict import Predictor
from edgecrafter.types import InputSpec, Labels, LayerOutput, MaskMap, Outputs, Skeleton

SIZE = (64, 96)
LABELS = Labels(("cat", "dog", "bird"))
POINTS = Labels(
    ("(unused)", "crab", "fish"),
    skeleton=Skeleton(("head", "left", "right", "tail"), ((0, 3), (1, 2)), ((1, 2),)),
    unused=(0,),
    keypoints=((0, 1, 2, 3), (0, 1, 2), (0, 3)),
)
CASES = [("detect", "raw"), ("segment", "raw"), ("segment", "full"), ("pose", "raw"), ("pose", "full")]


class Tiny(nn.Module):
    """Sixteen queries, one for each part of the picture."""

    def __init__(self, task: str, labels: Labels) -> None:
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.last_only = ()  # type: ignore[assignment]  # what makes a deploy form asks for it
        points = len(labels.skeleton) if labels.skeleton else 0
        self.task = task
        self.see = nn.Conv2d(3, 16, 8, 8)
        self.heads = nn.ModuleDict({name: nn.Linear(16, n) for name, n in self._widths(len(labels), points).items()})
        generator = torch.Generator().manual_seed(len(task))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 2 else 1.0)
        self.heads.get_submodule("logits").bias.data -= 1.5  # type: ignore[operator]

    def _widths(self, classes: int, points: int) -> dict[str, int]:
        places = {"keypoints": 2 * points} if self.task == "pose" else {"boxes": 4}
        return {"logits": classes, **places, **({"masks": 16} if self.task == "segment" else {})}

    def forward(self, images: Tensor) -> Outputs:
        cells = torch.tanh(self.see(images))
        seen = F.avg_pool2d(cells, (2, 3)).flatten(2).transpose(1, 2)
        found = {name: head(seen) for name, head in self.heads.items()}
        layer = LayerOutput(found["logits"])
        if "boxes" in found:
            layer.boxes = found["boxes"].sigmoid()
        if "keypoints" in found:
            layer.keypoints = found["keypoints"].unflatten(2, (-1, 2)).sigmoid() * 1.4 - 0.2
        if "masks" in found:
            layer.masks = MaskMap(found["masks"], cells, torch.full((1,), -0.7))
        return Outputs([layer])


@functools.cache
def tiny(task: str, kind: str = "raw", batch: int | None = None) -> tuple[Path, Predictor]:
    """An ONNX export, and torch's own way to predict."""
    labels = POINTS if task == "pose" else LABELS
    network = Tiny(task, labels).eval()
    info = ModelInfo("tiny", task, SIZES["p"], labels, InputSpec(SIZE))
    folder = Path(_ROOT.name) / f"{task}_{kind}_{batch}"
    write(network, info, kind, batch, folder)
    return folder, Predictor(network, info, "cpu")


def write(network: nn.Module, info: ModelInfo, kind: str, batch: int | None, folder: Path) -> None:
    """What an export consists of, without the proof."""
    onnx, size = FORMATS["onnx"], info.input.size
    made = graph(network, info, kind, size, batch)  # type: ignore[arg-type]
    content = metadata.described(made, network, info, onnx, size, batch, "fp32")
    folder.mkdir(parents=True)
    onnx.write(made, folder, Options(metadata=content))
    metadata.write(folder, content)
    (folder / "infer.py").write_text(metadata.script(), encoding="utf-8")


def copied(folder: Path, target: Path, **values: object) -> None:
    """A copy of an export with other values in its metadata."""
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    meta = json.loads((target / metadata.FILE).read_text(encoding="utf-8"))
    (target / metadata.FILE).write_text(json.dumps({**meta, **values}), encoding="utf-8")


def spread(network: nn.Module, info: ModelInfo) -> tuple[nn.Module, ModelInfo]:
    """A network with random weights whose answers are not all the same."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith(("decoder.scores", "decoder.enc_score")) and parameter.ndim == 1:
                parameter += 4.0
            if name.startswith(("decoder.boxes", "decoder.poses", "decoder.enc_pose", "decoder.first_pose")):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            if name.startswith("decoder.masks.pixels"):
                parameter *= 20
    return network.eval(), replace(info, input=InputSpec(SIZE))


_ROOT = tempfile.TemporaryDirectory(prefix="edgecrafter_exports_")
