"""What each group of layers costs in 8 bits when all others stay in floating point; the presets come from here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgecrafter.data.annotations import Annotations
from edgecrafter.deployed.network import load
from edgecrafter.evaluate import evaluate
from edgecrafter.export import layers, metadata
from edgecrafter.export.calibration import Calibration
from edgecrafter.export.formats import FORMATS
from edgecrafter.export.formats import onnx as onnx_format
from edgecrafter.export.graph import graph
from edgecrafter.export.int8 import quantised, ranges
from edgecrafter.export.parts import Graph
from edgecrafter.geometry import boxes as box_ops
from edgecrafter.hub import ModelInfo
from edgecrafter.models.eightbit import stays
from edgecrafter.models.network import Detector
from edgecrafter.predict import Predictor, Source
from edgecrafter.results import Result

ALL, PRESET = "all layers", "all but those that the preset keeps"
BEST = 20
"""detections of torch per picture that are looked for among those of the export"""


@dataclass(frozen=True)
class Row:
    """One group in 8 bits."""

    group: str
    layers: int
    score: float
    """mean difference of the scores of torch's best detections"""
    place: float
    """mean of 1 - IoU of their boxes; one that is not there counts 1"""
    drop: float | None
    """AP that is lost; None: not measured"""


def sensitivity(
    network: Detector,
    info: ModelInfo,
    calibration: Calibration,
    pictures: Source,
    annotations: Annotations | None = None,
    only: Sequence[str] = (),
) -> Iterator[Row]:
    """Quantise one group of layers at a time (``layers.groups``) for ONNX Runtime, and compare with torch.

    Args:
        network: a trained one.
        info: of the model.
        calibration: pictures that ranges come from; its ``kept`` are the preset of the second row.
        pictures: to compare answers on.
        annotations: to score AP on; None: AP is not measured.
        only: names of groups, or patterns of layers; empty: all layers, the preset, and every group.
    """
    made = graph(network, info, "raw", calibration.size, 1)
    proto = onnx_format.model(made.parts[0], False)
    nodes = layers.layers_of(proto)
    found = ranges(proto, calibration.feeds(list(made.parts[0].inputs)))
    sets = {
        ALL: sorted(set(nodes.values())),
        PRESET: sorted({layer for layer in nodes.values() if not stays(layer, calibration.kept)}),
        **layers.groups(nodes.values()),
    }
    fixed = replace(info, input=replace(info.input, size=calibration.size))
    wanted = Predictor(network, fixed, "cpu")(pictures, conf=0.0, max_det=BEST)
    reference = None if annotations is None else _ap(network, fixed, annotations)
    for name in only or sets:
        members = sets.get(name) or sorted({layer for layer in nodes.values() if stays(layer, [name])})
        chosen = [node for node, layer in nodes.items() if layer in members]
        deployed, seen = _running(quantised(proto, found, chosen), made, network, info, calibration.size)
        score, place = differences(wanted, Predictor(deployed, seen)(pictures, conf=0.0, max_det=5 * BEST))
        drop = None if annotations is None or reference is None else reference - _ap(deployed, seen, annotations)
        yield Row(name, len(members), score, place, drop)


def _running(
    proto: Any, made: Graph, network: Detector, info: ModelInfo, size: tuple[int, int]
) -> tuple[nn.Module, Any]:
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        onnx.save(proto, Path(folder) / "model.onnx")
        metadata.write(Path(folder), metadata.described(made, network, info, FORMATS["onnx"], size, 1, "int8"))
        return load(folder)


def _ap(network: nn.Module, info: ModelInfo, annotations: Annotations) -> float:
    return evaluate(network, info, annotations, batch=1, progress=False).overall["AP"]


def differences(wanted: Sequence[Result], found: Sequence[Result]) -> tuple[float, float]:
    """Mean difference of scores, and mean of 1 - IoU, of the ``wanted`` detections and their likeliest counterparts."""
    scores, places = [], []
    for ours, theirs in zip(wanted, found, strict=True):
        overlap = box_ops.iou(ours.boxes, theirs.boxes)
        overlap = overlap.masked_fill(ours.labels[:, None] != theirs.labels[None], 0.0)
        best, partner = overlap.max(1) if len(theirs) else (torch.zeros(len(ours)), torch.zeros(len(ours)).long())
        there = theirs.scores[partner] * (best > 0.5) if len(theirs) else torch.zeros(len(ours))
        scores.append((ours.scores - there).abs())
        places.append(1 - best)
    return float(torch.cat(scores).mean()), float(torch.cat(places).mean())


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown, the worst groups first."""
    rows = list(rows)
    head, rest = [row for row in rows if row.group in (ALL, PRESET)], [r for r in rows if r.group not in (ALL, PRESET)]
    lines = ["| in 8 bits | layers | score differs by | 1 - IoU | AP lost |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in [*head, *sorted(rest, key=lambda row: -row.place - row.score)]:
        drop = "" if row.drop is None else f"{row.drop:+.4f}"
        lines.append(f"| `{row.group}` | {row.layers} | {row.score:.4f} | {row.place:.4f} | {drop} |")
    return "\n".join(lines)
