"""Image backbones of other libraries in the place of the ViT: timm, Hugging Face transformers, or any module.

A backbone is named ``timm:NAME``, ``hf:OWNER/NAME`` (or a local folder), ``hf:{...}`` (the configuration itself, which
is what model files hold, so that they open without a network) or ``module:NAME`` (handed in from Python).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.types import IMAGENET_MEAN, IMAGENET_STD

LEVELS = (8, 16, 32)
"""strides that a detector reads from a hierarchical backbone"""
RANDOM = "none"
"""as ``weights``: no pretrained weights"""

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
        wanted = [(H // s, W // s) for s in ([16] * len(maps) if self.plain else LEVELS)]
        return [_fitted(each, size) for each, size in zip(maps, wanted, strict=True)]

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


def adopt(module: nn.Module, keep: int = 2, side: int = 224) -> Foreign:
    """Any module: images [B, 3, H, W] -> a map [B, D, h, w], or a list of maps of which the last are the deepest.

    Its widths and strides are read from an answer to a gray picture of ``side`` pixels. Raises ``ValueError`` when the
    answer is nothing of this kind.
    """
    training = module.training
    with torch.no_grad():
        answer = module.eval()(torch.zeros(1, 3, side, side, device=_device(module)))
    module.train(training)
    maps = [answer] if isinstance(answer, Tensor) else list(answer)
    if not maps or any(not isinstance(x, Tensor) or x.dim() != 4 for x in maps):
        raise ValueError(f"{type(module).__name__}: expected a map [B, D, h, w] or a list of maps as its answer")
    strides = [side // x.shape[-1] for x in maps]
    widths, stride, read = _shape_of([x.shape[1] for x in maps], strides, type(module).__name__)

    def last(network: nn.Module, images: Tensor, count: int) -> list[Tensor]:
        found = network(images)
        return read([found] if isinstance(found, Tensor) else list(found), count)

    facts = Facts(f"module:{type(module).__name__}", widths, stride, licence="the module was handed in from Python")
    return Foreign(module, last, facts, keep)


def _shape_of(
    widths: Sequence[int], strides: Sequence[int], name: str
) -> tuple[tuple[int, ...], int, Callable[[list[Tensor], int], list[Tensor]]]:
    """Widths, stride, and which of its maps are wanted: plain if all strides are equal, else strides 8, 16, 32."""
    if len(set(strides)) == 1:
        return (widths[-1],), strides[-1], lambda maps, count: _last(maps, count, name)
    places = [max((i for i, s in enumerate(strides) if s == level), default=-1) for level in LEVELS]
    if -1 in places:
        raise ValueError(f"{name}: has maps of stride {list(strides)}; a detector needs one of each of 8, 16 and 32")
    return tuple(widths[i] for i in places), 16, lambda maps, _count: [maps[i] for i in places]


def _last(maps: list[Tensor], count: int, name: str) -> list[Tensor]:
    if count > len(maps):
        raise ValueError(f"{name}: gives {len(maps)} maps, {count} are asked for; use fewer blocks")
    return maps[len(maps) - count :]


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _timm(name: str, keep: int, norm: bool, weights: str) -> Foreign:
    import timm

    options: dict[str, Any] = {"pretrained": weights != RANDOM}
    if weights not in (RANDOM, "pretrained"):
        options["pretrained_cfg_overlay"] = {"file": str(Path(weights).expanduser())}
    if not timm.is_model(name.partition(".")[0]):
        near = timm.list_models(f"*{name.partition('.')[0].replace('_', '*')}*")[:5]
        raise ValueError(f"timm has no model {name!r}{', has ' + ', '.join(near) if near else ''}")
    with torch.device("meta"):
        info = timm.create_model(name).feature_info
    rows = [(row["num_chs"], row["reduction"]) for row in info]
    plain = len({stride for _, stride in rows}) == 1
    create = _PLAIN if plain else {"features_only": True, "out_indices": tuple(range(len(rows)))}
    network = _fetched(f"timm:{name}", lambda: _tolerant(timm.create_model, name, **options, **create))
    cfg = network.pretrained_cfg if plain else network.feature_info.__dict__.get("pretrained_cfg", {})
    cfg = cfg or timm.get_pretrained_cfg(name).to_dict()
    if plain:
        widths: tuple[int, ...] = (rows[-1][0],)
        stride = rows[-1][1]

        def read(net: nn.Module, images: Tensor, count: int) -> list[Tensor]:
            found: list[Tensor] = net.forward_intermediates(  # type: ignore[operator]
                images, indices=count, norm=norm, output_fmt="NCHW", intermediates_only=True
            )
            return found
    else:
        widths, stride, choose = _shape_of(network.feature_info.channels(), network.feature_info.reduction(), name)
        last_axis = str(getattr(network, "output_fmt", "")).endswith("NHWC")

        def read(net: nn.Module, images: Tensor, count: int) -> list[Tensor]:
            maps = [x.permute(0, 3, 1, 2) if last_axis else x for x in net(images)]
            return choose(maps, count)

    mean, std = (tuple(cfg.get(key) or default) for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)))
    licence = f"{name}: {cfg.get('license') or 'licence not stated by timm'}"
    return Foreign(network, read, Facts(f"timm:{name}", widths, stride, mean, std, licence), keep)  # type: ignore[arg-type]


_PLAIN = {"num_classes": 0, "dynamic_img_size": True}
"""pooling and classifier are left out; positions follow the size of the picture"""


def _tolerant(create: Callable[..., Any], name: str, **options: Any) -> Any:
    """Networks that take every size anyway do not know ``dynamic_img_size``."""
    try:
        return create(name, **options)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        return create(name, **{key: value for key, value in options.items() if key != "dynamic_img_size"})


def _transformers(name: str, keep: int, norm: bool, weights: str) -> Foreign:
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError:
        raise ValueError(f"hf:{name} needs the package transformers: pip install 'edgecrafter[hf]'") from None
    source = name if weights in (RANDOM, "pretrained") else str(Path(weights).expanduser())
    if name.startswith("{"):
        config = AutoConfig.for_model(**json.loads(name))
    else:
        config = _fetched(f"hf:{name}", lambda: AutoConfig.from_pretrained(source))
    if weights == RANDOM:
        network = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    else:
        network = _fetched(f"hf:{name}", lambda: AutoModel.from_pretrained(source, config=config))
    title = json.loads(name).get("_name_or_path", "hf") if name.startswith("{") else name
    takes_any_size = "interpolate_pos_encoding" in inspect.signature(network.forward).parameters
    final = next((getattr(network, key) for key in ("layernorm", "norm") if hasattr(network, key)), None)
    if not hasattr(config, "patch_size") or isinstance(getattr(config, "hidden_size", None), (list, type(None))):
        raise ValueError(f"hf:{title}: only plain ViTs are read from transformers; timm has the hierarchical ones")
    patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]

    def read(net: nn.Module, images: Tensor, count: int) -> list[Tensor]:
        extra = {"interpolate_pos_encoding": True} if takes_any_size else {}
        states = net(images, output_hidden_states=True, **extra).hidden_states
        h, w = images.shape[2] // patch, images.shape[3] // patch
        maps = []
        for tokens in _last(list(states[1:]), count, title):
            tokens = final_of(net)(tokens) if norm and final is not None else tokens
            maps.append(tokens[:, tokens.shape[1] - h * w :].transpose(1, 2).unflatten(2, (h, w)))
        return maps

    def final_of(net: nn.Module) -> nn.Module:  # of a copy, too
        return net.layernorm if hasattr(net, "layernorm") else net.norm  # type: ignore[return-value]

    title = Path(title).name if Path(title).exists() else title  # no path of this machine in a model file
    content = {"model_type": config.model_type} | config.to_diff_dict() | {"_name_or_path": title}
    spec = "hf:" + json.dumps({key: value for key, value in content.items() if key not in _HF_NOISE}, default=str)
    facts = Facts(spec, (config.hidden_size,), patch, licence=f"{title}: see its page on the Hugging Face Hub")
    return Foreign(network, read, facts, keep)


_HF_NOISE = ("transformers_version", "architectures", "dtype", "torch_dtype")


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


def _fetched(name: str, fetch: Callable[[], Any]) -> Any:
    """What ``fetch`` returns; whatever goes wrong becomes one error with the remedies."""
    try:
        return fetch()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{name}: its weights cannot be had ({reason}). DINOv3 is gated: accept its licence on the Hugging Face "
            "Hub and log in, or take dinov2-s or dinov2-b, which are free (Apache-2.0). Without a network: copy the "
            "file here and give it as backbone_weights=FILE. backbone_weights=none starts from random weights"
        ) from error


def freeze_unused(foreign: Foreign) -> list[str]:
    """Stops the learning of parameters that no map depends on (mask tokens, norms that are switched off); their names.

    Found by a backward pass over a small gray picture, so that every trained parameter has a gradient in every step.
    """
    side = 4 * max(foreign.facts.stride, 16)
    training = foreign.training
    try:
        maps = foreign.eval()(torch.zeros(1, 3, side, side, device=_device(foreign)))
    except AssertionError as error:
        raise ValueError(f"{foreign.facts.spec} does not take every size ({error}); choose another") from None
    total = torch.stack([x.sum() for x in maps]).sum()
    named = [(name, p) for name, p in foreign.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
    unused = [name for (name, _), gradient in zip(named, found, strict=True) if gradient is None]
    for name, parameter in named:
        if name in unused:
            parameter.requires_grad_(False)
    foreign.train(training)
    return unused
