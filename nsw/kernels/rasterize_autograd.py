"""Rows of projected splats to pictures and back: the order in which the compiled kernels run, and what backward must remember."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nsw.kernels.rasterize_backward import N_SUMS, gather_gradients, rasterize_backward
from nsw.kernels.rasterize_forward import rasterize_forward
from nsw.kernels.threads import run_shares
from nsw.kernels.tiles import TILE, add_up, fill_lists, prepare, sort_by_depth

# Kernels are compiled for these numbers of channels; others are filled up with zeros to the next one.
CHANNEL_COUNTS = (1, 3, 4, 8, 16, 32)
SMALL = 4000  # splats below which waking a thread costs more than it saves


@dataclass(frozen=True)
class Drawing:
    """What one picture's backward pass needs of its forward pass; see the kernels for each array."""

    first_row: int
    first_slot: np.ndarray
    tile_start: np.ndarray
    tile_stop: np.ndarray
    members: np.ndarray
    slots: np.ndarray
    records: np.ndarray
    boxes: np.ndarray
    background: np.ndarray
    transmittance: np.ndarray
    stops: np.ndarray


def padded_channels(n: int) -> int:
    """The number of channels to compile for, at least n.

    >>> [padded_channels(n) for n in (2, 3, 5, 40)]
    [3, 3, 8, 64]
    """
    return next((count for count in CHANNEL_COUNTS if count >= n), -(-n // 32) * 32)


def _like(n_channels: int) -> tuple:
    return (np.float32(0),) * n_channels


def draw(arrays, first_row: int, last_row: int, background, picture, n_workers: int) -> Drawing:
    """Sort, list and composite the rows of one picture; `picture` [H,W,D] is written."""
    means2d, conics, opacities, colors, depths, radii = arrays
    height, width, n_channels = picture.shape
    n_rows, n_tiles = last_row - first_row, -(-height // TILE) * -(-width // TILE)
    n_shares = n_workers if n_rows > SMALL else 1
    records, boxes = np.empty((n_rows, 6 + n_channels), np.float32), np.empty((n_rows, 4), np.int32)
    hit_bits, first_slot = np.empty(n_rows, np.uint64), np.empty(n_rows + 1, np.int64)
    counts, tile_start = np.empty((n_shares, n_tiles), np.int64), np.empty(n_tiles + 1, np.int64)
    splats = (first_row, means2d, conics, radii, opacities, colors)
    run_shares(prepare, n_shares, *splats, width, height, records, boxes, hit_bits, first_slot, counts)
    total = add_up(first_slot, counts, tile_start)
    order = np.empty(n_rows, np.int32)
    n = sort_by_depth(depths.view(np.uint32), radii, first_row, last_row, order)
    members, slots = np.empty(total, np.int32), np.empty(total, np.int32)
    hits = (boxes, hit_bits, first_slot, width, tile_start.copy(), members, slots)
    run_shares(fill_lists, n_shares, order, n, *hits)
    transmittance, stops = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    tile_stop = np.empty(n_tiles, np.int64)
    lists = (tile_start, members, records, boxes, background, _like(n_channels))
    run_shares(rasterize_forward, n_workers, *lists, picture, transmittance, stops, tile_stop)
    return Drawing(first_row, first_slot, tile_start, tile_stop, members, slots, records, boxes, background, transmittance, stops)


def undraw(drawing: Drawing, conics, opacities, v_picture, v_alpha, outputs, absgrad, n_workers: int) -> None:
    """Write the gradients of one picture's rows into `outputs` (means2d, conics, opacities, colors) and `absgrad`."""
    d, n_channels = drawing, v_picture.shape[-1]
    sums = np.empty(len(d.members) * (N_SUMS + n_channels), np.float32)
    want_absolute = absgrad is not None
    lists = (d.tile_start, d.tile_stop, d.members, d.slots, d.records, d.boxes)
    pixels = (d.background, d.transmittance, d.stops, v_picture, v_alpha)
    run_shares(rasterize_backward, n_workers, *lists, *pixels, want_absolute, _like(n_channels), sums)
    target = absgrad if want_absolute else outputs[0]
    splats = (d.first_row, d.first_slot, sums, conics, opacities)
    n_shares = n_workers if len(d.boxes) > SMALL else 1
    run_shares(gather_gradients, n_shares, *splats, want_absolute, *outputs, target)


def _padded(values: torch.Tensor, n_channels: int) -> np.ndarray:
    values = values.detach()
    if values.shape[-1] < n_channels:
        values = torch.nn.functional.pad(values, (0, n_channels - values.shape[-1]))
    return values.contiguous().numpy()


class CompositeImage(torch.autograd.Function):
    """Pictures [I,H,W,D] and alphas [I,H,W,1] of rows of splats; rows bounds[i]..bounds[i+1] belong to picture i."""

    @staticmethod
    def forward(ctx, means2d, conics, opacities, colors, backgrounds, depths, radii, bounds, width, height, absgrad, n_workers):
        n_images, n_given = len(bounds) - 1, colors.shape[-1]
        n_channels = padded_channels(n_given)
        plain = [t.detach().contiguous().numpy() for t in (means2d, conics, opacities)]
        arrays = (*plain, _padded(colors, n_channels), depths.detach().contiguous().numpy(), radii.contiguous().numpy())
        behind = np.zeros((n_images, n_channels), np.float32) if backgrounds is None else _padded(backgrounds, n_channels)
        pictures = np.empty((n_images, height, width, n_channels), np.float32)
        ctx.drawings = [draw(arrays, bounds[i], bounds[i + 1], behind[i], pictures[i], n_workers) for i in range(n_images)]
        alphas = np.empty((n_images, height, width, 1), np.float32)
        for alpha, drawing in zip(alphas, ctx.drawings, strict=True):
            np.subtract(1, drawing.transmittance, out=alpha[..., 0])
        ctx.arrays, ctx.absgrad, ctx.n_workers, ctx.n_given = arrays, absgrad, n_workers, n_given
        ctx.has_background = backgrounds is not None
        return torch.from_numpy(pictures)[..., :n_given].contiguous(), torch.from_numpy(alphas)

    @staticmethod
    def backward(ctx, v_pictures, v_alphas):
        _, conics, opacities, colors, _, _ = ctx.arrays
        n_channels, n_rows = colors.shape[1], len(colors)
        v_pictures, v_alphas = _padded(v_pictures, n_channels), v_alphas.contiguous().numpy()[..., 0]
        outputs = [np.zeros((n_rows,) + tail, np.float32) for tail in ((2,), (3,), (), (n_channels,))]
        absolute = None if ctx.absgrad is None else np.zeros((n_rows, 2), np.float32)
        v_behind = np.zeros((len(ctx.drawings), n_channels), np.float32)
        for i, drawing in enumerate(ctx.drawings):
            v_alpha = np.ascontiguousarray(v_alphas[i])
            undraw(drawing, conics, opacities, v_pictures[i], v_alpha, outputs, absolute, ctx.n_workers)
            if ctx.has_background:
                v_behind[i] = np.einsum("hwc,hw->c", v_pictures[i], drawing.transmittance)
        if absolute is not None:
            ctx.absgrad.add_(torch.from_numpy(absolute))
        v_means2d, v_conics, v_opacities, v_colors = (torch.from_numpy(array) for array in outputs)
        v_backgrounds = torch.from_numpy(v_behind[:, : ctx.n_given]) if ctx.has_background else None
        return (v_means2d, v_conics, v_opacities, v_colors[:, : ctx.n_given], v_backgrounds) + (None,) * 7
