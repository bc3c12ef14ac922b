"""What is exported of a network: its inputs and outputs by name.

B images, Q queries, C classes, K keypoints, N detections, D width, h x w cells of the masks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgecrafter.export.forms import deployable
from edgecrafter.export.npu import npu
from edgecrafter.export.parts import Graph, Part, examples
from edgecrafter.geometry import boxes as box_ops
from edgecrafter.hub import ModelInfo
from edgecrafter.infer import TOP_K
from edgecrafter.models.network import Detector
from edgecrafter.types import LayerOutput, MaskMap


class Raw(nn.Module):
    """Images float32 [B, 3, H, W], RGB in 0..1 -> what the last layer says.

    ``logits`` [B, Q, C], ``boxes`` [B, Q, 4] cxcywh in 0..1, ``keypoints`` [B, Q, K, 2] in 0..1, ``mask_queries``
    [B, Q, D] and ``mask_pixels`` [B, D, h, w], as far as the network has them. Where pictures are padded, ``valid``
    [B, H, W] is 1 on them and 0 elsewhere.
    """

    def __init__(self, network: Detector, info: ModelInfo) -> None:
        super().__init__()
        self.network = deployable(network)
        self.register_buffer("mean", torch.tensor(info.input.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(info.input.std).view(1, 3, 1, 1))

    def answer(self, images: Tensor, valid: Tensor | None = None) -> LayerOutput:
        """The last layer."""
        images = (images - self.mean) / self.std  # type: ignore[operator]
        if valid is None:
            return self.network(images).layers[-1]  # type: ignore[no-any-return]
        return self.network(images * valid[:, None], valid=valid > 0.5).layers[-1]  # type: ignore[no-any-return]

    def forward(self, images: Tensor, valid: Tensor | None = None) -> tuple[Tensor, ...]:
        return tuple(named(self.answer(images, valid)).values())


def named(layer: LayerOutput) -> dict[str, Tensor]:
    """The tensors of a layer under the names of the outputs of ``raw``."""
    found = {"logits": layer.logits, "boxes": layer.boxes, "keypoints": layer.keypoints}
    if layer.masks is not None:
        found |= {"mask_queries": layer.masks.queries, "mask_pixels": layer.masks.pixels}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


class Full(Raw):
    """Images as ``Raw`` takes them -> the best N pairs of query and class, best first.

    ``scores`` [B, N] in 0..1, ``labels`` [B, N] int64, ``boxes`` [B, N, 4] xyxy in 0..1 of the picture, not clipped,
    ``keypoints`` [B, N, K, 2] in 0..1, ``masks`` [B, N, h, w] logits, as far as the network has them. The same choice
    as ``postprocess.decode``; labels that stand for no class do not appear.
    """

    def __init__(self, network: Detector, info: ModelInfo, top_k: int = TOP_K) -> None:
        super().__init__(network, info)
        self.top_k = top_k
        self.register_buffer("used", torch.tensor(info.labels.used))
        owned = info.labels.owned()
        self.register_buffer("owned", owned)

    def forward(self, images: Tensor, valid: Tensor | None = None) -> tuple[Tensor, ...]:
        return tuple(self.chosen(self.answer(images, valid)).values())

    def chosen(self, layer: LayerOutput) -> dict[str, Tensor]:
        """The detections of a layer by name."""
        used: Tensor = self.used  # type: ignore[assignment]
        logits = layer.logits if len(used) == layer.logits.shape[-1] else layer.logits[..., used]
        Q, C = logits.shape[1:]
        scores, flat = logits.float().sigmoid().flatten(1).topk(min(self.top_k, Q * C))
        queries, labels = flat // C, flat % C
        labels = labels if layer.logits.shape[-1] == C else used[labels]
        found = {"scores": scores, "labels": labels}
        if layer.keypoints is not None:
            points = _rows(layer.keypoints.float().flatten(2), queries).unflatten(-1, (-1, 2))  # type: ignore[no-untyped-call]
            owned = None if self.owned is None else self.owned[labels][..., None]  # type: ignore[index]
            found["boxes"] = _extent(points, owned)
            found["keypoints"] = points if owned is None else points * owned
        if layer.boxes is not None:
            found["boxes"] = _rows(box_ops.cxcywh_to_xyxy(layer.boxes.float()), queries)
        if layer.masks is not None:
            picked = MaskMap(_rows(layer.masks.queries, queries), layer.masks.pixels, layer.masks.bias)
            found["masks"] = picked.dense()
        return found


def _rows(values: Tensor, queries: Tensor) -> Tensor:
    """Rows of [B, Q, X] at [B, N] -> [B, N, X]."""
    return values.gather(1, queries[..., None].expand(-1, -1, values.shape[-1]))


def _extent(points: Tensor, owned: Tensor | None) -> Tensor:
    """The boxes xyxy [B, N, 4] around keypoints [B, N, K, 2], of those only that ``owned`` [B, N, K, 1] says."""
    low, high = points, points
    if owned is not None:  # beyond every coordinate; infinity would not survive half precision everywhere
        low, high = torch.where(owned, points, 1e4), torch.where(owned, points, -1e4)
    return torch.cat([low.amin(-2), high.amax(-2)], dim=-1)


def graph(network: Detector, info: ModelInfo, kind: str, size: tuple[int, int], batch: int | None = 1) -> Graph:
    """What ``export`` writes: ``kind`` is raw, full or npu; ``size`` (height, width) in pixels; ``batch`` None: any.

    Raises ValueError for a kind that the network does not have.
    """
    if kind not in GRAPHS:
        raise ValueError(f"graph={kind!r} is not known: use one of {', '.join(GRAPHS)}")
    return GRAPHS[kind](network, info, size, batch)


def _raw(network: Detector, info: ModelInfo, size: tuple[int, int], batch: int | None) -> Graph:
    module, inputs = Raw(network, info).eval(), examples(info, size, batch)
    with torch.inference_mode():
        layer = module.answer(*inputs.values())
    facts = {} if layer.masks is None else {"mask_bias": float(layer.masks.bias)}
    return Graph("raw", [Part("model", module, inputs, tuple(named(layer)))], batch is None, facts)


def _full(network: Detector, info: ModelInfo, size: tuple[int, int], batch: int | None) -> Graph:
    module, inputs = Full(network, info).eval(), examples(info, size, batch)
    with torch.inference_mode():
        found = module.chosen(module.answer(*inputs.values()))
    return Graph(
        "full", [Part("model", module, inputs, tuple(found))], batch is None, {"top_k": len(found["scores"][0])}
    )


GRAPHS: dict[str, Callable[[Detector, ModelInfo, tuple[int, int], int | None], Graph]] = {
    "full": _full,
    "raw": _raw,
    "npu": npu,
}
