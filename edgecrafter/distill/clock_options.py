"""Options of CLoCKDistill and of KD-DETR as a comparison."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from edgecrafter.distill.neck import at_least_zero, known
from edgecrafter.distill.targets import MODES


@dataclass
class ClockOptions:
    """Options of ``--distill clock``, such as ``--distill clock,teacher=runs/detect/large``. Defaults are the paper's,
    or, where it gives none, those of ``spec/clockdistill``."""

    teacher: str = ""
    """who teaches: the run, file or name of a detector with the same classes"""
    teacher_weights: str = "pretrained"
    """pretrained (its own) or none (random, as a control)"""
    lcmd: bool = True
    """memory distillation"""
    alpha: float | None = None
    """weight of tokens on objects; none: 5e-5 for 256 channels on 4 levels (the paper), in proportion for others"""
    beta: float | None = None
    """weight of the other tokens; none: 1e-7, in proportion"""
    mask: str = "location"
    """location (by objects) or none (all tokens alike, weight 1; Table 1)"""
    tcld: bool = True
    """logit distillation"""
    cls: float = 1.0
    """weight of the classes"""
    l1: float = 5.0
    giou: float = 2.0
    temperature: float = 10.0
    """of the classes' softmax"""
    classes: str = "softmax"
    """softmax over the classes, or sigmoid (each for itself; with a single class always)"""
    stage: str = "same"
    """which layer of the teacher a layer follows: the same, or the final one"""
    target: bool = True
    """ask for the objects themselves"""
    copies: int = 3
    """how often they count"""
    jitter: float = 0.0
    """how far the corners of every further copy move, at most, in halves of the box's side (0 to 1); with 0 all copies
    are the same question, which is asked once"""
    mode: str = "native"
    """what a question for an object is made of: native (its class; every decoder places it by its box) or summed (Eq.
    6-8 to the letter: the class plus a position, made once for both)"""
    fit_steps: int = 0
    """steps in which the classes' contents are fitted to the teacher before the training (``mode`` summed: positions
    too), if its answers to them are weak"""
    specific: bool = True
    """ask what the teacher asks"""
    general: int | None = None
    """random questions per image; none: as many as the teacher has queries"""

    def __post_init__(self) -> None:
        known("mask", self.mask, ("location", "none"))
        known("classes", self.classes, ("softmax", "sigmoid"))
        known("stage", self.stage, ("same", "final"))
        known("mode", self.mode, MODES)
        counts = ["general", "copies", "fit_steps"]
        at_least_zero(self, ["alpha", "beta", "cls", "l1", "giou", "jitter", *counts])
        for name in counts:
            if getattr(self, name) is not None and not isinstance(getattr(self, name), int):
                raise ValueError(f"{name}={getattr(self, name)}: expected a whole number")
        if self.copies < 1:
            raise ValueError(f"copies={self.copies}: expected 1 or more; target=false leaves the objects out")
        if self.jitter > 1:
            raise ValueError(f"jitter={self.jitter}: expected a number between 0 and 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: expected a number above 0")
        if not self.lcmd and not self.tcld:
            raise ValueError("lcmd=false,tcld=false: nothing is left to learn from the teacher; give one of them")
        if self.tcld and not (self.target or self.specific or self.general != 0):
            raise ValueError("no questions: give target, specific or general, or tcld=false")


@dataclass
class KDDETROptions:
    """Options of ``--distill kd-detr``: TCLD without the objects as questions, and nothing else (KD-DETR, Wang et al.
    2024, in the form of ``clock``, so that a comparison isolates what is new in it)."""

    teacher: str = ""
    """who teaches: the run, file or name of a detector with the same classes"""
    teacher_weights: str = "pretrained"
    """pretrained (its own) or none (random, as a control)"""
    cls: float = 1.0
    """weight of the classes"""
    l1: float = 5.0
    giou: float = 2.0
    temperature: float = 10.0
    stage: str = "same"
    """which layer of the teacher a layer follows: the same, or the final one"""
    general: int | None = None
    """random questions per image; none: as many as the teacher has queries"""

    def as_clock(self) -> ClockOptions:
        """The same as options of ``clock``."""
        return ClockOptions(**asdict(self), lcmd=False, target=False)

    def __post_init__(self) -> None:
        self.as_clock()
