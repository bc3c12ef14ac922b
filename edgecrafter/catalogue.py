"""The list of models that can be named: size, published accuracy, where the weights are and what their licence says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from edgecrafter import hub, registry
from edgecrafter.models.sizes import VITS

OURS = "a size of our own: no weights are published, train it on your data"


@dataclass(frozen=True)
class Entry:
    """One line of ``edgecrafter models``."""

    name: str
    task: str
    parameters: int
    """training form, with the classes of the authors' files"""
    ap: float | None
    """AP on COCO val2017 in percent, of boxes, masks or keypoints by the task, as the paper says; not measured here"""
    licence: str
    """of the weights"""
    commercial_use: str
    """yes, no or check"""
    url: str
    """empty: nothing to download"""
    sha256: str
    """of the file at ``url``; ``unknown`` until somebody has downloaded and hashed it"""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def models() -> list[Entry]:
    """All models by name, smallest first, then the backbones."""
    backbones = [row.name for row in registry.REGISTRY if row.task == "backbone"]
    return [_entry(name) for name in [*hub.names(), *backbones]]


def table(entries: list[Entry]) -> str:
    """The entries as text; licences are printed once, below."""
    licences = list(dict.fromkeys(entry.licence for entry in entries))
    width = max(len(entry.name) for entry in entries)
    lines = [f"{'name':<{width}}  task      params M  AP (paper)  licence  commercial  sha256"]
    for entry in entries:
        ap = "-" if entry.ap is None else f"{entry.ap:.1f}"
        digest = entry.sha256[:12] if entry.url else "-"
        lines.append(
            f"{entry.name:<{width}}  {entry.task:<8}  {entry.parameters / 1e6:>8.1f}  {ap:>10}  "
            f"[{licences.index(entry.licence) + 1}]      {entry.commercial_use:<10}  {digest}"
        )
    lines += ["", *(f"[{number}] {licence}" for number, licence in enumerate(licences, 1))]
    lines += [
        "",
        "AP is the paper's (COCO val2017; of boxes, masks or keypoints, by the task), not measured here.",
        "Weights are fetched from their authors:",
    ]
    lines += [f"  {entry.name:<{width}}  {entry.url}" for entry in entries if entry.url]
    return "\n".join(lines)


def _entry(name: str) -> Entry:
    row = registry.find(name)
    task = hub.parse(name)[0].name if row is None else row.task
    parameters = _parameters(name)
    if row is None:
        return Entry(name, task, parameters, None, OURS, "yes", "", "")
    digest = row.sha256 or "unknown"
    return Entry(name, task, parameters, row.ap, row.licence, row.commercial_use, row.url, digest)


def _parameters(name: str) -> int:
    """Counted on a network without memory."""
    vit = VITS.get(name.removeprefix("ecvit-"))
    with torch.device("meta"):
        network, _ = hub.create(f"ecdet-{vit}" if vit else name)
    part = network.get_submodule("backbone.vit") if vit else network
    return sum(parameter.numel() for parameter in part.parameters())
