"""Options of a stage written as words, such as ``epochs=20``, or read from a YAML file, and checked."""

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
        found[name.strip().lstrip("-")] = value_of(value)
    return found


def value_of(text: str) -> Any:
    """A value as YAML reads it, and numbers such as ``3e-3``. Raises ``ValueError`` for text that is none."""
    try:
        return typed(yaml.safe_load(text))
    except yaml.YAMLError:
        raise ValueError(f"{text!r}: expected a value such as 20, true, none or [a, b]") from None


def made(kind: Any, stage: str, options: Mapping[str, Any]) -> Any:
    """The options of a stage as ``kind`` (``TrainConfig``, ``DistillConfig``), which checks them. Raises ``ValueError``
    that says of which stage they are."""
    try:
        return kind.from_dict(dict(options))
    except ValueError as error:
        raise ValueError(f"{stage}: {error}") from None
    except TypeError as error:  # a word where a number is compared
        raise ValueError(f"{stage}: a value of the wrong kind ({error}); see edgecrafter {stage} --help") from None


def typed(value: Any) -> Any:
    """A value of YAML; ``3e-3``, which YAML takes for a text, is a number."""
    if isinstance(value, list):
        return [typed(each) for each in value]
    if isinstance(value, str) and any(letter.isdigit() for letter in value):
        with suppress(ValueError):
            return float(value)
    return value
