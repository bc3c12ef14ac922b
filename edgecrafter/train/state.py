"""Everything that a run needs to go on after an interruption, and how it is kept on disk."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgecrafter.train import distributed
from edgecrafter.train.ema import Average
from edgecrafter.train.recipes import Plan

RUNS, WEIGHTS, LAST, BEST = "runs", "weights", "last.pt", "best.pt"


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """epochs finished"""
    step: int = 0
    """optimiser steps, skipped ones included"""
    best: float = -math.inf
    """best score so far"""
    best_epoch: int = -1
    """the epoch (from 0) that had it"""
    stale: int = 0
    """evaluations since then"""
    reloaded: bool = False
    """whether the best weights were loaded back for the epochs without strong augmentation"""

    def note(self, score: float) -> bool:
        """Take the score of the current epoch; true when it is the best. An undefined score counts as the lowest."""
        score = -1.0 if math.isnan(score) else score
        better = score > self.best
        self.stale = 0 if better else self.stale + 1
        if better:
            self.best, self.best_epoch = score, self.epoch
        return better


class RunState:
    """Network, averaged weights, optimiser, loss scaler and progress of a run, saved in ``folder/weights``.

    Nothing else has a state: order, augmentation and noise are functions of seed, epoch and step, and the learning
    rate of the step. Files are plain tensors and values: ``torch.load(..., weights_only=True)`` reads them.
    """

    def __init__(
        self,
        network: nn.Module,
        average: Average,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        plan: Plan,
        folder: Path,
        config: dict[str, Any] | None = None,
        beside: nn.Module | None = None,
    ) -> None:
        """``beside``: what is trained with the network and is no part of it (projectors, the weights of losses)."""
        self.beside = beside
        self.network, self.average, self.optimizer, self.scaler = network, average, optimizer, scaler
        self.plan, self.folder, self.config = plan, folder / WEIGHTS, config or {}
        self.progress = Progress()

    def save(self, best: bool = False) -> None:
        """Write ``last.pt``, and first ``best.pt`` if asked for and the plan goes back to it.

        In the first process only. Each file is complete or absent at any moment. Whatever the moment of a kill, going
        on from ``last.pt`` writes the same ``best.pt`` again.
        """
        if distributed.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = self.folder / (LAST + ".part")
            _write(self.state_dict(), beside)
            if best and self.plan.reload_best:
                twin = self.folder / (BEST + ".part")
                _link(beside, twin)
                os.replace(twin, self.folder / BEST)
            os.replace(beside, self.folder / LAST)
        distributed.barrier()

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "beside": {} if self.beside is None else self.beside.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "plan": self.plan.to_dict(),
            "config": self.config,
            "world": distributed.world(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state that ``read`` returned."""
        self._load_weights(state)
        self.progress = Progress(**state["progress"])

    def reload_best(self) -> None:
        """Go back to the weights, average and optimiser of the best epoch, once in a run; time does not go back.

        Saved at once, so that a run resumed afterwards does not do it again.
        """
        if self.progress.reloaded or self.progress.best_epoch < 0:
            return
        self._load_weights(read(self.folder / BEST))
        self.progress.reloaded = True
        self.save()

    def _load_weights(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        if self.beside is not None:
            self.beside.load_state_dict(state.get("beside", {}))  # states of earlier versions have none
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] and self.scaler.is_enabled():  # the run may go on in another precision than it had
            self.scaler.load_state_dict(state["scaler"])


def read(path: Path) -> dict[str, Any]:
    """A saved state, read by the first process and sent to the others: only its disk needs to have the file."""
    state: dict[str, Any] = {}
    if distributed.rank() == 0:
        state = torch.load(path, map_location="cpu", weights_only=True)
    return distributed.broadcast(state)


def read_of(command: str, folder: Path) -> dict[str, Any]:
    """The saved state of a run that ``command`` (train or distill) started. Raises ``ValueError`` for the other's."""
    saved = read(folder / WEIGHTS / LAST)
    started = "distill" if "student" in saved["config"] else "train"
    if started != command:
        raise ValueError(
            f"resume={folder}: this run was started with edgecrafter {started}; go on with that: edgecrafter {started} "
            f"--resume {folder}"
        )
    return saved


def new_folder(project: str | Path, name: str, exist_ok: bool = False) -> Path:
    """Make and return ``project/name``, or with a number appended (``name2``, ``name3``, ...) when that exists."""
    number = 1
    while True:
        folder = Path(project).expanduser() / (name if number == 1 else f"{name}{number}")
        try:
            folder.mkdir(parents=True, exist_ok=exist_ok)
            return folder
        except FileExistsError:
            if not folder.is_dir():
                raise
            number += 1


def run_project(project: str, task: str) -> str:
    """The folder in which runs of a task are stored, unless one is given."""
    return project or f"{RUNS}/{task}"


def interrupted(resume: str | bool, project: str) -> Path:
    """The folder of the run to go on with: the given one, or the newest that has a state, of ``project`` or of all.

    Raises ``FileNotFoundError`` when there is none.
    """
    if isinstance(resume, str):
        folder = Path(resume).expanduser()
        folder = folder.parent.parent if folder.is_file() else folder
        if not (folder / WEIGHTS / LAST).is_file():
            raise FileNotFoundError(f"resume={resume}: no {WEIGHTS}/{LAST} there, nothing was saved that could go on")
        return folder
    root, runs = (Path(project).expanduser(), "*") if project else (Path(RUNS), "*/*")
    places = root.glob(f"{runs}/{WEIGHTS}/{LAST}")
    found = sorted(places, key=lambda path: path.stat().st_mtime)
    if not found:
        where = project or f"{RUNS}/"
        raise FileNotFoundError(f"resume: no run with {WEIGHTS}/{LAST} in {where}; give its folder, or project=...")
    return found[-1].parent.parent


def _write(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
