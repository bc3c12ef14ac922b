"""Where a training starts from: random weights, released weights, an own file, or a distilled ViT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from edgecrafter import registry
from edgecrafter.download import download
from edgecrafter.hub import (
    OWN_LICENCE,
    RANDOM,
    ModelInfo,
    build,
    create,
    locate,
    open_file,
    parse,
    proper,
    read,
    resolve,
)
from edgecrafter.models import official
from edgecrafter.models.detector import Detector
from edgecrafter.models.sizes import VITS, Size
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
    backbone: str | Path | None = None,
    **options: Any,
) -> Start:
    """A network to train for ``labels`` at the input ``size`` (h, w; None: the model's own), and where it comes from.

    ``weights``: "auto" takes the file itself or the released weights of the name, if there are any; "none" starts from
    random weights; anything else is a model to take weights from, of any task. Class rows are taken by class name.
    ``backbone`` is a file with a ViT alone (released layout), as distilled ViTs come.
    """
    lines: list[str] = []
    if given.file is not None:
        info = given.file[1]
        row = _trained(info.size, given.task)
        spec = info.input if size is None else replace(info.input, size=size)
        info = replace(info, size=row.changed(**options), labels=labels, input=spec, licence=OWN_LICENCE, source=RANDOM)
        network = build(info)
    else:
        spec = InputSpec() if size is None else InputSpec(size)
        network, info = create(given.name, labels, spec, **options)
    new = list(network.state_dict())
    source = given.file if given.file and weights == "auto" else _source(given.name, weights, backbone)
    if source is None:
        lines.append(f"{given.name}: starts from random weights")
    else:
        other = TASKS[source[1].task]
        state = source[0] if other.family == given.task.family else _without_decoder(source[0])
        taken, new = transfer(network, state, info.labels, source[1].labels)
        lines += [f"weights of {source[1].name} ({other.name}):", *taken]
        if other is given.task and _trained(source[1].size, other) != source[1].size and other.start_note:
            lines.append(f"  {other.start_note}")
        info = replace(info, source=f"from {source[1].source}", licence=_inherited(source[1]))
    if backbone is not None:
        lines.append(load_vit(network, _backbone_file(backbone)))
    random_vit = backbone is None and any(name.startswith(official.VIT + "blocks.") for name in new)
    return Start(network, info, lines, random_vit)


def _trained(row: Size, task: Task) -> Size:
    """The row of a file as we train it: what the authors' files have of their own is left behind."""
    return row.changed(**{name: getattr(Size, name) for name in task.released})  # the defaults of the fields


def _without_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("decoder.")}


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
    whole = _of(own, "backbone")
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


def load_vit(network: Detector, path: Path) -> str:
    """Loads a ViT alone, strictly; the file has released keys without their prefix."""
    state, info = open_file(path)
    if info is not None:
        ours = {k: v for k, v in state.items() if k.startswith(official.VIT)}
    else:
        ours = official.to_ours({official.OFFICIAL_VIT + name: value for name, value in state.items()})
    vit = {name.removeprefix(official.VIT): value for name, value in ours.items()}
    try:
        network.backbone.vit.load_state_dict(vit, strict=True)  # type: ignore[union-attr]
    except RuntimeError as error:
        sizes = ", ".join(f"ecvit-{vit} for size {size}" for vit, size in VITS.items())
        raise ValueError(f"{path} does not fit this model's ViT ({sizes}): {error}") from None
    return f"ViT from {path.name}: {len(vit)} entries"


def _source(name: str, weights: str | Path, backbone: str | Path | None) -> tuple[dict[str, Tensor], ModelInfo] | None:
    if str(weights) == "none" or (str(weights) == "auto" and backbone is not None):
        return None
    if str(weights) != "auto":
        return read(locate(weights))
    row = registry.find(name)
    return None if row is None else read(download(row))


def _backbone_file(backbone: str | Path) -> Path:
    row = registry.find(str(backbone).lower())
    path = Path(backbone).expanduser()
    if row is not None and not path.is_file():
        return download(row)
    if not path.is_file():
        raise FileNotFoundError(
            f"backbone {backbone}: no such file, and not one of {', '.join('ecvit-' + v for v in VITS)}"
        )
    return path


def _inherited(info: ModelInfo) -> str:
    return info.licence if info.licence == OWN_LICENCE else f"{OWN_LICENCE}; started from weights under: {info.licence}"
