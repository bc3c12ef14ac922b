"""How good a detector is on annotated pictures: COCO's numbers, a table per class, and files to keep."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgecrafter.data import loader
from edgecrafter.data.annotations import Annotations
from edgecrafter.files import written_beside
from edgecrafter.infer import TOP_K, choose_device, detect
from edgecrafter.metrics.coco import CocoScorer
from edgecrafter.metrics.coco_count import ClassScore, CocoCount
from edgecrafter.tasks import TASKS
from edgecrafter.types import Labels

if TYPE_CHECKING:
    from edgecrafter.hub import ModelInfo


FURTHER = {"bbox": ("box_", "boxes"), "segm": ("mask_", "masks"), "keypoints": ("keypoint_", "keypoints")}
"""what stands before the scores of a kind that does not lead: before their names, and before their line in a table"""


@dataclass(frozen=True)
class Scores:
    """The outcome of an evaluation. Numbers are in 0..1; an undefined one (no such objects) is ``nan``.

    The task says what leads: boxes, masks or keypoints. The table of classes, the curves and the predictions are of
    what leads.
    """

    model: str
    overall: dict[str, float]
    """AP AP50 AP75 APs ... of what leads (see ``CocoCount.scores``), and with a prefix what else is scored: box_AP"""
    per_class: list[ClassScore]
    images: int
    images_per_second: float
    """reading, network and decoding together, of this process"""
    count: CocoCount = field(repr=False)
    scorer: CocoScorer = field(repr=False)

    def table(self) -> str:
        """The scores as text: a line for all of each kind, one per class; ``n/a`` where a number is undefined."""
        width = max(5, *(len(row.name) for row in self.per_class))
        further = [f"{title}: {self._line(prefix)}" for prefix, title in FURTHER.values() if self._line(prefix)]
        stated = [self.conditions] if self.conditions else []
        lines = [self._line(), *further, *stated, f"{'class':<{width}}  objects     AP   AP50     AR     F1  at score"]
        for row in self.per_class:
            numbers = "  ".join(f"{_text(value):>5}" for value in (row.ap, row.ap50, row.ar, row.f1, row.threshold))
            lines.append(f"{row.name:<{width}}  {row.objects:>7}  {numbers}")
        return "\n".join(lines)

    @property
    def conditions(self) -> str:
        """What the numbers depend on besides the model, where the data leave a choice (``Annotations.conditions``)."""
        return self.scorer.annotations.conditions

    def _line(self, prefix: str = "") -> str:
        """The numbers of one kind, if they are there."""
        names = [name for name in ("AP", "AP50", "AP75", "APs", "APm", "APl") if prefix + name in self.overall]
        return "  ".join(f"{name} {_text(self.overall[prefix + name])}" for name in names)

    def write(self, folder: str | Path) -> Path:
        """Write ``metrics.json``, ``per_class.csv``, ``curves.csv`` and ``predictions.json`` into ``folder``.

        ``curves.csv`` holds recall, precision and score of every class with objects, at an overlap of 0.5.
        ``predictions.json`` is in COCO's result format with the category ids of the data: boxes, masks as run-length
        codes, or keypoints, whatever leads. Gives back the folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "metrics.json", self.to_dict())
        rows = [_plain(asdict(row)) for row in self.per_class]
        _write_csv(folder / "per_class.csv", list(rows[0]), (list(row.values()) for row in rows))
        _write_csv(folder / "curves.csv", ["name", "recall", "precision", "score"], self._curves())
        _write_json(folder / "predictions.json", self.scorer.results())
        return folder

    def to_dict(self) -> dict[str, Any]:
        """What ``metrics.json`` says: plain values, None for undefined ones."""
        return {
            "model": self.model,
            "images": self.images,
            "images_per_second": round(self.images_per_second, 3),
            **({"conditions": self.conditions} if self.conditions else {}),
            "overall": _plain(self.overall),
            "per_class": [_plain(asdict(row)) for row in self.per_class],
        }

    def _curves(self) -> Iterator[list[Any]]:
        for label, row in zip(self.count.labels.used, self.per_class, strict=True):
            if row.objects:
                yield from ([row.name, *point] for point in self.count.curve(label).tolist())


def evaluate(
    network: nn.Module,
    info: ModelInfo,
    annotations: Annotations,
    *,
    batch: int = 8,
    workers: int = 0,
    device: str | int | torch.device | None = None,
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    max_det: int | None = None,
    progress: bool = True,
    rank: int = 0,
    world: int = 1,
    gather: Callable[[object], list[object]] | None = None,
) -> Scores:
    """Score a model on annotated pictures, by everything that its task counts.

    Boxes are not clipped to the picture, as in the released evaluation. The classes of model and data are matched by
    name: what the model finds of other classes is left out.

    Args:
        network: gives ``Outputs`` for a normalised batch; its training flags are the same afterwards.
        info: of the model; says its classes and how a picture becomes an input.
        annotations: pictures and truth, with the masks or keypoints that the task needs.
        batch: images per forward pass.
        workers: processes that read pictures; 0 reads in this one.
        device: where to run; the network is moved there. None: where the network is.
        precision: ``fp32``, ``bf16`` or ``fp16`` for the network; answers are decoded in float32.
        size: of the input (``InputSpec.size``), other than the model's own.
        max_det: detections kept per image (default 300). Above COCO's limit per class (100, of keypoints 20), the
            scores for that many are added; the standard numbers keep their limit.
        progress: show a bar on terminals.
        rank, world, gather: this process, how many share the evaluation, and a function that gives every process the
            objects of all; all of them return the same scores.

    Raises:
        ValueError: no images, no masks or keypoints where the task needs them, an unknown precision, a number below its
            least, or objects of a class that the model does not have.
    """
    if batch < 1 or (max_det is not None and max_det < 1):
        raise ValueError(f"batch={batch}, max_det={max_det}: both are at least 1")
    if not len(annotations):
        raise ValueError(f"{annotations.root}: no images to evaluate on")
    truth = TASKS[info.task].truth
    if truth and getattr(annotations, truth) is None:
        raise ValueError(f"{annotations.root}: no {truth} to score {info.name} by. Read the data with truth={truth!r}.")
    chosen, renamed = _shared_classes(info.labels, annotations)
    network = network if device is None else network.to(choose_device(device))
    pictures = replace(annotations, masks=None, keypoints=None)  # nobody draws the truth to count it
    spec = replace(info.input, size=size or info.input.size)
    batches = loader.plain(pictures, spec.size, batch, workers, rank, world, resize=spec.resize)
    kinds = TASKS[info.task].counts
    scorers = {kind: CocoScorer(annotations, max_det, kind) for kind in kinds}
    options: dict[str, Any] = {"top_k": max_det or TOP_K, "precision": precision, "classes": chosen}
    options["owned"] = info.labels.owned()
    start = time.perf_counter()
    seen = 0
    with _evaluating(network):
        for each in _bar(batches, progress and rank == 0):
            sizes = [target.size for target in each.targets]
            found = detect(network, spec, each.images, sizes, valid=each.valid, **options)
            for target, detections in zip(each.targets, found, strict=True):
                detections = replace(detections, labels=renamed[detections.labels])
                for scorer in scorers.values():
                    scorer.add(target.image_id, detections)
            seen += len(found)
    rate = seen / (time.perf_counter() - start)
    if world > 1:
        assert gather is not None, "an evaluation shared by processes needs a way to gather"
        _share(scorers, gather)
    leads, *others = (scorer.count() for scorer in scorers.values())
    overall = leads.scores()
    for kind, count in zip(kinds[1:], others, strict=True):
        overall |= {FURTHER[kind][0] + name: value for name, value in count.scores().items()}
    return Scores(info.name, overall, leads.per_class(), len(annotations), rate, leads, scorers[kinds[0]])


def _share(scorers: dict[str, CocoScorer], gather: Callable[[object], list[object]]) -> None:
    """Every process takes what the others have collected."""
    states: list[Any] = gather({kind: scorer.state() for kind, scorer in scorers.items()})
    for kind, scorer in scorers.items():
        scorer.merge(state[kind] for state in states)


def _shared_classes(model: Labels, annotations: Annotations) -> tuple[Tensor | None, Tensor]:
    """Labels of the model that the data have (None: all), and for every label of the model that of the data."""
    data = annotations.labels
    known = [model.names[label] for label in model.used]
    needed = np.unique(annotations.classes)
    unknown = [data.names[label] for label in needed if data.names[label] not in known]
    if unknown:
        raise ValueError(
            f"the data have objects of classes that the model does not know: {', '.join(unknown)}. "
            f"The model knows: {', '.join(known)}. Train it on these data, or evaluate on data with its classes."
        )
    places = {name: data.names.index(name) for name in known if name in data.names}
    renamed = torch.tensor([places.get(name, -1) for name in model.names])
    renamed[list(model.unused)] = -1
    chosen = (renamed >= 0).nonzero().flatten()
    return (None if len(chosen) == len(model) else chosen), renamed


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode within, and the mode that every submodule had before afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _bar(batches: Any, show: bool) -> Any:
    from tqdm import tqdm

    return tqdm(batches, desc="evaluate", unit="batch", leave=False, disable=None if show else True)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The same values with None instead of nan, which JSON does not know."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def _text(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def _write_json(path: Path, content: Any) -> None:
    with written_beside(path) as beside:
        beside.write_text(json.dumps(content, allow_nan=False, indent=None if isinstance(content, list) else 2))


def _write_csv(path: Path, header: list[str], rows: Iterator[list[Any]]) -> None:
    with written_beside(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(["n/a" if value is None else value for value in row] for row in rows)
