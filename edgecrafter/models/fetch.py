"""Weights of other libraries' backbones: fetched by the library that has them, or out of a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def existing(weights: str) -> Path:
    """The file or folder that an option names. Raises ``FileNotFoundError``."""
    path = Path(weights).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"weights {weights!r}: no such file; expected pretrained, none or a file")
    return path


def fetched(name: str, fetch: Callable[[], Any]) -> Any:
    """What ``fetch`` returns; whatever goes wrong becomes one error with the remedies.

    Says so first, since libraries try for most of a minute before they give up without a network.
    """
    print(f"{name}: fetching, unless it is here already (timm / Hugging Face) ...", file=sys.stderr, flush=True)
    try:
        return fetch()
    except Exception as error:
        gated = _GATED if "dinov3" in name.lower() else ""
        raise ValueError(
            f"{name}: its weights cannot be had ({_reason(error)}). {gated}Without a network: copy the file here and "
            "give it as backbone_weights=FILE (teacher_weights=FILE of a distillation); none in its place means random "
            "weights"
        ) from error


_GATED = (
    "DINOv3 is gated: accept its licence on the Hugging Face Hub and log in, or take dinov2-s or dinov2-b, which are "
    "free (Apache-2.0). "
)


def of_file(name: str, file: Path, read: Callable[[], Any]) -> Any:
    """What ``read`` returns, of a file that somebody gave."""
    try:
        return read()
    except Exception as error:
        raise ValueError(f"{file} does not hold the weights of {name} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def tensors(file: Path) -> dict[str, Tensor]:
    """The state dict in a file, without running code. Raises ``ValueError``."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    try:
        found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:
        raise ValueError("no checkpoint of plain tensors; anything else is refused because it could run code") from None
    inside = next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), dict)), found)
    return inside
