"""Refinement decoder for poses (EdgeCrafter, section 3.4.1; DETRPose, Janampa and Pattichis 2025).

Every query is an instance token and K keypoint tokens, in this order. B images, T queries of all groups and the
network's own, K keypoints, C classes, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.geometry import bins
from edgecrafter.geometry.numbers import corrected, inverse_sigmoid
from edgecrafter.models.decoder import HEADS
from edgecrafter.models.queries import MARGIN, PRIOR, Queries, allowed_pairs, divided, grid, pick
from edgecrafter.nn.attention import PositionedAttention
from edgecrafter.nn.deformable import PointAttention, split_heads
from edgecrafter.nn.mlp import MLP, FeedForward, Gate, zero
from edgecrafter.types import LayerOutput, Outputs, QueryGroup

POINTS = (4, 4, 4)
EPS = 1e-3  # of the inverse sigmoid, as in the released pose model; detection uses 1e-5


class PoseLayer(nn.Module):
    """Attention among the tokens of a query, then among the queries for each kind of token; then deformable reading."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.within = PositionedAttention(width, HEADS)
        self.within_norm = nn.LayerNorm(width)
        self.across = PositionedAttention(width, HEADS)
        self.across_norm = nn.LayerNorm(width)
        self.cross_attn = PointAttention(width, HEADS, POINTS)
        self.gate = Gate(width)
        self.ffn = FeedForward(width, hidden, F.relu)

    def forward(
        self, x: Tensor, position: Tensor, places: Tensor, values: Sequence[Tensor], allowed: Tensor | None
    ) -> Tensor:
        """x [B, T, 1 + K, D] that contains the position already, the same again, places [B, T, 1 + K, 2] -> as x."""
        T, tokens = x.shape[1:3]
        flat = x.flatten(0, 1)
        x = self.within_norm(flat + self.within(flat)).unflatten(0, (-1, T))
        across = x.transpose(1, 2).flatten(0, 1)
        across = self.across_norm(across + self.across(across, allowed=allowed))
        x = across.unflatten(0, (-1, tokens)).transpose(1, 2) + position  # the position once more, as released
        x = x.flatten(1, 2)
        x = self.gate(x, self.cross_attn(x, places.flatten(1, 2), values))
        return self.ffn(x).unflatten(1, (T, tokens))  # type: ignore[no-any-return]


class PoseQuality(nn.Module):
    """Confidence from what the finest level says at the keypoints, added to all class logits of a query."""

    def __init__(self, keypoints: int, hidden: int = 256, top: int = 4) -> None:
        super().__init__()
        self.top = top
        self.mlp = MLP(keypoints * (top + 1), hidden, 1, 2, F.relu)

    def forward(self, level: Tensor, points: Tensor) -> Tensor:
        """level [B, D, h, w], points [B, T, K, 2] in 0..1 -> [B, T, 1]."""
        found = F.grid_sample(level.float(), 2 * points - 1, align_corners=False)  # [B, D, T, K]
        best = found.permute(0, 2, 3, 1).topk(self.top, dim=-1).values
        return self.mlp(torch.cat([best, best.mean(-1, keepdim=True)], dim=-1).flatten(2))  # type: ignore[no-any-return]


class PoseGroups(nn.Module):
    """Content and places of query groups: the instance token says a class, a keypoint token which keypoint it is."""

    def __init__(self, labels: int, keypoints: int, width: int) -> None:
        super().__init__()
        self.labels = nn.Embedding(labels, width)
        self.keypoints = nn.Embedding(keypoints, width)

    def forward(self, group: QueryGroup, classes: int) -> tuple[Tensor, Tensor]:
        """Content [B, G, 1 + K, D], zero for padding (label ``classes``), and places [B, G, 1 + K, 2]."""
        assert group.keypoints is not None, "a group for poses needs keypoints"
        asked = (group.labels != classes)[..., None, None]
        instance = self.labels(group.labels.clamp(max=self.labels.num_embeddings - 1))[:, :, None]
        keypoints = self.keypoints.weight.expand(*group.labels.shape, -1, -1)
        places = torch.cat([group.boxes[..., None, :2], group.keypoints], dim=2)
        return torch.cat([instance, keypoints], dim=2) * asked, inverse_sigmoid(places, EPS).sigmoid()


class PoseDecoder(nn.Module):
    """Memory levels and optional query groups -> ``Outputs``: all layers in training, the last one otherwise.

    ``labels`` are the rows of the groups' class table (0: one per class). Contents of the network's own queries are
    learned, one set per rank of the chosen memory token, as in the released model; only places come from the encoder.
    """

    last_only = ("quality",)
    """heads of which inference reads the last layer's only; ``fuse`` drops the others"""

    def __init__(
        self, classes: int, keypoints: int, width: int, hidden: int, layers: int, queries: int, labels: int = 0
    ) -> None:
        super().__init__()
        self.classes, self.count, self.queries = classes, keypoints, queries
        self.groups = PoseGroups(labels or classes, keypoints, width)
        self.enc_project = nn.Linear(width, width)
        self.enc_norm = nn.LayerNorm(width)
        self.enc_score = nn.Linear(width, classes)
        self.enc_pose = MLP(width, 2 * width, 2 * keypoints, 4, F.relu)
        self.instance = nn.Embedding(1, width)
        self.keypoints = nn.Embedding(keypoints, width)
        self.ranks = nn.Embedding(queries, width)
        self.position = MLP(width, width, width, 2, F.relu)
        self.first_pose = MLP(width, width, 2, 3, F.relu)
        self.layers = nn.ModuleList(PoseLayer(width, hidden) for _ in range(layers))
        self.scores = nn.ModuleList(nn.Linear(width, classes) for _ in range(layers))
        self.poses = nn.ModuleList(MLP(width, width, 2 * bins.BINS, 3, F.relu) for _ in range(layers))
        self.quality = nn.ModuleList(PoseQuality(keypoints) for _ in range(layers))
        self.spread = nn.Parameter(torch.tensor([bins.SPREAD]), requires_grad=False)
        self.curvature = nn.Parameter(torch.tensor([int(bins.CURVATURE)]), requires_grad=False)
        self.register_buffer("bin_values", torch.tensor(bins.weighting()), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        offsets = {f"layers.{i}.cross_attn.{name}.weight" for i in range(len(self.layers)) for name in _STILL}
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and name not in offsets:
                nn.init.xavier_uniform_(parameter)
        for score in (self.enc_score, *self.scores):
            nn.init.constant_(score.bias, PRIOR)
        for head in (self.enc_pose, self.first_pose, *self.poses, *(quality.mlp for quality in self.quality)):
            zero(head.layers[-1])  # type: ignore[union-attr,index,arg-type]

    def forward(self, memory: Sequence[Tensor], groups: Sequence[QueryGroup] = ()) -> Outputs:
        queries, proposals = self.start(memory, groups)
        outputs = self.refine(queries, split_heads(memory, HEADS), memory[0])
        return divided(outputs, groups, proposals, memory)

    def start(self, memory: Sequence[Tensor], groups: Sequence[QueryGroup]) -> tuple[Queries, LayerOutput]:
        """The best-scored memory tokens give the places of the network's own queries, behind those of the groups."""
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in memory], dim=1)
        anchor, valid = point_anchors([(level.shape[2], level.shape[3]) for level in memory], tokens.device)
        tokens = self.enc_norm(self.enc_project(tokens.masked_fill(~valid[:, None], 0.0)))
        logits = self.enc_score(tokens)
        count = min(self.queries, tokens.shape[1])
        chosen = logits.amax(-1).topk(count, dim=1).indices
        moves = self.enc_pose(pick(tokens, chosen)).unflatten(-1, (self.count, 2))
        points = (moves.float() + anchor[chosen][:, :, None]).sigmoid()
        proposals = LayerOutput(pick(logits, chosen), keypoints=points)
        keypoints = self.ranks.weight[:count, None] + self.keypoints.weight
        own = torch.cat([self.instance.weight.expand(count, 1, -1), keypoints], dim=1).expand(
            tokens.shape[0], -1, -1, -1
        )
        given = [self.groups(group, self.classes) for group in groups]
        queries = Queries(
            content=torch.cat([*(content for content, _ in given), own], dim=1),
            places=torch.cat([*(places for _, places in given), with_centre(points.detach())], dim=1),
            allowed=allowed_pairs(groups, count, tokens.device),
        )
        return queries, proposals

    def refine(self, queries: Queries, values: Sequence[Tensor], level: Tensor) -> Outputs:
        """All queries through all layers; the bin logits of the layers add up.

        The released code adds the position to the keypoint tokens in place, twice per layer. Written out: a layer and
        its residuals see the content with the position, and so does the next layer's head, which reads the content of
        the previous layer together with the position of this one.
        """
        x, places = queries.content, queries.places
        bin_logits = torch.zeros((), device=x.device)
        layers: list[LayerOutput] = []
        for i, layer in enumerate(self.layers):
            position = F.pad(self.position(sine(places[:, :, 1:], x.shape[-1])), (0, 0, 1, 0))
            before = x + position
            x = layer(before, position, places, values, queries.allowed)
            instance, tokens = x[:, :, 0], x[:, :, 1:]
            if i == 0:
                base = corrected(self.first_pose(tokens), places[:, :, 1:], EPS)
                first = LayerOutput(self.scores[0](instance), keypoints=base) if self.training else None
                start = base.detach()
            heard = tokens + before[:, :, 1:].detach() if i else tokens
            bin_logits = self.poses[i](heard).unflatten(-1, (2, bins.BINS)) + bin_logits
            moves = bins.distances(bin_logits.float(), self.bin_values)  # type: ignore[arg-type]
            points = start + moves / bins.CURVATURE
            if self.training or i == len(self.layers) - 1:
                logits = self.scores[i](instance) + self.quality[i](level, points)
                layers.append(LayerOutput(logits, edges=bin_logits, keypoints=points))
            places = with_centre(points.detach())
        return Outputs(layers, first)


_STILL = ("offsets", "weights")
"""linear layers of ``PointAttention`` that have a start of their own"""


def point_anchors(shapes: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """The centre of every cell as logits [P, 2], finite everywhere, and whether it lies well inside, [P] bool."""
    centres = torch.cat([grid(h, w, device).flatten(0, 1) for h, w in shapes])
    return torch.log(centres / (1 - centres)), ((centres > MARGIN) & (centres < 1 - MARGIN)).all(-1)


def with_centre(points: Tensor) -> Tensor:
    """[B, T, K, 2] -> [B, T, 1 + K, 2], the mean of the points in front: the place of the instance token."""
    return torch.cat([points.mean(2, keepdim=True), points], dim=2)


def sine(points: Tensor, width: int) -> Tensor:
    """Sine embedding of points [..., 2] -> [..., width]: y first, then x; sine and cosine take turns."""
    angles = 2 * math.pi * points.flip(-1)[..., None] / sine_periods(width, points.device)
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-3)


def sine_periods(width: int, device: torch.device) -> Tensor:
    """Periods of the embedding of one coordinate, [width / 2]; a sine and its cosine share one."""
    index = torch.arange(width // 2, dtype=torch.float32, device=device)
    return 10000 ** (2 * (index // 2) / (width // 2))  # type: ignore[no-any-return]
