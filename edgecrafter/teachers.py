"""Which network a teacher's name means."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from edgecrafter import hub, registry, vits
from edgecrafter.distill.teacher import Teacher
from edgecrafter.download import download
from edgecrafter.models import foreign, libraries
from edgecrafter.models.detector import ecvit
from edgecrafter.models.foreign import Foreign
from edgecrafter.types import InputSpec


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
            return _of_foreign(foreign.adopt(given, blocks), type(given).__name__, blocks)
        if not str(given):
            raise ValueError("no teacher given: teacher=RUN or FILE, or a name such as dinov3-b, dinov2-s, timm:NAME")
        spec = registry.backbone(_plain(str(given), weights))
        if spec is not None:
            return _of_foreign(libraries.build(spec, blocks, norm, weights), _named(str(given)), blocks)
        return _own(given, blocks, norm, weights)


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
    random = weights == foreign.RANDOM
    name, path = str(given), Path(given).expanduser() / "weights" / vits.BACKBONE
    path = path if path.is_file() else hub.resolve(given)
    if random and not path.is_file() and hub.proper(name) in hub.names():
        info = hub.described(name)
        return Teacher(hub.build(info).get_submodule("backbone.vit"), info.input, f"{name}, random", "", blocks)
    if not path.is_file():
        row = registry.find(name.lower())
        path = download(row) if row else hub.locate(given)
    state, info_or_none = hub.open_file(path)
    if info_or_none is None and not _is_vit(state):
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
    kind, sign, place = given.partition(":")
    return f"{kind}:{Path(place).name}" if sign and Path(place).expanduser().exists() else given


def _is_vit(state: dict[str, torch.Tensor]) -> bool:
    return any(name.startswith("blocks.") for name in state)
