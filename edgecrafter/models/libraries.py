"""Backbones of timm and Hugging Face transformers by name, with random weights or those that the library fetches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgecrafter.models import from_timm, from_transformers
from edgecrafter.models.foreign import RANDOM, Foreign


def build(spec: str, keep: int = 2, norm: bool = True, weights: str = RANDOM) -> Foreign:
    """The backbone of ``spec``; ``facts.spec`` of the result is enough to build it again without a network.

    ``weights``: ``none``, ``pretrained`` (fetched by the library that has it, once), or a file or folder with them.
    ``norm`` passes the maps of a plain ViT through its final norm. Raises ``ValueError`` for an unknown name, and with
    the remedies when the weights cannot be fetched.
    """
    kind, _, name = spec.partition(":")
    if kind not in _BUILDERS:
        raise ValueError(f"backbone {spec!r}: expected timm:NAME, hf:OWNER/NAME, or a name of `edgecrafter models`")
    return _BUILDERS[kind](name, keep, norm, weights)


def _module(name: str, *_: Any) -> Foreign:
    raise ValueError(
        f"this model was built around a module from Python ({name}), which a file cannot hold: hand it in again, "
        "edgecrafter.load(file, backbone=module)"
    )


_BUILDERS: dict[str, Callable[[str, int, bool, str], Foreign]] = {
    "timm": from_timm.build,
    "hf": from_transformers.build,
    "module": _module,
}
