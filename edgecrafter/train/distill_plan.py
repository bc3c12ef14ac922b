"""The plan of a distillation: what follows from its options and the number of pictures."""

from __future__ import annotations

from edgecrafter.data.transforms import Augment
from edgecrafter.train.distill_config import DistillConfig
from edgecrafter.train.recipes import EPOCHS_CEILING, STEPS_FLOOR, Plan

# EdgeCrafter, A.1
EPOCHS, BATCH, REFERENCE, FLOOR = 50, 128, 1536, 1e-3
BASE_LR = {"lars": {"t": 4.0, "t+": 4.0, "s": 9.0, "s+": 9.0}, "adamw": {}}
# ours: sizes of our own as T; AdamW of Table 7, whose rate the paper does not give: 0.001 at a batch of 128
OTHER_LR = {"lars": 4.0, "adamw": 0.0035}
DECAY = {"lars": 1e-6, "adamw": 1e-4}
LEAST_BATCH, BATCHES = 16, 50


def resolve(config: DistillConfig, vit: str, pictures: int, world: int = 1) -> Plan:
    """The plan of a distillation of ``pictures`` pictures into a ViT (``t``, ``s+``, ...) on ``world`` processes.

    With 7680 pictures or more and nothing else asked it is the paper's. Ours for fewer: smaller batches, so that an
    epoch has about 50 of them, and more epochs, towards ``STEPS_FLOOR`` steps.
    """
    notes: list[str] = []
    share = pictures // world
    if share < 1:
        raise ValueError(f"{pictures} pictures for {world} processes: use fewer processes or more pictures")
    wanted = BATCH if pictures >= BATCH * BATCHES else max(LEAST_BATCH, pictures // BATCHES)
    batch = min(config.batch or max(1, wanted // (world * config.accumulate)), share)
    accumulate = min(config.accumulate, share // batch)
    steps = share // batch // accumulate
    epochs = config.epochs or max(EPOCHS, min(-(-STEPS_FLOOR // steps), EPOCHS_CEILING))
    if config.epochs is None and epochs > EPOCHS:
        notes.append(f"few pictures: {epochs} epochs instead of {EPOCHS}, for {epochs * steps} steps")
    effective = batch * accumulate * world
    if effective != BATCH:
        notes.append(f"effective batch {effective} instead of {BATCH}; the learning rate follows its square root")
    base = BASE_LR[config.optimizer].get(vit, OTHER_LR[config.optimizer]) if config.lr is None else config.lr
    lr = base * (effective / REFERENCE) ** 0.5
    warmup = min(config.warmup * steps, max(1, epochs * steps // 10)) if config.warmup else 0
    return Plan(
        epochs=epochs,
        pictures=pictures,
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        effective_batch=effective,
        mosaic_until=0,
        plain_from=epochs,
        augment=Augment.NONE,
        lr=lr,
        backbone_lr=lr,
        weight_decay=DECAY[config.optimizer] if config.weight_decay is None else config.weight_decay,
        clip=config.clip,
        gamma=FLOOR,
        warmup=warmup,
        flat=warmup,
        ema=0.0,
        ema_warmup=1,
        notes=tuple(notes),
        warmup_power=1,
        reload_best=False,
    )


def report(plan: Plan, optimizer: str) -> str:
    """The plan in a few lines for the console."""
    lines = [
        f"plan: {plan.epochs} epochs of {plan.steps} steps, {plan.effective_batch} pictures each",
        f"  {optimizer}, learning rate {plan.lr:.3g}: rises for {plan.warmup} steps, then a cosine down to "
        f"{plan.gamma:g} of it; decay {plan.weight_decay:g}",
    ]
    return "\n".join([*lines, *(f"  note: {note}" for note in plan.notes)])
