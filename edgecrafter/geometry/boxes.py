"""Boxes: conversions, areas and overlaps. All functions work on the last dimension, [..., 4], and keep the dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size -> corners, [..., 4]."""
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corners -> centre and size, [..., 4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) * 0.5, high - low], dim=-1)


def area(boxes_xyxy: Tensor) -> Tensor:
    """Area of each box, [...]; negative sides count as they are."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def clip(boxes_xyxy: Tensor, size: tuple[int, int]) -> Tensor:
    """Corners moved into a picture of ``size`` (height, width)."""
    limit = boxes_xyxy.new_tensor([size[1], size[0], size[1], size[0]])
    return boxes_xyxy.clamp(min=0).minimum(limit)


def iou_and_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU (Rezatofighi et al. 2019) of boxes that broadcast against each other, [..., 4] -> [...].

    Two empty boxes at the same place divide 0 by 0; a small number keeps the result finite (0).
    """
    low = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    union = area(a_xyxy) + area(b_xyxy) - inner
    hull_low = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    hull_high = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = (hull_high - hull_low).clamp(min=0).prod(-1)
    tiny = torch.finfo(union.dtype).tiny
    iou = inner / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)


def iou_paired(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """IoU of box i of ``a`` with box i of ``b``, [N]."""
    return iou_and_giou(a_xyxy, b_xyxy)[0]


def giou_paired(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """GIoU of box i of ``a`` with box i of ``b``, [N], in -1..1."""
    return iou_and_giou(a_xyxy, b_xyxy)[1]


def iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """IoU of every box of ``a`` [..., N, 4] with every box of ``b`` [..., M, 4], [..., N, M]."""
    return iou_and_giou(a_xyxy[..., :, None, :], b_xyxy[..., None, :, :])[0]


def giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """GIoU of every box of ``a`` [..., N, 4] with every box of ``b`` [..., M, 4], [..., N, M]."""
    return iou_and_giou(a_xyxy[..., :, None, :], b_xyxy[..., None, :, :])[1]
