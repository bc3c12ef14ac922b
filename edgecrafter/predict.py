"""Use a model on pictures: files, folders, arrays."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from edgecrafter.data import images, placement
from edgecrafter.geometry import boxes as box_ops
from edgecrafter.geometry import sides
from edgecrafter.geometry.sides import KEEP, STRETCH, STRIDE
from edgecrafter.infer import TOP_K, choose_device, detect
from edgecrafter.results import WRITABLE, Result
from edgecrafter.types import Detections, InputSpec, Labels

if TYPE_CHECKING:
    from edgecrafter.hub import ModelInfo

Source = str | Path | Image.Image | NDArray[np.uint8] | Sequence["Source"]


class Predictor:
    """A model that is ready to use; the same pixels reach the network as in evaluation.

    Args:
        network: is moved to ``device`` and put in evaluation mode.
        info: of the model; says its classes and how a picture becomes an input.
        device: ``cpu``, ``cuda``, ``cuda:0``, ``mps``; None: the best there is.
        precision: ``fp32``, ``bf16`` or ``fp16`` for the network.
    """

    def __init__(
        self,
        network: nn.Module,
        info: ModelInfo,
        device: str | int | torch.device | None = None,
        precision: str = "fp32",
    ) -> None:
        self.network = network.to(choose_device(device)).eval()
        self.info = info
        self.precision = precision

    def __call__(
        self,
        source: Source,
        conf: float = 0.4,
        imgsz: int | Sequence[int] | None = None,
        batch: int = 1,
        max_det: int = TOP_K,
        classes: str | int | Sequence[str | int] | None = None,
    ) -> list[Result]:
        """One ``Result`` per picture, in order; arguments and errors as ``stream``."""
        return list(self.stream(source, conf, imgsz, batch, max_det, classes))

    def stream(
        self,
        source: Source,
        conf: float = 0.4,
        imgsz: int | Sequence[int] | None = None,
        batch: int = 1,
        max_det: int = TOP_K,
        classes: str | int | Sequence[str | int] | None = None,
    ) -> Iterator[Result]:
        """The results one after the other, for folders that are too large to hold all at once.

        Boxes are in pixels of the original picture held upright, clipped to it (evaluation does not clip); one that
        lies outside is left out. Masks are of the whole picture; keypoints may lie outside of it. Results of files do
        not keep the picture in memory. A title that another picture has already gets a number, so that all can be saved
        into one folder.

        Args:
            source: a file, a folder (its pictures, by name), a glob pattern such as ``"shots/*.png"``, a PIL picture, a
                numpy array (uint8, RGB, [height, width, 3], or gray [height, width]), or a list of those. A file that
                cannot be read is an error if it was named, and skipped with a warning at the end if it was found in a
                folder or by a pattern.
            conf: least score.
            imgsz: input size other than the model's own, one number or (height, width); rounded up to multiples of 32.
                For a model that keeps the ratio of pictures: the limit of their short side, or (short, long).
            batch: pictures per forward pass.
            max_det: most detections per picture.
            classes: names or numbers of the classes to look for.

        Raises:
            FileNotFoundError: no such file, or no pictures in the folder or for the pattern.
            ValueError: a named file or array is not a usable picture, or an argument is out of range.
        """
        if not 0 <= conf <= 1:
            raise ValueError(f"conf={conf}: the least score is a number from 0 to 1")
        if batch < 1 or max_det < 1:
            raise ValueError(f"batch={batch}, max_det={max_det}: both are at least 1")
        spec = self.info.input
        spec = spec if imgsz is None else replace(spec, size=input_size(imgsz, spec.resize))
        chosen = _chosen(classes, self.info.labels)
        return self._results(opened(listed(source)), conf, spec, batch, max_det, chosen)

    def _results(
        self,
        pictures: Iterator[tuple[Item, Image.Image]],
        conf: float,
        spec: InputSpec,
        batch: int,
        max_det: int,
        classes: Tensor | None,
    ) -> Iterator[Result]:
        while group := list(islice(pictures, batch)):
            sizes = [(picture.height, picture.width) for _, picture in group]
            shown = zip(group, sizes, strict=True)
            inputs, valid = placement.stacked([pixels(picture, spec.fitted(*size)) for (_, picture), size in shown])
            options: dict[str, Any] = {"top_k": max_det, "precision": self.precision, "classes": classes, "conf": conf}
            options["owned"] = self.info.labels.owned()
            answers = detect(self.network, spec, inputs, sizes, valid=valid, **options)
            for (item, picture), found in zip(group, answers, strict=True):
                yield self._result(item, picture, _inside(found))

    def _result(self, item: Item, picture: Image.Image, found: Detections) -> Result:
        kept = None if item.path is not None else picture
        values = {field.name: getattr(found, field.name) for field in fields(Detections)}
        labels = self.info.labels
        return Result(
            **values, names=labels.names, skeleton=labels.skeleton, path=item.path, picture=kept, title=item.title
        )


def distinct(names: Iterable[str]) -> Iterator[str]:
    """The file names with a number where an earlier one would be saved as the same file: ``a.jpg``, ``a_2.jpg``."""
    following: dict[str, int] = {}
    for name in names:
        stem, suffix = Path(name).stem, Path(name).suffix
        saved = suffix if suffix.lower() in WRITABLE else ".jpg"
        unique, number = stem, following.get(f"{stem}{saved}".casefold(), 2)
        while f"{unique}{saved}".casefold() in following:
            unique, number = f"{stem}_{number}", number + 1
        following[f"{stem}{saved}".casefold()] = number
        following.setdefault(f"{unique}{saved}".casefold(), 2)
        yield unique + suffix


@dataclass
class Item:
    """A picture to look at: a file, or one in memory."""

    title: str
    path: Path | None = None
    picture: Image.Image | None = None
    found: bool = False
    """came from a folder or pattern, so that it may turn out not to be a picture"""


def listed(source: Source) -> list[Item]:
    """The pictures that a source means, each under a title of its own; errors as ``Predictor.stream``."""
    items = _items(source)
    for item, title in zip(items, distinct(item.title for item in items), strict=True):
        item.title = title
    return items


def _items(source: Source, position: int = 0) -> list[Item]:
    if isinstance(source, (list, tuple)):
        return [item for index, each in enumerate(source) for item in _items(each, index)]
    title = f"picture_{position:04d}.jpg"
    if isinstance(source, Image.Image):
        return [Item(title, picture=_from_picture(source))]
    if isinstance(source, np.ndarray):
        return [Item(title, picture=_from_array(source))]
    if isinstance(source, (str, Path)):
        return _files(source)
    raise ValueError(
        f"cannot predict on a {type(source).__name__}: give a file, a folder, a pattern, a PIL picture, "
        "a numpy array [height, width, 3] or a list of those"
    )


def _files(source: str | Path) -> list[Item]:
    path = Path(source)
    if path.is_file():
        return [Item(path.name, path)]
    if path.is_dir():
        found = images.listing(path)
    elif glob.has_magic(str(source)):
        matches = sorted(Path(match) for match in glob.glob(str(source), recursive=True))
        found = [match for match in matches if match.suffix.lower() in images.SUFFIXES and match.is_file()]
    elif "://" in str(source):
        raise ValueError(f"{source}: pictures are read from this machine only. Download it first and give the file")
    else:
        raise FileNotFoundError(f"{source}: there is no such file or folder")
    if not found:
        raise FileNotFoundError(f"{source}: no pictures found ({', '.join(sorted(images.SUFFIXES))})")
    return [Item(match.name, match, found=True) for match in found]


def opened(items: list[Item]) -> Iterator[tuple[Item, Image.Image]]:
    """The items with their pictures, upright RGB, decoded when their turn comes.

    A file that was named and cannot be read is an error; of those that were found, a warning at the end tells.
    """
    skipped: list[str] = []
    for item in items:
        if item.picture is not None:
            yield item, item.picture
            continue
        assert item.path is not None
        try:
            picture = images.read(item.path)
        except (ValueError, FileNotFoundError) as error:
            if not item.found:
                raise
            skipped.append(str(error))
        else:
            yield item, picture
    if skipped:
        warnings.warn(f"skipped {len(skipped)} files that cannot be read: " + "; ".join(skipped), stacklevel=2)


def _from_picture(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        raise ValueError(f"picture of mode {picture.mode}: give the file itself, or convert it to 8 bits per channel")
    return ImageOps.exif_transpose(picture).convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    gray = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    if array.dtype != np.uint8 or not array.size or not (gray or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(
            f"array of {array.dtype} {list(array.shape)}: expected uint8 (0..255), RGB, [height, width, 3], "
            "or gray [height, width]. Several pictures are given as a list"
        )
    return Image.fromarray(array.reshape(array.shape[:2]) if gray else np.ascontiguousarray(array)).convert("RGB")


def pixels(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """The picture as uint8 [3, h, w] of its size in the input, resized as the loader does for evaluation."""
    canvas = np.empty((*size, 3), np.uint8)
    original = (picture.height, picture.width)
    placement.paint(canvas, picture, original, placement.whole(original, size))
    return torch.from_numpy(canvas).permute(2, 0, 1)


def _inside(found: Detections) -> Detections:
    """Boxes clipped to the picture, without objects of which nothing is left.

    The extent of keypoints may have no size: one keypoint, or several in a line.
    """
    (x0, y0, x1, y1), (height, width) = found.boxes.unbind(1), found.size
    inside = (x1 > 0) & (y1 > 0) & (x0 < width) & (y0 < height)
    if found.boxes_from != "keypoints":
        inside &= (x1 > x0) & (y1 > y0)
    found.boxes = box_ops.clip(found.boxes, found.size)
    return found.take(inside)


def input_size(imgsz: int | Sequence[int], resize: str = STRETCH) -> tuple[int, int]:
    """(height, width) of the input, rounded up to multiples of 32, or with ``keep`` the limits of the sides. Raises
    ``ValueError`` for anything else."""
    if resize == KEEP:
        return sides.input_size(imgsz, resize)
    given = (imgsz, imgsz) if isinstance(imgsz, int) else tuple(imgsz)
    if len(given) != 2 or min(given) < 1:
        raise ValueError(f"imgsz={imgsz}: expected a number of pixels or (height, width)")
    height, width = (-(-side // STRIDE) * STRIDE for side in given)
    if (height, width) != given:
        warnings.warn(f"imgsz={imgsz} is not a multiple of {STRIDE}: using {height} x {width}", stacklevel=4)
    return height, width


def _chosen(classes: str | int | Sequence[str | int] | None, labels: Labels) -> Tensor | None:
    """Labels of the classes that are given by name or number, as a sorted int64 vector; None: all labels.

    Labels that stand for no class are never looked for.
    """
    if classes is None:
        return torch.tensor(labels.used) if labels.unused else None
    wanted = [classes] if isinstance(classes, (str, int)) else list(classes)
    known = {labels.names[label]: label for label in labels.used}
    numbers = {str(label): label for label in labels.used}
    chosen = set()
    for each in wanted:
        label = known.get(each, numbers.get(each)) if isinstance(each, str) else numbers.get(str(each))
        if label is None:
            listed = ", ".join(f"{label} {labels.names[label]}" for label in labels.used)
            raise ValueError(f"class {each!r} is not one of the model's: {listed}")
        chosen.add(label)
    if not chosen:
        raise ValueError("classes is empty: name at least one, or leave it out to look for all")
    return torch.tensor(sorted(chosen))
