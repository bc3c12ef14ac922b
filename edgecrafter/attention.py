"""Where the decoders of several detectors look, beside each other (CLoCKDistill, Figure 3).

Q queries, N of them chosen, n points (or tokens) that a query reads, h x w cells of a map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from edgecrafter.figures import Drawn, Gathered, gather
from edgecrafter.geometry.splat import splat
from edgecrafter.maps import AUTO, Given
from edgecrafter.model import Model
from edgecrafter.models.queries import grid
from edgecrafter.nn.attention import Looks
from edgecrafter.postprocess import decode
from edgecrafter.predict import Source, pixels
from edgecrafter.sheet import Cell, Row, extent, sheet
from edgecrafter.types import InputSpec, Labels, LayerOutput

PICTURE = "picture"
CELL = 480
"""longer side of a picture on the sheet, in pixels"""
SCALE = np.array([[40, 70, 220], [130, 40, 160], [220, 40, 60], [250, 140, 30], [255, 245, 150]], np.float64)
"""colours of a map from nothing to its maximum, RGB"""
DARK = 0.45
"""brightness of the picture below the map"""
METHOD = (
    "Where the decoder's cross-attention reads for the answers of score {conf:g} or more, at most {most}, whose boxes "
    "are drawn: averaged over heads, each answer alike. Every map has a scale of its own, from 0 (the dark picture) "
    "over blue and red to its maximum (pale yellow); opacity is the square root of it. Per cent: how much is read in "
    "an answer's own box. Nothing is smoothed."
)


@dataclass(frozen=True)
class Answers:
    """The best queries of a picture."""

    queries: Tensor
    """[N] int64, best first"""
    boxes: Tensor
    """[N, 4] xyxy in 0..1 of the picture"""
    best: float
    """the highest score of all queries"""


def attention(
    models: Given | Sequence[Given],
    images: Source,
    device: str = "",
    imgsz: int | Sequence[int] | None = None,
    weights: str = AUTO,
    conf: float = 0.4,
    max_det: int = 100,
    layer: int | Sequence[int] | None = None,
    seed: int = 0,
) -> list[Drawn]:
    """Draw where the decoders of detectors look for what they find; one column per network, as in Figure 3 of
    CLoCKDistill.

    Of decoders with deformable attention these are the points that the answers read, of DAB-DETR its tokens.

    Args:
        models: one or several of: a name such as ``ecdet-s``, a file, the folder of a run, a loaded ``Model``; of any
            task, but with a decoder.
        images: as ``Model.predict`` takes them: file, folder, pattern, PIL picture, array [H, W, 3], or a list.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; empty: a GPU if there is one.
        imgsz: input size of all networks, as ``features`` takes it; None: each one's own.
        weights: ``auto``, or ``none``: names get random weights from ``seed``, files keep theirs.
        conf: least score of an answer whose attention is drawn, 0..1.
        max_det: most answers, best first. ``conf=0`` draws so many of each network, however certain it is.
        layer: of the decoder, from 1, or several; one row each. None: the last one.

    Returns:
        one ``Drawn`` per picture: ``.picture`` (RGB), ``.notes``, ``.save(folder)``.

    Raises:
        ValueError, FileNotFoundError: no model or picture, an unknown name, a file that cannot be used, a teacher
            without a decoder, a layer that there is not, or a number out of range.
    """
    return list(stream(models, images, device, imgsz, weights, conf, max_det, layer, seed))


def stream(
    models: Given | Sequence[Given],
    images: Source,
    device: str = "",
    imgsz: int | Sequence[int] | None = None,
    weights: str = AUTO,
    conf: float = 0.4,
    max_det: int = 100,
    layer: int | Sequence[int] | None = None,
    seed: int = 0,
) -> Iterator[Drawn]:
    """The same as ``attention``, one picture after the other; everything but the pictures is looked at at once."""
    if not 0 <= conf <= 1:
        raise ValueError(f"conf={conf}: the least score is a number from 0 to 1")
    if max_det < 1:
        raise ValueError(f"max_det={max_det}: expected 1 or more answers")
    layers = [] if layer is None else [layer] if isinstance(layer, int) else list(layer)
    found = gather(models, images, device, imgsz, weights, seed)
    detectors = [_detector(each.title, each.model, layers) for each in found.networks]
    return (_drawn(found, detectors, picture, title, conf, max_det, layers) for title, picture in found.pictures())


def _detector(title: str, model: Model | None, layers: Sequence[int]) -> Model:
    """The model, if it has a decoder and these layers."""
    if model is None:
        raise ValueError(
            f"{title}: has no decoder. Attention is drawn of detectors; edgecrafter features shows teachers"
        )
    count = len(_cross(model.network))
    for layer in layers:
        if not 1 <= layer <= count:
            raise ValueError(f"layer={layer}: the decoder of {title} has layers 1 to {count}")
    return model


def _drawn(
    given: Gathered,
    models: Sequence[Model],
    picture: Image.Image,
    title: str,
    conf: float,
    most: int,
    layers: Sequence[int],
) -> Drawn:
    size = (picture.height, picture.width)
    small = picture.resize(extent(size, CELL), Image.Resampling.BOX)
    rows = [f"layer {layer}" for layer in layers] or ["last layer"]
    cells = [{PICTURE: Cell(small, f"{size[0]} x {size[1]}")} for _ in rows]
    notes = []
    for name, model, spec in zip(given.titles, models, given.specs, strict=True):
        looks, layer, level = look(model, spec, pixels(picture, spec.fitted(*size))[None])
        found = answers(layer, model.info.labels, conf, most)
        if not len(found.boxes):
            notes.append(f"{name}: no answer of {conf:g} or more, the best has {found.best:.2f}: lower conf.")
        for row, number in zip(cells, layers or [len(looks)], strict=True):
            own = chosen(looks[number - 1], layer.logits.shape[1], found.queries)
            row[name] = Cell(overlay(small, heat(own, level), found.boxes), _caption(own, found.boxes, level))
    drawn = [Row(name, size, row) for name, row in zip(rows, cells, strict=True)]
    method = METHOD.format(conf=conf, most=most)
    return Drawn(sheet([PICTURE, *given.titles], drawn, [*notes, method], CELL), title, tuple(notes))


def _caption(looks: Looks, boxes: Tensor, cells: tuple[int, int]) -> str:
    count = f"{len(boxes)} answer{'s' * (len(boxes) != 1)}"
    read = f", {100 * within(looks, boxes, cells):.0f} % in their boxes" if len(boxes) else ""
    return f"{count}{read}, {cells[0]} x {cells[1]} cells"


def look(model: Model, spec: InputSpec, images: Tensor) -> tuple[list[Looks], LayerOutput, tuple[int, int]]:
    """Where each layer of a decoder looks in one picture uint8 [1, 3, H, W], what the last one answers, and the cells
    (h, w) of the finest map that it reads."""
    with torch.inference_mode(), recorded(model.network) as looks:
        outputs = model.network(spec.normalise(images.to(model.device)))
    height, width = outputs.memory[0].shape[2:]
    return looks, outputs.layers[-1], (height, width)


@contextmanager
def recorded(network: nn.Module) -> Iterator[list[Looks]]:
    """While it lasts, every pass of a detector adds where each layer of its decoder looks, the first layer first."""
    found: list[Looks] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(module.looks(*args, **kwargs))

    handles = [each.register_forward_pre_hook(note, with_kwargs=True) for each in _cross(network)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _cross(network: nn.Module) -> list[nn.Module]:
    """The cross-attention of each layer of a decoder."""
    return [layer.get_submodule("cross_attn") for layer in network.get_submodule("decoder.layers").children()]


def answers(layer: LayerOutput, labels: Labels, conf: float, most: int) -> Answers:
    """The queries of the first picture whose best class has a score of at least ``conf``."""
    scores, best = layer.logits[0, :, list(labels.used)].float().sigmoid().max(-1)
    scores, queries = scores.topk(min(most, len(scores)))
    queries = queries[scores >= conf]
    only = torch.full_like(layer.logits[:1, queries], -torch.inf)  # one class each, so that none comes twice
    label = torch.tensor(labels.used, device=best.device)[best[queries]]
    only[0, torch.arange(len(queries), device=queries.device), label] = layer.logits[0, queries, label]
    boxes, points = (None if each is None else each[:1, queries] for each in (layer.boxes, layer.keypoints))
    one = LayerOutput(only, boxes, keypoints=points)
    (found,) = decode(one, [(1, 1)], len(queries), owned=labels.owned())
    return Answers(queries.cpu(), found.boxes.float().cpu(), float(scores.amax()))


def chosen(looks: Looks, count: int, queries: Tensor) -> Looks:
    """Those of some of the ``count`` queries of the first picture, [1, N, heads, n], on the CPU; a query of several
    tokens (pose) has those of all, as if they were heads."""

    def pick(x: Tensor) -> Tensor:
        tokens = x.shape[1] // count
        return x[:1].cpu().double().reshape(1, count, tokens * x.shape[2], *x.shape[3:])[:, queries]

    return Looks(pick(looks.weights), None if looks.places is None else pick(looks.places))


def heat(looks: Looks, cells: tuple[int, int]) -> Tensor:
    """The map [h, w] of all queries together: each has 1 to give, and what it reads beyond the border is lost."""
    weights = looks.weights[0] / looks.weights.shape[2]
    if looks.places is None:
        return weights.sum((0, 1)).view(cells)
    return splat(looks.places[0].flatten(0, 2), weights.flatten(), cells)


def within(looks: Looks, boxes: Tensor, cells: tuple[int, int]) -> float:
    """How much of the reading of the queries is in their own boxes [N, 4] xyxy, 0..1; of tokens the centres count."""
    places = grid(*cells, boxes.device).flatten(0, 1).double() if looks.places is None else looks.places[0]
    corners = boxes.double()[:, None, None]
    inside = ((places >= corners[..., :2]) & (places <= corners[..., 2:])).all(-1)  # [N, heads or 1, n]
    return float((looks.weights[0] * inside).sum(-1).mean())


def overlay(picture: Image.Image, values: Tensor, boxes: Tensor) -> Image.Image:
    """A map [h, w] in colours over a dark picture, as large as this, with boxes xyxy in 0..1. Nothing is smoothed."""
    strength = values / values.amax().clamp(min=torch.finfo(values.dtype).tiny)
    coarse = Image.fromarray(strength.float().numpy())
    fine = np.asarray(coarse.resize(picture.size, Image.Resampling.NEAREST), np.float64)
    below, opaque = np.asarray(picture.convert("L"), np.float64)[..., None] * DARK, np.sqrt(fine)[..., None]
    mixed = Image.fromarray((below * (1 - opaque) + _colours(fine) * opaque).round().astype(np.uint8))
    pen = ImageDraw.Draw(mixed)
    for box in (boxes.clamp(0, 1) * torch.tensor([*picture.size] * 2)).tolist():
        left, top, right, bottom = (round(side) for side in box)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=(255, 255, 255))
    return mixed


def _colours(strength: NDArray[np.float64]) -> NDArray[np.float64]:
    """[H, W] in 0..1 -> RGB [H, W, 3]."""
    stops = np.linspace(0, 1, len(SCALE))
    return np.stack([np.interp(strength, stops, channel) for channel in SCALE.T], axis=-1)
