"""NeRDF's error before random backgrounds in closed form, against drawn backgrounds: values and gradients."""

from __future__ import annotations

import pytest
import torch

from nsw.losses import loss_mse
from nsw.methods import nerdf
from nsw.renderers.volume import RayRender

N = 400_000


def _ray(rgb: torch.Tensor, alpha: torch.Tensor, background) -> RayRender:
    """Return rays of that colour times opacity, over a background; they have no samples."""
    none = rgb.new_zeros(len(rgb), 0)
    return RayRender(rgb + (1 - alpha)[:, None] * background, alpha, 0 * alpha, none, none, none, none, none, none[..., None])


@pytest.mark.parametrize(("mean", "half"), [(0.5, 0.5), (1.0, 0.5), (torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64), 0.2)])
def test_the_closed_form_is_the_mean_over_drawn_backgrounds(mean, half):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    seen = torch.cat([draw(3, 3) * 0.5, 0.5 + 0.5 * draw(3, 1)], dim=-1).requires_grad_()
    lesson = nerdf.Lesson(draw(3, 3) * 0.5, draw(3), torch.zeros(3, 0, dtype=torch.float64))

    drawn = mean + half * (2 * draw(N, 3, 3) - 1)  # uniform: a variance of a third of the half width squared
    rgb, alpha = seen[:, :3], seen[:, 3]
    ours, theirs = rgb + (1 - alpha)[:, None] * drawn, lesson.rgb + (1 - lesson.alpha)[:, None] * drawn
    sampled = (ours - theirs).square().mean()
    slope_sampled = torch.autograd.grad(sampled, seen, retain_graph=True)[0]

    out = _ray(rgb, alpha, mean)
    closed = loss_mse(out.rgb, lesson.over(mean)) + nerdf.loss_opacity(out, lesson, half**2 / 3)
    slope = torch.autograd.grad(closed, seen)[0]
    torch.testing.assert_close(closed, sampled, rtol=3e-3, atol=0)
    torch.testing.assert_close(slope, slope_sampled, rtol=0, atol=3e-3 * float(slope.abs().max()))


def test_the_default_variance_is_that_of_even_grey_levels():
    generator = torch.Generator().manual_seed(0)
    alpha, black = torch.tensor([0.25]), torch.zeros(1, 3)
    out, lesson = _ray(black, alpha, 0.0), nerdf.Lesson(black, torch.tensor([0.75]), torch.zeros(1, 0))
    levels = torch.rand(N, generator=generator)
    assert float(nerdf.loss_opacity(out, lesson)) == pytest.approx(float((0.5 * levels).var()), rel=3e-3)
