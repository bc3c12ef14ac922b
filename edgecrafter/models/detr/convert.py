"""Public checkpoints of the classic detectors under our names: MMDetection 3, the authors' repositories, Hugging Face.

No public file was at hand: what is tested are state dicts made of our own networks by the reverse tables, and those
that transformers makes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edgecrafter.models.detr.encoder import HEADS, POINTS
from edgecrafter.models.detr.names import SIGNS, TABLES
from edgecrafter.models.official import compiled, is_class_row, renamed

IGNORED = ".num_batches_tracked"
"""what frozen batch norms do not have"""
EARLY = "bbox_head.transformer."
CATEGORIES = 91
"""class rows of files that count by COCO's category ids, 80 of which are in use"""
TABLE = "decoder.groups.table.weight"


def arch_of(state: Mapping[str, Tensor]) -> str | None:
    """Which classic detector (``Size.arch``) a public state dict is of; None for anything else."""
    return next((arch for sign, (_, arch) in SIGNS.items() if sign in state), None)


def to_ours(state: Mapping[str, Tensor], ids: Sequence[int]) -> dict[str, Tensor]:
    """A public state dict (``arch_of`` knows it) under our names, with what the files leave out.

    ``ids`` are the category ids of the classes: of 91 class rows those are taken. Raises ``ValueError`` for entries
    that no row knows, and for entries that are one of ours and differ.
    """
    origin, arch = next(each for sign, each in SIGNS.items() if sign in state)
    table = _COMPILED[origin, arch]
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, value in state.items():
        if name.endswith(IGNORED):
            continue
        try:
            ours, _, third = renamed(name, table).partition("/")
        except KeyError:
            unknown.append(name)
            continue
        if third:
            thirds.setdefault(ours, {})[third] = value
        elif not torch.equal(found.setdefault(ours, value), value):
            raise ValueError(
                f"{name} differs from another entry that is {ours} too: {origin}'s file has heads for each layer, as "
                "variants with refined boxes have; the plain detector has one"
            )
    if unknown:
        raise ValueError(
            f"{len(unknown)} unknown entries in the {arch} checkpoint of {origin}, for example {', '.join(unknown[:5])}"
        )
    found |= {name: torch.cat([rows[i] for i in "012"]) for name, rows in thirds.items() if len(rows) == 3}
    return _classes({**found, **_left_out(found)}, ids)


def _left_out(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries that we have and the files do not: biases of a neck without, and the constant reach of box attention."""
    more = {}
    for name, value in found.items():
        neck = re.fullmatch(r"(backbone\.pyramid\.(?:projections|further)\.\d+)\.1\.bias", name)
        if neck and f"{neck[1]}.0.bias" not in found:
            more[f"{neck[1]}.0.bias"] = torch.zeros_like(value)
        if TABLE in found and re.fullmatch(r"decoder\.layers\.\d+\.cross_attn\.points\.offsets\.bias", name):
            points = len(value) // (2 * HEADS)
            more[name.replace("offsets.bias", "scale")] = torch.full((points,), 1 / POINTS)
    return more


def _classes(found: dict[str, Tensor], ids: Sequence[int]) -> dict[str, Tensor]:
    """Class rows in our order; the label table has a row for padding at its end, which is zero."""
    heads = [value for name, value in found.items() if is_class_row(name) and name != TABLE]
    count = len(heads[0]) if heads else 0
    if count == CATEGORIES:
        rows = torch.tensor(list(ids))
        found |= {name: value[rows] for name, value in found.items() if is_class_row(name)}
        count = len(rows)
    if TABLE in found and len(found[TABLE]) == count:
        found[TABLE] = torch.cat([found[TABLE], found[TABLE].new_zeros(1, found[TABLE].shape[1])])
    return found


def refuse_early(state: Mapping[str, Tensor]) -> None:
    """Raises ``ValueError`` for a file of MMDetection 2."""
    if any(name.startswith(EARLY) for name in state):
        raise ValueError(f"names such as {EARLY}* are of MMDetection 2: take the file that MMDetection 3 publishes")


_COMPILED = {key: compiled(rows) for key, rows in TABLES.items()}
