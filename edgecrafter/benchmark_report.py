"""The outcome of a benchmark: a table, a plot, and all the numbers."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecrafter.files import written_beside

STEPS = ("before", "network", "after")
"""reading, decoding and resizing a picture; the network; from its answer to detections"""


@dataclass
class Row:
    """What was measured of one artefact; seconds are of a call."""

    name: str
    size_mb: float
    scores: dict[str, float] | None
    peak_mb: float | None
    """of a process that does nothing but load it and predict once; with the runtime's own needs"""
    seconds: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})
    yardstick: list[float] = field(default_factory=list)
    """seconds of the yardstick in the same runtime, call by call beside ours"""
    parity: dict[str, Any] | None = None

    def total(self) -> list[float]:
        """End to end, call by call."""
        return [sum(parts) for parts in zip(*self.seconds.values(), strict=True)]

    def ratio(self) -> float | None:
        """Median of the ratios of the network to the yardstick beside it."""
        if not self.yardstick:
            return None
        return statistics.median(a / b for a, b in zip(self.seconds["network"], self.yardstick, strict=True))


@dataclass
class Benchmark:
    """The outcome: ``rows`` by artefact, and what they were measured on."""

    folder: Path
    conditions: dict[str, Any]
    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: all times, and their percentiles in milliseconds."""
        return {
            "conditions": self.conditions,
            "rows": [{**asdict(row), **_numbers(row, self.batch)} for row in self.rows],
        }

    @property
    def batch(self) -> int:
        return int(self.conditions["batch"])

    def table(self) -> str:
        """Markdown."""
        names = next((list(row.scores)[:2] for row in self.rows if row.scores), [])
        yardstick = self.conditions["yardstick"]
        ratio = [f"network / {yardstick}"] if yardstick else []
        times = [heading for heading, _ in COLUMNS]
        heads = ["", *names, *ratio, *times, "pictures/s", "size", "peak memory", "parity"]
        lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
        for row in self.rows:
            numbers = _numbers(row, self.batch)
            cells = [row.name, *(f"{row.scores[name]:.3f}" if row.scores else "-" for name in names)]
            cells += [f"{numbers['ratio']:.3f}"] if yardstick else []
            cells += [f"{numbers[key]:.1f} ms" for _, key in COLUMNS]
            peak = "-" if row.peak_mb is None else f"{row.peak_mb:.0f} MB"
            cells += [f"{numbers['per_second']:.1f}", f"{row.size_mb:.1f} MB", peak, _parity(row.parity)]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def write(self) -> None:
        """``benchmark.json``, ``benchmark.md`` and, with matplotlib, ``benchmark.png``."""
        with written_beside(self.folder / "benchmark.json") as beside:
            beside.write_text(json.dumps(self.to_dict(), indent=2), encoding="utf-8")
        facts = "\n".join(f"- {name}: {value}" for name, value in self.conditions.items())
        with written_beside(self.folder / "benchmark.md") as beside:
            beside.write_text(f"# {self.conditions['model']}\n\n{facts}\n\n{self.table()}\n", encoding="utf-8")
        self.plot(self.folder / "benchmark.png")

    def plot(self, path: Path) -> None:
        """Accuracy against the time of the network; without scores bars of the times."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        times = [1000 * statistics.median(row.seconds["network"]) for row in self.rows]
        if all(row.scores for row in self.rows):
            lead = next(iter(self.rows[0].scores or {}))
            values = [(row.scores or {})[lead] for row in self.rows]
            for row, x, y in zip(self.rows, times, values, strict=True):
                axes.plot([x], [y], "o", label=row.name)
            axes.legend(fontsize="small")
            axes.set_xlim(0, 1.25 * max(times))
            axes.set_ylabel(lead)
        else:
            axes.barh([row.name for row in self.rows], times)
        axes.set_xlabel(f"network, ms per call of {self.batch}, {self.conditions['threads']} threads")
        axes.set_title(str(self.conditions["model"]))
        axes.grid(alpha=0.3)
        figure.savefig(path, dpi=130)


COLUMNS = (
    ("network p50", "network_p50_ms"),
    ("p95", "network_p95_ms"),
    ("before", "before_p50_ms"),
    ("after", "after_p50_ms"),
    ("end to end p50", "total_p50_ms"),
    ("p95", "total_p95_ms"),
)
"""times of a call"""


def _parity(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{'' if found['passed'] else 'FAILED: '}{found['box_px']:.2g} px, {found['score']:.2g}"


def _numbers(row: Row, batch: int) -> dict[str, Any]:
    """Percentiles of a row in milliseconds, and pictures per second end to end."""
    found: dict[str, Any] = {"ratio": row.ratio()}
    for name, values in {**row.seconds, "total": row.total()}.items():
        found[f"{name}_p50_ms"] = 1000 * float(np.percentile(values, 50))
        found[f"{name}_p95_ms"] = 1000 * float(np.percentile(values, 95))
    found["per_second"] = batch * len(row.total()) / sum(row.total())
    return found
