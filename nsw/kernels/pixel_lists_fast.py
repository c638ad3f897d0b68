"""`rasterize_to_pixels` compiled: the kernels of the rasterizer, on tile lists that the caller made.

The rasterizer's own lists leave out tiles that a splat cannot reach. Here the list is an order: a splat shows in the tiles that
name it and in no other. Within such a tile, pixels out of the splat's reach of 1/255 need not be visited, hence the boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nsw.kernels.compiling import announce_first_compile, kernel
from nsw.kernels.rasterize_autograd import padded_channels
from nsw.kernels.rasterize_backward import N_SUMS, gather_gradients, rasterize_backward
from nsw.kernels.rasterize_forward import rasterize_forward
from nsw.kernels.threads import n_threads, run_shares
from nsw.kernels.tiles import pixel_box, write_record

FAR = 1 << 24  # a box no picture exceeds


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
def prepare_given(means2d, conics, opacities, colors, width, height, records, boxes, share, n_shares):
    """Write records and pixel boxes of all rows; nothing is known of radii, so an odd conic gets the whole picture."""
    n = boxes.shape[0]
    part = (n + n_shares - 1) // n_shares
    whole = np.full(2, FAR, np.int32)
    for i in range(share * part, min((share + 1) * part, n)):
        write_record(records[i], means2d[i], conics[i], opacities[i], colors[i])
        if conics[i, 0] > 0 and conics[i, 2] > 0:
            boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3] = pixel_box(
                means2d[i], conics[i], whole, opacities[i], width, height
            )
        else:
            boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3] = 0, width, 0, height


class _CompositeLists(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means2d, conics, colors, opacities, backgrounds, width, height, lists, absolute):
        (n_rows, n_given), n_images = colors.shape, len(lists.starts)
        n_channels = padded_channels(n_given)
        splats = [t.detach().contiguous().numpy() for t in (means2d, conics, opacities)]
        channels, behind = np.zeros((n_rows, n_channels), np.float32), np.zeros((n_images, n_channels), np.float32)
        channels[:, :n_given] = colors.detach().numpy()
        if backgrounds is not None:
            behind[:, :n_given] = backgrounds.detach().numpy()
        records, boxes = np.empty((n_rows, 6 + n_channels), np.float32), np.empty((n_rows, 4), np.int32)
        run_shares(prepare_given, n_threads(), *splats, channels, width, height, records, boxes)
        pictures = np.empty((n_images, height, width, n_channels), np.float32)
        light, stops = np.empty((n_images, height, width), np.float32), np.empty((n_images, height, width), np.float32)
        tile_stops = np.empty((n_images, lists.starts.shape[1] - 1), np.int64)
        like = (np.float32(0),) * n_channels
        for i in range(n_images):
            outputs = (pictures[i], light[i], stops[i], tile_stops[i])
            run_shares(rasterize_forward, n_threads(), lists.starts[i], lists.members, records, boxes, behind[i], like, *outputs)
        ctx.arrays, ctx.lists, ctx.like = (splats, records, boxes, behind, light, stops, tile_stops), lists, like
        ctx.n_given, ctx.absolute, ctx.has_background = n_given, absolute, backgrounds is not None
        return torch.from_numpy(pictures)[..., :n_given].contiguous(), torch.from_numpy(1 - light)[..., None]

    @staticmethod
    def backward(ctx, v_pictures, v_alphas):
        (splats, records, boxes, behind, light, stops, tile_stops), lists, like = ctx.arrays, ctx.lists, ctx.like
        n_rows, n_channels = len(records), len(like)
        v_picture = np.zeros(light.shape + (n_channels,), np.float32)
        v_picture[..., : ctx.n_given] = v_pictures.numpy()
        v_alpha = np.ascontiguousarray(v_alphas.numpy()[..., 0])
        sums, want_absolute = np.empty(len(lists.members) * (N_SUMS + n_channels), np.float32), ctx.absolute is not None
        v_behind = np.einsum("ihwc,ihw->ic", v_picture, light)
        for i in range(len(lists.starts)):
            tiles = (lists.starts[i], tile_stops[i], lists.members, lists.slots, records, boxes, behind[i])
            pixels = (light[i], stops[i], v_picture[i], v_alpha[i])
            run_shares(rasterize_backward, n_threads(), *tiles, *pixels, want_absolute, like, sums)
        outputs = [np.zeros((n_rows,) + tail, np.float32) for tail in ((2,), (3,), (), (n_channels,))]
        absolute = np.zeros((n_rows, 2), np.float32)
        visible = np.maximum(splats[2], np.float32(1e-30))  # a splat of opacity 0 is drawn nowhere: 0 / tiny, not 0 / 0
        run_shares(gather_gradients, n_threads(), 0, lists.first_slot, sums, splats[1], visible, want_absolute, *outputs, absolute)
        if want_absolute:
            ctx.absolute.add_(torch.from_numpy(absolute))
        v_means2d, v_conics, v_opacities, v_colors = (torch.from_numpy(array) for array in outputs)
        v_backgrounds = torch.from_numpy(v_behind[:, : ctx.n_given]) if ctx.has_background else None
        return v_means2d, v_conics, v_colors[:, : ctx.n_given], v_opacities, v_backgrounds, None, None, None, None


def composite_lists(
    means2d, conics, colors, opacities, width, height, tile_size, offsets, flatten_ids, backgrounds=None, absolute=None
):
    """Do what `rasterize_reference.rasterize_to_pixels` does, for float32 and tiles of 16 pixels."""
    announce_first_compile()
    lists = make_lists(offsets, flatten_ids, len(means2d))
    return _CompositeLists.apply(means2d, conics, colors, opacities, backgrounds, width, height, lists, absolute)
