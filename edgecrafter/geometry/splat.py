"""Weights at places, spread over the cells of a map: the reverse of reading a map at places."""

from __future__ import annotations

from torch import Tensor


def splat(places: Tensor, weights: Tensor, cells: tuple[int, int]) -> Tensor:
    """Places [N, 2] (x, y) in 0..1 and their weights [N] -> a map [h, w] of ``cells``.

    A weight goes to the four cells whose centres are around its place, each by how near it is, as a bilinear read there
    weighs them (``nn.deformable.sample``); all of it goes to one cell at its centre. What falls on no cell is lost.
    """
    height, width = cells
    at = places * places.new_tensor([width, height]) - 0.5
    low = at.floor()
    near = at - low
    found = weights.new_zeros(height * width)
    for right in (0, 1):
        for below in (0, 1):
            x, y = (low + low.new_tensor([right, below])).unbind(-1)
            there = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            share = (near[:, 0] if right else 1 - near[:, 0]) * (near[:, 1] if below else 1 - near[:, 1])
            cell = (y * width + x)[there].long()
            found.index_add_(0, cell, (share * weights)[there])
    return found.view(height, width)
