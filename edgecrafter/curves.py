"""Curves of a training run as one picture: losses, scores, and precision over recall."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

HINT = "curves as a picture need matplotlib: pip install 'edgecrafter[plot]'"


def plot(run: str | Path, target: str | Path) -> Path | None:
    """Draw the curves of the run in folder ``run`` into the PNG ``target``; None when matplotlib is not installed.

    Reads ``results.csv`` and ``val/curves.csv``. Raises FileNotFoundError when there is no ``results.csv``.
    """
    figure = _figure(13, 3.6)
    if figure is None:
        return None
    run, target = Path(run), Path(target)
    rows = _rows(run / "results.csv")
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
    figure = _figure(9, 3.6)
    if figure is None:
        return None
    for axes, name in zip(figure.subplots(1, 2), ("AP", "AP50"), strict=True):
        for title, run in runs.items():
            axes.plot(*_line(_rows(run / "results.csv"), f"val/{name}"), "o-", markersize=3, label=title)
        axes.set_ylim(bottom=0)
        _finish(axes, f"validation: {name}", "epoch")
    figure.savefig(target, dpi=110)
    return Path(target)


def method(run: str | Path, name: str, target: str | Path) -> Path | None:
    """Draw AP and the columns ``name/...`` of the run in folder ``run`` (of a distillation method, such as weight and
    share of GAM) over the epochs into the PNG ``target``, as Figure 5 of RT-DETRv4; None when matplotlib is not
    installed.

    Reads ``results.csv``, and from ``args.yaml`` the band of the share and the epoch at which strong augmentation ends.
    """
    run, target = Path(run), Path(target)
    rows = _rows(run / "results.csv")
    columns = [column for column in rows[0] if column.startswith(f"{name}/")]
    figure = _figure(8, 2.2 * (1 + len(columns)))
    if figure is None:
        return None
    facts = yaml.safe_load((run / "args.yaml").read_text(encoding="utf-8"))
    settings, plain = facts["distill"][name], facts["plan"]["plain_from"]
    panels = figure.subplots(1 + len(columns), 1, sharex=True, squeeze=False)[:, 0]
    for axes, column in zip(panels, ("val/AP", *columns), strict=True):
        axes.plot(*_line(rows, column), "o-", markersize=3)
        _scale(axes, _line(rows, column)[1], column, settings)
        if 0 < plain < len(rows):
            label = "last phase begins" if axes is panels[0] else None
            axes.axvline(plain + 0.5, color="gray", linestyle=":", label=label)
        _finish(axes, "validation: AP" if column == "val/AP" else column, "epoch" if axes is panels[-1] else "")
    figure.savefig(target, dpi=110)
    return target


def _scale(axes: Any, values: list[float], column: str, settings: Mapping[str, Any]) -> None:
    """A weight has a logarithmic axis, a share (percent) the band in which it is wanted, and all others begin at 0."""
    if column.endswith("/weight") and min(values, default=0) > 0:
        axes.set_yscale("log")
        return
    if column.endswith("/share"):
        axes.set_ylabel("percent")
        if settings.get("rho") is not None:
            low, high = settings["rho"] - settings["delta"], settings["rho"] + settings["delta"]
            axes.axhspan(low, high, alpha=0.2, color="C2", label=f"wanted: {low:g} to {high:g}")
    axes.set_ylim(bottom=0)


def _figure(width: float, height: float) -> Any:
    """An empty picture; None when matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


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
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


_OTHER = {"epoch", "step", "seconds", "images_per_second", "lr", "loss", "skipped"}
"""columns of results.csv that are no loss terms"""
