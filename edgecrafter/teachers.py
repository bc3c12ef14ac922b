"""Which network a teacher's name means."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from edgecrafter import hub, registry, released, vits
from edgecrafter.distill.detector import DetectorTeacher
from edgecrafter.distill.teacher import Teacher
from edgecrafter.download import download
from edgecrafter.models import foreign, libraries
from edgecrafter.models.detector import ecvit
from edgecrafter.models.foreign import Foreign
from edgecrafter.models.sizes import SIZES
from edgecrafter.types import InputSpec, Labels


def teacher(
    given: str | Path | nn.Module, blocks: int = 2, norm: bool = True, weights: str = "pretrained", seed: int = 0
) -> Teacher:
    """A teacher from a model file or run (its backbone teaches), a file with a ViT alone, a model's name, another
    library's backbone as it is (``dinov3-b``, ``timm:NAME``, ``hf:OWNER/NAME``), or a module.

    ``weights``: ``pretrained``; a file, for other libraries' backbones; ``none``: the same network with random weights
    from ``seed``, as a control. Raises ``ValueError`` and ``FileNotFoundError`` for what is none of these.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(given, nn.Module):
            if weights != foreign.PRETRAINED or not norm:
                raise ValueError("teacher_weights and norm do not go with a module: it is taken as it is")
            return _of_foreign(foreign.adopt(given, blocks), type(given).__name__, blocks)
        if not str(given):
            raise ValueError("no teacher given: teacher=RUN or FILE, or a name such as dinov3-b, dinov2-s, timm:NAME")
        spec = registry.backbone(_plain(str(given), weights))
        if spec is not None:
            return _of_foreign(libraries.build(spec, blocks, norm, weights), _named(str(given)), blocks)
        found = _own(given, blocks, norm, weights)
        if not norm and not isinstance(found.network, Foreign):
            raise ValueError(
                f"norm=false: {given} has a vision transformer of ours, without a final norm; leave norm out"
            )
        return found


def detector(
    given: str | Path, weights: str = "pretrained", seed: int = 0, labels: Labels | None = None
) -> DetectorTeacher:
    """A whole detector as teacher: a model file, the folder of a run, or a name that has published weights.

    ``weights``: ``pretrained`` (its own), or ``none``: the same network with random weights from ``seed``, as a
    control; of a name, whatever it is, then with the classes ``labels`` (None: those of the authors' files). Raises
    ``ValueError`` and ``FileNotFoundError`` for what is none of these.
    """
    if not str(given):
        raise ValueError("no teacher given: teacher=RUN or FILE of a detector, or a name such as ecdet-l")
    if weights not in (foreign.PRETRAINED, foreign.RANDOM):
        raise ValueError(f"teacher_weights={weights}: expected pretrained (those of {given}) or none (random)")
    path = hub.resolve(given)
    if weights == foreign.PRETRAINED:
        network, info = hub.load(given)
        title = f"{info.name} of {_short(path)}" if path.is_file() else info.name
        return DetectorTeacher(network, info.input, info.labels, title, info.licence)
    if path.is_file():
        info = hub.read(path)[1]
    elif hub.proper(str(given)) in hub.names():
        info = hub.described(str(given), labels)
    else:
        info = hub.read(hub.locate(given))[1]  # or an error that says what is known
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DetectorTeacher(hub.build(info), info.input, info.labels, f"{info.name}, random")


def missing(named: str, *more: str) -> FileNotFoundError:
    """The error for a teacher that is nothing known; ``more`` are further names that are allowed."""
    known = [*more, *registry.TEACHERS, *registry.BACKBONES, *hub.names()[: len(SIZES)], *vits.names()]
    return FileNotFoundError(
        f"teacher={named}: no file and no folder of a finished run, and not one of {', '.join(known)}, timm:NAME, "
        "hf:OWNER/NAME"
    )


def _plain(name: str, weights: str) -> str:
    """Of a teacher of the paper its backbone, if that is to have random weights; they must be made otherwise."""
    known = registry.TEACHERS.get(name.lower())
    if known is None:
        return name
    if weights != foreign.RANDOM:
        raise ValueError(
            f"{name} has no published weights: make it with edgecrafter teach {name.lower()} DATASET and give the "
            f"folder of that run, or take its backbone as it is: {known[1]}"
        )
    return known[1]


def _of_foreign(network: Foreign, name: str, blocks: int) -> Teacher:
    facts = network.facts
    return Teacher(network, InputSpec(mean=facts.mean, std=facts.std), name, facts.licence, blocks)


def _own(given: str | Path, blocks: int, norm: bool, weights: str) -> Teacher:
    """A model or a ViT of ours: a file, the folder of a run, or a name."""
    if weights not in (foreign.PRETRAINED, foreign.RANDOM):
        raise ValueError(
            f"teacher_weights={weights}: a file is for timm: and hf: backbones; for {given} expected pretrained (its "
            "own weights) or none (random)"
        )
    random = weights == foreign.RANDOM
    name, path = str(given), Path(given).expanduser() / "weights" / vits.BACKBONE
    path = path if path.is_file() else hub.resolve(given)
    if random and not path.is_file():
        return Teacher(*_untrained(name), f"{name}, random", "", blocks)
    path = path if path.is_file() else _published(name)
    state, info_or_none = hub.open_file(path)
    if info_or_none is None and not released.vit_alone(state):
        state, info_or_none = hub.recognise(state, path)
    if info_or_none is None:
        vit, size = vits.recognise(path)
        network: nn.Module = ecvit(size)
        if not random:
            vits.load(network, path)
        return Teacher(
            network, InputSpec(), f"ecvit-{vit} of {_short(path)}", vits.about(path).get("licence", ""), blocks
        )
    built = hub.build(info_or_none)
    if not random:
        built.load_state_dict(state, strict=True)
    network = built.get_submodule("backbone.vit")
    if isinstance(network, Foreign) and norm != info_or_none.size.norm:
        raise ValueError(f"{path}: was trained with norm={info_or_none.size.norm}, its features mean something only so")
    title = f"{info_or_none.name} of {_short(path)}" + (", random" if random else "")
    return Teacher(network, info_or_none.input, title, info_or_none.licence, blocks)


def _short(path: Path) -> str:
    """A file without the folders of this machine: the name of its run's folder, or its own. It goes into files."""
    path = path.absolute()
    return path.parent.parent.name if path.parent.name == "weights" else path.name


def _named(given: str) -> str:
    """The name of a backbone; of a local folder (``hf:FOLDER``) its last part only."""
    if ":" not in given:
        return given
    kind, _, place = foreign.title(given).partition(":")
    return f"{kind}:{Path(place).name if os.path.exists(os.path.expanduser(place)) else place}"


def _untrained(name: str) -> tuple[nn.Module, InputSpec]:
    """The ViT of a name with random weights, and its input. Raises ``FileNotFoundError`` for other words."""
    if name.lower() in vits.names():
        return ecvit(vits.row_of(name)[1]), InputSpec()
    if hub.proper(name) in hub.names():
        info = hub.described(name)
        return hub.build(info).get_submodule("backbone.vit"), info.input
    raise missing(name)


def _published(name: str) -> Path:
    """The file of a name. Raises ``ValueError`` where there is none, ``FileNotFoundError`` for other words."""
    row = registry.find(hub.proper(name))
    if row is not None:
        return download(row)
    if name.lower() in vits.names():
        raise ValueError(
            f"{name} has no published weights: distil it first and give that folder, or teacher_weights=none"
        )
    if hub.proper(name) in hub.names():
        return hub.locate(name)  # says what to do
    raise missing(name)
