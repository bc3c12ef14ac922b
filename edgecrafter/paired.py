"""Arms compared over seeds: mean, spread, and the differences to a baseline seed by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""arm -> seed -> ``scores`` and ``explained``"""


@dataclass(frozen=True)
class Paired:
    """Differences to the baseline, seed by seed."""

    mean: float
    low: float
    high: float
    """95 % interval of the mean (Student's t); infinite for a single seed"""
    better: int
    seeds: int

    @staticmethod
    def of(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
        """``ours`` and ``theirs`` are in the order of the same seeds."""
        from scipy import stats

        d = np.subtract(ours, theirs)
        n = len(d)
        half = math.inf if n < 2 else float(stats.t.ppf(0.975, n - 1) * d.std(ddof=1) / math.sqrt(n))
        mean = float(d.mean())
        return Paired(mean, mean - half, mean + half, int((d > 0).sum()), n)

    def __str__(self) -> str:
        interval = "one seed" if self.seeds < 2 else f"{self.low:+.3f} .. {self.high:+.3f}"
        return f"{self.mean:+.3f} ({interval}), better in {self.better} of {self.seeds}"


def table(results: Results, baseline: str, score: str = "AP") -> str:
    """Markdown: every arm with its mean, spread (standard deviation), and difference to the baseline seed by seed."""
    values = {arm: {seed: float(r["scores"][score]) for seed, r in rows.items()} for arm, rows in results.items()}
    lines = [
        f"| arm | {score}, mean | spread | seeds | difference to {baseline} (95 %) | explained |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for arm, rows in values.items():
        shared = [seed for seed in rows if seed in values[baseline]]
        paired = (
            "-"
            if arm == baseline or not shared
            else str(Paired.of([rows[s] for s in shared], [values[baseline][s] for s in shared]))
        )
        numbers = np.array(list(rows.values()))
        spread = f"{numbers.std(ddof=1):.3f}" if len(numbers) > 1 else "-"
        known = [r["explained"] for r in results[arm].values() if r["explained"] is not None]
        explained = f"{np.mean(known):.2f}" if known else "-"
        lines.append(f"| {arm} | {numbers.mean():.3f} | {spread} | {len(numbers)} | {paired} | {explained} |")
    return "\n".join(lines)


def plot(results: Results, score: str, path: Path) -> None:
    """A dot per seed and a bar at the mean of every arm."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(1.5 + 1.1 * len(results), 3.6), layout="constrained")
    axes = figure.add_subplot()
    for x, rows in enumerate(results.values()):
        values = [r["scores"][score] for r in rows.values()]
        axes.plot(np.linspace(x - 0.12, x + 0.12, len(values)), values, "o", color="tab:blue", alpha=0.7)
        axes.plot([x - 0.3, x + 0.3], [np.mean(values)] * 2, color="black", linewidth=2)
    axes.set_xticks(range(len(results)), list(results), rotation=30, ha="right")
    axes.set_ylabel(f"{score} on the validation pictures")
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=130)
