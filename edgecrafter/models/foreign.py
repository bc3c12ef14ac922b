"""Image backbones of others in the place of the ViT; ``libraries`` makes them by name, ``adopt`` of a module.

A backbone is named ``timm:NAME``, ``hf:OWNER/NAME`` (or a local folder), ``hf:{...}`` (the configuration itself, which
is what model files hold, so that they open without a network) or ``module:NAME`` (handed in from Python).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.types import IMAGENET_MEAN, IMAGENET_STD

LEVELS = (8, 16, 32)
"""strides that a detector reads from a hierarchical backbone"""

RANDOM, PRETRAINED = "none", "pretrained"
"""as ``weights``: none at all, or those of the library"""

Reader = Callable[[nn.Module, Tensor, int], list[Tensor]]
"""(network, images [B, 3, H, W], number of maps) -> the last maps, each [B, D, h, w], the deepest last"""


@dataclass(frozen=True)
class Facts:
    """What is known of a backbone besides its weights."""

    spec: str
    widths: tuple[int, ...]
    """channels of a map: one number for a plain ViT, three for the strides 8, 16, 32 of a hierarchy"""
    stride: int
    """input pixels per token of a plain ViT; 16 for a hierarchy"""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    licence: str = ""


def title(spec: str) -> str:
    """A backbone in a few words: without the configuration that a model file holds of one of Hugging Face's."""
    kind, _, name = spec.partition(":")
    if name.startswith("{"):
        config = json.loads(name)
        name = config.get("_name_or_path") or config["model_type"]
    return f"{kind}:{name}"


class Foreign(nn.Module):
    """A backbone of another library that answers as our ViT does.

    A plain ViT gives the maps of its last ``keep`` blocks, class and register tokens left out, passed through its own
    final norm unless told otherwise. A hierarchy gives its maps of stride 8, 16 and 32.
    """

    def __init__(self, network: nn.Module, read: Reader, facts: Facts, keep: int = 2) -> None:
        super().__init__()
        self.network = network
        self.read, self.facts, self.keep = read, facts, keep

    @property
    def plain(self) -> bool:
        """Whether all maps are of one size."""
        return len(self.facts.widths) == 1

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W], normalised -> maps on the grids of a detector: H / 16 x W / 16, or the three levels.

        For patches of another size than 16 the picture is resized first, so that the grids agree.
        """
        H, W = images.shape[2:]
        if self.plain and self.facts.stride != 16:
            size = (H // 16 * self.facts.stride, W // 16 * self.facts.stride)
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        maps = self.read(self.network, images, self.keep)
        if not self.plain:
            return maps  # a hierarchy's own: for sides that are no multiples of 32 they are rounded up
        return [_fitted(each, (H // 16, W // 16)) for each in maps]

    def features(self, images: Tensor, keep: int) -> list[Tensor]:
        """The last ``keep`` maps on the backbone's own grid, as a teacher gives them; of a hierarchy, the one of stride
        16. Sides that are no multiple of the patch are resized to the nearest one."""
        if not self.plain:
            return [self.read(self.network, images, 3)[1]]
        p = self.facts.stride
        size = tuple(max(1, round(side / p)) * p for side in images.shape[2:])
        if size != tuple(images.shape[2:]):
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        return self.read(self.network, images, keep)


def _fitted(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def adopt(module: nn.Module, keep: int = 2, side: int = 224) -> Foreign:
    """Any module: images [B, 3, H, W] -> a map [B, D, h, w], or a list of maps of which the last are the deepest.

    Its widths and strides are read from an answer to a gray picture of ``side`` pixels. Raises ``ValueError`` when the
    answer is nothing of this kind.
    """
    name = type(module).__name__
    try:
        with torch.no_grad(), evaluating(module):
            answer = module(torch.zeros(1, 3, side, side, device=_device(module)))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"{name} does not take a picture of {side} x {side} ({_reason(error)})") from error
    maps = _maps(answer, name)
    widths, strides = [x.shape[1] for x in maps], [side // x.shape[-1] for x in maps]
    if len(set(strides)) == 1:
        places, stride = None, strides[-1]
        widths, keep = widths[-1:], min(keep, len(maps))
    else:
        places, stride = chosen(strides, name), 16
        widths = [widths[i] for i in places]

    def read(network: nn.Module, images: Tensor, count: int) -> list[Tensor]:
        found = _maps(network(images), name)
        return last(found, count, name) if places is None else [found[i] for i in places]

    facts = Facts(f"module:{name}", tuple(widths), stride, licence="the module was handed in from Python")
    return Foreign(module, read, facts, keep)


def _maps(answer: object, name: str) -> list[Tensor]:
    """What a module answers, as a list of maps."""
    maps = [answer] if isinstance(answer, Tensor) else list(answer) if isinstance(answer, (list, tuple)) else []
    if not maps or any(not isinstance(x, Tensor) or x.dim() != 4 for x in maps):
        raise ValueError(f"{name}: expected a map [B, D, h, w] or a list of maps as its answer")
    return maps


def chosen(strides: Sequence[int], name: str) -> list[int]:
    """Which maps of a hierarchy are those of stride 8, 16 and 32, the deepest of each."""
    places = [max((i for i, s in enumerate(strides) if s == level), default=-1) for level in LEVELS]
    if -1 in places:
        raise ValueError(f"{name}: has maps of stride {list(strides)}; a detector needs one of each of 8, 16 and 32")
    return places


def last(maps: list[Tensor], count: int, name: str) -> list[Tensor]:
    """The last ``count`` of them. Raises ``ValueError`` when there are fewer."""
    enough(len(maps), count, name)
    return maps[len(maps) - count :]


def enough(there: int, count: int, name: str) -> None:
    """Raises ``ValueError`` when a network has fewer maps than ``count``."""
    if count > there:
        raise ValueError(f"{name}: gives {there} maps, {count} are asked for; use fewer blocks")


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def check(foreign: Foreign, least: int = 1) -> None:
    """Raises ``ValueError`` for a backbone that takes pictures of one size only, is not what its library says, or gives
    fewer maps than ``least``."""
    facts = foreign.facts
    try:
        with torch.no_grad(), evaluating(foreign):
            maps = foreign(_gray(foreign))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"{title(facts.spec)} does not take pictures of every size ({_reason(error)}); choose another one"
        ) from None
    widths = [x.shape[1] for x in maps]
    if foreign.plain and len(maps) < least:
        raise ValueError(f"{title(facts.spec)}: gives {len(maps)} map(s), {least} are to be joined; use fusion=mean")
    if set(widths) != set(facts.widths):
        raise ValueError(f"{title(facts.spec)}: gives maps of {widths} channels instead of {list(facts.widths)}")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode for a while; after it every part is in the mode that it had, which may differ between them."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _gray(foreign: Foreign) -> Tensor:
    """A small picture, wider than high."""
    side = 2 * max(foreign.facts.stride, 32)
    return torch.zeros(1, 3, side, 2 * side, device=_device(foreign))


def freeze_unused(foreign: Foreign) -> list[str]:
    """Stops the learning of parameters that no map depends on (mask tokens, norms that are switched off); their names.

    Found by a backward pass over a small gray picture, so that every trained parameter has a gradient in every step.
    """
    with evaluating(foreign):
        maps = foreign(_gray(foreign))
    total = torch.stack([x.sum() for x in maps]).sum()
    named = [(name, p) for name, p in foreign.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
    unused = [name for (name, _), gradient in zip(named, found, strict=True) if gradient is None]
    for name, parameter in named:
        if name in unused:
            parameter.requires_grad_(False)
    return unused
