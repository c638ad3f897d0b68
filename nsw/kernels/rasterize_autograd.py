"""Rows of projected splats to pictures and back: the order in which the compiled kernels run, and what backward must remember."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nsw.kernels.memory import empty, zeros
from nsw.kernels.saturation import settle
from nsw.kernels.simd import LANES
from nsw.kernels.splat_backward import gather_gradients, rasterize_backward, sums_size
from nsw.kernels.splat_forward import PIXELS, rasterize_forward
from nsw.kernels.splat_lists import add_up, fill_lists, list_hits, record_size
from nsw.kernels.threads import run_shared
from nsw.kernels.tiles import TILE, sort_by_depth

# Kernels are compiled for these numbers of channels; others are filled up with zeros to the next one.
CHANNEL_COUNTS = (1, 3, 4, 8, 16, 32)
SMALL = 2000  # splats below which waking a thread costs more than it saves
_LIKE = {n: (np.float32(0),) * n for n in CHANNEL_COUNTS}


@dataclass(frozen=True)
class Drawing:
    """What one picture's backward pass needs of its forward pass; see the kernels for each array."""

    first_row: int
    order: np.ndarray
    first_slot: np.ndarray
    tile_start: np.ndarray
    tile_stop: np.ndarray
    members: np.ndarray
    slots: np.ndarray
    records: np.ndarray
    background: np.ndarray
    state: np.ndarray


def padded_channels(n: int) -> int:
    """The number of channels to compile for, at least n.

    >>> [padded_channels(n) for n in (2, 3, 5, 40)]
    [3, 3, 8, 64]
    """
    return next((count for count in CHANNEL_COUNTS if count >= n), -(-n // 32) * 32)


def _like(n_channels: int) -> tuple:
    return _LIKE.get(n_channels) or (np.float32(0),) * n_channels


def draw(arrays, first_row: int, last_row: int, background, picture, alpha, n_workers: int, backward: bool) -> Drawing:
    """Sort, list and composite the rows of one picture; `picture` [H,W,D] and `alpha` [H,W,1] are written.

    `backward` says whether `undraw` will follow.
    """
    means2d, conics, opacities, colors, depths, radii = arrays
    height, width, n_channels = picture.shape
    n_tiles, size = -(-height // TILE) * -(-width // TILE), record_size(n_channels)
    order = empty(last_row - first_row, np.int32)
    n = sort_by_depth(depths.view(np.uint32), radii, first_row, last_row, order)
    order, helpers = order[:n], n_workers if n > SMALL else 1
    records, hit_bits, first_slot = empty((n + LANES) * size), empty(n, np.uint64), empty(n + 1, np.int64)
    bounds, n_parts = records.view(np.int32), 4 * helpers if helpers > 1 else 1
    counts, part_slot = empty((n_parts, n_tiles), np.int32), empty(n_parts, np.int64)
    tile_start = empty(n_tiles + 1, np.int64)
    splats = (first_row, order, means2d, conics, radii, opacities, colors)
    run_shared(list_hits, helpers, *splats, width, height, records, bounds, hit_bits, first_slot, counts)
    total = add_up(n, first_slot, counts, part_slot, tile_start)
    members, slots = empty(total, np.int32), empty(total, np.int32)
    run_shared(fill_lists, helpers, n, bounds, size, hit_bits, width, first_slot, part_slot, counts, members, slots)
    # Without `backward` a thread draws all its tiles in one piece of memory of its own.
    state, tile_stop = empty(n_tiles * (2 + n_channels) * PIXELS if backward else 0), empty(n_tiles, np.int64)
    lists = (tile_start, members, records, bounds, background, _like(n_channels), True if backward else None)
    run_shared(rasterize_forward, n_workers, *lists, picture, alpha, state, tile_stop)
    return Drawing(first_row, order, first_slot, tile_start, tile_stop, members, slots, records, background, state)


def undraw(drawing: Drawing, conics, opacities, v_picture, v_alpha, outputs, absgrad, n_workers: int) -> None:
    """Write the gradients of one picture's rows into `outputs` (means2d, conics, opacities, colors) and `absgrad`."""
    d, n_channels, want_absolute = drawing, v_picture.shape[-1], None if absgrad is None else True
    sums = empty(len(d.members) * sums_size(n_channels, want_absolute))
    lists = (d.tile_start, d.tile_stop, d.members, d.slots, d.records, d.records.view(np.int32))
    pixels = (d.background, d.state, v_picture, v_alpha)
    run_shared(rasterize_backward, n_workers, *lists, *pixels, want_absolute, _like(n_channels), sums)
    target = outputs[0] if absgrad is None else absgrad
    splats = (d.first_row, d.order, d.first_slot, sums, conics, opacities)
    run_shared(gather_gradients, n_workers if len(d.order) > SMALL else 1, *splats, want_absolute, *outputs, target)


def _rows(values: torch.Tensor, *tail: int) -> np.ndarray:
    return values.detach().contiguous().numpy().reshape(-1, *tail)


def _padded(values: torch.Tensor, n_channels: int) -> np.ndarray:
    values = values.detach()
    if values.shape[-1] < n_channels:
        values = torch.nn.functional.pad(values, (0, n_channels - values.shape[-1]))
    return values.contiguous().numpy()


@dataclass(frozen=True)
class Album:
    """What backward needs of several pictures: the drawings, and the rows that they were drawn from."""

    drawings: list[Drawing]
    arrays: tuple[np.ndarray, ...]
    alphas: np.ndarray


def draw_album(
    means2d, conics, opacities, colors, backgrounds, depths, radii, bounds, width, height, n_workers: int, learns: bool
) -> tuple[torch.Tensor, torch.Tensor, Album]:
    """Draw pictures [I,H,W,D] and alphas [I,H,W,1]; the arguments are those of `CompositeImage`."""
    n_images, n_given = len(bounds) - 1, colors.shape[-1]
    n_channels = padded_channels(n_given)
    arrays = (
        _rows(means2d, 2), _rows(conics, 3), _rows(opacities), _padded(colors, n_channels), _rows(depths), _rows(radii, 2),
    )  # fmt: skip
    behind = zeros((n_images, n_channels)) if backgrounds is None else _padded(backgrounds, n_channels)
    pictures, alphas = empty((n_images, height, width, n_channels)), empty((n_images, height, width, 1))
    drawings = [
        draw(arrays, bounds[i], bounds[i + 1], behind[i], pictures[i], alphas[i], n_workers, learns) for i in range(n_images)
    ]
    shown = torch.from_numpy(pictures)
    shown = shown if n_given == n_channels else shown[..., :n_given].contiguous()
    return shown, torch.from_numpy(alphas), Album(drawings, arrays, alphas)


class CompositeImage(torch.autograd.Function):
    """Pictures [I,H,W,D] and alphas [I,H,W,1] of rows of splats; rows bounds[i]..bounds[i+1] belong to picture i.

    Means, conics, opacities, depths and radii may have any leading dimensions: their rows are counted through.
    """

    @staticmethod
    def forward(ctx, *given):
        *rows, absgrad, n_workers = given
        pictures, alphas, ctx.album = draw_album(*rows, n_workers, True)
        ctx.shapes, ctx.n_given = [t.shape for t in rows[:3]], rows[3].shape[-1]
        ctx.absgrad, ctx.n_workers, ctx.behind = absgrad, n_workers, rows[4] is not None and rows[4].requires_grad
        return pictures, alphas

    @staticmethod
    def backward(ctx, v_pictures, v_alphas):
        _, conics, opacities, colors, _, _ = ctx.album.arrays
        n_channels, n_rows = colors.shape[1], len(colors)
        v_pictures, v_alphas = _padded(v_pictures, n_channels), v_alphas.contiguous().numpy()
        outputs = [zeros((n_rows,) + tail) for tail in ((2,), (3,), (), (n_channels,))]
        absolute = None if ctx.absgrad is None else zeros((n_rows, 2))
        for i, drawing in enumerate(ctx.album.drawings):
            undraw(drawing, conics, opacities, v_pictures[i], v_alphas[i], outputs, absolute, ctx.n_workers)
        if absolute is not None:
            ctx.absgrad.add_(torch.from_numpy(absolute))
        v_rows = [torch.from_numpy(array.reshape(shape)) for array, shape in zip(outputs, ctx.shapes, strict=False)]
        v_colors, v_backgrounds = torch.from_numpy(outputs[3]), None
        if ctx.behind:
            v_behind = settle(np.einsum("ihwc,ihwd->ic", v_pictures, 1 - ctx.album.alphas))
            v_backgrounds = torch.from_numpy(v_behind[:, : ctx.n_given])
        return (*v_rows, v_colors if ctx.n_given == n_channels else v_colors[:, : ctx.n_given], v_backgrounds) + (None,) * 7
