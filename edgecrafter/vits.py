"""Vision transformers alone: the files that a distillation writes and a training starts from (released layout)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgecrafter import hub, registry, released
from edgecrafter.download import download
from edgecrafter.files import written_beside
from edgecrafter.hub import ModelInfo, open_file, resolve
from edgecrafter.models import foreign, official
from edgecrafter.models.detector import ecvit
from edgecrafter.models.sizes import SIZES, VITS, Size

OPTIONS = ("registers", "stem", "dilation")
"""fields of a size's row that shape the ViT and may differ from the paper's"""


BACKBONE = "backbone.safetensors"
"""name of the ViT that a distillation writes"""


def names() -> list[str]:
    """All vision transformers of ours, ``ecvit-p`` and so on."""
    return ["ecvit-" + vit for vit in VITS]


def row_of(name: str) -> tuple[str, Size]:
    """``ecvit-t`` -> ``t`` and the row of the detector that it belongs to. Raises ``ValueError`` for other names."""
    vit = name.lower().removeprefix("ecvit-")
    if vit not in VITS:
        raise ValueError(f"unknown vision transformer {name!r}; known: {', '.join(names())}")
    return vit, SIZES[VITS[vit]]


def of(model: str) -> str:
    """The vision transformer of a model such as ``ecdet-s``: ``t``. Raises ``ValueError`` for one without ours."""
    known = hub.parse(model)
    if known.row.backbone:
        raise ValueError(
            f"{model} has no vision transformer of ours that could be distilled ({known.row.backbone}); a teacher can "
            "help its training: edgecrafter train with distill=dsi"
        )
    return next(vit for vit, size in VITS.items() if size == known.size)


def changed(name: str, options: Mapping[str, Any]) -> tuple[str, Size]:
    """As ``row_of``, with those of ``options`` that shape the ViT (``OPTIONS``) and are not None."""
    vit, row = row_of(name)
    return vit, row.changed(**{name: options[name] for name in OPTIONS if options.get(name) is not None})


def made(row: Size, weights: str = "none") -> tuple[nn.Module, str]:
    """A ViT to train, and a line that says what it starts from: ``weights`` is none (random numbers of torch's global
    generator), or what ``find`` takes. Raises ``ValueError`` and ``FileNotFoundError`` for anything else."""
    vit = ecvit(row)
    if weights == "none":
        return vit, "starts from random weights"
    path = find(weights, "weights")
    if path is None:
        raise ValueError(f"weights={weights}: expected a vision transformer of ours, a file or a name")
    return vit, load(vit, path)


def find(backbone: str | Path, option: str = "backbone") -> Path | None:
    """The file of a ViT: a path, the folder of a distillation, or a released one; None for other libraries' names.

    ``option`` is what the user calls it. Raises ``FileNotFoundError`` for anything else.
    """
    path = Path(backbone).expanduser()
    for place in (path, path / "weights" / BACKBONE):
        if place.is_file():
            return place
    row = registry.find(str(backbone).lower())
    if row is not None:
        return download(row)
    if registry.backbone(str(backbone)) is not None:
        return None
    if resolve(path).is_file():  # the folder of a training
        return resolve(path)
    known = [name for name in names() if registry.find(name)]
    known += [*registry.BACKBONES, "timm:NAME", "hf:OWNER/NAME"] if option == "backbone" else []
    raise FileNotFoundError(f"{option}={backbone}: no such file, no folder of a run, and not one of {', '.join(known)}")


def read(path: Path) -> dict[str, Tensor]:
    """A ViT alone under our names: of a file that has nothing else, with released keys, or of a detector's."""
    state, info = open_file(path)
    if info is None and not released.vit_alone(state):  # a released detector
        state, info = hub.recognise(state, path)
    if info is not None and info.size.backbone:
        raise ValueError(
            f"{path} is a model around {foreign.title(info.size.backbone)}, there is no ViT of ours in it. It can be a "
            f"teacher: edgecrafter distill --teacher {path}"
        )
    if info is not None:
        ours = {k: v for k, v in state.items() if k.startswith(official.VIT)}
    else:
        ours = official.to_ours({official.OFFICIAL_VIT + name: value for name, value in state.items()})
    return {name.removeprefix(official.VIT): value for name, value in ours.items()}


def save(vit: nn.Module, row: Size, path: Path, notes: Mapping[str, str]) -> Path:
    """Writes a ViT alone as safetensors: released keys without their prefix; options that differ from the paper's and
    ``notes`` (licence, source) as text beside them."""
    from safetensors.torch import save as serialised

    released = official.to_official({official.VIT + name: value for name, value in vit.state_dict().items()})
    tensors = {
        name.removeprefix(official.OFFICIAL_VIT): value.detach().cpu().contiguous()
        for name, value in released.items()
        if name.startswith(official.OFFICIAL_VIT)  # without the constants of a decoder
    }
    changes = {name: getattr(row, name) for name in OPTIONS}
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as beside:
        beside.write_bytes(serialised(tensors, {"ecvit": json.dumps(changes), **notes}))
    return path


def about(path: Path) -> dict[str, str]:
    """The text that ``save`` left in a file; empty for files of others."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    try:
        with safe_open(str(path), "pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None


def options(path: Path) -> dict[str, Any]:
    """The options that a ViT was distilled with, or the detector that it is in trained with."""
    notes = about(path)
    if "edgecrafter" in notes:
        row = ModelInfo.from_json(notes["edgecrafter"]).size
        return {name: getattr(row, name) for name in OPTIONS}
    found = json.loads(notes.get("ecvit", "{}"))
    return {name: found[name] for name in OPTIONS if name in found}


def load(vit: nn.Module, path: Path) -> str:
    """Loads a ViT alone, strictly; a line that says so."""
    state = read(path)
    try:
        vit.load_state_dict(state, strict=True)
    except RuntimeError as error:
        sizes = ", ".join(f"ecvit-{name} for size {size}" for name, size in VITS.items())
        reason = str(error).splitlines()[1].strip()[:200]
        raise ValueError(f"{path} does not fit this model's ViT ({sizes}): {reason}") from None
    return f"ViT from {path.name}: {len(state)} entries"


def recognise(path: Path) -> tuple[str, Size]:
    """Which ViT a file holds, by its shapes, and its row with the options of the file. Raises ``ValueError``."""
    shapes = {name: tuple(value.shape) for name, value in read(path).items()}
    for vit, size in VITS.items():
        row = SIZES[size].changed(**options(path))
        with torch.device("meta"):
            wanted = {name: tuple(value.shape) for name, value in ecvit(row).state_dict().items()}
        if wanted == shapes:
            return vit, row
    raise ValueError(f"{path}: holds no vision transformer of ours ({', '.join(names())})")
