"""What was found in one picture, together with the picture: to look at, to save, to hand on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edgecrafter import draw
from edgecrafter.data import images
from edgecrafter.files import written_beside
from edgecrafter.types import Detections, Skeleton

if TYPE_CHECKING:
    import supervision

LOSSY: dict[str, Any] = {"quality": 92}
WRITABLE: dict[str, dict[str, Any]] = {
    ".jpg": LOSSY,
    ".jpeg": LOSSY,
    ".webp": LOSSY,
    ".png": {},
    ".bmp": {},
    ".tif": {},
    ".tiff": {},
}
"""suffixes that can be written, with the options for Pillow"""


class Found(NamedTuple):
    """One detection as plain values."""

    name: str
    score: float
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels of the picture"""


@dataclass(repr=False)
class Result(Detections):
    """The detections of one picture: ``scores`` [N], ``labels`` [N] (0-based), ``boxes`` [N, 4] xyxy, all on the CPU.

    Boxes are in pixels of the picture held upright and inside of it. ``len(result)`` counts the detections, ``for name,
    score, box in result`` walks through them, ``result.above(0.6)`` keeps the sure ones.

    Segmentation adds ``masks``, run lengths of which ``masks.array()`` makes pixels [N, h, w], ``masks[[i]].array()``
    those of one. Pose adds ``keypoints`` [N, K, 3]: x, y in pixels, which may lie outside of the picture, and 1, or
    three zeros for a keypoint that the class does not have; then ``boxes_from`` says that the boxes are the extent of
    the keypoints.
    """

    names: tuple[str, ...] = ()
    """class names: ``names[label]``"""
    skeleton: Skeleton | None = None
    """names of the keypoints and the lines between them"""
    path: Path | None = None
    """the file; None when the picture was given in memory"""
    picture: Image.Image | None = None
    """the picture given in memory; one from a file is read again when it is needed"""
    title: str = ""
    """name for files made from this result, such as ``street.jpg``"""

    def __iter__(self) -> Iterator[Found]:
        for label, score, box in zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True):
            yield Found(self.names[label], score, tuple(box))

    def __repr__(self) -> str:
        return f"Result({self.title}, {self.summary()})"

    def summary(self) -> str:
        """The detections in words, most frequent first: ``3 RBC, 1 WBC``."""
        counted = Counter(self.names[label] for label in self.labels.tolist())
        return ", ".join(f"{count} {name}" for name, count in counted.most_common()) or "nothing found"

    def image(self) -> Image.Image:
        """The picture without drawings, upright RGB."""
        if self.picture is not None:
            return self.picture
        if self.path is None:
            raise ValueError("this result has neither a picture nor a file to read it from")
        return images.read(self.path)

    def plot(self) -> Image.Image:
        """A copy of the picture with boxes, masks or skeletons drawn on it."""
        return draw.draw(self.image(), self, self.names, self.skeleton)

    def save(self, path: str | Path | None = None) -> Path:
        """Save the drawn picture; gives back where it went.

        Args:
            path: a file to write, or a folder (one that exists, or a name without suffix) that gets a file named like
                the picture. None: beside the picture, as ``<name>_found.<suffix>``.

        Raises:
            ValueError: the file is the picture itself, its suffix is not one of a picture, or there is no place to put
                a picture that was given in memory.
        """
        target = self._target(None if path is None else Path(path))
        if self.path is not None and target.resolve() == self.path.resolve():
            raise ValueError(f"{target} is the picture itself: give another file or folder, it is not overwritten")
        if target.suffix.lower() not in WRITABLE:
            raise ValueError(f"{target}: cannot write {target.suffix!r}. Use one of {', '.join(WRITABLE)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(target) as beside:
            self.plot().save(beside, **WRITABLE[target.suffix.lower()])
        return target

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: path, size (height, width) and one entry per detection.

        An entry holds label, name, score and box (xyxy); with masks also ``mask``, COCO's run lengths as
        pycocotools reads them; with keypoints ``keypoints``, name, x and y of each that the class has, and
        ``box_from: keypoints`` if the box is their extent.
        """
        found: list[dict[str, Any]] = [
            {"label": label, "name": each.name, "score": each.score, "box": list(each.box)}
            for label, each in zip(self.labels.tolist(), self, strict=True)
        ]
        if self.boxes_from != "query":
            found = [{**entry, "box_from": self.boxes_from} for entry in found]
        if self.masks is not None:
            found = [{**entry, "mask": mask} for entry, mask in zip(found, self.masks.to_coco(), strict=True)]
        if self.keypoints is not None:
            found = [{**entry, "keypoints": self._named(row)} for entry, row in zip(found, self.keypoints, strict=True)]
        return {"path": None if self.path is None else str(self.path), "size": list(self.size), "detections": found}

    def to_supervision(self) -> supervision.Detections:
        """The same as ``supervision.Detections``, with the pixels of the masks where there are any.

        Keypoints are left out: see ``to_supervision_keypoints``. Raises ImportError when that package is missing.
        """
        return _supervision().Detections(
            xyxy=self.boxes.numpy(),
            mask=None if self.masks is None else self.masks.array(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": self._class_names()},
        )

    def to_supervision_keypoints(self) -> supervision.KeyPoints:
        """The same as ``supervision.KeyPoints``: ``xy`` [N, K, 2], classes, and class names in ``data``.

        Keypoints that a class does not have are at 0, 0, where supervision draws none. There is no score per keypoint.
        That of the object is ``detection_confidence``, and ``data["score"]`` where the installed supervision (before
        0.29) has no such field. Raises ImportError when that package is missing and ValueError for a result without
        keypoints.
        """
        if self.keypoints is None:
            raise ValueError(f"{self.title}: no keypoints in this result. Use to_supervision(), or a pose model")
        made, data = _supervision().KeyPoints, {"class_name": self._class_names()}
        scores = self.scores.numpy()
        scored = {"detection_confidence": scores} if "detection_confidence" in made.__dataclass_fields__ else {}
        data |= {} if scored else {"score": scores}
        return made(xy=self.keypoints[..., :2].numpy(), class_id=self.labels.numpy(), data=data, **scored)

    def _class_names(self) -> NDArray[np.str_]:
        return np.array([each.name for each in self], dtype=str)

    def _named(self, points: Tensor) -> list[dict[str, Any]]:
        """The keypoints [K, 3] of one object that its class has, as plain values."""
        names = self.skeleton.names if self.skeleton else [str(index) for index in range(len(points))]
        rows = zip(names, points.tolist(), strict=True)
        return [{"name": name, "x": x, "y": y} for name, (x, y, there) in rows if there]

    def _target(self, path: Path | None) -> Path:
        """The file that ``save`` writes."""
        name = Path(self.title)
        name = name if name.suffix.lower() in WRITABLE else name.with_suffix(".jpg")
        if path is not None:
            return path / name.name if path.is_dir() or not path.suffix else path
        if self.path is None:
            raise ValueError("a picture from memory has no place of its own: save('folder') or save('file.jpg')")
        return self.path.with_name(f"{name.stem}_found{name.suffix}")


def _supervision() -> Any:
    """The package. Raises ImportError when it is missing."""
    try:
        import supervision
    except ImportError as error:
        raise ImportError("supervision is not installed: pip install 'edgecrafter[supervision]'") from error
    return supervision
