"""Image backbones of Hugging Face transformers."""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgecrafter.models import fetch
from edgecrafter.models.foreign import PRETRAINED, RANDOM, Facts, Foreign, chosen, last
from edgecrafter.types import IMAGENET_MEAN, IMAGENET_STD


def build(name: str, keep: int, norm: bool, weights: str) -> Foreign:
    """See ``libraries.build``; ``name`` is OWNER/NAME, a folder, or a configuration as JSON.

    Of a network of pictures and words (CLIP, SigLIP) the part that sees is taken.
    """
    try:
        from transformers import AutoConfig
    except ImportError:
        raise ValueError(f"hf:{name} needs the package transformers: pip install 'edgecrafter[hf]'") from None
    folder = None if weights in (RANDOM, PRETRAINED) else fetch.existing(weights)
    source = str(folder) if folder is not None and folder.is_dir() else name
    if name.startswith("{"):
        config = AutoConfig.for_model(**json.loads(name))
        title = config._name_or_path
        source = source if source != name else title if weights == PRETRAINED else ""
    else:
        config = fetch.fetched(f"hf:{name}", lambda: AutoConfig.from_pretrained(source))
        config = getattr(config, "vision_config", config)
        title = name
    network = _network(config, source, weights, title)
    title = Path(title).name if Path(title).exists() else title  # no path of this machine in a model file
    content = {"model_type": config.model_type} | config.to_diff_dict() | {"_name_or_path": title}
    spec = "hf:" + json.dumps({key: value for key, value in content.items() if key not in _NOISE}, default=str)
    mean, std = _statistics(source, weights)
    licence = f"{title}: see its page on the Hugging Face Hub"
    maps = _maps(network)
    if maps:
        places = chosen([stride for _, stride in maps], title)
        widths = tuple(maps[i][0] for i in places)
        return Foreign(network, _levels(places), Facts(spec, widths, 16, mean, std, licence), keep)
    if not hasattr(config, "patch_size"):
        raise ValueError(f"hf:{title}: neither a plain ViT nor a network with maps of several strides")
    patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    facts = Facts(spec, (config.hidden_size,), patch, mean, std, licence)
    return Foreign(network, _reader(network, patch, norm, title), facts, keep)


def _maps(network: nn.Module, side: int = 224) -> list[tuple[int, int]]:
    """Channels and stride of every map that a hierarchical network shows of its inside; nothing for a plain ViT.

    Found on a copy without memory, since configurations do not say it in one way.
    """
    shadow = copy.deepcopy(network).to("meta").eval()
    states = _states(shadow, torch.zeros(1, 3, side, side, device="meta"))
    return [(x.shape[1], side // x.shape[-1]) for x in states if x.dim() == 4]


def _states(network: nn.Module, images: Tensor) -> Sequence[Tensor]:
    """Maps [B, D, h, w] from every depth, where the network has them; else tokens [B, N, D]."""
    takes_any_size = "interpolate_pos_encoding" in inspect.signature(network.forward).parameters
    extra = {"interpolate_pos_encoding": True} if takes_any_size else {}
    answer = network(images, output_hidden_states=True, **extra)
    return getattr(answer, "reshaped_hidden_states", None) or answer.hidden_states  # type: ignore[no-any-return]


def _levels(places: Sequence[int]) -> Callable[[nn.Module, Tensor, int], list[Tensor]]:
    def read(network: nn.Module, images: Tensor, count: int) -> list[Tensor]:
        maps = [x for x in _states(network, images) if x.dim() == 4]
        return [maps[i] for i in places]

    return read


_NOISE = ("transformers_version", "architectures", "dtype", "torch_dtype")
_NOT_READ = ("pooler.", "head.")
"""parts of a network that no map depends on: files may lack them"""


def _network(config: Any, source: str, weights: str, title: str) -> nn.Module:
    """The network of a configuration; weights from a file, or from ``source``, a folder or a name of the Hub."""
    from transformers import AutoModel

    if weights == RANDOM:
        network: nn.Module = AutoModel.from_config(config)
        return network
    file = None if weights == PRETRAINED else fetch.existing(weights)

    def read() -> Any:
        if file is None or file.is_dir():
            return AutoModel.from_pretrained(source, config=config, output_loading_info=True)
        with torch.device("meta"):
            kind: Any = type(AutoModel.from_config(config))
        return kind.from_pretrained(None, config=config, state_dict=fetch.tensors(file), output_loading_info=True)

    network, told = fetch.fetched(f"hf:{title}", read) if file is None else fetch.of_file(f"hf:{title}", file, read)
    missing = sorted(key for key in told["missing_keys"] if not key.startswith(_NOT_READ))
    if missing:
        raise ValueError(f"hf:{title}: {len(missing)} entries are missing in its weights, for example {missing[0]}")
    return network


def _statistics(source: str, weights: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation that its pictures are normalised with, of its ``preprocessor_config.json``."""
    from transformers.utils import cached_file

    if not source:  # made from a configuration alone
        return IMAGENET_MEAN, IMAGENET_STD
    try:
        content = json.loads(Path(cached_file(source, "preprocessor_config.json") or "").read_text(encoding="utf-8"))
        mean, std = tuple(content["image_mean"]), tuple(content["image_std"])
    except (OSError, KeyError):
        if weights != RANDOM:
            warnings.warn(
                f"hf:{source} does not say how pictures are normalised: ImageNet's way is taken", stacklevel=2
            )
        return IMAGENET_MEAN, IMAGENET_STD
    return mean, std


_NORMS = ("layernorm", "norm", "post_layernorm")
"""what networks call their final norm"""


def _reader(network: nn.Module, patch: int, norm: bool, title: str) -> Callable[[nn.Module, Tensor, int], list[Tensor]]:
    """The last maps of a plain ViT, behind its final norm if ``norm``.

    CLIP itself puts the class token alone through that norm, SigLIP all tokens. Here all tokens go through it in both:
    they live in the same residual stream, whose few very large channels would otherwise be most of a squared error, and
    timm reads the same weights in this way.
    """
    behind = next((name for name in _NORMS if isinstance(getattr(network, name, None), nn.Module)), "") if norm else ""
    if norm and not behind:
        warnings.warn(f"hf:{title} has no final norm: its blocks are read as they are", stacklevel=2)

    def read(network: nn.Module, images: Tensor, count: int) -> list[Tensor]:
        states = _states(network, images)
        final = network.get_submodule(behind) if behind else nn.Identity()
        h, w = images.shape[2] // patch, images.shape[3] // patch
        maps = []
        for tokens in last(list(states[1:]), count, title):
            tokens = final(tokens)
            maps.append(tokens[:, tokens.shape[1] - h * w :].transpose(1, 2).unflatten(2, (h, w)))
        return maps

    return read
