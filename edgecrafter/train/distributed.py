"""Several processes as one: the only file that touches ``torch.distributed``.

Start with ``torchrun --nproc-per-node=N -m edgecrafter train ...``. Every function also works in a single process,
where it does nothing.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
_silent = ContextVar("silent", default=False)


def active() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Number of this process, 0 for the one that writes files and speaks."""
    return dist.get_rank() if active() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if active() else 1


def local_rank() -> int:
    """Number of this process on its machine: the GPU to use."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def session(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, and leave again whatever happens.

    NCCL between GPUs, gloo otherwise. A process group that already exists is used and left alone.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu and dist.is_nccl_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all processes."""
    if active():
        dist.barrier()


@contextmanager
def first_process_first() -> Iterator[None]:
    """The first process does what is inside while the others wait for it; then they do it."""
    if rank() > 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


@contextmanager
def silence() -> Iterator[None]:
    """Nothing is said within."""
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)


def say(text: str) -> None:
    """Print from process 0 only."""
    if rank() == 0 and not _silent.get():
        print(text, flush=True)


def mean(value: Tensor) -> Tensor:
    """Mean over all processes, without gradient."""
    if not active():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world()


def all_true(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is true in every process."""
    if not active():
        return flag
    least = torch.tensor(int(flag), device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return bool(least)


def gather(value: T) -> list[T]:
    """Any picklable object of every process, in order of rank, on every process."""
    if not active():
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def broadcast(value: T) -> T:
    """The object of process 0, on every process."""
    if not active():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def wrap(step: nn.Module) -> nn.Module:
    """The step with synchronised batch norm and gradients averaged over the processes; in one process the step itself.

    Batch norms inside ``step`` are replaced. Every trained parameter must get a gradient in every step.
    """
    if not active():
        return step
    on_cpu = next(step.parameters()).device.type == "cpu"
    convert = _synchronised if on_cpu else nn.SyncBatchNorm.convert_sync_batchnorm
    known = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # the name before 2.15
    options: dict[str, Any] = {sync: False}
    return DistributedDataParallel(convert(step), **options)


def unsynchronised(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, gradients stay with their process: for all but the last of the accumulated batches."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


class _Sum(torch.autograd.Function):
    """Sum over the processes; its gradient is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, for CPUs, where torch's own has no kernel.

    All processes must bring batches of the same shape, which the loader guarantees.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape, normalised over all processes in training mode."""
        if not (self.training and active()):
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        mean: Tensor = _Sum.apply(x.mean((0, 2, 3))) / world()
        centred = x - mean[:, None, None]
        variance: Tensor = _Sum.apply(centred.square().mean((0, 2, 3))) / world()
        count = x.numel() // x.shape[1] * world()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * (count / max(count - 1, 1))).to(self.running_var.dtype), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


def _synchronised(module: nn.Module) -> nn.Module:
    """Replace the batch norms inside; parameters and statistics stay the same tensors."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            new = SynchronisedBatchNorm(child.num_features, child.eps, child.momentum).train(child.training)
            new.weight, new.bias = child.weight, child.bias
            for key, value in child.named_buffers():
                setattr(new, key, value)
            setattr(module, name, new)
        else:
            _synchronised(child)
    return module
