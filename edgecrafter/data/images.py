"""Pictures from files, safely: always RGB, always upright, never larger than a stated limit, never half of one.

The decoder is Pillow; the format is told by the content, never by the name. What happens to unusual pictures:

* EXIF orientation is applied; sizes and boxes count in the upright frame.
* Gray is repeated to three channels; 16-bit gray is scaled by 1/257 (0..65535 -> 0..255); of 16-bit RGB the high byte
  is taken. 32-bit integer and float pictures have no defined white and are refused.
* Transparency is dropped (the stored colours are used), as Pillow and most training code do; colour profiles are
  ignored.
* Of an animation or a file with several pages the first picture is used.
* A file cut short is refused, never filled up with gray.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

MAX_PIXELS = 178_956_970
"""Largest picture that is decoded, in pixels (about 13 000 x 13 000; half a gigabyte as RGB), known from the header.
It is the number above which Pillow, too, refuses to open a file."""

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm"}
)
"""Endings, in any case, that make a file of a folder a picture."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Header(NamedTuple):
    """What is known of a picture without decoding it."""

    size: tuple[int, int]
    """height, width of the upright picture"""
    format: str
    """as Pillow calls it: JPEG, PNG, ..."""
    animated: bool
    """more than one frame or page"""


def read(path: str | os.PathLike[str], min_size: tuple[int, int] | None = None) -> Image.Image:
    """The picture as upright RGB.

    With ``min_size`` (height, width, of the upright picture) a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size,
    which is much faster; no side becomes smaller than ``min_size`` unless the original is.

    Raises ``FileNotFoundError``, and ``ValueError`` that names the file if it is not a whole, readable picture or has
    more than ``MAX_PIXELS``.
    """
    with _opened(path) as image:
        _limit(image)
        turn = _orientation(image)
        if min_size is not None:
            height, width = min_size if turn < 5 else min_size[::-1]
            image.draft(image.mode, (max(width, 1), max(height, 1)))
        image.load()
        if ImageFile.LOAD_TRUNCATED_IMAGES and image.format in ("JPEG", "PNG", "WEBP") and not whole(path):
            raise ValueError("it is cut short, and another library told Pillow to accept that")
        upright = _rgb(image)
        # Pillow turns TIFF files by itself while loading
        return upright if turn == 1 or image.format == "TIFF" else upright.transpose(_TURNS[turn])


def size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of the upright picture, from the header alone. Raises as ``read`` does."""
    return header(path).size


def header(path: str | os.PathLike[str]) -> Header:
    """Upright size, format and whether there are several frames, without decoding. Raises as ``read`` does."""
    with _opened(path) as image:
        _limit(image)
        width, height = image.size
        turn = _orientation(image)
        if image.format == "TIFF":  # Pillow versions differ in whether image.size is turned already; the tags are not
            tags = image.tag_v2  # type: ignore[attr-defined]
            width, height = int(tags[256]), int(tags[257])
        # the second view in an MPO file is a preview or the other eye, no animation
        animated = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
        return Header((height, width) if turn < 5 else (width, height), image.format or "", animated)


def listing(folder: Path, deep: bool = False) -> list[Path]:
    """The picture files of a folder by name, sorted; folders and hidden files are passed over. ``deep``: and below."""
    found = folder.rglob("*") if deep else folder.glob("*")
    return sorted(
        path for path in found if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def whole(path: str | os.PathLike[str]) -> bool:
    """Whether the file ends as its format says: a quick test for files cut short, without decoding.

    JPEG: the end-of-image marker in the last bytes; PNG: the IEND chunk; WebP: the stated length. False means "look
    closer": other formats are never certain, and some cameras append data to a JPEG that is fine.
    """
    with open(path, "rb") as file:
        start = file.read(12)
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - 64))
        tail = file.read().rstrip(b"\0\r\n ")
    if start.startswith(b"\xff\xd8"):
        return tail.endswith(b"\xff\xd9")
    if start.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" in tail
    if start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        return length >= 8 + int(struct.unpack("<I", start[4:8])[0])
    return False


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """The file as a Pillow image; whatever fails inside becomes a ``ValueError`` that names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"{os.fspath(path)}: there is no such picture") from None
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise ValueError(f"{os.fspath(path)}: {_stranger(Path(path))}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = str(error).split(",")[0]
        raise ValueError(f"{os.fspath(path)}: too large to decode safely: {reason}. Scale the picture down.") from None
    except Exception as error:  # decoders raise nearly anything on broken bytes
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{os.fspath(path)}: cannot be read as a picture: {reason}. Replace the file or take it out of the data."
        ) from error


def _stranger(path: Path) -> str:
    """Why a file is no picture, and what to do."""
    if path.stat().st_size == 0:
        return "the file is empty (0 bytes). Copy it again or take it out of the data."
    return "not a picture in a known format (JPEG, PNG, WebP, TIFF, BMP, GIF). Take it out of the data or convert it."


def _limit(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are above the limit of {MAX_PIXELS}; scale the picture down")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 (upright) where it is absent or, as viewers do, where the EXIF data are broken."""
    if image.format == "PNG" and "exif" not in image.info and not _late_exif(image.fp):  # type: ignore[attr-defined]
        return 1  # Pillow would decode the whole PNG in search of it
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return 1
    return turn if turn in _TURNS else 1


def _late_exif(file: BinaryIO) -> bool:
    """Whether a PNG has an eXIf chunk, walking from chunk to chunk; the file's position is kept."""
    place = file.tell()
    file.seek(8)
    found = False
    while not found and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        found = kind == b"eXIf"
        file.seek(length + 4, os.SEEK_CUR)
    file.seek(place)
    return found


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no defined white; convert it to 8 or 16 bits")
    return image.convert("RGB")


def _eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """16-bit values divided by 257 and rounded."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
