"""Every option of an ablation, with a line of help each. Nothing else is imported: help is quick."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class AblateConfig:
    """Compare options of distillation and training over several seeds: mean, spread, and the difference to a baseline
    seed by seed."""

    grid: str = ""
    """YAML file with any of the options below, and `arms`: name -> {distill: {...}, train: {...}}; an arm without
    `distill` trains from scratch"""
    data: str = ""
    """data set on which the detectors are trained and scored"""
    model: str = "ecdet-p"
    """the detector; the vision transformer of its size is distilled"""
    vary: list[str] = field(default_factory=list)
    """options to vary, such as distill.registers=0|1|2 or train.fused=1|2; several make a grid. Lists in brackets:
    train.distill=none|[dsi,teacher=dinov2-b]"""
    distill: list[str] = field(default_factory=list)
    """options of every distillation, such as teacher=runs/teach/teach or epochs=20 (see edgecrafter distill --help);
    images are those of `data` unless given"""
    train: list[str] = field(default_factory=list)
    """options of every training, such as epochs=20 (see edgecrafter train --help); weights are none unless given, so
    that detectors with and without a distilled backbone begin alike"""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """seeds of every arm"""
    baseline: str = ""
    """the arm that the others are compared with; empty: the first"""
    scratch: bool = True
    """with `vary`: also train without distillation, as the first arm"""
    score: str = "AP"
    """which score to compare"""
    folder: str = "runs/ablate/ablate"
    """where everything is kept; what is finished there is not done again, so that more seeds or arms can be added"""
    dry: bool = False
    """only list the arms"""
