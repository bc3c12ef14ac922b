"""The feature maps that a network shows: F5 and the levels of a detector, the last block of a teacher."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgecrafter import hub, model, registry, released, vits
from edgecrafter.distill.teacher import Teacher
from edgecrafter.hub import ModelInfo
from edgecrafter.infer import choose_device
from edgecrafter.model import Model
from edgecrafter.models import foreign
from edgecrafter.teachers import teacher
from edgecrafter.types import InputSpec, Outputs

F5, LAST = "F5", "last block"
AUTO, NONE = "auto", "none"
Given = str | Path | Model | Teacher | nn.Module


@dataclass(frozen=True)
class Network:
    """A network to look into."""

    title: str
    input: InputSpec | None
    """what becomes of a picture; None: it has no input size of its own"""
    maps: Callable[[Tensor], dict[str, Tensor]]
    """uint8 pictures [1, 3, H, W] -> its maps [D, h, w] by name: F5, P3, P4, P5 or last block"""
    model: Model | None = None
    """the detector itself; None: a teacher"""


def network(given: Given, device: str = "", weights: str = AUTO, seed: int = 0) -> Network:
    """A detector, of any task, or a teacher, to look into.

    Args:
        given: what ``edgecrafter.load`` or ``teachers.teacher`` takes: a name, a file, the folder of a run; or what
            these give back; or a module (images [B, 3, H, W] -> maps), which is taken as a teacher. ``hf:...`` is a
            backbone of Hugging Face. Of a file with a vision transformer alone the last block is shown.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; empty: a GPU if there is one, or where the object is.
        weights: ``auto``; ``none``: names get random weights from ``seed``, while files keep theirs.

    Raises:
        ValueError, FileNotFoundError: an unknown name, a missing file, a name without weights.
    """
    if weights not in (AUTO, NONE):
        raise ValueError(f"weights={weights}: expected auto, or none for random weights of what is given by name")
    if isinstance(given, Model):
        return _detector(model.load(given, device), given.info.name)
    if isinstance(given, (Teacher, nn.Module)):
        return _teacher(given if isinstance(given, Teacher) else teacher(given, 1), device)
    file = _file(given)
    random = weights == NONE and file is None
    if _is_teacher(str(given), file):
        found = teacher(given, 1, weights=foreign.RANDOM if random else foreign.PRETRAINED, seed=seed)
        return _teacher(found, device or str(choose_device()), random and not found.name.endswith("random"))
    if not random:
        loaded = model.load(given, device)
        return _detector(loaded, _title(file, loaded.info))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Model(*hub.create(str(given))).to(choose_device(device))
    return _detector(made, f"{made.info.name}, random weights")


def _file(given: str | Path) -> Path | None:
    """The file that is meant, itself or in the folder of a run; None for names."""
    distilled = Path(given).expanduser() / "weights" / vits.BACKBONE
    path = distilled if distilled.is_file() else hub.resolve(given)
    return path.absolute() if path.is_file() else None


def _is_teacher(text: str, file: Path | None) -> bool:
    """Whether a word or its file means something with no detector around it."""
    if file is None:
        return registry.backbone(text) is not None or text.lower() in (*registry.TEACHERS, *vits.names())
    state, info = hub.open_file(file)
    return info is None and released.vit_alone(state)


def _title(file: Path | None, info: ModelInfo) -> str:
    """The model's name, and of a file that of its run's folder or its own: no folders of this machine."""
    if file is None:
        return info.name
    return f"{info.name} of {file.parent.parent.name if file.parent.name == 'weights' else file.name}"


def _detector(loaded: Model, title: str) -> Network:
    network = loaded.detector().eval()

    def maps(images: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode():
            return levels(network(loaded.info.input.normalise(images.to(loaded.device))), images.shape[2])

    return Network(title, loaded.info.input, maps, loaded)


def levels(outputs: Outputs, height: int) -> dict[str, Tensor]:
    """The maps [D, h, w] of the first picture by name, for an input of ``height`` pixels: F5 where there is attention
    on the top level, and what the decoder reads, P3 for stride 8, P4 for 16 and so on."""
    found = {} if outputs.aifi is None else {F5: outputs.aifi[0]}
    return found | {f"P{round(math.log2(height / level.shape[2]))}": level[0] for level in outputs.memory}


def _teacher(found: Teacher, device: str, random: bool = False) -> Network:
    if device:
        found.network.to(choose_device(device))
    place = next((parameter.device for parameter in found.network.parameters()), torch.device("cpu"))

    def maps(images: Tensor) -> dict[str, Tensor]:
        try:
            return {LAST: found(images.to(place))[-1][0]}
        except (AssertionError, RuntimeError):
            found.widths((images.shape[2], images.shape[3]))  # says so where it does not take this size
            raise

    return Network(f"{found.name}, random weights" if random else found.name, None, maps)
