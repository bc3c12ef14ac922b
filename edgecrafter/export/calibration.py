"""Pictures that say which range the values inside a network have, for 8-bit exports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data import check, formats, images
from edgecrafter.data.annotations import Annotations
from edgecrafter.geometry.sides import KEEP, framed
from edgecrafter.hub import ModelInfo
from edgecrafter.models.eightbit import kept
from edgecrafter.predict import pixels
from edgecrafter.tasks import TASKS
from edgecrafter.types import InputSpec

SEED = 20


@dataclass(frozen=True)
class Calibration:
    """Pictures for a network, and which of its layers are not to be touched."""

    paths: tuple[Path, ...]
    input: InputSpec
    size: tuple[int, int]
    """(height, width) of the graph's input"""
    kept: tuple[str, ...] = ()
    """patterns of layers that stay in floating point (``models.eightbit``)"""

    @classmethod
    def of(
        cls, data: str | Path, info: ModelInfo, size: tuple[int, int], count: int = 128, seed: int = SEED
    ) -> Calibration:
        """``count`` pictures of the training split, or of the validation split where there is no other.

        Scores are of the validation split, which should not have been looked at. Raises ValueError and
        FileNotFoundError for data that cannot be used, and for a ``count`` below 1.
        """
        if count < 1:
            raise ValueError(f"calibrate={count}: expected a number of pictures, 1 or more")
        found = check.usable(_split(Path(data), info), decode=False)
        chosen = np.random.default_rng(seed).permutation(len(found))[:count]
        return cls(tuple(Path(found.path(int(i))) for i in sorted(chosen)), info.input, size, kept(info.size.arch))

    def feeds(self, names: Sequence[str] = ("images",), batch: int = 1) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Inputs of an image graph, ``batch`` pictures each: ``images`` [B, 3, H, W] in 0..1, and ``valid`` [B, H, W]
        where that is among the ``names``. The last group is filled up with its last picture."""
        for start in range(0, len(self.paths), batch):
            group = self.paths[start : start + batch]
            pairs = [self._input(path) for path in (*group, *[group[-1]] * (batch - len(group)))]
            stacked = {"images": np.stack([image for image, _ in pairs]), "valid": np.stack([v for _, v in pairs])}
            yield {name: stacked[name] for name in names}

    def _input(self, path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        picture = images.read(path)
        keep = self.input.resize == KEEP
        h, w = framed(picture.height, picture.width, self.size) if keep else self.size
        image, valid = np.zeros((3, *self.size), np.float32), np.zeros(self.size, np.float32)
        image[:, :h, :w] = pixels(picture, (h, w)).numpy() / np.float32(255)
        valid[:h, :w] = 1
        return image, valid


def _split(data: Path, info: ModelInfo) -> Annotations:
    truth = TASKS[info.task].truth
    try:
        return formats.load(data, "train", info.labels, truth=truth)
    except FileNotFoundError:
        return formats.load(data, "val", info.labels, truth=truth)
