"""What the classic detectors are held against: transformers' DAB-DETR and Deformable DETR as black boxes, and DINO's
decoder said again in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edgecrafter import hub
from edgecrafter.models.detr import convert
from edgecrafter.types import Labels, Target

LABELS = Labels(tuple("abcde"))
SMALL = {"width": 32, "enc_ffn": 48, "det_ffn": 40, "enc_layers": 2, "det_layers": 3, "queries": 10}
NAMES = {"dab": "dab-detr-r18", "deformable": "deformable-detr-r18", "dino": "dino-r18"}


def small(arch, **options):
    """A small network of ours with random weights, in evaluation mode."""
    torch.manual_seed(0)
    network, info = hub.create(NAMES[arch], LABELS, **{**SMALL, **options})
    randomise(network)
    return network.eval(), info


@torch.no_grad()
def randomise(network):
    """Nothing is zero or one that could hide what is wrong; frozen norms are buffers."""
    random = torch.Generator().manual_seed(0)
    for value in network.parameters():
        scale = 1.3 * value[0].numel() ** -0.5 if value.dim() == 2 else 0.05
        value.add_(torch.randn(value.shape, generator=random) * scale)
    for name, value in network.named_buffers():
        if name.endswith(("bn1.weight", "bn2.weight", "bn1.bias", "running_mean")):
            value.add_(torch.randn(value.shape, generator=random) * 0.1)


def padded(sides=((96, 130), (70, 100)), seed=1):
    """Pictures [2, 3, H, W], zero where they are padded, and where they are pictures."""
    height, width = (max(side) for side in zip(*sides, strict=True))
    images = torch.randn(len(sides), 3, height, width, generator=torch.Generator().manual_seed(seed))
    valid = torch.zeros(len(sides), height, width, dtype=torch.bool)
    for row, (h, w) in zip(valid, sides, strict=True):
        row[:h, :w] = True
    return images * valid[:, None], valid


def some(counts, seed=3):
    random = torch.Generator().manual_seed(seed)
    return [
        Target(torch.randint(5, (n,), generator=random), torch.rand(n, 4, generator=random) * 0.3 + 0.3) for n in counts
    ]


def every_layer(network, *inputs, **options):
    """The outputs as in training, without its dropout."""
    network.eval().get_submodule("decoder").training = True
    try:
        return network(*inputs, **options)
    finally:
        network.eval()


def close(a, b, atol):
    """Equal but for ``atol``, or as much of the largest value where that is above 1: rounding grows with the values."""
    torch.testing.assert_close(a, b, atol=atol * max(1.0, float(b.detach().abs().max())), rtol=0)


def oracle_of(arch):
    """transformers' network and ours with the same numbers, put there by ``models.detr.convert``."""
    transformers = pytest.importorskip("transformers", reason="the oracles are transformers' networks")
    plain = {
        "use_timm_backbone": True,
        "backbone": "resnet18",
        "use_pretrained_backbone": False,
        "encoder_layers": SMALL["enc_layers"],
        "decoder_layers": SMALL["det_layers"],
        "encoder_ffn_dim": SMALL["enc_ffn"],
        "decoder_ffn_dim": SMALL["det_ffn"],
        "num_queries": SMALL["queries"],
        "num_labels": len(LABELS),
        "class_cost": 2,
        "auxiliary_loss": True,
    }
    torch.manual_seed(0)
    if arch == "dab":
        config = transformers.DabDetrConfig(hidden_size=SMALL["width"], **plain)
        oracle = transformers.DabDetrForObjectDetection(config)
    else:
        config = transformers.DeformableDetrConfig(d_model=SMALL["width"], **plain)
        oracle = transformers.DeformableDetrForObjectDetection(config)
    randomise(oracle.eval())
    network, info = small(arch)
    network.load_state_dict(convert.to_ours(oracle.state_dict(), ()), strict=True)
    return network, info, oracle


class NaiveDino:
    """DINO's decoder for one picture at a time, in the words of its paper and of the specification (4.2): loops over
    queries, heads, levels and points. It has the numbers of a ``DinoDecoder`` and none of its code."""

    def __init__(self, decoder, heads, points=4):
        self.p = dict(decoder.named_parameters())
        self.heads, self.points, self.count = heads, points, len(decoder.layers)

    def linear(self, name, x):
        return x @ self.p[name + ".weight"].T + self.p[name + ".bias"]

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.p[name + ".weight"] + self.p[name + ".bias"]

    def mlp(self, name, x, depth):
        for i in range(depth):
            x = self.linear(f"{name}.layers.{i}", x)
            x = x.clamp(min=0) if i < depth - 1 else x
        return x

    def proposals(self, levels, sides, count):
        """(logits, boxes) of the best cells; ``sides`` (h, w) of the picture on each level."""
        logits, boxes = [], []
        for i, (level, (h, w)) in enumerate(zip(levels, sides, strict=True)):
            for y in range(level.shape[1]):
                for x in range(level.shape[2]):
                    box = torch.tensor([(x + 0.5) / w, (y + 0.5) / h, 0.05 * 2**i, 0.05 * 2**i])
                    good = x < w and y < h and all(0.01 < side < 0.99 for side in box.tolist())
                    token = level[:, y, x] if good else torch.zeros_like(level[:, y, x])
                    token = self.norm("enc_norm", self.linear("enc_project", token))
                    logits.append(self.linear("enc_score", token))
                    start = (box / (1 - box)).log() if good else torch.full((4,), math.inf)
                    boxes.append((self.mlp("enc_box", token, 3) + start).sigmoid())
        order = sorted(range(len(logits)), key=lambda i: -logits[i].max().item())[:count]
        return torch.stack([logits[i] for i in order]), torch.stack([boxes[i] for i in order])

    def self_attention(self, name, x, position, sees):
        """``sees[i]``: the queries that query i may look at."""
        width = x.shape[1] // self.heads
        weight, bias = self.p[name + ".in_proj_weight"], self.p[name + ".in_proj_bias"]
        q, k, v = ((t @ w.T + b) for t, w, b in zip((x + position, x + position, x), weight.chunk(3), bias.chunk(3)))  # noqa: B905
        rows = []
        for i, seen in enumerate(sees):
            parts = []
            for head in range(self.heads):
                cut = slice(head * width, (head + 1) * width)
                scores = torch.stack([q[i, cut] @ k[j, cut] for j in seen]) / math.sqrt(width)
                parts.append(scores.softmax(0) @ v[seen, cut])
            rows.append(torch.cat(parts))
        return self.linear(name + ".out_proj", torch.stack(rows))

    def read(self, name, query, box, levels, sides):
        """Deformable attention of one query around its box, which is in 0..1 of the picture."""
        offsets = self.linear(name + ".points.offsets", query).view(self.heads, len(levels), self.points, 2)
        weights = self.linear(name + ".points.weights", query).view(self.heads, -1).softmax(-1)
        weights = weights.view(self.heads, len(levels), self.points)
        values = []
        for level, (h, w) in zip(levels, sides, strict=True):
            value = self.linear(name + ".value", level.permute(1, 2, 0)).clone()
            inside = torch.zeros(level.shape[1:])
            inside[:h, :w] = 1
            values.append((value * inside[..., None]).unflatten(-1, (self.heads, -1)))
        heads = []
        for head in range(self.heads):
            total = torch.zeros(())
            for i, (value, (h, w)) in enumerate(zip(values, sides, strict=True)):
                for j in range(self.points):
                    x, y = box[:2] + offsets[head, i, j] / self.points * box[2:] / 2
                    total = total + weights[head, i, j] * bilinear(value[:, :, head], x * w - 0.5, y * h - 0.5)
            heads.append(total)
        return self.linear(name + ".output", torch.cat(heads))

    def decode(self, levels, sides, content, boxes, sees):
        """Boxes [T, 4] and contents [T, D] -> (logits, boxes) of every layer."""
        x, seen, kept = content, boxes, boxes
        shape = levels[0].shape[1:]
        share = torch.tensor([sides[0][1] / shape[1], sides[0][0] / shape[0]] * 2)  # of the finest level
        found = []
        for i in range(self.count):
            layer = f"layers.{i}"
            position = self.mlp("position", sine(seen * share, x.shape[1] // 2), 2)
            x = self.norm(f"{layer}.norm1", x + self.self_attention(f"{layer}.self_attn", x, position, sees))
            read = [
                self.read(f"{layer}.cross_attn", a, b, levels, sides) for a, b in zip(x + position, seen, strict=True)
            ]
            x = self.norm(f"{layer}.norm2", x + torch.stack(read))
            inner = self.linear(f"{layer}.ffn.linear1", x).clamp(min=0)
            x = self.norm(f"{layer}.ffn.norm", x + self.linear(f"{layer}.ffn.linear2", inner))
            says = self.norm("norm", x)
            # what is said builds on boxes through which gradients pass; what is looked at has none
            box = (self.mlp(f"boxes.{i}", says, 3) + logit(kept)).sigmoid()
            found.append((self.linear(f"scores.{i}", says), box))
            kept = (self.mlp(f"boxes.{i}", x, 3) + logit(seen)).sigmoid()
            seen = kept.detach()
        return found


def logit(x: Tensor) -> Tensor:
    return (x.clamp(min=1e-3) / (1 - x).clamp(min=1e-3)).log()


def sine(boxes: Tensor, count: int) -> Tensor:
    """Codes of boxes (x, y, w, h): y first, sines and cosines of 2 pi times each, base 10000."""
    parts = []
    for i in (1, 0, 2, 3):
        for j in range(count // 2):
            angle = boxes[:, i] * 2 * math.pi / 10000 ** (2 * j / count)
            parts += [angle.sin(), angle.cos()]
    return torch.stack(parts, dim=1)


def bilinear(value: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Of a map [h, w, d] at a place in cells; zero outside."""
    x0, y0 = math.floor(float(x)), math.floor(float(y))
    total = torch.zeros(value.shape[2])
    for column in (x0, x0 + 1):
        for row in (y0, y0 + 1):
            if 0 <= column < value.shape[1] and 0 <= row < value.shape[0]:
                total = total + value[row, column] * (1 - (x - column).abs()) * (1 - (y - row).abs())
    return total
