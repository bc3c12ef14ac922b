"""What a run says while it goes: a progress bar or a line per epoch, ``results.csv``, and TensorBoard if installed."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgecrafter.files import written_beside
from edgecrafter.train import distributed

CSV = "results.csv"


class Journal:
    """Collects the losses of an epoch and writes one row for it.

    ``seconds`` of a row is the whole epoch, ``images_per_second`` the training without the evaluation. Losses are
    summed by term: ``mal`` is the sum of ``mal``, ``mal_0``, ``mal_dn_1``, ... Only the first process writes and
    speaks.
    """

    def __init__(
        self,
        folder: Path,
        terms: Sequence[str],
        scores: Sequence[str],
        epochs: int,
        done: int = 0,
        facts: Sequence[str] = (),
    ) -> None:
        """``scores`` are the columns of an evaluation, ``facts`` those of the step (``Step.end_epoch``); rows of epochs
        from ``done`` on are removed (a resumed run)."""
        self.path, self.terms, self.scores, self.epochs = folder / CSV, tuple(terms), tuple(scores), epochs
        self.facts = tuple(facts)
        self.speaks = distributed.rank() == 0
        self._board: Any = None
        self._bar: Any = None
        if self.speaks:
            folder.mkdir(parents=True, exist_ok=True)
            columns = ["epoch", "step", "seconds", "images_per_second", "lr", "loss", *self.terms, "skipped"]
            self.columns = [*columns, *self.facts, *(f"val/{name}" for name in self.scores)]
            _write_rows(self.path, self.columns, [row for row in read_rows(self.path) if int(row["epoch"]) <= done])
            self._board = _tensorboard(folder, done)

    def begin(self, epoch: int, steps: int) -> None:
        """Start an epoch (counted from 0) of ``steps`` steps."""
        from tqdm import tqdm

        self.epoch, self.started = epoch, time.perf_counter()
        self.trained = self.started
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.count = self.images = self.skipped = 0
        if self.speaks:
            title = f"epoch {epoch + 1}/{self.epochs}"
            # disable=None: no bar where the output is not a terminal
            self._bar = tqdm(total=steps, desc=title, unit="step", leave=False, disable=None)

    def step(self, losses: Mapping[str, Tensor], total: float, images: int, taken: bool) -> None:
        """One step: its losses (they stay on the device), their sum, its pictures, and whether it was taken."""
        self.images += images
        self.trained = time.perf_counter()
        if taken:
            values = torch.stack([value.detach().double() for value in losses.values()])
            self.names = list(losses)
            self.sums = values if self.sums is None else self.sums + values
            self.count += 1
        else:
            self.skipped += 1
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix(loss=f"{total:.3f}", refresh=False)
            if self._bar.n >= self._bar.total:
                self._bar.close()  # makes room for the evaluation's

    def end(
        self, step: int, rate: float, scores: Mapping[str, float] | None, facts: Mapping[str, float] | None = None
    ) -> dict[str, Any]:
        """Close the epoch after ``step`` steps in all, with the learning rate, the scores, if it was evaluated, and the
        step's own numbers."""
        now = time.perf_counter()
        means = self._means()
        row: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "step": step,
            "seconds": round(now - self.started, 2),
            "images_per_second": round(self.images * distributed.world() / (self.trained - self.started), 2),
            "lr": f"{rate:.6g}",
            "loss": _text(sum(means.values()) if means else math.nan),
            **{term: _text(means.get(term, math.nan)) for term in self.terms},
            "skipped": self.skipped,
            **{name: _text((facts or {})[name]) for name in self.facts},
            **{f"val/{name}": _text(scores[name]) if scores else "" for name in self.scores},
        }
        if self.speaks:
            self._write(row)
        return row

    def say(self, text: str) -> None:
        """Print from the first process, above the progress bar."""
        if self.speaks:
            from tqdm import tqdm

            tqdm.write(text)

    def close(self) -> None:
        """Flush what is open."""
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self._board.close()

    def _means(self) -> dict[str, float]:
        """Mean of each term over the taken steps and all processes."""
        if self.sums is None:
            return {}
        values = (distributed.mean(self.sums) / self.count).tolist()
        means: dict[str, float] = {}
        for name, value in zip(self.names, values, strict=True):
            term = term_of(name, self.terms)
            means[term] = means.get(term, 0.0) + value
        return means

    def _write(self, row: dict[str, Any]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)
        numbers = {name: float(value) for name, value in row.items() if value != "" and name not in ("epoch", "step")}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name if "/" in name else f"train/{name}", value, row["epoch"])
            self._board.flush()
        self._bar.close()
        watched = [f"{name} {float(row[f'val/{name}']):.3f}" for name in self.scores[:2] if row[f"val/{name}"]]
        parts = [f"loss {row['loss']}", *watched, f"{row['images_per_second']} images/s"]
        if self.skipped:
            parts.append(f"{self.skipped} steps skipped")
        self.say(f"epoch {row['epoch']}/{self.epochs}: " + ", ".join(parts))


def term_of(name: str, terms: Sequence[str]) -> str:
    """The term that a loss belongs to: the longest one that its name begins with, else the name itself."""
    fitting = [term for term in terms if name == term or name.startswith(term + "_")]
    return max(fitting, key=len, default=name)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The complete rows of a ``results.csv``; none when it does not exist. A half-written last line is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(complete.splitlines()))


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    with written_beside(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _text(value: float) -> str:
    return f"{value:.5g}"


def _tensorboard(folder: Path, done: int) -> Any:
    """A writer if TensorBoard is installed, else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=done + 1 if done else None)
