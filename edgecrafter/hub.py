"""Models by name or file: create, load, save, convert."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgecrafter import families, registry, released
from edgecrafter.download import download, from_hub
from edgecrafter.families import Known
from edgecrafter.files import written_beside
from edgecrafter.geometry.sides import KEEP
from edgecrafter.models import foreign, libraries, official
from edgecrafter.models.detector import detector
from edgecrafter.models.foreign import Foreign
from edgecrafter.models.network import Detector
from edgecrafter.models.sizes import Size
from edgecrafter.tasks import TASKS
from edgecrafter.types import InputSpec, Labels, Skeleton

FORMAT = "edgecrafter-1"
OWN_LICENCE = "trained by you with edgecrafter (Apache-2.0 code); the licence of your data applies"
RANDOM = "random weights"
"""``ModelInfo.source`` of a network that did not start from other weights"""
EXPORTED = (".onnx", ".xml", ".tflite", ".pte", ".mlpackage", ".param", ".engine", ".rknn")
"""suffixes of exported models"""


@dataclass(frozen=True)
class ModelInfo:
    """Everything about a model but its weights; saved inside the file. Raises ``ValueError`` for an input that does not
    go with the task."""

    name: str
    task: str
    size: Size
    labels: Labels
    input: InputSpec = field(default_factory=InputSpec)
    licence: str = OWN_LICENCE
    source: str = RANDOM

    def __post_init__(self) -> None:
        if self.input.resize == KEEP and TASKS[self.task].truth == "masks":
            raise ValueError(f"{self.name}: models that find masks do not take resize={KEEP!r}")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> ModelInfo:
        row = json.loads(text)
        labels = row["labels"]
        skeleton = labels["skeleton"] and Skeleton(**{k: _tuples(v) for k, v in labels["skeleton"].items()})
        spec = {key: _tuples(value) for key, value in row["input"].items()}
        rest = {name: _tuples(labels.get(name, [])) for name in ("unused", "keypoints")}  # early files do not say
        row["labels"] = Labels(tuple(labels["names"]), tuple(labels["ids"]), skeleton, **rest)
        return ModelInfo(**{**row, "size": Size(**row["size"]), "input": InputSpec(**spec)})


def parse(name: str) -> Known:
    """A model name such as ``ecdet-s`` -> task, size and family; an unknown name is an error that lists the known."""
    known = families.find(name)
    if known is not None:
        return known
    if name.lower() in registry.TEACHERS:
        raise ValueError(f"{name} is a teacher to be made first: edgecrafter teach {name.lower()} DATASET")
    raise ValueError(
        f"unknown model {name!r}; known: {', '.join(names())}, and the teachers to be made, "
        f"{', '.join(registry.TEACHERS)}. A file is given by its path."
    )


def names() -> list[str]:
    """All model names."""
    return families.names()


def proper(name: str) -> str:
    """A model name as it is listed: ``ecseg-s`` is ``ecinsseg-s``. Other words are only put in lower case."""
    known = families.find(name)
    return known.name if known else name.lower()


def create(
    name: str, labels: Labels | None = None, input: InputSpec | None = None, **options: Any
) -> tuple[Detector, ModelInfo]:
    """A network with random weights, see ``described``."""
    info = described(name, labels, input, **options)
    return build(info), info


def described(name: str, labels: Labels | None = None, input: InputSpec | None = None, **options: Any) -> ModelInfo:
    """What a name means. ``options`` replace fields of the size's row (``Size``).

    ``labels`` None: the classes and the row of the authors' files.
    """
    known = parse(name)
    task, row = known.task, known.row.changed(**(known.task.released if labels is None else {}))
    spec = input or known.family.input
    return ModelInfo(known.name, task.name, row.changed(**options), labels or task.labels, spec)


def build(info: ModelInfo, backbone: Foreign | None = None) -> Detector:
    """The network that ``info`` describes, with random weights, around ``backbone`` if that was made already."""
    if info.size.backbone and backbone is None:
        backbone = libraries.build(info.size.backbone, info.size.fused, info.size.norm)
    return detector(info.size, TASKS[info.task].decoder(info.size, info.labels), backbone)


def save(weights: nn.Module | Mapping[str, Tensor], info: ModelInfo, path: str | Path) -> Path:
    """Writes a safetensors file with ``info`` inside, beside its place first and then renamed.

    Raises ``ValueError`` for weights that ``load`` could not read back, such as those of a fused model.
    """
    from safetensors.torch import save as serialised

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    different = set(state) ^ _entries(info, state)
    if different:
        raise ValueError(
            f"these are not the weights of {info.name}, {len(different)} entries differ. A fused model "
            "cannot be saved: save the one it was made from, and fuse after loading"
        )
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    about = {"format": FORMAT, "edgecrafter": info.to_json(), "licence": info.licence}
    with written_beside(path) as beside:
        beside.write_bytes(serialised(tensors, about))
    return path


def _entries(info: ModelInfo, given: Mapping[str, Tensor]) -> set[str]:
    """The names that ``load`` will want; of a network around a module from Python only that one can tell."""
    if info.size.backbone.startswith("module:"):
        return set(given)
    with torch.device("meta"):
        return set(build(info).state_dict())


def load(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    backbone: nn.Module | None = None,
    **options: Any,
) -> tuple[Detector, ModelInfo]:
    """A trained network in evaluation mode, from our file, a released file, or a name of the registry.

    ``backbone`` is the module that the network was built around, if it was one that came from Python. ``options``
    replace fields of the size's row that fit the weights all the same (``Task.options``), such as ``mask_blocks``.
    Raises ``ValueError`` for others.
    """
    state, info = read(locate(name_or_path))
    allowed = TASKS[info.task].options
    for name, value in options.items():
        if name not in allowed:
            known = f"it takes {', '.join(allowed)}" if allowed else "it takes no such options"
            raise ValueError(f"{name}={value} does not go with {info.name} ({info.task}); {known}")
    info = replace(info, size=info.size.changed(**options))
    network = build(info, None if backbone is None else foreign.adopt(backbone, info.size.fused))
    network.load_state_dict(state, strict=True)
    return network.eval().to(device), info


def locate(name_or_path: str | Path) -> Path:
    """The file of a path, of a training run's folder, of a registry name (downloaded once) or of
    ``hf:owner/repository``."""
    path = resolve(name_or_path)
    if path.is_file():
        return path
    text = str(name_or_path)
    if text.startswith("hf:"):
        return from_hub(text[3:])
    row = registry.find(proper(text))
    if row is not None:
        return download(row)
    if proper(text) in names():
        raise ValueError(
            f"{text} has no released weights that could be fetched: train it first, "
            f"for example edgecrafter train --model {text} --data DATASET, and load the file that it writes"
        )
    if text.lower() in registry.TEACHERS:
        parse(text)  # says what to do
    raise FileNotFoundError(f"{text} is neither a file nor a known model; known: {', '.join(names())}")


def resolve(path: str | Path) -> Path:
    """The best weights inside the folder of a training run or quickstart; any other path as it is.

    Raises ``FileNotFoundError`` for a run that has not been evaluated yet, ``ValueError`` for that of a distillation
    and for an export.
    """
    path = Path(path).expanduser()
    if is_export(path):
        raise ValueError(
            f"{path} is an export, which can predict and be scored (edgecrafter predict, edgecrafter val); "
            "for anything else give the weights that it was made of"
        )
    for place in ("weights/best.safetensors", "model.safetensors"):
        if (path / place).is_file():
            return path / place
    last = path / "weights" / "last.safetensors"
    if not last.is_file() and any((path / "weights").glob("*.safetensors")):
        raise _alone(path)
    if (path / "weights").is_dir():
        raise FileNotFoundError(
            f"{path}: no weights/best.safetensors; this run has not been evaluated yet. Take "
            f"{last}, or go on with edgecrafter train --resume {path}"
        )
    return path


def is_export(path: str | Path) -> bool:
    """Whether a path is the folder of an exported model, or a file of the kinds that are in one (``deployed.load``)."""
    path = Path(path).expanduser()
    return (path / "metadata.json").is_file() or (path.suffix in EXPORTED and path.exists())


def read(path: Path) -> tuple[dict[str, Tensor], ModelInfo]:
    """Weights under our names, and what the file or its keys and shapes say of the model. Never unpickles code."""
    state, info = open_file(path)
    if info is not None:
        return state, info
    return recognise(state, path)


def recognise(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], ModelInfo]:
    """What ``read`` gives, of a state dict with released names. Raises ``ValueError`` unless one model fits."""
    if released.vit_alone(state):
        raise _alone(path)
    ours, found = released.recognise(state, path)
    family = found.family
    info = ModelInfo(found.name, family.task.name, found.row, found.labels, family.input, family.licence, path.name)
    return ours, info


def _alone(path: Path) -> ValueError:
    return ValueError(
        f"{path} holds a vision transformer alone and no model around it: edgecrafter train --backbone {path} makes a "
        f"detector of it, edgecrafter distill --teacher {path} learns from it"
    )


def convert(source: str | Path, target: str | Path) -> ModelInfo:
    """Released file -> ours (``.safetensors``), or ours -> released layout (``.pth``), by the target's ending.

    A ``.pth`` of RT-DETRv4 that is written here lacks the projector of its distillation (``official.TRAINING``).
    """
    state, info = read(locate(source))
    if Path(target).suffix == ".pth":
        if info.size.backbone != parse(info.name).row.backbone:
            name = foreign.title(info.size.backbone)
            raise ValueError(f"{info.name} around {name} has no released layout (.pth): keep it as .safetensors")
        if not official.has_layout(state):
            raise ValueError(f"{info.name} has no released layout (.pth) that is known here: keep it as .safetensors")
        released.write(state, info.to_json(), Path(target))
    elif Path(target).suffix == ".safetensors":
        save(state, info, target)
    else:
        raise ValueError(f"{target}: the ending decides: .safetensors is our format, .pth the released layout")
    return info


def open_file(path: Path) -> tuple[dict[str, Tensor], ModelInfo | None]:
    """The tensors of a file and its ``ModelInfo`` when it was written here; else under the names of the file."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        try:
            with safe_open(str(path), "pt") as file:
                text = (file.metadata() or {}).get("edgecrafter")
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
        return state, ModelInfo.from_json(text) if text else None
    state, text = released.read(path)
    return (official.to_ours(state), ModelInfo.from_json(text)) if text else (state, None)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
