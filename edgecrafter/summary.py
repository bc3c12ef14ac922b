"""What a network is made of and what it costs, beside what the paper says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from edgecrafter.metrics import speed
from edgecrafter.models import foreign
from edgecrafter.models.fuse import fuse

if TYPE_CHECKING:
    from edgecrafter.hub import ModelInfo
    from edgecrafter.models.network import Detector

PARTS = {
    "stem": "backbone.vit.stem",
    "ViT blocks": "backbone.vit.blocks",
    "pyramid": "backbone.pyramid",
    "encoder": "encoder",
    "decoder": "decoder",
}
"""name in the table -> submodule"""
AROUND = {"backbone": "backbone.vit", **{name: path for name, path in PARTS.items() if "vit." not in path}}
"""the same of a model around another library's backbone"""


@dataclass(frozen=True)
class Published:
    """A row of the paper (COCO val2017, 640 x 640) and how far counting leads away from it."""

    parameters: float
    """millions"""
    gflops: float
    ap: float
    deviation: str = ""


_UNFUSED = "{:.1f} GFLOPs of products in training form, where the encoder's blocks have both branches; published {}"
# deviations: counts of the released models, FLOPs with the authors' counter
_PROJECTOR = "parameters without the projector of its distillation, 0.2 M (x: 0.3 M), which the authors count"
TABLES = {
    "EdgeCrafter, Table 2: detection": {
        "ecdet-s": Published(10, 26, 51.7),
        "ecdet-m": Published(18, 53, 54.3, "19.2 M parameters in deploy form, published 18"),
        "ecdet-l": Published(31, 101, 57.0, "32.7 M parameters, published 31; 99.6 GFLOPs, published 101"),
        "ecdet-x": Published(49, 151, 57.9, "156.9 GFLOPs, published 151"),
    },
    "EdgeCrafter, Table 3: pose": {
        "ecpose-s": Published(
            9.9, 30.4, 68.9, "29.45 GFLOPs, without the attention across queries (1.1); published 30.4"
        ),
        "ecpose-m": Published(
            19.8, 62.8, 72.4, "60.56 GFLOPs, without the attention across queries (2.5); published 62.8"
        ),
        "ecpose-l": Published(
            34.3, 111.7, 73.5, "109.39 GFLOPs, without the attention across queries (2.5); published 111.7"
        ),
        "ecpose-x": Published(
            50.6, 172.2, 74.8, "169.97 GFLOPs, without the attention across queries (2.5); published 172.2"
        ),
    },
    "EdgeCrafter, Table 4: instance segmentation": {
        "ecinsseg-s": Published(10.3, 33.1, 43.0),
        "ecinsseg-m": Published(20.1, 64.2, 45.2),
        "ecinsseg-l": Published(33.6, 110.8, 47.1),
        "ecinsseg-x": Published(49.9, 168.1, 48.4),
    },
    "RT-DETRv4, Table 1: detection": {
        "rtdetrv4-s": Published(10, 25, 49.7, _PROJECTOR),
        "rtdetrv4-m": Published(19, 57, 53.5, _PROJECTOR),
        "rtdetrv4-l": Published(31, 91, 55.4, _PROJECTOR),
        "rtdetrv4-x": Published(62, 202, 57.0, _PROJECTOR + "; 203.1 GFLOPs, published 202"),
    },
    "RT-DETRv4, Table 1: the detectors that it is compared with and that have its parts": {
        "deim-s": Published(10, 25, 49.0),
        "deim-m": Published(19, 57, 52.7),
        "deim-l": Published(31, 91, 54.7),
        "deim-x": Published(62, 202, 56.5),
        "dfine-s": Published(10, 25, 48.5),
        "dfine-m": Published(19, 57, 52.3),
        "dfine-l": Published(31, 91, 54.0),
        "dfine-x": Published(62, 202, 55.8),
    },
    "RT-DETRv4, Table 1: RT-DETRv2 (S, M, L, X there)": {
        "rtdetrv2-r18": Published(20, 60, 48.1, _UNFUSED.format(59.1, 60)),
        "rtdetrv2-r34": Published(31, 92, 49.9, _UNFUSED.format(91.2, 92)),
        "rtdetrv2-r50": Published(42, 136, 53.4, "42.9 M parameters, published 42; " + _UNFUSED.format(135.6, 136)),
        "rtdetrv2-r101": Published(76, 259, 54.3, "76.7 M parameters, published 76; " + _UNFUSED.format(258.4, 259)),
    },
}
PAPER = {name: row for rows in TABLES.values() for name, row in rows.items()}


NOTES = (
    "Columns 'paper' are the paper's, the others are counted here: the classes of the authors' files (80; pose 2, one",
    "of them unused), one image of 640 x 640. AP is of boxes, keypoints (OKS) and masks on COCO val2017; it is the",
    "paper's and was not measured here.",
    "'all' counts every matrix product; 'paper way' leaves out those inside fused attention (nearly all of them in the",
    "ViT), which the authors' counter does not see. It adds norms and activations, under 1 %, and so says 26.04,",
    "53.05, 99.63 and 156.93 for the released ECDet files. Masks are of all 300 queries, with the one block of the",
    "mask head that the released inference applies. Where the authors' counter and the published tables differ:",
)


@dataclass(frozen=True)
class Summary:
    """Counts of one model at one input size. FLOPs: two per multiply-add, one image, deploy form."""

    name: str
    task: str
    licence: str
    classes: int
    size: tuple[int, int]
    """height, width of the input"""
    parts: dict[str, int]
    """parameters of each part in training form"""
    parameters: int
    """training form"""
    deploy_parameters: int
    """after fusing convolutions with norms and dropping heads that only training reads"""
    gflops: float
    """all matrix products, convolutions and attention"""
    paper_gflops: float
    """the paper's way: without the products inside fused attention"""
    backbone: str = ""
    """another library's backbone, such as ``timm:NAME``; empty: our vision transformer"""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"size": list(self.size)}

    def __str__(self) -> str:
        height, width = self.size
        millions = {name: count / 1e6 for name, count in self.parts.items()}
        whole = self.parameters / 1e6
        lines = [
            f"{self.name}: {self.task}, {self.classes} classes, input {height} x {width}",
            *([f"backbone: {self.backbone}"] if self.backbone else []),
            f"weights: {self.licence}",
            *(f"  {name:<12}{count:>8.2f} M {100 * count / whole:>4.0f} %" for name, count in millions.items()),
            f"parameters    {whole:>8.2f} M in training",
            f"              {self.deploy_parameters / 1e6:>8.2f} M in deploy form, fused for use",
            f"GFLOPs        {self.gflops:>8.2f}   all matrix products: what a device has to compute",
            f"              {self.paper_gflops:>8.2f}   the paper's way: without the products inside fused attention",
        ]
        return "\n".join(lines)


def summarise(network: Detector, info: ModelInfo, size: tuple[int, int] | None = None) -> Summary:
    """Count a network. ``size`` is (height, width), by default the model's own input."""
    size = size or info.input.size
    fused = fuse(network)
    every, paper = speed.flops(fused, size)
    parts = AROUND if info.size.backbone else PARTS
    return Summary(
        name=info.name,
        task=info.task,
        licence=info.licence,
        classes=len(info.labels),
        size=size,
        parts={name: _count(network.get_submodule(path)) for name, path in parts.items()},
        parameters=speed.parameters(network),
        deploy_parameters=speed.parameters(fused),
        gflops=every / 1e9,
        paper_gflops=paper / 1e9,
        backbone=foreign.title(info.size.backbone) if info.size.backbone else "",
    )


def compare(found: list[Summary]) -> str:
    """The columns of ``TABLES``, counted here and as published, with the known deviations named."""
    lines = []
    counted = {each.name: each for each in found}
    for title, rows in TABLES.items():
        lines += [f"{title}", f"{'':<13} {'parameters, M':^26}  {'GFLOPs':^28}  AP"]
        lines += [
            f"{'':<13} {'training':>8} {'deploy':>8} {'paper':>8}  {'all':>8} {'paper way':>10} {'paper':>8}  paper"
        ]
        lines += [*(_line(counted[name], row) for name, row in rows.items() if name in counted), ""]
    return "\n".join([*lines, *NOTES, *(f"  {name}: {row.deviation}" for name, row in PAPER.items() if row.deviation)])


def _line(each: Summary, row: Published) -> str:
    parameters = f"{each.parameters / 1e6:>8.2f} {each.deploy_parameters / 1e6:>8.2f} {row.parameters:>8g}"
    gflops = f"{each.gflops:>8.1f} {each.paper_gflops:>10.1f} {row.gflops:>8g}"
    return f"{each.name:<13} {parameters}  {gflops}  {row.ap:>5}"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
