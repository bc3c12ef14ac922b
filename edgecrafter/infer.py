"""From pictures of the input's size to detections: the step that evaluation and prediction share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgecrafter.postprocess import decode
from edgecrafter.types import Detections, InputSpec

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOP_K = 300
"""detections kept per image, as in the released post-processor"""


def detect(
    network: nn.Module,
    spec: InputSpec,
    images: Tensor,
    sizes: Sequence[tuple[int, int]],
    *,
    top_k: int = TOP_K,
    precision: str = "fp32",
    classes: Tensor | None = None,
    conf: float = 0.0,
    owned: Tensor | None = None,
    valid: Tensor | None = None,
) -> list[Detections]:
    """Run a network that is in evaluation mode; its answers are decoded in float32 whatever the precision.

    Args:
        network: gives ``Outputs`` for a normalised batch; where one is padded, it is also given ``valid``.
        spec: how a picture becomes an input; ``images`` have the size that is wanted already.
        images: RGB uint8 [B, 3, H, W], on any device.
        sizes: (height, width) of the B original pictures.
        top_k: most detections per image.
        precision: ``fp32``, ``bf16`` or ``fp16`` for the network.
        classes: int64 labels to look for; None: all.
        conf: least score of what is kept; pixels of masks are computed for nothing else.
        owned: bool [C, K], the keypoints that each class has (``Labels.owned``); None: all.
        valid: bool [B, H, W], where the pictures are (``Batch.valid``); None: everywhere.

    Returns:
        B ``Detections`` on the CPU, best first, boxes and keypoints in pixels of the originals, not clipped.

    Raises:
        ValueError: an unknown precision, or an answer that is not finite.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not known: use one of {', '.join(PRECISIONS)}")
    device = device_of(network)
    with torch.inference_mode(), torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32"):
        known = {} if valid is None else {"valid": valid.to(device, non_blocking=True)}
        layer = network(spec.normalise(images.to(device, non_blocking=True), **known), **known).layers[-1]
    with torch.inference_mode():  # without autocast, which would round the products that masks are made of
        found = decode(layer, sizes, top_k, conf, classes, owned)
    # a graph that chooses by itself gives 0 to the pairs that it left out
    return [each if not len(each) or each.scores[-1] > 0 else each.take(each.scores > 0) for each in _on_cpu(found)]


def choose_device(device: str | int | torch.device | None = None) -> torch.device:
    """The device of that name (``cpu``, ``cuda``, ``cuda:1``, ``mps``, a GPU's number); None or "": the best one.

    Raises ValueError for a name that torch does not know and for a device that is not there.
    """
    if device is None or device == "":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    name = f"cuda:{device}" if str(device).isdigit() else device
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {device!r} is not known: use 'cpu', 'cuda', 'cuda:0' or 'mps'") from None
    count = {"cuda": torch.cuda.device_count, "mps": torch.mps.device_count}.get(chosen.type)
    if count is not None and (chosen.index or 0) >= count():
        raise ValueError(
            f"device {device!r}: torch finds {count()} such devices on this machine. Use 'cpu', or leave it out"
        )
    return chosen


def device_of(network: nn.Module) -> torch.device:
    """Where the weights of a network are; the CPU for one that has none, such as an export."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def _on_cpu(found: list[Detections]) -> list[Detections]:
    """The same on the CPU; every field travels once for all images."""
    counts = [len(each) for each in found]
    columns: dict[str, Any] = {}
    for name in ("scores", "labels", "boxes", "keypoints"):
        if found and getattr(found[0], name) is not None:
            column = torch.cat([getattr(each, name) for each in found]).cpu()
            if not column.isfinite().all():
                raise ValueError(
                    "the network's answer is not finite. In fp16 try bf16 or fp32; else the weights are unusable"
                )
            columns[name] = torch.split(column, counts)
    return [replace(each, **{name: parts[i] for name, parts in columns.items()}) for i, each in enumerate(found)]
