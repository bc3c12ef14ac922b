"""Small pictures in rows and columns on one sheet, with headings and captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL = 320
"""longer side of a cell in pixels: 640-pixel inputs at half their size, so that a token is a whole number of pixels"""
GAP = 12
LARGE, SMALL = 20, 15
"""sizes of letters: headings, and captions"""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
PAPER, INK, EMPTY = (255, 255, 255), (20, 20, 24), (232, 232, 236)


@dataclass(frozen=True)
class Cell:
    """A picture and the line below it."""

    picture: Image.Image
    caption: str = ""


@dataclass(frozen=True)
class Row:
    """A line of text, and below it a cell for each column that it has something for."""

    title: str
    size: tuple[int, int]
    """(height, width) to which all cells of the row are in proportion"""
    cells: Mapping[str, Cell]


def sheet(columns: Sequence[str], rows: Sequence[Row], notes: Sequence[str] = (), cell: int = CELL) -> Image.Image:
    """All rows on one picture, RGB, with the names of the columns above and ``notes`` below; ``cell`` is the longer
    side of a cell in pixels.

    Pictures are drawn at the size of their cells: smaller ones are enlarged without smoothing, so that every pixel of
    theirs can be seen, larger ones averaged. Where a row has nothing for a column there is a gray field.
    """
    wide = max(extent(row.size, cell)[0] for row in rows)
    width = GAP + len(columns) * (wide + GAP)
    strips = [_heads(columns, wide, width)]
    for row in rows:
        strips += [_text([row.title], width, LARGE), _cells(row, columns, wide, width, extent(row.size, cell))]
    return _stacked([*strips, _text(notes, width, SMALL)])


def extent(size: tuple[int, int], cell: int = CELL) -> tuple[int, int]:
    """Width and height of the cells of a row of ``size`` (height, width)."""
    scale = cell / max(size)
    return max(1, round(size[1] * scale)), max(1, round(size[0] * scale))


def _heads(columns: Sequence[str], wide: int, width: int) -> Image.Image:
    """The names of the columns, each over the middle of its cells; long ones in several lines."""
    font, step = ImageFont.load_default(LARGE), round(1.3 * LARGE)
    names = [_broken(name, font, wide) for name in columns]
    strip = _blank(width, GAP + step * max(map(len, names)))
    pen = ImageDraw.Draw(strip)
    for place, lines in enumerate(names):
        middle = GAP + place * (wide + GAP) + wide / 2
        for number, line in enumerate(lines):
            left = middle - pen.textlength(line, font=font) / 2
            pen.text((left, GAP + number * step), line, fill=INK, font=font)
    return strip


def _cells(row: Row, columns: Sequence[str], wide: int, width: int, size: tuple[int, int]) -> Image.Image:
    """The pictures of a row with their captions."""
    strip = _blank(width, size[1] + round(1.6 * SMALL))
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(SMALL)
    for place, name in enumerate(columns):
        left = GAP + place * (wide + GAP) + (wide - size[0]) // 2
        cell = row.cells.get(name)
        if cell is None:
            pen.rectangle((left, 0, left + size[0] - 1, size[1] - 1), fill=EMPTY)
        else:
            strip.paste(_fitted(cell.picture, size), (left, 0))
        pen.text((left, size[1] + 2), cell.caption if cell else "none", fill=INK, font=font)
    return strip


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    smaller = picture.width <= size[0] and picture.height <= size[1]
    return picture.resize(size, Image.Resampling.NEAREST if smaller else Image.Resampling.BOX)


def _text(lines: Sequence[str], width: int, letters: int) -> Image.Image:
    """Lines of text, broken between words where they are too long."""
    font, step = ImageFont.load_default(letters), round(1.4 * letters)
    found = [part for line in lines for part in _broken(line, font, width - 2 * GAP)]
    strip = _blank(width, GAP // 2 + step * len(found))
    for place, line in enumerate(found):
        ImageDraw.Draw(strip).text((GAP, GAP // 4 + place * step), line, fill=INK, font=font)
    return strip


def _broken(line: str, font: Font, width: int) -> list[str]:
    """A line in parts of at most ``width`` pixels, as far as single words allow; always at least one part."""
    pen = ImageDraw.Draw(_blank(1, 1))
    found = [""]
    for word in line.split():
        longer = f"{found[-1]} {word}".strip()
        if found[-1] and pen.textlength(longer, font=font) > width:
            found.append(word)
        else:
            found[-1] = longer
    return found


def _stacked(strips: Sequence[Image.Image]) -> Image.Image:
    whole = _blank(strips[0].width, sum(strip.height for strip in strips))
    top = 0
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    return whole


def _blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), PAPER)
