"""Curves of a training run as one picture: losses, scores, and precision over recall."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HINT = "curves as a picture need matplotlib: pip install 'edgecrafter[plot]'"


def plot(run: str | Path, target: str | Path) -> Path | None:
    """Draw the curves of the run in folder ``run`` into the PNG ``target``; None when matplotlib is not installed.

    Reads ``results.csv`` and ``val/curves.csv``. Raises FileNotFoundError when there is no ``results.csv``.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    run, target = Path(run), Path(target)
    rows = _rows(run / "results.csv")
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores, trade = figure.subplots(1, 3)
    kind = _kind(rows[0])
    _losses(losses, rows)
    _scores(scores, rows, kind)
    _precision(trade, run / "val" / "curves.csv", kind)
    figure.savefig(target, dpi=110)
    return target


def compare(runs: Mapping[str, Path], target: str | Path) -> Path | None:
    """Draw AP and AP50 over the epochs of several runs (title -> folder) into the PNG ``target``; None when matplotlib
    is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, 2), ("AP", "AP50"), strict=True):
        for title, run in runs.items():
            axes.plot(*_line(_rows(run / "results.csv"), f"val/{name}"), "o-", markersize=3, label=title)
        axes.set_ylim(bottom=0)
        _finish(axes, f"validation: {name}", "epoch")
    figure.savefig(target, dpi=110)
    return Path(target)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _losses(axes: Any, rows: list[dict[str, str]]) -> None:
    names = [name for name in rows[0] if name not in _OTHER and "/" not in name]
    for name in ["loss", *names]:
        axes.plot(*_line(rows, name), label=name, linewidth=2 if name == "loss" else 1)
    axes.set_ylim(bottom=0)
    _finish(axes, "training loss", "epoch")


def _kind(columns: Iterable[str]) -> str:
    """What was scored: ``box``, ``mask`` or ``OKS``, told by the columns. COCO knows no small keypoint objects."""
    if "val/box_AP" in columns:
        return "mask"
    return "box" if "val/APs" in columns else "OKS"


def _scores(axes: Any, rows: list[dict[str, str]], kind: str) -> None:
    """The scores of the kind in thick lines; for masks those of the boxes in the same colours, thin."""
    for index, name in enumerate(("AP", "AP50", "AP75")):
        axes.plot(*_line(rows, f"val/{name}"), f"C{index}-", label=f"{kind} {name}")
        if f"val/box_{name}" in rows[0]:
            axes.plot(*_line(rows, f"val/box_{name}"), f"C{index}--", label=f"box {name}", linewidth=0.8)
    axes.set_ylim(0, 1)
    _finish(axes, f"validation: {kind} AP", "epoch")


def _precision(axes: Any, path: Path, kind: str) -> None:
    points: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(path) if path.is_file() else []:
        points.setdefault(row["name"], []).append((float(row["recall"]), float(row["precision"])))
    for name, line in list(points.items())[:10]:  # more lines than this cannot be told apart
        axes.plot(*zip(*line, strict=True), label=name)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    _finish(axes, f"precision at {'an OKS' if kind == 'OKS' else f'a {kind} overlap'} of 0.5", "recall")


def _line(rows: list[dict[str, str]], name: str) -> tuple[list[int], list[float]]:
    """Epochs and values of a column, without the epochs that have none."""
    found = [(int(row["epoch"]), float(row[name])) for row in rows if row.get(name)]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _finish(axes: Any, title: str, below: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(below)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)


_OTHER = {"epoch", "step", "seconds", "images_per_second", "lr", "loss", "skipped"}
"""columns of results.csv that are no loss terms"""
