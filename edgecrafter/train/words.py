"""Options of a stage written as words, such as ``epochs=20``, or read from a YAML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import yaml


def options(given: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """``["epochs=20", "lr=3e-3"]`` or a mapping -> names and values. Raises ``ValueError`` for words without ``=``."""
    if isinstance(given, Mapping):
        return {str(name): typed(value) for name, value in given.items()}
    found = {}
    for word in given:
        name, sign, value = word.partition("=")
        if not sign:
            raise ValueError(f"{word!r}: expected OPTION=VALUE, such as epochs=20")
        found[name.strip().lstrip("-")] = typed(yaml.safe_load(value))
    return found


def typed(value: Any) -> Any:
    """A value of YAML; ``3e-3``, which YAML takes for a text, is a number."""
    if isinstance(value, list):
        return [typed(each) for each in value]
    if isinstance(value, str) and any(letter.isdigit() for letter in value):
        with suppress(ValueError):
            return float(value)
    return value
