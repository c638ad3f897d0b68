"""Rows of projected surfels to pictures and back: the order in which the compiled kernels run, and what backward must remember."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nsw.kernels.pixel_lists_fast import make_lists
from nsw.kernels.saturation import settle
from nsw.kernels.surfels_backward import N_SUMS, gather_surfels, surfels_backward
from nsw.kernels.surfels_forward import CENTRE_DISTORTION, NO_DISTORTION, RAY_DISTORTION, surfels_forward
from nsw.kernels.surfels_lists import COLOR, add_up, fill_lists, prepare_surfels
from nsw.kernels.surfels_reference import RayRules
from nsw.kernels.threads import n_threads, run_shares
from nsw.kernels.tiles import TILE, sort_by_depth

# Kernels are compiled for these numbers of channels, normals among them; others are filled up with zeros to the next one.
CHANNEL_COUNTS = (3, 6, 12, 36)
SMALL = 4000  # splats below which waking a thread costs more than it saves
ALL = 2**31 - 1  # no splat is frozen


@dataclass(frozen=True)
class Drawing:
    """What one picture's backward pass needs of its lists; slots and first_slot count through the picture's own sums."""

    first_row: int
    tile_start: np.ndarray
    members: np.ndarray
    slots: np.ndarray
    first_slot: np.ndarray
    records: np.ndarray
    boxes: np.ndarray


def padded_channels(n: int) -> int:
    """The number of channels to compile for, at least n.

    >>> [padded_channels(n) for n in (3, 7, 40)]
    [3, 12, 64]
    """
    return next((count for count in CHANNEL_COUNTS if count >= n), -(-n // 32) * 32)


def own_lists(arrays, depths, radii, first_row: int, last_row: int, width: int, height: int) -> Drawing:
    """Sort the rows of one picture by depth and list them by tile."""
    means2d, transforms, channels, opacities = arrays
    n, n_tiles = last_row - first_row, -(-height // TILE) * -(-width // TILE)
    n_shares = n_threads() if n > SMALL else 1
    records, boxes = np.empty((n, COLOR + channels.shape[1]), np.float32), np.empty((n, 4), np.int32)
    hit_bits, first_slot = np.empty(n, np.uint64), np.empty(n + 1, np.int64)
    counts, tile_start = np.empty((n_shares, n_tiles), np.int64), np.empty(n_tiles + 1, np.int64)
    splats = (first_row, means2d, transforms, depths, radii, opacities, channels, width, height, False)
    run_shares(prepare_surfels, n_shares, *splats, records, boxes, hit_bits, first_slot, counts)
    total = add_up(first_slot, counts, tile_start)
    order = np.empty(n, np.int32)
    n_seen = sort_by_depth(depths.view(np.uint32), radii, first_row, last_row, order)
    members, slots = np.empty(total, np.int32), np.empty(total, np.int32)
    hits = (boxes, hit_bits, first_slot, width, tile_start.copy(), members, slots)
    run_shares(fill_lists, n_shares, order, n_seen, *hits)
    return Drawing(first_row, tile_start, members, slots, first_slot, records, boxes)


def given_lists(arrays, depths, offsets, flatten_ids, width: int, height: int) -> list[Drawing]:
    """Take the caller's lists: every picture reads the rows of all."""
    means2d, transforms, channels, opacities = arrays
    n = len(means2d)
    n_shares = n_threads() if n > SMALL else 1
    records, boxes = np.zeros((n, COLOR + channels.shape[1]), np.float32), np.empty((n, 4), np.int32)
    nothing = (np.empty(n, np.uint64), np.empty(n + 1, np.int64), np.empty((n_shares, 0), np.int64))
    no_radii = np.empty((0, 2), np.int32)
    splats = (0, means2d, transforms, depths, no_radii, opacities, channels, width, height, True)
    run_shares(prepare_surfels, n_shares, *splats, records, boxes, *nothing)
    drawings, starts = [], [*offsets[:, 0, 0].tolist(), len(flatten_ids)]
    for image in range(len(offsets)):  # lists of one picture at a time: its gradients have slots of their own
        own = make_lists(offsets[image : image + 1] - starts[image], flatten_ids[starts[image] : starts[image + 1]], n)
        drawings.append(Drawing(0, own.starts[0], own.members, own.slots, own.first_slot, records, boxes))
    return drawings


class CompositeSurfels(torch.autograd.Function):
    """Pictures [I,H,W,C] and alphas, depths, distortions, medians [I,H,W,1] of rows of surfels; `lists` makes the Drawings.

    Of every picture's rows only the first `n_trained` get gradients, those of the others are 0.
    """

    @staticmethod
    def forward(
        ctx, means2d, transforms, channels, opacities, depths, backgrounds, width, height, lists, rules, absolute, n_trained
    ):
        n_given, n_channels = channels.shape[1], padded_channels(channels.shape[1])
        padded = np.zeros((len(channels), n_channels), np.float32)
        padded[:, :n_given] = channels.detach().numpy()
        plain = [t.detach().contiguous().numpy() for t in (means2d, transforms.reshape(-1, 9), opacities, depths)]
        drawings = lists((plain[0], plain[1], padded, plain[2]), plain[3])
        n_images = len(drawings)
        behind = np.zeros((n_images, n_channels), np.float32)
        if backgrounds is not None:
            behind[:, :n_given] = backgrounds.detach().numpy()
        kind = NO_DISTORTION if not rules.distortion else RAY_DISTORTION if rules.ray_depth else CENTRE_DISTORTION
        plain_rays = kind == NO_DISTORTION and not rules.ray_depth
        sharp = np.float32(1 / rules.low_pass**2)
        how = (rules.ray_depth, kind, None if plain_rays else np.array((rules.near, *rules.mapped()), np.float32))
        pictures, maps = (
            np.empty((n_images, height, width, n_channels), np.float32),
            np.empty((n_images, 7, height, width), np.float32),
        )
        like, stops = (np.float32(0),) * n_channels, []
        for image, d in enumerate(drawings):
            stops.append(np.empty(len(d.tile_start) - 1, np.int64))
            lists_of = (d.tile_start, d.members, d.records, d.boxes, behind[image], sharp, like)
            run_shares(surfels_forward, n_threads(), *lists_of, *how, pictures[image], maps[image], stops[image])
        ctx.arrays, ctx.how, ctx.like, ctx.n_given = (plain, drawings, stops, behind, maps, sharp), how, like, n_given
        ctx.absolute, ctx.has_background, ctx.n_trained = absolute, backgrounds is not None, n_trained
        layers = (1 - maps[:, 0], maps[:, 2], maps[:, 3], maps[:, 4])
        return (torch.from_numpy(pictures)[..., :n_given], *(torch.from_numpy(np.ascontiguousarray(x))[..., None] for x in layers))

    @staticmethod
    def backward(ctx, v_pictures, *v_layers):
        (plain, drawings, stops, behind, maps, sharp), like = ctx.arrays, ctx.like
        means2d, transforms, opacities, _ = plain
        n_rows, n_channels, want_absolute = len(means2d), len(like), ctx.absolute is not None
        v_picture = np.zeros((len(drawings), *maps.shape[2:], n_channels), np.float32)
        v_picture[..., : ctx.n_given] = v_pictures.numpy()
        v_maps = np.ascontiguousarray(np.stack([v.numpy()[..., 0] for v in v_layers], axis=1))
        tails = ((2,), (9,), (), (), (n_channels,), (2,))  # means2d, transforms, opacities, depths, channels, absgrad
        shape_of = [(n_rows,) + tail for tail in tails]
        totals = [np.zeros(shape, np.float32) for shape in shape_of]
        shared_rows = len(drawings) > 1 and drawings[0].records is drawings[1].records
        for image, d in enumerate(drawings):
            sums = np.empty(len(d.members) * (N_SUMS + n_channels), np.float32)
            tiles = (d.tile_start, stops[image], d.members, d.slots, d.records, d.boxes, behind[image], sharp)
            pixels = (maps[image], v_picture[image], v_maps[image])
            run_shares(surfels_backward, n_threads(), *tiles, *ctx.how, *pixels, want_absolute, like, ctx.n_trained, sums)
            outputs = [np.zeros(shape, np.float32) for shape in shape_of] if shared_rows else totals
            splats = (d.first_row, d.first_slot, sums, transforms, d.records, opacities, ctx.how[0], want_absolute, ctx.n_trained)
            run_shares(gather_surfels, n_threads() if len(d.boxes) > SMALL else 1, *splats, *outputs)
            if shared_rows:
                for total, output in zip(totals, outputs, strict=True):
                    total += output
        if want_absolute:
            ctx.absolute.add_(torch.from_numpy(totals[5]))
        v_behind = None
        if ctx.has_background:
            v_behind = torch.from_numpy(settle(np.einsum("ihwc,ihw->ic", v_picture, maps[:, 0]))[:, : ctx.n_given].copy())
        v_means2d, v_transforms, v_opacities, v_depths, v_channels = (torch.from_numpy(t) for t in totals[:5])
        return (v_means2d, v_transforms.view(-1, 3, 3), v_channels[:, : ctx.n_given], v_opacities, v_depths, v_behind) + (None,) * 6


def composite_own_lists(
    means2d, transforms, channels, opacities, depths, radii, bounds, width, height, backgrounds, rules: RayRules, absolute,
    n_trained: int | None = None,
):  # fmt: skip
    """Composite rows bounds[i]..bounds[i+1] into picture i, by lists made here that leave out tiles a splat cannot reach.

    Args:
        n_trained: how many of a picture's rows, its first ones, get gradients; None is all.
    """
    radii = radii.contiguous().numpy()

    def lists(arrays, depths):
        return [own_lists(arrays, depths, radii, *pair, width, height) for pair in zip(bounds[:-1], bounds[1:], strict=True)]

    rows = (means2d, transforms, channels, opacities, depths)
    trained = ALL if n_trained is None else n_trained
    return CompositeSurfels.apply(*rows, backgrounds, width, height, lists, rules, absolute, trained)


def composite_given_lists(
    means2d,
    transforms,
    channels,
    opacities,
    depths,
    width,
    height,
    tile_size,
    offsets,
    flatten_ids,
    backgrounds,
    rules,
    absolute=None,
):
    """Do what `surfels_reference.composite_surfels` does, for float32 and tiles of 16 pixels."""

    def lists(arrays, depths):
        return given_lists(arrays, depths, offsets, flatten_ids, width, height)

    rows = (means2d, transforms, channels, opacities, depths)
    return CompositeSurfels.apply(*rows, backgrounds, width, height, lists, rules, absolute, ALL)
