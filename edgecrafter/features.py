"""Feature maps of several networks as colours, beside each other (RT-DETRv4, Figure 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edgecrafter.figures import Drawn, Gathered, gather
from edgecrafter.geometry import principal
from edgecrafter.maps import AUTO, F5, LAST, Given
from edgecrafter.predict import Source, pixels
from edgecrafter.sheet import Cell, Row, sheet

INPUT = "input"
FIGURE = (F5, "P3", "P4", "P5")
"""what is shown of detectors, in this order, even where none has it"""
JOINT, OWN = "joint", "own"
METHOD = (
    "Colours are the three principal directions of the features: the first red, the second green, the third blue. "
    "Every map is centred on its own mean and divided by its own deviation; each colour goes from the lowest 1st to "
    "the highest 99th percentile of the maps that share a basis. Per cent: how much of a map's variance these three "
    "directions hold. Nothing is smoothed."
)


def features(
    models: Given | Sequence[Given],
    images: Source,
    device: str = "",
    imgsz: int | Sequence[int] | None = None,
    weights: str = AUTO,
    basis: str = JOINT,
    seed: int = 0,
) -> list[Drawn]:
    """Draw what networks make of pictures: F5 (the top level after attention), P3, P4 and P5 (what the decoder reads)
    of detectors, the last block of teachers; one row per network, as in Figure 4 of RT-DETRv4.

    The D channels of a column become three colours by principal component analysis, anew for every picture.

    Args:
        models: one or several of: a name such as ``ecdet-s`` or ``dinov2-s``, a file, the folder of a run, a loaded
            ``Model``, a ``Teacher``, or a module (images [B, 3, H, W] -> maps).
        images: as ``Model.predict`` takes them: file, folder, pattern, PIL picture, array [H, W, 3], or a list.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; empty: a GPU if there is one.
        imgsz: input size of all networks in pixels, one number or (height, width), rounded up to multiples of 32. None:
            each detector's own; teachers get that of the first detector, or 640. Detectors that keep the ratio of
            pictures take limits instead, one number for the short side or (short, long).
        weights: ``auto``, or ``none``: names get random weights from ``seed``, files keep theirs.
        basis: ``joint``: the maps of a column share one basis if they have the same number of channels; ``own``: each
            map has its own.

    Returns:
        one ``Drawn`` per picture: ``.picture`` (RGB), ``.notes``, ``.save(folder)``.

    Raises:
        ValueError, FileNotFoundError: no model or picture, an unknown name, a file that cannot be used, or a network
            that does not take the size.
    """
    return list(stream(models, images, device, imgsz, weights, basis, seed))


def stream(
    models: Given | Sequence[Given],
    images: Source,
    device: str = "",
    imgsz: int | Sequence[int] | None = None,
    weights: str = AUTO,
    basis: str = JOINT,
    seed: int = 0,
) -> Iterator[Drawn]:
    """The same as ``features``, one picture after the other; everything but the pictures is looked at at once."""
    if basis not in (JOINT, OWN):
        raise ValueError(f"basis={basis}: expected joint (one per column) or own (one per map)")
    found = gather(models, images, device, imgsz, weights, seed)
    return (_drawn(found, picture, title, basis == JOINT) for title, picture in found.pictures())


def _drawn(given: Gathered, picture: Image.Image, title: str, joint: bool) -> Drawn:
    sizes = [spec.fitted(picture.height, picture.width) for spec in given.specs]
    inputs = [pixels(picture, size) for size in sizes]
    maps = [each.maps(seen[None]) for each, seen in zip(given.networks, inputs, strict=True)]
    cells = [{INPUT: Cell(_picture(seen), "as the network sees it")} for seen in inputs]
    said: dict[str, list[str]] = {}
    columns = _columns(maps)
    for column in columns:
        there = [place for place, found in enumerate(maps) if column in found]
        drawn, basis = colour([maps[place][column] for place in there], joint)
        said.setdefault(basis, []).append(column)
        for place, cell in zip(there, drawn, strict=True):
            cells[place][column] = cell
    notes = [f"{', '.join(columns)}: {basis}." for basis, columns in said.items() if basis]
    notes += [
        f"{name}: has no F5." for name, found in zip(given.titles, maps, strict=True) if not {F5, LAST} & set(found)
    ]
    rows = [
        Row(f"{name}, input {h} x {w}", (h, w), row)
        for name, (h, w), row in zip(given.titles, sizes, cells, strict=True)
    ]
    return Drawn(sheet([INPUT, *columns], rows, [*notes, METHOD]), title, tuple(notes))


def _columns(maps: Sequence[dict[str, Tensor]]) -> list[str]:
    """The names of all maps in the order of the figure, the last block of teachers at the end."""
    names = {name for found in maps for name in found}
    detectors = names - {LAST}
    first = [*FIGURE, *sorted(detectors - set(FIGURE))] if detectors else []
    return first + [LAST] * (LAST in names)


def colour(maps: Sequence[Tensor], joint: bool = True) -> tuple[list[Cell], str]:
    """Maps of one column, each [D, h, w], as pictures of h x w pixels, and in words which basis they have.

    ``joint``: one basis for all, if they have the same number of channels; else each map has its own.
    """
    cells = [principal.tokens(each) for each in maps]
    widths = sorted({each.shape[1] for each in cells})
    groups = [cells] if joint and len(widths) == 1 else [[each] for each in cells]
    drawn: list[tuple[Tensor, float]] = []
    for group in groups:
        axes = principal.directions(group)
        shares = [principal.share(each, axes) for each in group]
        drawn += zip(principal.colours([each @ axes.T for each in group]), shares, strict=True)
    pictures = [
        Cell(_picture(bytes_.T.reshape(3, *each.shape[1:])), f"{_shape(each)}, {100 * share:.0f} %")
        for each, (bytes_, share) in zip(maps, drawn, strict=True)
    ]
    return pictures, _basis(len(maps), widths, joint)


def _basis(count: int, widths: Sequence[int], joint: bool) -> str:
    """Which basis the maps of a column have, in words; empty for no maps."""
    if count < 2:
        return "no other map shares the basis" if count else ""
    if joint and len(widths) == 1:
        return (
            f"one basis for the {count} maps of the column: a colour is the same direction of the channels in each, "
            "which says something only of networks that began with the same weights"
        )
    why = f"they have {' and '.join(map(str, widths))} channels" if joint else "as asked for"
    return f"each map has a basis of its own ({why}), colours cannot be compared down the column"


def _shape(each: Tensor) -> str:
    channels, height, width = each.shape
    return f"{height} x {width}, {channels} channels"


def _picture(values: Tensor) -> Image.Image:
    """uint8 [3, h, w] as a picture."""
    return Image.fromarray(np.ascontiguousarray(values.permute(1, 2, 0).to(torch.uint8).numpy()))
