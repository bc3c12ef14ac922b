"""EdgeCrafter's stage 2 (section 3.3): a student's last map, through one linear layer, learns to equal a teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TERM = "align"


class Alignment(nn.Module):
    """A student and its adapters: everything that stage 2 trains. Only the student is kept.

    The map of the student's last block is adapted by one linear layer, token by token, and compared with all targets.
    With ``blocks`` of 2 or more the blocks before it have an adapter each, too (Table 6; how they are paired is ours:
    every one with every target, and the mean is taken).
    """

    def __init__(self, student: nn.Module, student_width: int, teacher_width: int, blocks: int = 1) -> None:
        super().__init__()
        self.student = student
        self.blocks = blocks
        self.adapters = nn.ModuleList(nn.Linear(student_width, teacher_width) for _ in range(blocks))
        for adapter in self.adapters:
            assert isinstance(adapter, nn.Linear)
            nn.init.trunc_normal_(adapter.weight, std=0.02)
            nn.init.zeros_(adapter.bias)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> adapted maps [B, D_T, h, w], one per block."""
        maps = self.student.features(images, self.blocks)  # type: ignore[operator]
        return [
            adapter(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for adapter, x in zip(self.adapters, maps, strict=True)
        ]


def losses(adapted: Sequence[Tensor], targets: Sequence[Tensor]) -> dict[str, Tensor]:
    """Squared error against every target [B, D, h, w], mean over pictures, tokens and channels: ``align_0`` for the
    teacher's last block, ``align_1`` for the one before it, and so on. Their sum is the paper's loss but for the mean,
    which keeps it independent of sizes.

    Where the grids differ (patches of 14), the adapted map is resized to the teacher's, never the target.
    """
    found = {}
    for i, target in enumerate(reversed(targets)):
        errors = [F.mse_loss(fitted(x.float(), target), target) for x in adapted]
        found[f"{TERM}_{i}"] = torch.stack(errors).mean()
    return found


def fitted(x: Tensor, target: Tensor) -> Tensor:
    """A map on the grid of another, bilinear."""
    size = target.shape[2:]
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Explained:
    """How much of the teacher a student has learned: the share of the variance of its maps that the adapted map gives.

    1 is a perfect copy, 0 is as good as the mean of every channel. Each batch is summed in float32 where it is (Apple's
    GPUs have no float64), around its own means, and the batches in float64 on the CPU.
    """

    def __init__(self) -> None:
        self.error = self.square = torch.zeros((), dtype=torch.float64)
        self.sum: Tensor | None = None
        self.count = 0

    def add(self, adapted: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """Maps [B, D, h, w] of a batch, as ``losses`` takes them."""
        target = torch.stack([t.float() for t in targets])
        errors = [((fitted(x.float(), t) - t.float()) ** 2).sum() for x in adapted for t in targets]
        mean = target.mean((1, 3, 4))  # [targets, D]
        around = ((target - mean[:, None, :, None, None]) ** 2).sum().cpu().double()
        mean, count = mean.cpu().double(), target[0, :, 0].numel()
        self.error = self.error + torch.stack(errors).cpu().double().sum() / len(adapted)
        self.square = self.square + around + count * (mean**2).sum()
        self.sum = count * mean if self.sum is None else self.sum + count * mean
        self.count += count

    def sums(self) -> Tensor:
        """Everything in one vector (float64, on the CPU), to be added up over processes."""
        assert self.sum is not None
        count = torch.tensor([float(self.count)], dtype=torch.float64)
        return torch.cat([torch.stack([self.error, self.square]), count, self.sum.flatten()])

    @staticmethod
    def share(sums: Tensor) -> float:
        """From (added up) sums to the share."""
        error, square, count = sums[:3].tolist()
        variance = square - float((sums[3:] ** 2).sum()) / count
        return 1 - error / variance if variance > 0 else 0.0


def in_words(explained: float, where: str = "pictures that were kept out") -> str:
    """What a share of ``Explained`` means, for the console and reports."""
    if explained < 0:
        return (
            f"on {where} the student is still further from the teacher than the mean of each channel (explained "
            f"{explained:.2f}): more epochs, a higher rate, or optimizer=adamw"
        )
    return f"the student gives {100 * explained:.1f} % of the variance of the teacher's features on {where}"
