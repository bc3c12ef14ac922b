"""What pictures that compare networks have in common: the networks, what they are shown, and the sheet per photo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from edgecrafter.maps import AUTO, Given, Network, network
from edgecrafter.predict import Item, Source, distinct, input_size, listed, opened
from edgecrafter.types import InputSpec


@dataclass(frozen=True)
class Drawn:
    """What was drawn of all networks for one picture."""

    picture: Image.Image
    title: str
    """a file name"""
    notes: tuple[str, ...]
    """what has to be known to read it, and what is not there"""

    def save(self, folder: str | Path) -> Path:
        """Write the picture into ``folder`` under its title, as PNG; gives back the path."""
        path = Path(folder) / self.title
        path.parent.mkdir(parents=True, exist_ok=True)
        self.picture.save(path)
        return path


@dataclass(frozen=True)
class Gathered:
    """Networks that are to be compared on pictures."""

    networks: list[Network]
    specs: list[InputSpec]
    """what becomes of a picture for each"""
    items: list[Item]

    @property
    def titles(self) -> list[str]:
        """The networks, numbered."""
        return [f"{place} {each.title}" for place, each in enumerate(self.networks, 1)]

    def pictures(self) -> Iterator[tuple[str, Image.Image]]:
        """File names of what is drawn, and the pictures, decoded when their turn comes."""
        return ((item.title, picture) for item, picture in opened(self.items))


def gather(
    models: Given | Sequence[Given],
    images: Source,
    device: str = "",
    imgsz: int | Sequence[int] | None = None,
    weights: str = AUTO,
    seed: int = 0,
) -> Gathered:
    """Load the networks and list the pictures. One without an input of its own gets that of the first that has.

    Raises ValueError and FileNotFoundError as ``features`` says.
    """
    given: list[Given] = [models] if isinstance(models, Given) else list(models)
    if not given:
        raise ValueError("no model given: name at least one, such as ecdet-s, or a file or the folder of a run")
    items = listed(images)
    if not items:
        raise ValueError("no pictures given: a file, a folder, a pattern, or a picture in memory")
    for item, title in zip(items, distinct(f"{Path(item.title).stem}.png" for item in items), strict=True):
        item.title = title
    networks = [network(each, device, weights, seed) for each in given]
    usual = next((each.input for each in networks if each.input), InputSpec())
    specs = [each.input or usual for each in networks]
    if imgsz is not None:
        specs = [replace(spec, size=input_size(imgsz, spec.resize)) for spec in specs]
    return Gathered(networks, specs, items)
