"""Image backbones of timm."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgecrafter.models import fetch
from edgecrafter.models.foreign import PRETRAINED, RANDOM, Facts, Foreign, chosen, enough
from edgecrafter.types import IMAGENET_MEAN, IMAGENET_STD


def build(name: str, keep: int, norm: bool, weights: str) -> Foreign:
    """See ``libraries.build``; ``name`` as timm has it, perhaps with the tag of its weights."""
    import timm

    known, _, tag = name.partition(".")
    if not timm.is_model(known):
        near = timm.list_models(f"*{known.replace('_', '*')}*")[:5]
        raise ValueError(f"timm has no model {name!r}{', has ' + ', '.join(near) if near else ''}")
    if tag and name not in timm.list_pretrained(f"{known}.*"):
        raise ValueError(f"timm has no weights {tag!r} of {known}, has {', '.join(timm.list_pretrained(f'{known}.*'))}")
    with torch.device("meta"):
        rows = timm.create_model(name).feature_info
    widths, strides = [row["num_chs"] for row in rows], [row["reduction"] for row in rows]
    plain = len(set(strides)) == 1
    options: dict[str, Any] = _PLAIN if plain else {"features_only": True, "out_indices": tuple(range(len(rows)))}
    network = _network(name, options, weights)
    cfg = timm.get_pretrained_cfg(name).to_dict()
    mean, std = (tuple(cfg.get(key) or default) for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)))
    licence = f"{name}: {cfg.get('license') or 'licence not stated by timm'}"
    if plain:
        facts = Facts(f"timm:{name}", (widths[-1],), strides[-1], mean, std, licence)
        return Foreign(network, _reader(network, norm, facts.spec), facts, keep)
    places = chosen(strides, name)
    facts = Facts(f"timm:{name}", tuple(widths[i] for i in places), 16, mean, std, licence)
    return Foreign(network, _levels(places), facts, keep)


_PLAIN = {"num_classes": 0, "dynamic_img_size": True}
"""pooling and classifier are left out; positions follow the size of the picture"""


def _network(name: str, options: dict[str, Any], weights: str) -> Any:
    import timm

    def create(**more: Any) -> Any:
        return _tolerant(timm.create_model, name, **options, **more)

    if weights == RANDOM:
        return create(pretrained=False)
    if weights == PRETRAINED:
        return fetch.fetched(f"timm:{name}", lambda: create(pretrained=True))
    file = fetch.existing(weights)

    def read() -> Any:
        tensors = fetch.tensors(file)
        _whole(name, tensors)
        return create(pretrained=True, pretrained_cfg_overlay={"state_dict": tensors})

    return fetch.of_file(f"timm:{name}", file, read)


def _whole(name: str, tensors: dict[str, Tensor]) -> None:
    """An error unless these are all weights of a network, but for its classifier: without that timm takes what fits."""
    import timm

    network = timm.create_model(name)
    heads = tuple(f"{head}." for head in _names(timm.get_pretrained_cfg(name).classifier))
    own = {key: value for key, value in network.state_dict().items() if key.startswith(heads)}
    timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": {**tensors, **own}})


def _names(given: str | Sequence[str] | None) -> Sequence[str]:
    return [given] if isinstance(given, str) else given or []


def _tolerant(create: Callable[..., Any], name: str, **options: Any) -> Any:
    """Networks that take every size anyway do not know ``dynamic_img_size``."""
    try:
        return create(name, **options)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        return create(name, **{key: value for key, value in options.items() if key != "dynamic_img_size"})


def _reader(network: nn.Module, norm: bool, title: str) -> Callable[[nn.Module, Tensor, int], list[Tensor]]:
    """The last maps of a plain ViT, behind its final norm if ``norm``.

    Networks made for the mean of their tokens (EVA-02, BEiT v2) have that norm behind the mean, as ``fc_norm``; here it
    is applied to every token.
    """
    late = norm and not _learns(network, "norm") and _learns(network, "fc_norm")
    if norm and not late and not _learns(network, "norm"):
        warnings.warn(f"{title} has no final norm: its blocks are read as they are", stacklevel=2)

    def read(network: Any, images: Tensor, count: int) -> list[Tensor]:
        enough(len(network.feature_info), count, title)
        found: list[Tensor] = network.forward_intermediates(
            images, indices=count, norm=norm, output_fmt="NCHW", intermediates_only=True
        )
        return [network.fc_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for x in found] if late else found

    return read


def _learns(network: nn.Module, name: str) -> bool:
    """Whether a network has a part of this name that is not there for the form only."""
    return not isinstance(getattr(network, name, None), (nn.Identity, type(None)))


def _levels(places: Sequence[int]) -> Callable[[nn.Module, Tensor, int], list[Tensor]]:
    def read(network: nn.Module, images: Tensor, count: int) -> list[Tensor]:
        last_axis = str(getattr(network, "output_fmt", "")).endswith("NHWC")
        maps = network(images)
        return [maps[i].permute(0, 3, 1, 2) if last_axis else maps[i] for i in places]

    return read
