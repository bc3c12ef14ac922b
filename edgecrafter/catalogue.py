"""The list of models that can be named: size, published accuracy, where the weights are and what their licence says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from edgecrafter import hub, registry
from edgecrafter.models import libraries
from edgecrafter.models.sizes import VITS
from edgecrafter.start import untrained

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
    """All models by name, smallest first; then our vision transformers, the teachers, and other libraries' backbones.

    Teachers have no weights to fetch: they are made, and what is said is of the backbone that they are made of.
    """
    ours = [_entry(name) for name in [*hub.names(), *("ecvit-" + vit for vit in VITS)]]
    return [*ours, *(_teacher(name) for name in registry.TEACHERS), *(_source(name) for name in registry.BACKBONES)]


def table(entries: Sequence[Entry]) -> str:
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
        "Weights are fetched from their authors (timm: by that library):",
    ]
    lines += [f"  {entry.name:<{width}}  {entry.url}" for entry in entries if entry.url]
    lines += [
        "",
        "Teachers are made with edgecrafter teach, and distilled with edgecrafter distill; the paper's pairs:",
    ]
    for name, (detector, backbone) in registry.TEACHERS.items():
        students = ", ".join(f"ecvit-{vit}" for vit, teacher in registry.PAIRS.items() if teacher == name)
        lines.append(f"  {name:<{width}}  {backbone} in {detector}, for {students}")
    return "\n".join([*lines, "Any other backbone is named timm:NAME or hf:OWNER/NAME."])


def _entry(name: str) -> Entry:
    row = registry.find(name)
    vit = VITS.get(name.removeprefix("ecvit-"))
    task = "backbone" if vit else hub.parse(name)[0].name
    with torch.device("meta"):
        network: nn.Module = hub.create(f"ecdet-{vit}" if vit else name)[0]
    parameters = _count(network.get_submodule("backbone.vit") if vit else network)
    if row is None:
        return Entry(name, task, parameters, None, OURS, "yes", "", "")
    digest = row.sha256 or "unknown"
    return Entry(name, task, parameters, row.ap, row.licence, row.commercial_use, row.url, digest)


def _teacher(name: str) -> Entry:
    with torch.device("meta"):
        network, info = untrained(name)
    use = registry.BACKBONES[registry.TEACHERS[name][1]].commercial_use
    return Entry(name, "teacher", _count(network), None, info.licence, use, "", "")


def _source(name: str) -> Entry:
    source = registry.BACKBONES[name]
    with torch.device("meta"):
        network = libraries.build(source.spec)
    found = source.licence, source.commercial_use, source.spec
    return Entry(name, "backbone", _count(network), None, *found, "unknown")


def _count(network: nn.Module) -> int:
    """Of a network without memory."""
    return sum(parameter.numel() for parameter in network.parameters())
