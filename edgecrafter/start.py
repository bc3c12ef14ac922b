"""Where a training starts from: random weights, released weights, an own file, or a distilled ViT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from edgecrafter import registry, vits
from edgecrafter.download import download
from edgecrafter.hub import (
    OWN_LICENCE,
    RANDOM,
    ModelInfo,
    build,
    described,
    locate,
    parse,
    proper,
    read,
    resolve,
)
from edgecrafter.models import foreign, official
from edgecrafter.models.detector import Detector
from edgecrafter.models.foreign import Foreign
from edgecrafter.models.sizes import Size
from edgecrafter.tasks import TASKS, Task
from edgecrafter.types import InputSpec, Labels


class Start(NamedTuple):
    """A network to train."""

    network: Detector
    info: ModelInfo
    lines: list[str]
    """what was taken from where"""
    random_vit: bool
    """whether a block of the ViT starts from random weights"""


class Origin(NamedTuple):
    """What ``model`` of a training means: a name, or a file with everything in it."""

    name: str
    task: Task
    file: tuple[dict[str, Tensor], ModelInfo] | None


def origin(model: str | Path) -> Origin:
    """Look up a model name, or read a file once."""
    path = resolve(model)
    file = read(path) if path.is_file() else None
    name = file[1].name if file else proper(str(model))
    return Origin(name, parse(name)[0], file)


def start(
    given: Origin,
    labels: Labels,
    size: tuple[int, int] | None = None,
    weights: str | Path = "auto",
    backbone: str | Path | nn.Module | None = None,
    backbone_weights: str = "pretrained",
    **options: Any,
) -> Start:
    """A network to train for ``labels`` at the input ``size`` (h, w; None: the model's own), and where it comes from.

    ``weights``: "auto" takes the file itself or the released weights of the name, if there are any; "none" starts from
    random weights; anything else is a model to take weights from, of any task. Class rows are taken by class name.
    ``backbone`` is a file with a ViT alone (released layout), as distilled ViTs come, whose options (registers, stem)
    are then taken over; or another library's backbone that takes the ViT's place (``backbone_weights`` as in
    ``models.foreign.build``), or a module.
    """
    lines: list[str] = []
    vit = None if isinstance(backbone, nn.Module) or backbone is None else vits.find(backbone)
    options = {**(vits.options(vit) if vit else {}), **options}
    if given.file is not None:
        info = given.file[1]
        row = _trained(info.size, given.task)
        spec = info.input if size is None else replace(info.input, size=size)
        info = replace(info, size=row.changed(**options), labels=labels, input=spec, licence=OWN_LICENCE, source=RANDOM)
    else:
        info = described(given.name, labels, InputSpec() if size is None else InputSpec(size), **options)
    other_vit = None
    if backbone is not None and vit is None:
        other_vit = _foreign(backbone, info.size, backbone_weights)
        info = around(other_vit, info)
        lines.append(f"{info.name} around {other_vit.facts.spec}, weights: {backbone_weights}")
        lines.append(f"  licence of the backbone: {other_vit.facts.licence}")
    network = build(info, other_vit)
    new = list(network.state_dict())
    fresh = backbone is not None
    source = given.file if given.file and weights == "auto" else _source(given.name, weights, fresh)
    if source is None and other_vit is None:
        lines.append(f"{given.name}: starts from random weights")
    elif source is not None:
        other = TASKS[source[1].task]
        state = source[0] if other.family == given.task.family else _without(source[0], "decoder.")
        state = _without(state, "backbone.") if other_vit else state
        taken, new = transfer(network, state, info.labels, source[1].labels)
        lines += [f"weights of {source[1].name} ({other.name}):", *taken]
        if other is given.task and _trained(source[1].size, other) != source[1].size and other.start_note:
            lines.append(f"  {other.start_note}")
        info = replace(info, source=f"from {source[1].source}", licence=_inherited(source[1].licence, info))
    if vit is not None:
        lines.append(vits.load(network.get_submodule("backbone.vit"), vit))
        info = replace(info, licence=_inherited(vits.about(vit).get("licence", ""), info))
    random_vit = not fresh and any(name.startswith(official.VIT + "blocks.") for name in new)
    random_vit |= other_vit is not None and backbone_weights == foreign.RANDOM
    return Start(network, info, lines, random_vit)


def _trained(row: Size, task: Task) -> Size:
    """The row of a file as we train it: what the authors' files have of their own is left behind."""
    return row.changed(**{name: getattr(Size, name) for name in task.released})  # the defaults of the fields


def _without(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(part)}


def _foreign(backbone: str | Path | nn.Module, row: Size, weights: str) -> Foreign:
    if isinstance(backbone, nn.Module):
        return foreign.adopt(backbone, row.fused)
    spec = registry.backbone(str(backbone))
    assert spec is not None
    return foreign.build(spec, row.fused, row.norm, weights)


def around(vit: Foreign, info: ModelInfo) -> ModelInfo:
    """``info`` of a detector in which ``vit`` takes the place of its ViT: the pyramid follows its width, the pictures
    its mean and deviation."""
    facts = vit.facts
    row = info.size.changed(backbone=facts.spec, vit=facts.widths[-1], project="all")
    spec = replace(info.input, mean=facts.mean, std=facts.std)
    return replace(info, size=row, input=spec, licence=f"{info.licence}; its backbone: {facts.licence}")


def transfer(
    network: nn.Module, state: Mapping[str, Tensor], labels: Labels, given: Labels
) -> tuple[list[str], list[str]]:
    """Takes every entry of ``state`` that fits; rows of classes and keypoints by name. Says what was taken, and lists
    what is new.

    Raises ``ValueError`` when too little of the backbone fits: the weights are of another size.
    """
    own = network.state_dict()
    classes, points = _shared(labels.names, given.names), _shared(_points(labels), _points(given))
    same_points = _points(labels) == _points(given)
    taken, by_name, new = [], [], []
    for name, value in own.items():
        other = state.get(name)
        rows = classes if official.is_class_row(name) else points if official.is_keypoint_row(name) else None
        if other is None or (not same_points and official.has_keypoints(name)):
            new.append(name)
        elif rows is not None and other.shape[1:] == value.shape[1:]:
            for i, j in rows:
                value[i] = other[j].to(value.dtype)
            by_name.append(name)
        elif other.shape == value.shape:
            value.copy_(other)
            taken.append(name)
        else:
            new.append(name)
    whole = _of(own, "backbone") if _of(state, "backbone") else 0
    if 2 * _of(taken, "backbone") < whole:
        raise ValueError(
            f"only {_of(taken, 'backbone')} of {whole} entries of the backbone fit: the weights are of a model of "
            "another size. Choose a file of the same size and options"
        )
    parts = dict.fromkeys(name.partition(".")[0] for name in own)
    counts = (f"{part} {_of(taken, part) + _of(by_name, part)} of {_of(own, part)}" for part in parts)
    lines = [f"  taken: {', '.join(counts)} entries"]
    if by_name:
        lines.append(f"  rows of {len(classes)} of {len(labels)} classes by name, the others are new")
    if new:
        lines.append(f"  new (random): {len(new)} entries, for example {', '.join(new[:3])}")
    unused = [name for name in state if name not in own]
    if unused:
        lines.append(f"  not used: {len(unused)} entries, for example {', '.join(unused[:3])}")
    return lines, new


def _points(labels: Labels) -> tuple[str, ...]:
    return labels.skeleton.names if labels.skeleton else ()


def _shared(own: Sequence[str], given: Sequence[str]) -> list[tuple[int, int]]:
    """Rows of the same name, here and there."""
    rows = {name: i for i, name in enumerate(given)}
    return [(i, rows[name]) for i, name in enumerate(own) if name in rows]


def _of(names: Iterable[str], part: str) -> int:
    return sum(name.startswith(part + ".") for name in names)


def _source(name: str, weights: str | Path, fresh: bool) -> tuple[dict[str, Tensor], ModelInfo] | None:
    if str(weights) == "none" or (str(weights) == "auto" and fresh):
        return None
    if str(weights) != "auto":
        return read(locate(weights))
    row = registry.find(name)
    return None if row is None else read(download(row))


def _inherited(licence: str, info: ModelInfo) -> str:
    if licence in ("", OWN_LICENCE):
        return info.licence
    return f"{info.licence}; started from weights under: {licence}"
