"""Columns from the records of a COCO file; whatever is missing or of the wrong type is named with its record."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Record = dict[str, Any]


def load(file: Path) -> Record:
    """The JSON object with its lists ``images``, ``annotations`` and ``categories``, all of objects."""
    data = _json(file)
    if not isinstance(data, dict):
        raise ValueError(
            f"{file}: the top level is a {_kind(data)}; expected an object with 'images', 'annotations', 'categories'"
        )
    for key in ("images", "annotations", "categories"):
        if key not in data:
            raise ValueError(f"{file}: the key '{key}' is missing; is this a detection file in COCO format?")
        if not isinstance(data[key], list) or not all(isinstance(record, dict) for record in data[key]):
            raise ValueError(f"{file}: '{key}' must be a list of objects")
    return data


def whole(file: Path, what: str, records: list[Record], key: str) -> NDArray[np.int64]:
    """A whole number of each record, [N] int64. ``what`` is what an error calls the record: image, annotation, ..."""
    expected = "a whole number"
    values = [record.get(key) for record in records]
    if all(type(value) is int for value in values):
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            expected = "a whole number below 2^63"
    found = column(values, 0, lambda row: wrong(file, what, records, row, key, expected))
    broken = np.flatnonzero((found != np.floor(found)) | (np.abs(found) >= 2.0**53))
    if len(broken):
        raise wrong(file, what, records, int(broken[0]), key, expected)
    return found.astype(np.int64)


def rows(file: Path, what: str, records: list[Record], key: str, width: int, expected: str) -> NDArray[np.float64]:
    """A list of ``width`` numbers of each record, [N, width]."""
    values = [record.get(key) for record in records]
    return column(values, width, lambda row: wrong(file, what, records, row, key, expected))


def optional(file: Path, what: str, records: list[Record], key: str, default: float) -> NDArray[np.float64]:
    """A number of each record that may be absent or null, [N]."""
    values = [default if record.get(key) is None else record[key] for record in records]
    return column(values, 0, lambda row: wrong(file, what, records, row, key, "a number"))


def texts(file: Path, what: str, records: list[Record], key: str) -> list[str]:
    """A text of each record, not empty."""
    values = [record.get(key) for record in records]
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value:
            raise wrong(file, what, records, row, key, "a text")
    return values  # type: ignore[return-value]


def wrong(file: Path, what: str, records: list[Record], row: int, key: str, expected: str) -> ValueError:
    """The error for a record whose ``key`` is not what it should be."""
    record = records[row]
    found = f"is {json.dumps(record[key])[:80]} ({_kind(record[key])})" if key in record else "is missing"
    return ValueError(f"{file}: {name(what, records, row)}: '{key}' {found}; expected {expected}")


def name(what: str, records: list[Record], row: int) -> str:
    """How a message calls a record."""
    key = records[row].get("id")
    return f"{what} number {row + 1} (without id)" if key is None else f"{what} id {key}"


def column(values: list[Any], width: int, fault: Callable[[int], ValueError]) -> NDArray[np.float64]:
    """Numbers [N] for width 0, else [N, width]; ``fault(row)`` is raised for the first row that is something else."""
    shape = (len(values), width) if width else (len(values),)
    try:
        array = np.array(values) if values else np.zeros(shape)
    except ValueError:  # rows of different lengths
        array = np.array([], dtype=object)
    if array.dtype.kind in "ifub" and array.shape == shape:
        return array.astype(np.float64)
    raise next(fault(row) for row, value in enumerate(values) if not _fits(value, width))


def _json(file: Path) -> Any:
    raw = file.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
        with _no_collection():
            return json.loads(text)
    except UnicodeDecodeError as error:
        other = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "Latin-1 (ISO-8859-1)"
        raise ValueError(
            f"{file}: not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start}); it looks like {other}. "
            "Save it as UTF-8."
        ) from None
    except json.JSONDecodeError as error:
        what = error.msg if raw.strip() else "the file is empty"
        raise ValueError(
            f"{file}: not JSON: {what} at line {error.lineno}, column {error.colno}. Was it copied completely?"
        ) from None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without garbage collection, which takes a third of the time to read millions of lists and finds nothing."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _fits(value: Any, width: int) -> bool:
    if width:
        return isinstance(value, list) and len(value) == width and all(_fits(item, 0) for item in value)
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return kinds.get(type(value), "null")
