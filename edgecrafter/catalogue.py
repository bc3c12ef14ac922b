"""The list of models that can be named: size, published accuracy, where the weights are and what their licence says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgecrafter import registry

OURS = "a size of our own: no weights are published, train it on your data"
OTHERS = "an architecture of others: no weights to fetch by name, train it on your data"
FOREIGN = ("deim", "dfine", "rtdetrv2", "dab-detr", "deformable-detr", "dino")
"""families of such"""
TASKS = {
    **dict.fromkeys(("ecdet", "rtdetrv4", *FOREIGN), "detect"),
    **{"ecinsseg": "segment", "ecpose": "pose", "ecvit": "backbone", "ecteacher": "teacher"},
}
"""a name without its size -> what it is for; other names are backbones"""

# fmt: off
PARAMETERS = {
    "ecdet-p": 1_216_965, "ecdet-n": 4_248_393, "ecdet-s": 9_884_102, "ecdet-m": 19_431_502, "ecdet-l": 32_966_110,
    "ecdet-x": 49_941_982, "ecinsseg-p": 1_273_286, "ecinsseg-n": 4_467_530, "ecinsseg-s": 10_411_911,
    "ecinsseg-m": 20_364_623, "ecinsseg-l": 33_899_231, "ecinsseg-x": 50_875_103, "ecpose-p": 1_343_779,
    "ecpose-n": 4_611_943, "ecpose-s": 9_989_871, "ecpose-m": 19_981_532, "ecpose-l": 34_566_764,
    "ecpose-x": 51_542_636, "rtdetrv4-p": 2_493_461, "rtdetrv4-s": 10_321_877, "rtdetrv4-m": 19_590_064,
    "rtdetrv4-l": 31_289_848, "rtdetrv4-x": 62_715_480, "deim-s": 10_321_877, "deim-m": 19_590_064,
    "deim-l": 31_289_848, "deim-x": 62_715_480, "dfine-s": 10_321_877, "dfine-m": 19_590_064,
    "dfine-l": 31_289_848, "dfine-x": 62_715_480, "rtdetrv2-r18": 20_180_240, "rtdetrv2-r34": 31_437_444,
    "rtdetrv2-r50": 42_944_620, "rtdetrv2-r101": 76_661_740,
    "dab-detr-r18": 30_987_474, "dab-detr-r50": 43_668_690, "dab-detr-r101": 62_608_594,
    "deformable-detr-r18": 23_551_766, "deformable-detr-r50": 40_066_838, "deformable-detr-r101": 59_006_742,
    "dino-r18": 31_135_500, "dino-r50": 47_650_572, "dino-r101": 66_590_476,
    "ecvit-p": 726_156, "ecvit-n": 2_476_944, "ecvit-t": 5_557_464, "ecvit-t+": 9_866_016,
    "ecvit-s": 22_167_216, "ecvit-s+": 29_254_320, "ecteacher-s": 32_385_838, "ecteacher-b": 106_623_790,
    "dinov3-s": 21_586_944, "dinov3-b": 85_641_216, "dinov3-l": 303_079_424, "dinov2-s": 22_056_192,
    "dinov2-b": 86_579_712, "dinov2-l": 304_367_616,
}
# fmt: on
"""Every name that is listed, and its parameters: counted by a test, so that a listing needs neither torch nor timm."""


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
    return [_entry(name, parameters) for name, parameters in PARAMETERS.items()]


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


def _entry(name: str, parameters: int) -> Entry:
    task = TASKS.get(name.rpartition("-")[0], "backbone")
    row, source, teacher = registry.find(name), registry.BACKBONES.get(name), registry.TEACHERS.get(name)
    if row is not None:
        digest = row.sha256 or "unknown"
        return Entry(name, task, parameters, row.ap, row.licence, row.commercial_use, row.url, digest)
    if source is not None:
        return Entry(name, task, parameters, None, source.licence, source.commercial_use, source.spec, "unknown")
    if teacher is not None:
        use = registry.BACKBONES[teacher[1]].commercial_use
        return Entry(name, task, parameters, None, registry.licence_of(name), use, "", "")
    text = OTHERS if name.rpartition("-")[0] in FOREIGN else OURS
    return Entry(name, task, parameters, None, text, "yes", "", "")
