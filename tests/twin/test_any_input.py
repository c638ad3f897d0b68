"""No finite input makes a NaN or leaves an array's memory: lookups anywhere in space, pictures of any contrast."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nsw.kernels import hash_encode, hash_levels, rasterization, rasterization_2dgs
from nsw.kernels.grid_lookup import grid_lookup, grid_lookup_reference
from nsw.kernels.ssim import ssim_l1

anywhere = st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=9, max_size=9)
BOX = torch.tensor([[-1.0, -2.0, 0.5], [2.0, 1.0, 1.5]])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(numbers=anywhere)
def test_a_lookup_beyond_the_grid_returns_the_border(numbers):
    points = torch.tensor(numbers).view(3, 3).requires_grad_()
    grid = torch.rand(3, 4, 5, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = grid_lookup(grid, points, BOX)
    found.sum().backward()
    inside = points.detach().double().clamp(BOX[0].double(), BOX[1].double())
    torch.testing.assert_close(found.double(), grid_lookup_reference(grid.double(), inside, BOX.double()), atol=1e-4, rtol=0)
    assert torch.isfinite(points.grad).all() and abs(float(grid.grad.sum()) - 6) < 1e-4


@settings(max_examples=40, deadline=None, derandomize=True)
@given(numbers=anywhere)
def test_an_encoding_is_a_mean_of_entries_wherever_the_point_lies(numbers):
    levels = hash_levels(3, 4, 32, 8)
    table = torch.ones(levels.n_rows, 2, requires_grad=True)
    points = torch.tensor(numbers).view(3, 3).requires_grad_()
    found = hash_encode(table, points, levels)
    found.sum().backward()
    torch.testing.assert_close(found, torch.ones(3, 6), atol=1e-5, rtol=0)
    assert torch.isfinite(points.grad).all() and abs(float(table.grad.sum()) - 18) < 1e-3


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 3, 17, 3), (2, 12, 1, 1)])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(size=st.sampled_from([0.0, 1e-20, 1.0, 1e6]), seed=st.integers(0, 9))
def test_losses_of_pictures_of_any_contrast_are_finite(shape, size, seed):
    generator = torch.Generator().manual_seed(seed)
    picture = (size * torch.randn(shape, generator=generator)).requires_grad_()
    similarity, difference = ssim_l1(picture, size * torch.randn(shape, generator=generator))
    (difference - similarity).backward()
    assert -1.0001 <= float(similarity) <= 1.0001 and float(difference) >= 0
    assert torch.isfinite(picture.grad).all()


def splats(n: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(n)
    return {
        "means": 0.5 * torch.randn(n, 3, generator=g) + torch.tensor([0.0, 0.0, 2.0]),
        "quats": torch.randn(n, 4, generator=g),
        "scales": 0.01 + 0.2 * torch.rand(n, 3, generator=g),
        "opacities": 0.05 + 0.9 * torch.rand(n, generator=g),
        "colors": torch.rand(n, 3, generator=g),
    }


def assert_finite(values: dict, draw=rasterization, width: int = 17, height: int = 9, centre: float = 8.0, **options) -> None:
    """Draw splats and go back: pictures and gradients, that of the camera too, are finite."""
    values = {name: value.clone().requires_grad_() for name, value in values.items()}
    viewmats = torch.eye(4)[None].clone().requires_grad_()
    Ks = torch.tensor([[[20.0, 0.0, centre], [0.0, 20.0, 4.0], [0.0, 0.0, 1.0]]])
    out = draw(**values, viewmats=viewmats, Ks=Ks, width=width, height=height, **options)
    pictures = [out[0], out[1]] if draw is rasterization else [out[0], out[1], out[2], out[4], out[5]]
    sum(picture.sum() for picture in pictures).backward()
    for found in (*pictures, *(value.grad for value in values.values()), viewmats.grad):
        assert found is None or torch.isfinite(found).all()


both = pytest.mark.parametrize(
    ("draw", "options"),
    [(rasterization, {"render_mode": "RGB+ED", "absgrad": True, "packed": False}),
     (rasterization, {"rasterize_mode": "antialiased"}), (rasterization_2dgs, {"render_mode": "RGB+ED"})],
)  # fmt: skip


@both
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-20, 1e19, 1e30, -1e30])
def test_pictures_of_splats_with_any_number_in_them_are_finite(draw, options, value):
    for name in ("means", "quats", "scales", "colors"):
        for columns in (slice(None), slice(1)):
            values = splats(20)
            values[name][::2, columns] = value
            assert_finite(values, draw, **options)


@both
@pytest.mark.parametrize("opacity", [0.0, 1.0, 2.0, 1e30, -1.0])
def test_opacities_of_exactly_nothing_and_of_everything_or_more_are_drawn(draw, options, opacity):
    assert_finite(splats(20) | {"opacities": torch.full((20,), opacity)}, draw, **options)


@both
@pytest.mark.parametrize("n", [0, 1, 17])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 40), (33, 2)])
@pytest.mark.parametrize("centre", [0.5, -1000.0, 1e30])
def test_scenes_of_any_number_and_pictures_of_any_shape_and_centre(draw, options, n, width, height, centre):
    assert_finite(splats(n), draw, width, height, centre, **options)


@both
def test_needles_crowds_and_splats_behind_or_on_the_near_plane(draw, options):
    for change in (
        {"scales": torch.tensor([50.0, 1e-12, 1e-12]).expand(20, 3)}, {"scales": torch.tensor([1e-12, 1e-12, 50.0]).expand(20, 3)},
        {"means": torch.tensor([0.0, 0.0, 2.0]).expand(20, 3)}, {"means": torch.tensor([0.1, 0.0, 0.01]).expand(20, 3)},
        {"means": torch.tensor([0.0, 0.0, -2.0]).expand(20, 3)}, {"means": torch.zeros(20, 3)},
    ):  # fmt: skip
        assert_finite(splats(20) | change, draw, **options)
