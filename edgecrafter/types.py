"""The few dataclasses that the parts of the package exchange.

Letters used in shapes: B images, N objects of one image, Q queries, K keypoints, C classes, G queries of a group,
L pyramid levels, D width, h x w cells of a map, H x W pixels of the network input.

Boxes are ``cxcywh`` in 0..1 of the picture as it lies in the network input inside the network, and ``xyxy`` in pixels
outside of it; a name that breaks this rule says so. The picture fills the input, but for padding (``Batch.valid``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from edgecrafter.geometry.keypoints import default_sigmas
from edgecrafter.geometry.numbers import on_device
from edgecrafter.geometry.runs import Runs
from edgecrafter.geometry.sides import FRAME, KEEP, RESIZES, STRETCH, fitted, framed

T = TypeVar("T")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Skeleton:
    """What the data say of the keypoints of one object; indices are 0-based.

    ``flip_pairs`` are the pairs that a mirror swaps; ``sigmas`` are the tolerances of OKS, one for each keypoint
    (empty: COCO's for 17 keypoints, else ``geometry.keypoints.SIGMA`` for all). Raises ``ValueError`` for an index or a
    number of sigmas that does not fit the names, and for a keypoint in two pairs.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.sigmas:
            object.__setattr__(self, "sigmas", default_sigmas(len(self.names)))
        if len(self.sigmas) != len(self.names) or not all(sigma > 0 for sigma in self.sigmas):
            raise ValueError(f"{len(self.names)} keypoints but sigmas {self.sigmas}: give each one number above 0")
        for pair in (*self.edges, *self.flip_pairs):
            if not all(0 <= index < len(self.names) for index in pair):
                raise ValueError(f"skeleton: {pair} names a keypoint beyond the {len(self.names)} there are")
        swapped = [index for pair in self.flip_pairs for index in pair]
        if len(set(swapped)) != len(swapped):
            raise ValueError(f"skeleton: a keypoint is in two of the left-right pairs {self.flip_pairs}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mirrored(self) -> tuple[int, ...]:
        """Which keypoint of a picture becomes keypoint ``k`` of its mirror image."""
        order = list(range(len(self.names)))
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return tuple(order)


@dataclass(frozen=True)
class Labels:
    """The classes of a data set or model. Label ``i`` (0-based, contiguous) is called ``names[i]``.

    ``ids`` are the category ids of the data the classes came from; they are used only when results are written.
    ``unused`` are labels that stand for no class and are never reported (released pose weights have one).
    ``keypoints`` are, for each class, the keypoints of the skeleton that it has; empty: all classes have all.
    Raises ``ValueError`` for parts that do not fit one another.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...] = ()
    skeleton: Skeleton | None = None
    unused: tuple[int, ...] = ()
    keypoints: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("no classes: a model needs at least one class name")
        if not self.ids:
            object.__setattr__(self, "ids", tuple(range(len(self.names))))
        if len(self.ids) != len(self.names):
            raise ValueError(f"{len(self.names)} class names but {len(self.ids)} category ids: give one id per name")
        count = len(self.skeleton) if self.skeleton else 0
        fits = all(own and all(0 <= index < count for index in own) for own in self.keypoints)
        if self.keypoints and (len(self.keypoints) != len(self.names) or not fits):
            raise ValueError(
                f"keypoints of the classes {self.keypoints}: give each of the {len(self.names)} classes at least one "
                f"of the {count} keypoints, or none at all to say that every class has all"
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def used(self) -> tuple[int, ...]:
        """The labels that stand for a class."""
        return tuple(label for label in range(len(self)) if label not in self.unused)

    def owned(self) -> Tensor | None:
        """Which keypoints each class has, [C, K] bool; None: all have all."""
        if not self.keypoints or self.skeleton is None:
            return None
        table = torch.zeros(len(self), len(self.skeleton), dtype=torch.bool)
        for label, own in enumerate(self.keypoints):
            table[label, list(own)] = True
        return table


@dataclass(frozen=True)
class InputSpec:
    """How a picture becomes the input of a network. Belongs to the model and is saved with it.

    ``mean`` and ``std`` apply to RGB in 0..1. ``resize`` says what ``size`` means, in pixels:

    * ``"stretch"``: (height, width) of every input; the aspect ratio is not kept, as in the released models.
    * ``"keep"``: limits of the short and the long side; the aspect ratio is kept (``geometry.sides.fitted``), and in a
      batch pictures are padded on the right and below to the largest (``Batch.valid``), as classic detectors have it.
    * ``"frame"``: the same with (height, width) of what pictures have to lie in, as in exports of such models.

    Raises ``ValueError`` for another ``resize``.
    """

    size: tuple[int, int] = (640, 640)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: str = STRETCH

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            known = ", ".join(RESIZES)
            raise ValueError(f"resize={self.resize!r}: this version knows {known} only; the file is of a newer one")

    def fitted(self, height: float, width: float) -> tuple[int, int]:
        """The (height, width) in the input of a picture of ``height`` x ``width`` pixels."""
        if self.resize == STRETCH:
            return self.size
        return {KEEP: fitted, FRAME: framed}[self.resize](height, width, self.size)

    def normalise(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """RGB images [B, 3, H, W], uint8 in 0..255 or float in 0..1 -> float32 network input.

        ``valid`` [B, H, W] bool says where pictures are: the input is 0 elsewhere.
        """
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        mean, std = (on_device(v, images.device).view(1, 3, 1, 1) * scale for v in (self.mean, self.std))
        found = (images.float() - mean) / std
        return found if valid is None else found * valid[:, None]


@dataclass
class Target:
    """The truth of one image, in its frame in the network's input, which is all of it but the padding."""

    labels: Tensor
    """[N] int64, 0-based"""
    boxes: Tensor
    """[N, 4] float32, cxcywh in 0..1"""
    masks: Tensor | None = None
    """[N, H, W / 8] uint8, at the size of the input: eight pixels of a row in a byte, the first in its highest bit"""
    keypoints: Tensor | None = None
    """[N, K, 3] float32: x, y in 0..1, and visibility (0 not labelled, 1 covered, 2 visible)"""
    area: Tensor | None = None
    """[N] float32, object area / area of the frame (for OKS); there when ``keypoints`` are"""
    image_id: int = 0
    size: tuple[int, int] = (0, 0)
    """height, width of the original picture in pixels"""
    path: str = ""

    def to(self, device: torch.device | str) -> Target:
        return _move(self, device)


@dataclass
class Batch:
    """What the loader hands to a step."""

    images: Tensor
    """[B, 3, H, W] RGB, uint8 0..255; ``InputSpec.normalise`` makes the network input on the device"""
    targets: list[Target]
    valid: Tensor | None = None
    """[B, H, W] bool, true in the upper left part of each that is picture; None: nothing is padded"""

    def to(self, device: torch.device | str) -> Batch:
        return _move(self, device)


@dataclass
class Match:
    """Pairs of a query and an object, for a whole batch: three aligned index vectors."""

    image: Tensor
    """[P] int64, index in the batch"""
    query: Tensor
    """[P] int64, index of the query"""
    object: Tensor
    """[P] int64, index of the object within its image"""
    counts: tuple[int, ...] | None = None
    """pairs of each image, known on the host; only where the pairs are in the order of the images"""

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device | str) -> Match:
        return _move(self, device)


@dataclass
class QueryGroup:
    """Questions put to the decoder from outside (denoising; later the probes of a distiller)."""

    labels: Tensor
    """[B, G] int64; the number of classes means padding"""
    boxes: Tensor
    """[B, G, 4] cxcywh"""
    segment: Tensor
    """[G] int64; queries see their own segment ..."""
    sees_own: bool = True
    """... and the model's own queries (denoising); False: nothing else (distillation probes)"""
    content: Tensor | None = None
    """[B, G, D]; None: from the label table"""
    from_memory: bool = False
    """whether contents are the network's own memory at the boxes, for networks whose queries are made of it"""
    valid: Tensor | None = None
    """[B, G] bool, false for padding, which no other query sees; None: there is none"""
    position: Tensor | None = None
    """[B, G, D], for decoders whose positions are learned and not made of boxes"""
    keypoints: Tensor | None = None
    """[B, G, K, 2] in 0..1, for decoders that ask for points"""
    answers: Match | None = None
    """known pairs query <-> object, when there are any"""

    def to(self, device: torch.device | str) -> QueryGroup:
        return _move(self, device)


@dataclass
class MaskMap:
    """Mask logits of every query, kept as the two factors of a product: only the masks asked for are ever computed."""

    queries: Tensor
    """[B, Q, D]"""
    pixels: Tensor
    """[B, D, h, w]"""
    bias: Tensor
    """[1]"""

    def of(self, image: Tensor, query: Tensor, counts: Sequence[int]) -> Tensor:
        """Logits of the masks of some queries, [P] and [P] int64 in the order of the images -> [P, h, w].

        ``counts`` are the masks of each image; images at the end may be missing.
        """
        h, w = self.pixels.shape[2:]
        chosen = torch.split(self.queries[image, query], list(counts) or [0])
        # a product per image: gathering the pixels of every pair would take a map for each
        found = [part @ pixels.flatten(1) for part, pixels in zip(chosen, self.pixels, strict=False)]
        return (torch.cat(found) + self.bias).view(-1, h, w)

    def dense(self) -> Tensor:
        """Logits of all masks, [B, Q, h, w]."""
        return torch.einsum("bqd,bdhw->bqhw", self.queries, self.pixels) + self.bias

    def cut(self, start: int, count: int) -> MaskMap:
        """The same for ``count`` of the queries."""
        return replace(self, queries=self.queries[:, start : start + count])

    def float(self) -> MaskMap:
        """The same in float32."""
        return MaskMap(self.queries.float(), self.pixels.float(), self.bias.float())


@dataclass
class LayerOutput:
    """What one layer says."""

    logits: Tensor
    """[B, Q, C]"""
    boxes: Tensor | None = None
    """[B, Q, 4] cxcywh; pose answers with points only"""
    edges: Tensor | None = None
    """[B, Q, 4, bins] logits of the edge distributions (pose: [B, Q, K, 2, bins])"""
    base: Tensor | None = None
    """[B, Q, 4] the box that the edges refine, no gradient"""
    masks: MaskMap | None = None
    """logits of [B, Q, h, w]"""
    keypoints: Tensor | None = None
    """[B, Q, K, 2]"""


@dataclass
class Outputs:
    """Everything that a forward pass says."""

    layers: list[LayerOutput]
    """one entry per decoder layer in training, only the last in evaluation; the last is the answer"""
    first: LayerOutput | None = None
    """the plain box head before any refinement"""
    encoder: LayerOutput | None = None
    """the chosen proposals"""
    groups: list[Outputs] = field(default_factory=list)
    """answers to each ``QueryGroup``, same type, same order"""
    group: QueryGroup | None = None
    """the group that these outputs answer"""
    features: list[Tensor] = field(default_factory=list)
    """L x [B, D, h, w], backbone pyramid"""
    aifi: Tensor | None = None
    """[B, D, h, w] the top level after attention, before fusion"""
    memory: list[Tensor] = field(default_factory=list)
    """L x [B, D, h, w], after the encoder: what the decoder reads"""


@dataclass
class Detections:
    """What was found in one picture, best first, in pixels of the original picture."""

    scores: Tensor
    """[N] float in 0..1"""
    labels: Tensor
    """[N] int64, 0-based"""
    boxes: Tensor
    """[N, 4] xyxy pixels"""
    size: tuple[int, int] = (0, 0)
    """height, width of the picture"""
    masks: Runs | None = None
    """run-length codes of N masks of the whole picture; ``masks.array()`` gives pixels"""
    keypoints: Tensor | None = None
    """[N, K, 3] x, y in pixels, and 1 (there is no score per keypoint); three zeros for what the class does not have"""
    boxes_from: str = "query"
    """what the boxes are: the answer of the ``query``, or the extent of the ``keypoints``"""

    def __len__(self) -> int:
        return len(self.scores)

    def take(self: T, index: Tensor) -> T:
        """The chosen entries: ``index`` is a bool or int64 vector."""
        chosen = {}
        for name in ("scores", "labels", "boxes", "masks", "keypoints"):
            value = getattr(self, name)
            chosen[name] = None if value is None else value[index]
        return replace(self, **chosen)  # type: ignore[type-var]

    def above(self: T, threshold: float) -> T:
        """Entries with a score of at least ``threshold``."""
        return self.take(self.scores >= threshold)  # type: ignore[attr-defined,no-any-return]

    def to(self: T, device: torch.device | str) -> T:
        return _move(self, device)


def _move(value: T, device: torch.device | str) -> T:
    """A copy of a dataclass whose tensors, also inside lists and nested dataclasses, are on ``device``."""
    changed: dict[str, Any] = {}
    waits = torch.device(device).type == "cpu"  # an unfinished copy to the host could be read too early
    for name, item in vars(value).items():
        if isinstance(item, Tensor):
            changed[name] = item.to(device, non_blocking=not waits)
        elif hasattr(item, "to"):
            changed[name] = item.to(device)
        elif isinstance(item, Sequence) and item and hasattr(item[0], "to"):
            changed[name] = [entry.to(device) for entry in item]
    return replace(value, **changed)  # type: ignore[type-var]
