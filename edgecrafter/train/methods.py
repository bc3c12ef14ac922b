"""Distillation methods in a training: ``--distill dsi,teacher=dinov3-b``. A further method is one more line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch

from edgecrafter.distill.base import Distiller, Student
from edgecrafter.distill.clock import KDDETR, Clock
from edgecrafter.distill.clock_options import ClockOptions, KDDETROptions
from edgecrafter.distill.fgd import FGD, FGDOptions
from edgecrafter.distill.fitnet import FitNet, FitNetOptions
from edgecrafter.distill.injection import DSI, DSIOptions
from edgecrafter.distill.mgd import MGD, MGDOptions
from edgecrafter.hub import ModelInfo
from edgecrafter.teachers import detector, teacher
from edgecrafter.train import words
from edgecrafter.train.config import TrainConfig, unknown
from edgecrafter.train.recipes import Plan


def _dsi(options: DSIOptions, student: Student, seed: int) -> DSI:
    blocks = 1  # the last one
    return DSI(options, teacher(options.teacher, blocks, options.norm, options.teacher_weights, seed), student)


def _fitnet(options: FitNetOptions, student: Student, seed: int) -> FitNet:
    return FitNet(options, detector(options.teacher, options.teacher_weights, seed), student)


def _fgd(options: FGDOptions, student: Student, seed: int) -> FGD:
    return FGD(options, detector(options.teacher, options.teacher_weights, seed), student)


def _mgd(options: MGDOptions, student: Student, seed: int) -> MGD:
    return MGD(options, detector(options.teacher, options.teacher_weights, seed), student, seed)


def _clock(options: ClockOptions, student: Student, seed: int) -> Clock:
    return Clock(options, detector(options.teacher, options.teacher_weights, seed, student.labels), student, seed)


def _kd_detr(options: KDDETROptions, student: Student, seed: int) -> KDDETR:
    who = detector(options.teacher, options.teacher_weights, seed, student.labels)
    return KDDETR(options.as_clock(), who, student, seed)


METHODS: dict[str, tuple[type[Any], Callable[[Any, Student, int], Distiller]]] = {
    "dsi": (DSIOptions, _dsi),
    "fitnet": (FitNetOptions, _fitnet),
    "fgd": (FGDOptions, _fgd),
    "mgd": (MGDOptions, _mgd),
    "clock": (ClockOptions, _clock),
    "kd-detr": (KDDETROptions, _kd_detr),
}
"""name -> the dataclass of its options, and what makes it"""


def distillers(config: TrainConfig, info: ModelInfo, plan: Plan) -> list[Distiller]:
    """The methods of a run, with their teachers; their own parts begin with numbers from the seed.

    Raises ``ValueError`` and ``FileNotFoundError`` for methods, options and teachers that are not known.
    """
    student = Student(info.name, info.size, info.input.size, plan.plain_from, info.labels, info.task)
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for name, options in parsed(config.distill):
            found.append(METHODS[name][1](options, student, config.seed))
    return found


def parsed(given: Sequence[str]) -> list[tuple[str, Any]]:
    """``["dsi", "teacher=dinov3-b"]`` -> methods with their options: those behind a method's name are its own. A method
    and its options may be one word, ``dsi,teacher=dinov3-b``.

    Raises ``ValueError`` for unknown methods and options, options without a method, and methods given twice.
    """
    parts: list[tuple[str, list[str]]] = []
    for word in [word for each in given for word in _taken_apart(each)]:
        if "=" not in word:
            if word not in METHODS:
                raise ValueError(f"distill={word}: unknown method; known: {', '.join(METHODS)}")
            parts.append((word, []))
        elif parts:
            parts[-1][1].append(word)
        else:
            raise ValueError(f"distill={word}: name a method first, such as distill={next(iter(METHODS))},{word}")
    names = [name for name, _ in parts]
    if len(set(names)) < len(names):
        raise ValueError(f"distill={','.join(names)}: every method once")
    return [(name, _options(name, values)) for name, values in parts]


def _taken_apart(word: str) -> list[str]:
    """``dsi,teacher=x`` -> its parts; ``teacher=a,b`` is one word, as a path may be."""
    return [part.strip() for part in word.split(",")] if "=" not in word.partition(",")[0] else [word]


def _options(name: str, values: list[str]) -> Any:
    kind = METHODS[name][0]
    given = dict((key.strip(), value.strip()) for key, _, value in (word.partition("=") for word in values))
    types = {each.name: str(each.type) for each in fields(kind)}
    try:
        unknown(kind, given)
        return kind(**{key: _value(key, text, types[key]) for key, text in given.items()})
    except ValueError as error:
        raise ValueError(f"distill={name}: {error}") from None


def _value(name: str, text: str, kind: str) -> Any:
    """A value of the type of its field. Raises ``ValueError`` for another one."""
    if kind == "str":
        return text
    value = words.value_of(text)
    if "None" in kind and value in (None, "none", "None"):
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (isinstance(value, bool) if kind == "bool" else number):
        raise ValueError(f"{name}={text}: expected {'true or false' if kind == 'bool' else 'a number'}")
    return value
