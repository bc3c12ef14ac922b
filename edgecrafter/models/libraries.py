"""Backbones of timm and Hugging Face transformers by name, with random weights or those that the library fetches."""

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

from edgecrafter.models.foreign import PRETRAINED, RANDOM, Facts, Foreign, chosen, last
from edgecrafter.types import IMAGENET_MEAN, IMAGENET_STD


def build(spec: str, keep: int = 2, norm: bool = True, weights: str = RANDOM) -> Foreign:
    """The backbone of ``spec``; ``facts.spec`` of the result is enough to build it again without a network.

    ``weights``: ``none``, ``pretrained`` (fetched by the library that has it, once), or a file or folder with them.
    ``norm`` passes the maps of a plain ViT through its final norm. Raises ``ValueError`` for an unknown name, and with
    the remedies when the weights cannot be fetched.
    """
    kind, _, name = spec.partition(":")
    if kind not in _BUILDERS:
        raise ValueError(f"backbone {spec!r}: expected timm:NAME, hf:OWNER/NAME, or a name of `edgecrafter models`")
    return _BUILDERS[kind](name, keep, norm, weights)


def _timm(name: str, keep: int, norm: bool, weights: str) -> Foreign:
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
    network = _timm_network(name, options, weights)
    cfg = timm.get_pretrained_cfg(name).to_dict()
    mean, std = (tuple(cfg.get(key) or default) for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)))
    licence = f"{name}: {cfg.get('license') or 'licence not stated by timm'}"
    if plain:
        return Foreign(
            network, _timm_reader(norm), Facts(f"timm:{name}", (widths[-1],), strides[-1], mean, std, licence), keep
        )
    places = chosen(strides, name)
    facts = Facts(f"timm:{name}", tuple(widths[i] for i in places), 16, mean, std, licence)
    return Foreign(network, _timm_levels(places), facts, keep)


_PLAIN = {"num_classes": 0, "dynamic_img_size": True}
"""pooling and classifier are left out; positions follow the size of the picture"""


def _timm_network(name: str, options: dict[str, Any], weights: str) -> Any:
    import timm

    def create(**more: Any) -> Any:
        return _tolerant(timm.create_model, name, **options, **more)

    if weights == RANDOM:
        return create(pretrained=False)
    if weights == PRETRAINED:
        return _fetched(f"timm:{name}", lambda: create(pretrained=True))
    file = _existing(weights)

    def read() -> Any:
        tensors = _tensors(file)
        _whole(name, tensors)
        return create(pretrained=True, pretrained_cfg_overlay={"state_dict": tensors})

    return _of_file(f"timm:{name}", file, read)


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


def _timm_reader(norm: bool) -> Callable[[nn.Module, Tensor, int], list[Tensor]]:
    def read(network: nn.Module, images: Tensor, count: int) -> list[Tensor]:
        found: list[Tensor] = network.forward_intermediates(  # type: ignore[operator]
            images, indices=count, norm=norm, output_fmt="NCHW", intermediates_only=True
        )
        return found

    return read


def _timm_levels(places: Sequence[int]) -> Callable[[nn.Module, Tensor, int], list[Tensor]]:
    def read(network: nn.Module, images: Tensor, count: int) -> list[Tensor]:
        last_axis = str(getattr(network, "output_fmt", "")).endswith("NHWC")
        maps = network(images)
        return [maps[i].permute(0, 3, 1, 2) if last_axis else maps[i] for i in places]

    return read


def _transformers(name: str, keep: int, norm: bool, weights: str) -> Foreign:
    try:
        from transformers import AutoConfig
    except ImportError:
        raise ValueError(f"hf:{name} needs the package transformers: pip install 'edgecrafter[hf]'") from None
    folder = None if weights in (RANDOM, PRETRAINED) else _existing(weights)
    source = str(folder) if folder is not None and folder.is_dir() else name
    if name.startswith("{"):
        config = AutoConfig.for_model(**json.loads(name))
        title = config._name_or_path
        source = source if source != name else title if weights == PRETRAINED else ""
    else:
        config = _fetched(f"hf:{name}", lambda: AutoConfig.from_pretrained(source))
        title = name
    network = _hf_network(config, source, weights, title)
    title = Path(title).name if Path(title).exists() else title  # no path of this machine in a model file
    content = {"model_type": config.model_type} | config.to_diff_dict() | {"_name_or_path": title}
    spec = "hf:" + json.dumps({key: value for key, value in content.items() if key not in _HF_NOISE}, default=str)
    mean, std = _hf_statistics(source, weights)
    licence = f"{title}: see its page on the Hugging Face Hub"
    maps = _hf_maps(network)
    if maps:
        places = chosen([stride for _, stride in maps], title)
        widths = tuple(maps[i][0] for i in places)
        return Foreign(network, _hf_levels(places), Facts(spec, widths, 16, mean, std, licence), keep)
    if not hasattr(config, "patch_size"):
        raise ValueError(f"hf:{title}: neither a plain ViT nor a network with maps of several strides")
    patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    facts = Facts(spec, (config.hidden_size,), patch, mean, std, licence)
    return Foreign(network, _hf_reader(patch, norm, title), facts, keep)


def _hf_maps(network: nn.Module, side: int = 224) -> list[tuple[int, int]]:
    """Channels and stride of every map that a hierarchical network shows of its inside; nothing for a plain ViT.

    Found on a copy without memory, since configurations do not say it in one way.
    """
    shadow = copy.deepcopy(network).to("meta").eval()
    answer = shadow(torch.zeros(1, 3, side, side, device="meta"), output_hidden_states=True)
    return [(x.shape[1], side // x.shape[-1]) for x in _hf_states(answer) if x.dim() == 4]


def _hf_states(answer: Any) -> Sequence[Tensor]:
    """Maps [B, D, h, w], where the network has them; else tokens."""
    return getattr(answer, "reshaped_hidden_states", None) or answer.hidden_states  # type: ignore[no-any-return]


def _hf_levels(places: Sequence[int]) -> Callable[[nn.Module, Tensor, int], list[Tensor]]:
    def read(network: nn.Module, images: Tensor, count: int) -> list[Tensor]:
        maps = [x for x in _hf_states(network(images, output_hidden_states=True)) if x.dim() == 4]
        return [maps[i] for i in places]

    return read


_HF_NOISE = ("transformers_version", "architectures", "dtype", "torch_dtype")
_NOT_READ = ("pooler.",)
"""parts of a network that no map depends on: files may lack them"""


def _hf_network(config: Any, source: str, weights: str, title: str) -> nn.Module:
    """The network of a configuration; weights from a file, or from ``source``, a folder or a name of the Hub."""
    from transformers import AutoModel

    if weights == RANDOM:
        network: nn.Module = AutoModel.from_config(config)
        return network
    file = None if weights == PRETRAINED else _existing(weights)

    def fetch() -> Any:
        if file is None or file.is_dir():
            return AutoModel.from_pretrained(source, config=config, output_loading_info=True)
        with torch.device("meta"):
            kind: Any = type(AutoModel.from_config(config))
        return kind.from_pretrained(None, config=config, state_dict=_tensors(file), output_loading_info=True)

    network, told = _fetched(f"hf:{title}", fetch) if file is None else _of_file(f"hf:{title}", file, fetch)
    missing = sorted(key for key in told["missing_keys"] if not key.startswith(_NOT_READ))
    if missing:
        raise ValueError(f"hf:{title}: {len(missing)} entries are missing in its weights, for example {missing[0]}")
    return network


def _tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    try:
        found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:
        raise ValueError("no checkpoint of plain tensors; anything else is refused because it could run code") from None
    inside = next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), dict)), found)
    return inside


def _hf_statistics(source: str, weights: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
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


def _hf_reader(patch: int, norm: bool, title: str) -> Callable[[nn.Module, Tensor, int], list[Tensor]]:
    def read(network: nn.Module, images: Tensor, count: int) -> list[Tensor]:
        takes_any_size = "interpolate_pos_encoding" in inspect.signature(network.forward).parameters
        extra = {"interpolate_pos_encoding": True} if takes_any_size else {}
        states = network(images, output_hidden_states=True, **extra).hidden_states
        final = getattr(network, "layernorm", None) or getattr(network, "norm", None)
        h, w = images.shape[2] // patch, images.shape[3] // patch
        maps = []
        for tokens in last(list(states[1:]), count, title):
            tokens = final(tokens) if norm and final is not None else tokens
            maps.append(tokens[:, tokens.shape[1] - h * w :].transpose(1, 2).unflatten(2, (h, w)))
        return maps

    return read


def _module(name: str, *_: Any) -> Foreign:
    raise ValueError(
        f"this model was built around a module from Python ({name}), which a file cannot hold: hand it in again, "
        "edgecrafter.load(file, backbone=module)"
    )


_BUILDERS: dict[str, Callable[[str, int, bool, str], Foreign]] = {
    "timm": _timm,
    "hf": _transformers,
    "module": _module,
}


def _existing(weights: str) -> Path:
    path = Path(weights).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"backbone_weights={weights}: no such file; expected pretrained, none or a file")
    return path


def _fetched(name: str, fetch: Callable[[], Any]) -> Any:
    """What ``fetch`` returns; whatever goes wrong becomes one error with the remedies."""
    try:
        return fetch()
    except Exception as error:
        raise ValueError(
            f"{name}: its weights cannot be had ({_reason(error)}). DINOv3 is gated: accept its licence on the Hugging "
            "Face Hub and log in, or take dinov2-s or dinov2-b, which are free (Apache-2.0). Without a network: copy "
            "the file here and give it as backbone_weights=FILE. backbone_weights=none starts from random weights"
        ) from error


def _of_file(name: str, file: Path, read: Callable[[], Any]) -> Any:
    """What ``read`` returns, of a file that somebody gave."""
    try:
        return read()
    except Exception as error:
        raise ValueError(f"{file} does not hold the weights of {name} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__
