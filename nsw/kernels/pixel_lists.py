"""`rasterize_to_pixels`, `rasterize_to_indices_in_range` and `accumulate`: gsplat's compositing of lists that the caller made.

`rasterization` makes its own lists. Research code does not: it projects, lists (`isect_tiles`), changes what it likes, and then
composites exactly the lists it holds. Two ways lead to the picture:

* `rasterize_to_pixels` walks every tile's list at once, compiled for float32 and tiles of 16 pixels, in plain torch otherwise;
* `rasterize_to_indices_in_range` only says which splat is drawn in which pixel, and `accumulate` turns such triples into colours
  with differentiable torch operations that anybody can rewrite.

The rules at a pixel are those of `rasterize_reference.py`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.errors import CallError
from nsw.kernels import engine_reference, engines, rasterize_reference
from nsw.kernels.projection_reference import View
from nsw.kernels.rasterize_reference import ALPHA_MAX, TRANSMITTANCE_MIN, splat_alphas


def rasterize_to_pixels(
    means2d: Float[Tensor, "*i n 2"],
    conics: Float[Tensor, "*i n 3"],
    colors: Float[Tensor, "*i n d"],
    opacities: Float[Tensor, "*i n"],
    image_width: int,
    image_height: int,
    tile_size: int,
    isect_offsets: Int[Tensor, "*i th tw"],
    flatten_ids: Int[Tensor, "m"],
    backgrounds: Float[Tensor, "*i d"] | None = None,
    masks: Bool[Tensor, "*i th tw"] | None = None,
    packed: bool = False,
    absgrad: bool = False,
) -> tuple[Float[Tensor, "*i h w d"], Float[Tensor, "*i h w 1"]]:
    """Composite projected splats by the lists given.

    Args:
        means2d, conics, colors, opacities: [..., N, ...], or [nnz, ...] if `packed`. flatten_ids counts through all of them.
        isect_offsets: where each tile's list begins in flatten_ids; its leading dimensions are those of the pictures.
        masks: tiles that are False show the background alone.
        absgrad: backward also sets `means2d.absgrad`, sums over pixels of absolute gradients.

    Returns:
        Colours with the background added, and alphas.

    Raises:
        CallError: when shapes do not fit together, or the tiles do not cover the picture.
    """
    lead = (means2d.shape[0],) if packed else tuple(means2d.shape[:-1])
    images = tuple(isect_offsets.shape[:-2])
    expected = {"means2d": (means2d, lead + (2,)), "conics": (conics, lead + (3,)), "opacities": (opacities, lead)}
    expected["colors"] = (colors, lead + (colors.shape[-1],))
    if backgrounds is not None:
        expected["backgrounds"] = (backgrounds, images + (colors.shape[-1],))
    check_lists(expected, image_width, image_height, tile_size, isect_offsets, masks)
    if not packed and images != lead[:-1]:
        raise CallError(f"isect_offsets must be {list(lead[:-1])} tiles, got {list(isect_offsets.shape)}.")
    offsets, flatten_ids = without_masked(isect_offsets, flatten_ids, masks)
    if absgrad:
        means2d.absgrad = torch.zeros_like(means2d)
    rows = (means2d.reshape(-1, 2), conics.reshape(-1, 3), colors.reshape(-1, colors.shape[-1]), opacities.reshape(-1))
    behind = None if backgrounds is None else backgrounds.reshape(-1, backgrounds.shape[-1])
    absolute = means2d.absgrad.view(-1, 2) if absgrad else None
    if compiled_applies((*rows, behind), tile_size, offsets, image_width, image_height):
        from nsw.kernels.pixel_lists_fast import composite_lists as composite
    else:
        composite = rasterize_reference.rasterize_to_pixels
    renders, alphas = composite(*rows, image_width, image_height, tile_size, offsets, flatten_ids, behind, absolute)
    shape = images + (image_height, image_width)
    return renders.view(shape + (-1,)), alphas.view(shape + (1,))


def check_lists(expected: dict, width: int, height: int, tile_size: int, isect_offsets, masks=None) -> None:
    """Compare tensors with the shapes they should have, and the grid of tiles with the picture."""
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != tuple(shape):
            raise CallError(f"{name} must be {list(shape)}, got {list(tensor.shape)}.")
        if name == "colors" and not 0 < tensor.shape[-1] <= 513:
            raise CallError(f"Unsupported number of color channels: {tensor.shape[-1]}")
    if masks is not None and masks.shape != isect_offsets.shape:
        raise CallError(f"masks must be {list(isect_offsets.shape)}, got {list(masks.shape)}.")
    rows, columns = isect_offsets.shape[-2:]
    if rows * tile_size < height or columns * tile_size < width:
        raise CallError(f"{columns} x {rows} tiles of {tile_size} pixels do not cover {width} x {height} pixels.")


@torch.no_grad()
def without_masked(isect_offsets, flatten_ids, masks) -> tuple[Int[Tensor, "i th tw"], Int[Tensor, "m"]]:
    """Empty the lists of masked tiles; offsets come back as [I, th, tw]."""
    offsets = isect_offsets.reshape((-1,) + tuple(isect_offsets.shape[-2:]))
    if masks is None:
        return offsets, flatten_ids
    ends = torch.cat([offsets.flatten()[1:], offsets.new_tensor([len(flatten_ids)])])
    lengths, open_tiles = (ends - offsets.flatten()).long(), masks.flatten()
    kept = torch.where(open_tiles, lengths, torch.zeros_like(lengths))
    new_offsets = (torch.cumsum(kept, 0) - kept).to(offsets.dtype).view(offsets.shape)
    return new_offsets, flatten_ids[torch.repeat_interleave(open_tiles, lengths)]


def compiled_applies(tensors, tile_size: int, offsets, width: int, height: int) -> bool:
    """Whether the compiled kernels know this case: float32 on the CPU, tiles of 16 pixels that just cover the picture."""
    given = tuple(t for t in tensors if t is not None)
    engine = engines.choose((*given[:3], None, *given[3:]), View(width, height), tile_size)
    just_covers = tuple(offsets.shape[-2:]) == (-(-height // tile_size), -(-width // tile_size))
    return engine.composite is not engine_reference.composite and just_covers


@torch.no_grad()
def rasterize_to_indices_in_range(
    range_start: int,
    range_end: int,
    transmittances: Float[Tensor, "*i h w"],
    means2d: Float[Tensor, "*i n 2"],
    conics: Float[Tensor, "*i n 3"],
    opacities: Float[Tensor, "*i n"],
    image_width: int,
    image_height: int,
    tile_size: int,
    isect_offsets: Int[Tensor, "*i th tw"],
    flatten_ids: Int[Tensor, "m"],
) -> tuple[Int[Tensor, "k"], Int[Tensor, "k"], Int[Tensor, "k"]]:
    """Say which splat is drawn in which pixel, within a range of every tile's list.

    Args:
        range_start, range_end: from and up to which batch of `tile_size`^2 list entries; 0 and a huge number take all.
        transmittances: what earlier ranges have left of the light.

    Returns:
        gaussian_ids, pixel_ids (row-major) and image_ids, int64 [K] each: pixel by pixel, front to back.
    """
    lead = tuple(means2d.shape[:-1])
    expected = {"means2d": (means2d, lead + (2,)), "conics": (conics, lead + (3,)), "opacities": (opacities, lead),
                "transmittances": (transmittances, lead[:-1] + (image_height, image_width))}  # fmt: skip
    check_lists(expected, image_width, image_height, tile_size, isect_offsets)
    means2d, conics, opacities = means2d.reshape(-1, 2), conics.reshape(-1, 3), opacities.reshape(-1)

    def alphas_of(pixels, rows):
        return splat_alphas(pixels, means2d[rows], conics[rows], opacities[rows])

    lists = (tile_size, isect_offsets, flatten_ids)
    return drawn_pairs(alphas_of, range_start, range_end, transmittances, lead[-1], image_width, image_height, *lists)


def drawn_pairs(
    alphas_of, range_start, range_end, transmittances, n_splats, width, height, tile_size, isect_offsets, flatten_ids
) -> tuple[Tensor, Tensor, Tensor]:
    """Walk all tiles and collect the pairs that pass the skip and the stop rule; `alphas_of(pixels, rows)` is [P, n]."""
    n_images, (tiles_y, tiles_x) = math.prod(isect_offsets.shape[:-2]), isect_offsets.shape[-2:]
    bounds = [*isect_offsets.flatten().tolist(), len(flatten_ids)]
    light = transmittances.reshape(n_images, height, width)
    block = tile_size * tile_size
    splats, pixels = [flatten_ids[:0].long()], [flatten_ids[:0].long()]
    for index in range(n_images * tiles_y * tiles_x):
        begin = bounds[index] + int(min(range_start * block, len(flatten_ids)))
        end = min(bounds[index + 1], bounds[index] + int(min(range_end * block, len(flatten_ids))))
        image, tile = divmod(index, tiles_y * tiles_x)
        row, column, centres = rasterize_reference._tile_pixels(tile, tiles_x, tile_size, width, height, transmittances)
        if begin >= end or len(row) == 0:
            continue
        rows = flatten_ids[begin:end].long()
        alphas = alphas_of(centres, rows)
        left = light[image, row, column][:, None] * torch.cumprod(1 - alphas, dim=1)
        pixel, entry = torch.nonzero((alphas > 0) & (left > TRANSMITTANCE_MIN), as_tuple=True)
        splats.append(rows[entry])
        pixels.append((image * height + row[pixel]) * width + column[pixel])
    where = torch.cat(pixels)
    order = torch.argsort(where, stable=True)
    where = where[order]
    return torch.cat(splats)[order] % max(n_splats, 1), where % (width * height), where // (width * height)


def accumulate(
    means2d: Float[Tensor, "*i n 2"],
    conics: Float[Tensor, "*i n 3"],
    opacities: Float[Tensor, "*i n"],
    colors: Float[Tensor, "*i n d"],
    gaussian_ids: Int[Tensor, "k"],
    pixel_ids: Int[Tensor, "k"],
    image_ids: Int[Tensor, "k"],
    image_width: int,
    image_height: int,
) -> tuple[Float[Tensor, "*i h w d"], Float[Tensor, "*i h w 1"]]:
    """Blend (splat, pixel, image) triples in the order given, in differentiable torch; the answers of the call above fit in.

    Returns:
        Colours without a background, and alphas.

    >>> first, half = torch.zeros(1, dtype=torch.int64), torch.full((1, 1), 0.5)
    >>> accumulate(torch.full((1, 1, 2), 0.5), torch.ones(1, 1, 3), half, torch.ones(1, 1, 1), first, first, first, 1, 1)
    (tensor([[[[0.5000]]]]), tensor([[[[0.5000]]]]))
    """
    lead = tuple(means2d.shape[:-1])
    rows = image_ids * lead[-1] + gaussian_ids
    alphas = alphas_of_pairs(means2d, conics, opacities, rows, pixel_ids, image_width)
    where = (image_ids * image_height + pixel_ids // image_width) * image_width + pixel_ids % image_width
    n_pixels = math.prod(lead[:-1]) * image_width * image_height
    shape = lead[:-1] + (image_height, image_width)
    values, opaque = blend_pairs(alphas, colors.reshape(-1, colors.shape[-1])[rows], where, n_pixels)
    return values.view(shape + (-1,)), opaque.view(shape + (1,))


def alphas_of_pairs(
    means2d: Float[Tensor, "*i n 2"],
    conics: Float[Tensor, "*i n 3"],
    opacities: Float[Tensor, "*i n"],
    rows: Int[Tensor, "k"],
    pixel_ids: Int[Tensor, "k"],
    image_width: int,
) -> Float[Tensor, "k"]:
    """Return the opacity of each splat at the centre of the pixel that it is paired with; `rows` count through all pictures."""
    centres = torch.stack([pixel_ids % image_width, pixel_ids // image_width], dim=-1) + 0.5
    dx, dy = (means2d.reshape(-1, 2)[rows] - centres).unbind(-1)
    a, b, c = conics.reshape(-1, 3)[rows].unbind(-1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    return torch.clamp(opacities.reshape(-1)[rows] * torch.exp(-sigma), max=ALPHA_MAX)


def blend_pairs(alphas: Float[Tensor, "k"], values: Float[Tensor, "k d"], where: Int[Tensor, "k"], n_pixels: int):
    """Front-to-back sums of each pixel's run of pairs: `sum_i v_i alpha_i prod_{j<i} (1 - alpha_j)`, and of the weights alone."""
    weights = alphas * light_before(alphas, where)
    sums = values.new_zeros(n_pixels, values.shape[-1]).index_add(0, where, weights[:, None] * values)
    return sums, values.new_zeros(n_pixels).index_add(0, where, weights)


def light_before(alphas: Float[Tensor, "k"], where: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
    """Return what each pixel's light in [0, 1] is before each pair of its run, `prod_{j<i} (1 - alpha_j)`.

    The running product over a pixel is a running sum of logarithms over all pairs, minus its value where the pixel begins.
    """
    first = torch.ones_like(where, dtype=torch.bool)
    first[1:] = where[1:] != where[:-1]
    logs = torch.log1p(-alphas.double())
    before = torch.cumsum(logs, 0) - logs
    run = torch.cumsum(first, 0) - 1
    return torch.exp(before - before[first][run]).to(alphas.dtype)
