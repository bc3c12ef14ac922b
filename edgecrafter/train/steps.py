"""A step: from a batch to named losses. What the loop drives and what is wrapped for several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from itertools import chain

import torch
from torch import Tensor, nn

from edgecrafter.distill.base import Distiller
from edgecrafter.infer import PRECISIONS
from edgecrafter.losses.set_loss import SetLoss
from edgecrafter.models.foreign import Foreign, freeze_unused
from edgecrafter.models.sizes import SIZES
from edgecrafter.tasks import Task, skeleton
from edgecrafter.train import distributed
from edgecrafter.train.qat import Quantiser
from edgecrafter.train.scales import Scales
from edgecrafter.types import Batch, InputSpec, Labels, LayerOutput, Outputs, Target


class Step(nn.Module):
    """What the loop drives: ``forward(batch, step, part, objects)`` gives named losses."""

    def after_backward(self) -> None:
        """Called in every step that will be taken, between gradients and update."""

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Called at the end of an epoch (counted from 0), before the evaluation; numbers for the journal."""
        return {}


class SupervisedStep(Step):
    """Network, denoising and loss in one forward: ``Batch`` -> named losses whose sum is minimised.

    The network runs under autocast, the losses in float32. Noise is a function of (seed, step, part, rank), and so is
    what a backbone of others draws from torch's global generator (dropout, drop path, scales of DINOv3's positions).
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        labels: Labels,
        spec: InputSpec,
        *,
        loss: SetLoss | None = None,
        seed: int = 0,
        precision: str = "fp32",
        freeze: tuple[str, ...] = (),
        budget: int | None = None,
        noise: str = "paper",
        distillers: Sequence[Distiller] = (),
        scales: Scales | None = None,
        quantiser: Quantiser | None = None,
    ) -> None:
        """``loss`` and ``budget`` (denoising queries per image) are the task's unless given; ``freeze`` and ``noise``
        as in ``TrainConfig``; ``distillers`` add their losses; ``scales`` None: all pictures at their size;
        ``quantiser`` rounds the network's layers to 8 bits, and batch norms then keep their statistics."""
        super().__init__()
        self.network = network
        self.distillers = nn.ModuleList(distillers)
        for distiller in distillers:
            distiller.mean = distributed.mean
        self.scales = scales
        self.loss = loss or task.loss(labels, SIZES["s"])
        self.task, self.labels, self.spec = task, labels, spec
        self.seed, self.dtype = seed, PRECISIONS[precision]
        # a decoder without a table of labels cannot be asked for noisy copies
        asks = hasattr(getattr(network, "decoder", None), "groups")
        self.budget = (task.budget if budget is None else budget) if asks else 0
        assert noise in task.noises
        self.noise = noise
        others = [part for part in network.modules() if isinstance(part, Foreign)]
        for part in others:
            freeze_unused(part)
        self.draws = bool(others)  # our own networks draw nothing
        self.quantiser = quantiser
        self.still = freeze_parts(network, freeze if quantiser is None else (*freeze, "norm"))
        self.train()

    def train(self, mode: bool = True) -> SupervisedStep:
        """As ``nn.Module.train``; frozen parts stay in evaluation mode."""
        super().train(mode)
        for name in self.still:
            self.network.get_submodule(name).eval()
        return self

    def forward(self, batch: Batch, step: int = 0, part: int = 0, objects: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of one batch.

        ``part`` counts the batches of an accumulated step, and ``objects`` [2] are the objects of this part and the
        mean of all parts, both over all processes; None when the step has one part.
        """
        device = next(self.network.parameters()).device
        seed = _mixed(self.seed, step, part, distributed.rank())
        # made where the targets are, on the host: many small steps, and the device has not to be waited for
        host = torch.Generator().manual_seed(seed)
        group = self.task.denoise(batch.targets, self.labels, host, self.budget, self.noise).to(device)
        places = torch.Generator(device).manual_seed(seed)
        batch = batch.to(device)
        if self.scales is not None:
            batch = replace(batch, images=self.scales.apply(batch.images, step))
        images = self.spec.normalise(batch.images, batch.valid)
        padded = {} if batch.valid is None else {"valid": batch.valid}
        drawn = seeded(_mixed(seed, 1), device) if self.draws else nullcontext()
        asked = [distiller.probes(batch) for distiller in self.distillers]  # type: ignore[operator]
        rounded = nullcontext() if self.quantiser is None else self.quantiser.on(self.network)
        with drawn, rounded, torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            outputs = self.network(images, [group, *chain(*asked)], **padded)
        noisy, *answers = outputs.groups
        outputs = replace(outputs, groups=[noisy])
        self.loss.reduce_count = lambda counts: _shared_counts(counts, objects)
        with torch.autocast(images.device.type, enabled=False):
            losses: dict[str, Tensor] = self.loss(
                float32(outputs), batch.targets, lambda shape: torch.rand(shape, generator=places, device=device)
            )
            for distiller, probes in zip(self.distillers, asked, strict=True):
                own, answers = answers[: len(probes)], answers[len(probes) :]
                losses |= distiller(replace(outputs, groups=own), batch)
        return losses

    def after_backward(self) -> None:
        for distiller in self.distillers:
            distiller.after_backward(self.network)  # type: ignore[operator]

    def end_epoch(self, epoch: int) -> dict[str, float]:
        facts: dict[str, float] = {}
        for distiller in self.distillers:
            facts |= distiller.end_epoch(epoch)  # type: ignore[operator]
        return facts


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generators begin at ``seed``; those of the host and of a GPU ``device`` are put back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def object_counts(batches: list[Batch], device: torch.device) -> Tensor | None:
    """Objects of each batch of an accumulated step, mean over the processes, [P]; None for a single batch."""
    if len(batches) == 1:
        return None
    counts = [sum(len(target.labels) for target in batch.targets) for batch in batches]
    return distributed.mean(torch.tensor(counts, dtype=torch.float64, device=device))


def _shared_counts(counts: Tensor, objects: Tensor | None) -> Tensor:
    """Counts of one part -> the mean over processes and parts, by which its losses are divided.

    The mean of the losses over the parts is then the loss of one large batch. It is exact for the objects. For pairs
    that are known only after matching (the union) this part's ratio of pairs to objects stands for that of all (ours).
    """
    counts = distributed.mean(counts)
    if objects is None:
        return counts
    own, mean = objects
    scaled = counts.double() * mean / own
    return torch.where(own > 0, scaled, mean).to(counts.dtype)


def float32(outputs: Outputs) -> Outputs:
    """The same outputs with everything the losses read in float32."""
    return replace(
        outputs,
        layers=[_float32(layer) for layer in outputs.layers],
        first=outputs.first and _float32(outputs.first),
        encoder=outputs.encoder and _float32(outputs.encoder),
        groups=[float32(group) for group in outputs.groups],
    )


def _float32(layer: LayerOutput) -> LayerOutput:
    values = {f.name: getattr(layer, f.name) for f in fields(layer)}
    return replace(layer, **{name: value.float() for name, value in values.items() if value is not None})


def freeze_parts(network: nn.Module, parts: tuple[str, ...]) -> list[str]:
    """Stop the learning of parameters whose names start with one of ``parts``; names of the modules to keep in
    evaluation mode. ``norm`` keeps the statistics of every batch norm.

    Raises ``ValueError`` for a part that names nothing.
    """
    still = []
    modules = dict(network.named_modules())
    for part in parts:
        if part == "norm":
            still += [n for n, m in modules.items() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            continue
        chosen = [p for n, p in network.named_parameters() if _inside(n, part)]
        if not chosen:
            known = ", ".join(name for name in modules if name and name.count(".") < 2)
            raise ValueError(f"freeze={part!r} is the beginning of no parameter's name; parts: norm, {known}")
        for parameter in chosen:
            parameter.requires_grad_(False)
        still += [name for name in modules if name and _inside(name, part)]
    return still


def _inside(name: str, part: str) -> bool:
    return name == part or name.startswith(part.rstrip(".") + ".")


def worst_batch(
    size: tuple[int, int], batch: int, objects: int, labels: Labels, device: torch.device, truth: str = ""
) -> Batch:
    """The largest batch that can come: ``batch`` gray pictures with ``objects`` objects each, and their ``truth``."""
    side = max(1, int(objects**0.5 + 0.999))
    place = torch.arange(objects)
    centres = torch.stack([place % side, place // side], dim=1).add(0.5) / side
    boxes = torch.cat([centres, torch.full_like(centres, 0.8 / side)], dim=1)
    target = _FILLED[truth](Target(labels=place % len(labels), boxes=boxes), size, labels)
    images = torch.full((batch, 3, *size), 114, dtype=torch.uint8)
    return Batch(images, [replace(target) for _ in range(batch)]).to(device)


def _with_masks(target: Target, size: tuple[int, int], _labels: Labels) -> Target:
    return replace(target, masks=torch.full((len(target.labels), size[0], size[1] // 8), 255, dtype=torch.uint8))


def _with_keypoints(target: Target, _size: tuple[int, int], labels: Labels) -> Target:
    points = target.boxes[:, None, :2].expand(-1, len(skeleton(labels)), -1)
    keypoints = torch.cat([points, torch.full_like(points[..., :1], 2)], dim=-1)
    return replace(target, keypoints=keypoints, area=target.boxes[:, 2:].prod(-1))


_FILLED: dict[str, Callable[[Target, tuple[int, int], Labels], Target]] = {
    "": lambda target, _size, _labels: target,
    "masks": _with_masks,
    "keypoints": _with_keypoints,
}
"""what the data of a task have besides boxes (``Task.truth``) -> objects that have it"""


def _mixed(*numbers: int) -> int:
    """One seed from several numbers, well spread (the mixing step of splitmix64)."""
    value = 0
    for number in numbers:
        value = (value + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        value ^= value >> 31
    return value >> 1
