"""Published training settings, one row per task and size, and the plan of a run that is derived from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from edgecrafter.data.transforms import PRESETS, Augment
from edgecrafter.train.config import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """Settings of one model at effective batch ``batch``. Phases are given for ``epochs`` and scale with it."""

    epochs: int
    """all epochs, the plain ones included"""
    mosaic_epochs: int
    """epochs at the start with mosaic and mixup; also the end of the flat part of the learning rate"""
    mosaic: float
    mixup: float
    backbone_lr: float
    weight_decay: float
    lr: float = 5e-4
    batch: int = 32
    plain_epochs: int = 2
    """epochs at the end without strong augmentation"""
    clip: float = 0.1
    gamma: float = 0.5
    """the learning rate ends at this fraction"""
    ema: float = 0.9999
    ema_warmup: int = 1000
    warmup: int = 2000
    """steps, but at most ``WARMUP_EPOCHS``"""
    warmup_power: int = 2
    """the rate rises with this power of the step"""
    paste: float = 0.0
    reload_best: bool = True
    """whether the last epochs start from the best weights"""
    scales: int = 0
    """training at several input sizes until the last epochs: how often the own size is among them; 0: never"""
    classic: bool = False
    """whether pictures are augmented as for classic detectors (``Augment.classic``)"""
    norms_at_base: bool = False
    """whether the backbone's norms learn at the rate of the head"""
    decay_norms: bool = False
    """whether the backbone's norms decay, as a slip of the released RT-DETRv4-L and -X has it; none of our rows do"""
    slow: tuple[str, ...] = ()
    """parts of the names of parameters outside of the backbone that learn at a tenth of the rate"""
    ours: bool = False
    """true for rows that are not of the paper"""


_POSE: dict[str, Any] = {
    "mosaic": 0.5, "mixup": 0.5, "paste": 0.5, "batch": 64, "gamma": 1.0, "warmup": 500, "warmup_power": 1,
    "ema_warmup": 2000, "reload_best": False,
}  # fmt: skip

# RT-DETRv4 as released (released_behaviour 15.2, 16, 17), also for DEIM, on which it builds ("the core hyperparameters
# remain consistent"). Not in what was at hand, ours: mosaic and mixup of a half each, and until half of the epochs.
_RT = {
    "s": Recipe(132, 60, 0.5, 0.5, 2e-4, 1e-4, lr=4e-4, plain_epochs=12, scales=20, norms_at_base=True),
    "m": Recipe(102, 45, 0.5, 0.5, 4e-5, 1e-4, lr=4e-4, plain_epochs=12, scales=6, norms_at_base=True),
    "l": Recipe(58, 25, 0.5, 0.5, 2.5e-5, 1.25e-4, plain_epochs=8, scales=4),
    "x": Recipe(58, 25, 0.5, 0.5, 5e-6, 1.25e-4, plain_epochs=8, scales=3),
}
# Epochs of RT-DETRv4's Table 1; rates and decay as D-FINE's paper gives them, which was not at hand to compare.
_DFINE: dict[str, Any] = {"gamma": 1.0, "scales": 4}
# Epochs of RT-DETRv4's Table 1; all other numbers are RT-DETR's as it is known (a linear warm-up of 2000 steps and then
# a constant rate). Neither its paper nor RT-DETRv2's was at hand to compare: the latter is said to set the backbone's
# rate by its size, these rows have 1e-5 everywhere. Norms of the backbone learn as in the other rows, at its rate.
_V2: dict[str, Any] = {
    "mosaic_epochs": 0, "mosaic": 0.0, "mixup": 0.0, "backbone_lr": 1e-5, "weight_decay": 1e-4, "lr": 1e-4, "batch": 16,
    "gamma": 1.0, "warmup_power": 1, "scales": 3, "reload_best": False,
}  # fmt: skip

# MMDetection's standard settings (spec of CLoCKDistill, 4.3): a constant rate, a tenth of it in the last epochs.
_DEPTHS = ("r18", "r50", "r101")
_CLASSIC: dict[str, Any] = {
    "mosaic": 0.0, "mixup": 0.0, "weight_decay": 1e-4, "gamma": 0.1, "warmup": 0, "ema": 0.0, "reload_best": False,
    "classic": True,
}  # fmt: skip

# EdgeCrafter, Tables 10 to 12; clip, EMA and warm-up as in the released training. Rows p and n are ours: they start
# from random weights, so backbone and head learn at one rate, and they are meant for small data on small machines.
RECIPES: dict[str, dict[str, Recipe]] = {
    "ecdet": {
        "p": Recipe(74, 36, 0.5, 0.0, 1e-3, 1e-4, lr=1e-3, batch=16, ours=True),
        "n": Recipe(74, 36, 0.5, 0.5, 1e-3, 1e-4, lr=1e-3, batch=16, ours=True),
        "s": Recipe(74, 36, 0.75, 0.75, 2.5e-5, 1e-4),
        "m": Recipe(62, 30, 0.75, 0.75, 2.5e-5, 1e-4),
        "l": Recipe(50, 24, 1.0, 1.0, 5e-6, 1.25e-4),
        "x": Recipe(50, 24, 1.0, 1.0, 2.5e-6, 1.25e-4),
    },
    "ecinsseg": {
        "p": Recipe(74, 36, 0.5, 0.0, 1e-3, 1e-4, lr=1e-3, batch=16, ours=True),
        "n": Recipe(74, 36, 0.5, 0.5, 1e-3, 1e-4, lr=1e-3, batch=16, ours=True),
        "s": Recipe(74, 36, 0.75, 0.75, 2.5e-5, 1e-4),
        "m": Recipe(74, 36, 0.75, 0.75, 2.5e-5, 1e-4),
        "l": Recipe(50, 24, 1.0, 1.0, 2.5e-6, 1.25e-4),
        "x": Recipe(50, 24, 1.0, 1.0, 2.5e-6, 1.25e-4),
    },
    "ecpose": {
        "p": Recipe(92, 45, 0.5, 0.0, 1e-3, 1e-4, lr=1e-3, batch=16, paste=0.5, reload_best=False, ours=True),
        "n": Recipe(92, 45, 0.5, 0.5, 1e-3, 1e-4, lr=1e-3, batch=16, paste=0.5, reload_best=False, ours=True),
        "s": Recipe(92, 45, backbone_lr=2.5e-5, weight_decay=1e-4, **_POSE),
        "m": Recipe(92, 45, backbone_lr=2.5e-5, weight_decay=1e-4, **_POSE),
        "l": Recipe(74, 48, backbone_lr=2.5e-6, weight_decay=1.25e-4, **_POSE),
        "x": Recipe(74, 48, backbone_lr=2.5e-6, weight_decay=1.25e-4, **_POSE),
    },
    "rtdetrv4": {"p": Recipe(74, 36, 0.5, 0.0, 1e-3, 1e-4, lr=1e-3, batch=16, ours=True), **_RT},
    "deim": _RT,
    "dfine": {
        "s": Recipe(132, 0, 0.0, 0.0, 1e-4, 1e-4, lr=2e-4, plain_epochs=12, **_DFINE),
        "m": Recipe(132, 0, 0.0, 0.0, 2e-5, 1e-4, lr=2e-4, plain_epochs=12, **_DFINE),
        "l": Recipe(80, 0, 0.0, 0.0, 1.25e-5, 1.25e-4, lr=2.5e-4, plain_epochs=8, **_DFINE),
        "x": Recipe(80, 0, 0.0, 0.0, 2.5e-6, 1.25e-4, lr=2.5e-4, plain_epochs=8, **_DFINE),
    },
    "rtdetrv2": {
        "r18": Recipe(120, **_V2),
        "r34": Recipe(120, **_V2),
        "r50": Recipe(72, **_V2),
        "r101": Recipe(72, **_V2),
    },
    "dab-detr": dict.fromkeys(
        _DEPTHS, Recipe(50, 40, backbone_lr=1e-5, lr=1e-4, batch=16, plain_epochs=10, **_CLASSIC)
    ),
    "deformable-detr": dict.fromkeys(
        _DEPTHS,
        Recipe(50, 40, backbone_lr=2e-5, lr=2e-4, batch=32, plain_epochs=10, slow=(".offsets.", ".point."), **_CLASSIC),
    ),
    "dino": dict.fromkeys(_DEPTHS, Recipe(12, 11, backbone_lr=1e-5, lr=1e-4, batch=16, plain_epochs=1, **_CLASSIC)),
}
WARMUP_EPOCHS = 3

# Ours, for runs that are not the published ones:
STEPS_FLOOR = 3000  # fewer steps than this rarely converge; epochs that nobody asked for are raised to reach it ...
EPOCHS_CEILING = 300  # ... up to this number
WARMUP_SHARE = 5  # the warm-up takes at most 1/5 of the steps
EMA_SHARE = 10  # the weights are averaged over at most 1/10 of the steps
EMA_WARMUP_SHARE = 30


@dataclass(frozen=True)
class Plan:
    """Every number that a run follows. Steps are optimiser steps."""

    epochs: int
    pictures: int
    """of the training set"""
    steps: int
    """per epoch"""
    batch: int
    """pictures per process and forward"""
    accumulate: int
    effective_batch: int
    """pictures per optimiser step, over all processes"""
    mosaic_until: int
    """first epoch without mosaic, mixup and copy-paste"""
    plain_from: int
    """first epoch without strong augmentation"""
    augment: Augment
    """at its strongest, that is in the first epochs"""
    lr: float
    backbone_lr: float
    weight_decay: float
    clip: float
    gamma: float
    warmup: int
    """steps"""
    flat: int
    """step up to which the learning rate stays at its full value"""
    ema: float
    ema_warmup: int
    notes: tuple[str, ...] = ()
    """what was changed from the published recipe, and advice"""
    warmup_power: int = 2
    reload_best: bool = True
    scales: int = 0
    norms_at_base: bool = False
    decay_norms: bool = False
    slow: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return self.epochs * self.steps

    @property
    def plain_steps(self) -> int:
        return (self.epochs - self.plain_from) * self.steps

    def augment_of(self, epoch: int) -> Augment:
        """How strong the augmentation of an epoch is (Table 10)."""
        if epoch >= self.plain_from:
            return self.augment.gentle()
        return self.augment if epoch < self.mosaic_until else self.augment.unmixed()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML and checkpoints."""
        return asdict(self) | {"notes": list(self.notes), "slow": list(self.slow)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """The reverse of ``to_dict``."""
        words = {name: tuple(values.get(name, ())) for name in ("notes", "slow")}
        return cls(**{**values, **words, "augment": Augment(**values["augment"])})

    def report(self) -> str:
        """The plan in a few lines for the console."""
        falls = f"flat until step {self.flat}, falls to {self.gamma:g} of it at step {self.total - self.plain_steps}"
        falls = falls if self.gamma < 1 else "then flat"
        lines = [
            f"plan: {self.epochs} epochs of {self.steps} steps, {self.effective_batch} pictures each"
            + (f" ({self.accumulate} x {self.batch} per process)" if self.accumulate > 1 else ""),
            f"  learning rate {self.lr:.3g}, backbone {self.backbone_lr:.3g}: rises for {self.warmup} steps, {falls}",
            f"  mosaic {self.augment.mosaic:g}, mixup {self.augment.mixup:g}, copy-paste {self.augment.paste:g} until"
            f" epoch {self.mosaic_until}, strong augmentation until epoch {self.plain_from}",
            *([f"  at several input sizes until epoch {self.plain_from}"] if self.scales else []),
            *([f"  random short sides and parts until epoch {self.plain_from}"] if self.augment.shortest else []),
            f"  weights averaged with decay {self.ema:.6g} (warm-up {self.ema_warmup} steps)",
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def recipe_for(name: str) -> Recipe:
    """The row of a model such as ``ecdet-s``. Raises ``ValueError`` that lists the known ones."""
    family, _, size = name.rpartition("-")
    try:
        return RECIPES[family][size]
    except KeyError:
        known = ", ".join(f"{family}-{size}" for family, rows in RECIPES.items() for size in rows)
        raise ValueError(f"no training recipe for {name!r}; known: {known}") from None


def resolve(config: TrainConfig, recipe: Recipe, pictures: int, world: int = 1, random_backbone: bool = False) -> Plan:
    """The plan for a training set of ``pictures`` on ``world`` processes.

    With the published data size and batch the published numbers come out. Otherwise, ours: phases keep their share of
    the epochs; learning rates follow the square root of the effective batch, as suits Adam (Malladi et al. 2022, "On
    the SDEs and scaling rules for adaptive gradient algorithms"), and the EMA decay its power (Busbridge et al. 2023,
    "How to scale your EMA"); warm-up and EMA never take more than a share of a short run.
    """
    notes: list[str] = []
    batch, accumulate, steps = _steps(config, recipe, pictures, world, notes)
    epochs = _epochs(config, recipe, steps, notes)
    plain = min(recipe.plain_epochs, epochs // 3)
    mosaic_until = (epochs - plain) * recipe.mosaic_epochs // (recipe.epochs - recipe.plain_epochs)
    total = epochs * steps
    warmup = _warmup(config, recipe, steps, total, notes)
    effective = batch * accumulate * world
    lr, backbone_lr = _rates(config, recipe, effective, random_backbone, notes)
    ratio = effective / recipe.batch
    decay = min(recipe.ema**ratio, max(0.0, 1 - EMA_SHARE / total)) if config.ema is None else config.ema
    ema_warmup = max(1, min(round(recipe.ema_warmup / ratio), total // EMA_WARMUP_SHARE))
    return Plan(
        epochs=epochs,
        pictures=pictures,
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        effective_batch=effective,
        mosaic_until=mosaic_until,
        plain_from=epochs - plain,
        augment=_augment(config, recipe),
        lr=lr,
        backbone_lr=backbone_lr,
        weight_decay=_chosen(config.weight_decay, recipe.weight_decay),
        clip=_chosen(config.clip, recipe.clip),
        gamma=recipe.gamma,
        warmup=warmup,
        flat=max(mosaic_until * steps, warmup),
        ema=decay,
        ema_warmup=ema_warmup,
        notes=tuple(notes),
        warmup_power=recipe.warmup_power,
        reload_best=recipe.reload_best if config.reload_best is None else config.reload_best,
        scales=recipe.scales if config.augment in ("default", "strong") else 0,
        norms_at_base=recipe.norms_at_base,
        decay_norms=recipe.decay_norms,
        slow=recipe.slow,
    )


def _steps(config: TrainConfig, recipe: Recipe, pictures: int, world: int, notes: list[str]) -> tuple[int, int, int]:
    """Batch, accumulated batches and optimiser steps per epoch; both shrink to what the pictures allow."""
    share = pictures // world
    if share < 1:
        raise ValueError(f"{pictures} training pictures for {world} processes: use fewer processes or more pictures")
    wanted = config.batch or max(1, recipe.batch // (world * config.accumulate))
    batch = min(wanted, share)
    if batch < wanted:
        notes.append(f"batch reduced from {wanted} to {batch}: there are only {share} training pictures per process")
    batches = share // batch
    accumulate = min(config.accumulate, batches)
    if accumulate < config.accumulate:
        notes.append(f"accumulate reduced from {config.accumulate} to {accumulate}, the batches of an epoch")
    return batch, accumulate, batches // accumulate


def _epochs(config: TrainConfig, recipe: Recipe, steps: int, notes: list[str]) -> int:
    needed = min(-(-STEPS_FLOOR // steps), EPOCHS_CEILING)
    if config.epochs is not None:
        if config.epochs < needed:
            notes.append(f"{config.epochs * steps} steps are few for a good result, epochs={needed} would be safer")
        return config.epochs
    if needed > recipe.epochs:
        notes.append(f"small data set: {needed} epochs instead of {recipe.epochs}, for {needed * steps} steps")
    return max(needed, recipe.epochs)


def _warmup(config: TrainConfig, recipe: Recipe, steps: int, total: int, notes: list[str]) -> int:
    if config.warmup is None:
        return min(recipe.warmup, WARMUP_EPOCHS * steps, total // WARMUP_SHARE)
    if config.warmup > total:
        notes.append(f"warmup={config.warmup} is longer than the whole run of {total} steps and was cut to it")
    return min(config.warmup, total)


def _rates(
    config: TrainConfig, recipe: Recipe, effective: int, random_backbone: bool, notes: list[str]
) -> tuple[float, float]:
    """Learning rates of the head and of the ViT."""
    lr = _chosen(config.lr, recipe.lr)
    backbone_lr = _chosen(config.backbone_lr, recipe.backbone_lr)
    if random_backbone and config.backbone_lr is None and backbone_lr < lr:
        notes.append(f"the backbone starts from random weights: it learns at the full rate, not at {backbone_lr:g}")
        backbone_lr = lr
    factor = (effective / recipe.batch) ** 0.5
    if effective != recipe.batch:
        notes.append(f"learning rates times {factor:.3g}: effective batch {effective} instead of {recipe.batch}")
    return lr * factor, backbone_lr * factor


def _augment(config: TrainConfig, recipe: Recipe) -> Augment:
    preset = Augment.classic() if recipe.classic and config.augment == "default" else PRESETS[config.augment]
    if config.augment == "default":
        preset = replace(preset, mosaic=recipe.mosaic, mixup=recipe.mixup)
    if config.augment in ("default", "strong"):
        preset = replace(preset, paste=recipe.paste)
    given = {name: getattr(config, name) for name in ("mosaic", "mixup", "paste")}
    return replace(preset, **{name: value for name, value in given.items() if value is not None})


def _chosen(given: float | None, published: float) -> float:
    return published if given is None else given
