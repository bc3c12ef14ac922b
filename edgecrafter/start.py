"""Where a training starts from: random weights, released weights, an own file, or a distilled ViT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from edgecrafter import around, registry, vits
from edgecrafter.download import cache_folder, download
from edgecrafter.geometry.sides import input_size
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
from edgecrafter.models import official
from edgecrafter.models.foreign import Foreign
from edgecrafter.models.network import Detector
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
    return Origin(name, parse(name).task, file)


def start(
    given: Origin,
    labels: Labels,
    size: int | Sequence[int] | None = None,
    weights: str | Path = "auto",
    backbone: str | Path | nn.Module | None = None,
    backbone_weights: str = "auto",
    **options: Any,
) -> Start:
    """A network to train for ``labels`` at the input ``size`` (as ``geometry.sides.input_size`` takes it; None: the
    model's own), and where it comes from.

    ``weights``: "auto" takes the file itself or the released weights of the name, if there are any; "none" starts from
    random weights; anything else is a model to take weights from, of any task. Class rows are taken by class name.
    ``backbone`` is a file with a ViT alone (released layout), as distilled ViTs come, whose options (registers, stem)
    are then taken over; or another library's backbone that takes the ViT's place, or a module. ``backbone_weights`` of
    it, or of the family's own, as ``models.libraries.build`` takes them; "auto": pretrained, but random for a family's
    own with ``weights`` "none".

    Raises ``ValueError`` for weights of a model around another kind of backbone, and for options that mean nothing.
    """
    vit = None if isinstance(backbone, nn.Module) or backbone is None else vits.find(backbone)
    fresh = backbone is not None
    source = given.file if given.file and weights == "auto" else _source(given.name, weights, fresh)
    if source is not None and not fresh:
        _same_kind(given.name, source[1].name)
    shape = vits.options(vit) if vit else _shape(source[1].size) if source and not fresh else {}
    info = _described(given, labels, size, source[1].input if source else None, fresh)
    info = replace(info, size=info.size.changed(**{**shape, **options}))
    around_vit, info, lines, random = around.chosen(
        info, backbone, vit, source is None, weights, backbone_weights, options
    )
    if random and info.size.frozen:
        info = replace(info, size=info.size.changed(frozen=False))
        lines.append("  its norms, stem and first stage are trained too: they start from random weights")
    network = build(info, around_vit)
    new = list(network.state_dict())
    if source is None and around_vit is None:
        lines.append(f"{given.name}: starts from random weights")
    elif source is not None:
        state = _of_source(source, given.task, fresh, around_vit)
        taken, new = transfer(network, state, info.labels, source[1].labels)
        lines += [f"weights of {source[1].name} ({source[1].task}):", *taken, *_notes(source[1], info)]
        info = replace(info, source=f"from {source[1].source}", licence=_inherited(source[1].licence, info))
    if vit is not None:
        lines.append(vits.load(network.get_submodule("backbone.vit"), vit))
        info = replace(info, licence=_inherited(vits.about(vit).get("licence", ""), info))
    random |= around_vit is None and not fresh and any(name.startswith(_WEIGHTY) for name in new)
    return Start(network, info, lines, random)


def _same_kind(name: str, source: str) -> None:
    """Raises ``ValueError`` when a model and its weights are not built around the same kind of backbone."""
    own, other = (parse(each).row.backbone or "a vision transformer of ours" for each in (name, source))
    if own != other:
        raise ValueError(
            f"{name} is built around {own} and the weights, of {source}, around {other}: choose a file of the same "
            "family and size"
        )


def _of_source(
    source: tuple[dict[str, Tensor], ModelInfo], task: Task, fresh: bool, around_vit: Foreign | None
) -> dict[str, Tensor]:
    """The part of some weights that can be taken over: no decoder of another family of tasks, no other backbone."""
    state, info = source
    state = state if TASKS[info.task].family == task.family else _without(state, "decoder.")
    if fresh and not _same_module(around_vit, info) and (around_vit or info.size.backbone):
        state = _without(state, "backbone.")
    return state


def _notes(source: ModelInfo, info: ModelInfo) -> list[str]:
    """What is to be said of weights that mean something else there."""
    other, lines = TASKS[source.task], []
    if source.task == info.task and _trained(source.size, other) != source.size and other.start_note:
        lines.append(f"  {other.start_note}")
    if source.size.arch != info.size.arch:
        lines.append(
            f"  note: encoder and decoder of {source.name} compute something else with their weights than those of "
            f"{info.name}; only the backbone means the same"
        )
    return lines


def _described(
    given: Origin, labels: Labels, size: int | Sequence[int] | None, source: InputSpec | None, fresh: bool
) -> ModelInfo:
    """What is to be trained: the model of the file or of the name; ``source`` is the input of the weights, and
    ``fresh`` says that another backbone will come."""
    info = plain = described(given.name, labels)
    spec = info.input if source is None or fresh else replace(info.input, mean=source.mean, std=source.std)
    if given.file is not None:
        info = given.file[1]
        row = _trained(info.size, given.task)
        spec = info.input
        if fresh and row.backbone:
            same = ("backbone", "vit", "project")
            row = row.changed(**{name: getattr(plain.size, name) for name in same})
            spec = replace(plain.input, size=info.input.size)
        info = replace(info, size=row, labels=labels, licence=OWN_LICENCE, source=RANDOM)
    return replace(info, input=spec if size is None else replace(spec, size=input_size(size, spec.resize)))


def _shape(row: Size) -> dict[str, Any]:
    """What a network has to take over of the row of its weights, so that the backbone's fit."""
    names = [*vits.OPTIONS, "fused", "fusion"]
    if row.backbone:
        names += ["backbone", "norm", "vit", "project"]
    return {name: getattr(row, name) for name in names}


_WEIGHTY = (official.VIT + "blocks.", official.VIT + "network.")
"""most of a ViT, ours or of others"""


def _same_module(vit: Foreign | None, info: ModelInfo) -> bool:
    """Whether a file was trained around the module that is handed in again."""
    return vit is not None and vit.facts.spec.startswith("module:") and vit.facts.spec == info.size.backbone


def _trained(row: Size, task: Task) -> Size:
    """The row of a file as we train it: what the authors' files have of their own is left behind."""
    return row.changed(**{name: getattr(Size, name) for name in task.released})  # the defaults of the fields


def _without(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(part)}


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
    return None if row is None or _by_hand(row) else read(download(row))


def _by_hand(row: registry.Weight) -> bool:
    """Whether the file of a name has still to be fetched by somebody."""
    return not row.direct and not (cache_folder() / row.file).is_file()


def _inherited(licence: str, info: ModelInfo) -> str:
    if licence in ("", OWN_LICENCE):
        return info.licence
    return f"{info.licence}; started from weights under: {licence}"
