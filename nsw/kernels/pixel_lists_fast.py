"""`rasterize_to_pixels` compiled: the kernels of the rasterizer, on tile lists that the caller made.

The rasterizer's own lists leave out tiles that a splat cannot reach. Here the list is an order: a splat shows in the tiles that
name it and in no other. Within such a tile, pixels out of the splat's reach of 1/255 need not be visited, hence the boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nsw.kernels.compiling import kernel
from nsw.kernels.memory import empty, zeros
from nsw.kernels.projection import ALPHA_MIN
from nsw.kernels.rasterize_autograd import padded_channels
from nsw.kernels.saturation import settle
from nsw.kernels.simd import LANES
from nsw.kernels.simd_rows import take
from nsw.kernels.splat_backward import gather_gradients, rasterize_backward, sums_size
from nsw.kernels.splat_forward import PIXELS, rasterize_forward
from nsw.kernels.splat_lists import COLOR, part_of, read_group, record_size, write_records
from nsw.kernels.threads import n_threads, run_shared

FAR = 1 << 24  # a radius no picture exceeds


@dataclass(frozen=True)
class Lists:
    """All pictures' lists: `members` by tile, and for each entry the slot of its gradient, ordered by splat."""

    starts: np.ndarray  # int64 [I, tiles + 1], where lists begin, counted through all pictures
    members: np.ndarray  # int32 [M]
    slots: np.ndarray  # int32 [M]
    first_slot: np.ndarray  # int64 [R + 1]


def make_lists(offsets: torch.Tensor, flatten_ids: torch.Tensor, n_rows: int) -> Lists:
    """Turn gsplat's offsets and ids into what the kernels read."""
    n_images = offsets.shape[0]
    flat = offsets.reshape(n_images, -1).to(torch.int64).numpy()
    starts = np.empty((n_images, flat.shape[1] + 1), np.int64)
    starts[:, :-1] = flat
    starts[:-1, -1], starts[-1:, -1] = flat[1:, 0], len(flatten_ids)
    members = flatten_ids.to(torch.int32).contiguous().numpy()
    slots = np.empty(len(members), np.int32)
    slots[np.argsort(members, kind="stable")] = np.arange(len(members), dtype=np.int32)
    first_slot = np.zeros(n_rows + 1, np.int64)
    np.cumsum(np.bincount(members, minlength=n_rows), out=first_slot[1:])
    return Lists(starts, members, slots, first_slot)


@kernel
def prepare_given(next_part, n_parts, order, means2d, conics, radii, opacities, colors, width, height, records, bounds):
    """Write the records of all rows; called by every thread at once.

    Nothing is known of radii, so an odd conic gets the whole picture; a splat below 1/255 is drawn nowhere and gets an empty box.
    """
    n, size, group = order.shape[0], record_size(colors.shape[1]), np.empty(8 * LANES, np.float32)
    part = take(next_part)
    while part < n_parts:
        first, last = part_of(part, n_parts, n)
        for start in range(first, last, LANES):
            read_group(group, order, start, last, 0, means2d, conics, radii, opacities)
            write_records(records, start * size, size, group, width, height)
            for row in range(start, min(start + LANES, last)):
                at = row * size
                for channel in range(colors.shape[1]):
                    records[at + COLOR + channel] = colors[row, channel]
                visible = opacities[row] >= ALPHA_MIN
                if not (visible and conics[row, 0] > 0 and conics[row, 2] > 0):
                    bounds[at + 6], bounds[at + 8] = 0, 0
                    bounds[at + 7], bounds[at + 9] = (width, height) if visible else (0, 0)
        part = take(next_part)


class _CompositeLists(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means2d, conics, colors, opacities, backgrounds, width, height, lists, absolute):
        (n_rows, n_given), n_images = colors.shape, len(lists.starts)
        n_channels = padded_channels(n_given)
        means2d, conics, opacities = (t.detach().contiguous().numpy() for t in (means2d, conics, opacities))
        channels, behind = np.zeros((n_rows, n_channels), np.float32), np.zeros((n_images, n_channels), np.float32)
        channels[:, :n_given] = colors.detach().numpy()
        if backgrounds is not None:
            behind[:, :n_given] = backgrounds.detach().numpy()
        order, radii = np.arange(n_rows, dtype=np.int32), np.full((n_rows, 2), FAR, np.int32)
        records, n_tiles = empty((n_rows + LANES) * record_size(n_channels)), lists.starts.shape[1] - 1
        bounds, n_parts = records.view(np.int32), 4 * n_threads()
        splats = (means2d, conics, radii, opacities)
        run_shared(prepare_given, n_threads(), n_parts, order, *splats, channels, width, height, records, bounds)
        pictures = empty((n_images, height, width, n_channels))
        alphas = empty((n_images, height, width, 1))
        states = [empty(n_tiles * (2 + n_channels) * PIXELS) for _ in range(n_images)]
        tile_stops, like = np.empty((n_images, n_tiles), np.int64), (np.float32(0),) * n_channels
        for i in range(n_images):
            outputs = (pictures[i], alphas[i], states[i], tile_stops[i])
            drawn = (lists.starts[i], lists.members, records, bounds, behind[i], like, True)
            run_shared(rasterize_forward, n_threads(), *drawn, *outputs)
        ctx.arrays, ctx.lists, ctx.like = (conics, opacities, order, records, behind, alphas, states, tile_stops), lists, like
        ctx.n_given, ctx.absolute, ctx.has_background = n_given, absolute, backgrounds is not None
        return torch.from_numpy(pictures)[..., :n_given].contiguous(), torch.from_numpy(alphas)

    @staticmethod
    def backward(ctx, v_pictures, v_alphas):
        conics, opacities, order, records, behind, alphas, states, tile_stops = ctx.arrays
        lists, like, n_rows, n_channels = ctx.lists, ctx.like, len(ctx.arrays[2]), len(ctx.like)
        v_picture = np.zeros(alphas.shape[:-1] + (n_channels,), np.float32)
        v_picture[..., : ctx.n_given] = v_pictures.numpy()
        v_alpha, want_absolute = v_alphas.contiguous().numpy(), None if ctx.absolute is None else True
        sums = empty(len(lists.members) * sums_size(n_channels, want_absolute))
        v_behind = settle(np.einsum("ihwc,ihwd->ic", v_picture, 1 - alphas))
        for i in range(len(lists.starts)):
            tiles = (lists.starts[i], tile_stops[i], lists.members, lists.slots, records, records.view(np.int32), behind[i])
            pixels = (states[i], v_picture[i], v_alpha[i])
            run_shared(rasterize_backward, n_threads(), *tiles, *pixels, want_absolute, like, sums)
        outputs = [zeros((n_rows,) + tail) for tail in ((2,), (3,), (), (n_channels,))]
        absolute = np.zeros((n_rows, 2), np.float32)
        visible = np.maximum(opacities, np.float32(1e-30))  # a splat of opacity 0 is drawn nowhere: 0 / tiny, not 0 / 0
        given = (0, order, lists.first_slot, sums, conics, visible, want_absolute)
        run_shared(gather_gradients, n_threads(), *given, *outputs, absolute)
        settle(outputs[0])  # behind `rasterization`, the projection does this
        settle(outputs[1])
        if want_absolute:
            ctx.absolute.add_(torch.from_numpy(absolute))
        v_means2d, v_conics, v_opacities, v_colors = (torch.from_numpy(array) for array in outputs)
        v_backgrounds = torch.from_numpy(v_behind[:, : ctx.n_given]) if ctx.has_background else None
        return v_means2d, v_conics, v_colors[:, : ctx.n_given], v_opacities, v_backgrounds, None, None, None, None


def composite_lists(
    means2d, conics, colors, opacities, width, height, tile_size, offsets, flatten_ids, backgrounds=None, absolute=None
):
    """Do what `rasterize_reference.rasterize_to_pixels` does, for float32 and tiles of 16 pixels."""
    lists = make_lists(offsets, flatten_ids, len(means2d))
    return _CompositeLists.apply(means2d, conics, colors, opacities, backgrounds, width, height, lists, absolute)
