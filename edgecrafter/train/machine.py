"""What a training asks of the machine: device, precision, loading processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from edgecrafter.infer import choose_device
from edgecrafter.train import distributed


class HasWorkers(Protocol):
    """Options of any kind of run."""

    workers: int | None


def device(name: str) -> torch.device:
    """The device of this process. Raises ``ValueError`` for a list of GPUs: those need one process each."""
    if "," in name:
        count = len(name.split(","))
        raise ValueError(f"device={name}: several GPUs need a process each: CUDA_VISIBLE_DEVICES={name} torchrun "
                         f"--nproc-per-node={count} -m edgecrafter train ...")  # fmt: skip
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    chosen = choose_device(name)
    if several and chosen.type == "cuda":
        if distributed.local_rank() >= torch.cuda.device_count():
            raise ValueError(
                f"process {distributed.local_rank()} has no GPU, this machine has {torch.cuda.device_count()}: "
                f"start torchrun with --nproc-per-node={torch.cuda.device_count()}"
            )
        return torch.device("cuda", distributed.local_rank())
    if chosen.type == "mps" and not name:
        return torch.device("cpu")  # mps lacks kernels that training needs; it is there for prediction
    return chosen


def precision(wanted: str, device: torch.device) -> str:
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def workers(config: HasWorkers) -> int:
    """Loading processes: one core of this process' share is left to the training itself."""
    if config.workers is not None:
        return config.workers
    share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(8, share - 1))


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic kernels within, where they exist; a warning names those that do not."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if wanted:
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
