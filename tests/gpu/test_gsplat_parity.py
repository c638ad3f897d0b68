"""The CPU rasterizer against gsplat's CUDA kernels, at the tolerances of the method card. Needs a CUDA GPU."""

from __future__ import annotations

import math

import pytest
import torch

from nsw.kernels import rasterization

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="parity with gsplat's CUDA kernels needs a CUDA GPU")


def scene(n: int, seed: int = 0) -> dict:
    """Splats in a ball, seen by two cameras three radii away."""
    g = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)
    viewmats = torch.eye(4).repeat(2, 1, 1)
    viewmats[:, 2, 3] = torch.tensor([3.0, 3.4])
    return {
        "means": direction * torch.rand(n, 1, generator=g) ** (1 / 3),
        "quats": torch.randn(n, 4, generator=g),
        "scales": 0.55 * (4 / 3 * math.pi / n) ** (1 / 3) * torch.exp(0.5 * torch.randn(n, 3, generator=g)),
        "opacities": 0.1 + 0.85 * torch.rand(n, generator=g),
        "colors": torch.randn(n, 16, 3, generator=g) * 0.3,
        "viewmats": viewmats,
        "Ks": torch.tensor([[150.0, 0, 80], [0, 150, 60], [0, 0, 1]]).repeat(2, 1, 1),
    }


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_same_picture_and_gradients_as_cuda(packed, mode):
    import gsplat

    options = dict(width=160, height=120, sh_degree=3, render_mode="RGB+ED", rasterize_mode=mode, packed=packed, absgrad=True)
    results = []
    for function, device in ((rasterization, "cpu"), (gsplat.rasterization, "cuda")):
        tensors = {name: value.to(device).requires_grad_(name != "Ks") for name, value in scene(5000).items()}
        renders, alphas, meta = function(**tensors, **options)
        meta["means2d"].retain_grad()
        (renders.square().mean() + alphas.mean()).backward()
        grads = {name: value.grad.cpu() for name, value in tensors.items() if name != "Ks"}
        results.append((renders.detach().cpu(), alphas.detach().cpu(), meta, grads))
    (ours, our_alphas, our_meta, our_grads), (theirs, their_alphas, their_meta, their_grads) = results
    assert set(their_meta) <= set(our_meta)
    # A splat on the 1/255 or on the transmittance threshold may fall on either side: a few pixels are allowed to differ.
    assert ((ours[..., :3] - theirs[..., :3]).abs() > 2e-3).double().mean() < 1e-3
    assert ((our_alphas - their_alphas).abs() > 1e-3).double().mean() < 1e-3
    for name, grad in their_grads.items():
        assert (our_grads[name] - grad).norm() < 1e-2 * grad.norm(), name
