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

    1 is a perfect copy, 0 is as good as the mean of every channel. Sums over batches, in float64.
    """

    def __init__(self) -> None:
        self.error = self.square = torch.zeros(())
        self.sum: Tensor | None = None
        self.count = 0

    def add(self, adapted: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """Maps [B, D, h, w] of a batch, as ``losses`` takes them."""
        target = torch.stack([t.double() for t in targets])
        error = sum(((fitted(x.float(), t).double() - t.double()) ** 2).sum() for x in adapted for t in targets)
        self.error = self.error.to(target.device) + error / len(adapted)
        self.square = self.square.to(target.device) + (target**2).sum()
        total = target.sum((1, 3, 4))  # [targets, D]
        self.sum = total if self.sum is None else self.sum + total
        self.count += target[0, :, 0].numel()

    def sums(self) -> Tensor:
        """Everything in one vector, to be added up over processes."""
        assert self.sum is not None
        count = torch.tensor([float(self.count)], dtype=torch.float64, device=self.sum.device)
        return torch.cat([torch.stack([self.error, self.square]), count, self.sum.flatten()])

    @staticmethod
    def share(sums: Tensor) -> float:
        """From (added up) sums to the share."""
        error, square, count = sums[:3].tolist()
        variance = square - float((sums[3:] ** 2).sum()) / count
        return 1 - error / variance if variance > 0 else 0.0
