"""Weights of samples along rays with their gradients, in one compiled pass each way: what nerfacc's rendering calls share.

With the optical depth x_i = sigma_i delta_i of a sample (NeRF, Mildenhall et al. 2020, eq. 3):

    alpha_i = 1 - exp(-x_i),  T_i = exp(-sum_{j<i} x_j) = prod_{j<i} (1 - alpha_j),  w_i = T_i alpha_i

One walk from the last sample to the first gives all gradients, because x_i acts on its own alpha and, through T, on everything
behind it:

    dL/dx_i = exp(-x_i) dL/dalpha_i + T_{i+1} dL/dw_i - sum_{k>i} (T_k dL/dT_k + w_k dL/dw_k)

The `_reference` functions say the same in plain torch, on any device and to any order of derivative.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nsw.kernels import compositing_loops
from nsw.kernels.chunks import Chunks, n_shares
from nsw.kernels.packed_reference import batched_scan, places, scan_reference
from nsw.kernels.threads import run_shares

_NONE = np.empty(0, np.float32)


def weights_from_density(
    depth: Float[Tensor, "*s"], chunks: Chunks
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"], Float[Tensor, "*s"], Float[Tensor, "n_rays"]]:
    """Return weight, transmittance and opacity of each sample, and the transmittance behind each ray's last one.

    Args:
        depth: sigma times delta, >= 0, float32 on the CPU; [R, S] or packed.
        chunks: where each ray's samples lie in it.

    >>> from nsw.kernels.chunks import batched_chunks
    >>> depth = torch.full((1, 2), 0.6931472)
    >>> [x.tolist() for x in weights_from_density(depth, batched_chunks(depth.shape))]
    [[[0.5, 0.25]], [[1.0, 0.5]], [[0.5, 0.5]], [0.25]]
    """
    return _FromDensity.apply(depth, chunks)


def weights_from_density_reference(depth: Tensor, packed_info: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight, transmittance and opacity of each sample from plain torch calls; batched without `packed_info`."""
    if packed_info is None:
        before = batched_scan(depth, product=False, exclusive=True)
    else:
        before = scan_reference(depth, packed_info, exclusive=True)
    alphas = -torch.expm1(-depth)  # 1 - exp(-x) loses all digits of thin samples in float32
    trans = torch.exp(-before)
    return trans * alphas, trans, alphas


def weights_from_alpha(alphas: Float[Tensor, "*s"], chunks: Chunks) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """Return weight and transmittance of each sample from opacities, float32 on the CPU.

    >>> from nsw.kernels.chunks import batched_chunks
    >>> alphas = torch.tensor([[0.5, 1.0, 0.5]])
    >>> weights_from_alpha(alphas, batched_chunks(alphas.shape))[0].tolist()
    [[0.5, 0.5, 0.0]]
    """
    return _FromAlpha.apply(alphas, chunks)


def weights_from_alpha_reference(alphas: Tensor, packed_info: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weight and transmittance of each sample from plain torch calls; batched without `packed_info`."""
    if packed_info is None:
        trans = batched_scan(1 - alphas, product=True, exclusive=True)
    else:
        trans = scan_reference(1 - alphas, packed_info, product=True, exclusive=True)
    return trans * alphas, trans


def _flat(*tensors: Tensor | None) -> list[np.ndarray]:
    return [_NONE if t is None else t.detach().contiguous().numpy().reshape(-1) for t in tensors]


class _FromDensity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, depth: Tensor, chunks: Chunks):
        ctx.set_materialize_grads(False)
        weights, trans, alphas, left = *(torch.zeros(depth.shape) for _ in range(3)), torch.zeros(len(chunks.starts))
        run_shares(
            compositing_loops.density_forward, n_shares(depth.numel()), *_flat(depth), *chunks, *_flat(weights, trans, alphas, left)
        )
        ctx.chunks = chunks
        ctx.save_for_backward(depth, weights, trans, left)
        return weights, trans, alphas, left

    @staticmethod
    def backward(ctx, g_weights, g_trans, g_alphas, g_left):
        depth, weights, trans, left = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            return _differentiable(depth, ctx.chunks, (g_weights, g_trans, g_alphas, g_left)), None
        out = torch.zeros(depth.shape)
        arrays = _flat(weights, trans, left, g_weights, g_trans, g_alphas, g_left, out)
        run_shares(compositing_loops.density_backward, n_shares(depth.numel()), *_flat(depth), *ctx.chunks, *arrays)
        return out, None


def _differentiable(depth: Tensor, chunks: Chunks, gradients: tuple) -> Tensor:
    flat, info = depth.reshape(-1), chunks.packed_info
    outputs = [t.view(depth.shape) for t in weights_from_density_reference(flat, info)]
    rays, _, place = places(info)
    outputs.append(torch.exp(-flat.new_zeros(len(info)).index_add(0, rays, flat[place])))
    used = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None]
    return torch.autograd.grad([o for o, _ in used], depth, [g for _, g in used], create_graph=True)[0]


class _FromAlpha(torch.autograd.Function):
    @staticmethod
    def forward(ctx, alphas: Tensor, chunks: Chunks):
        ctx.set_materialize_grads(False)
        weights, trans = torch.zeros(alphas.shape), torch.zeros(alphas.shape)
        run_shares(compositing_loops.alpha_forward, n_shares(alphas.numel()), *_flat(alphas), *chunks, *_flat(weights, trans))
        ctx.chunks = chunks
        ctx.save_for_backward(alphas, trans)
        return weights, trans

    @staticmethod
    def backward(ctx, g_weights, g_trans):
        alphas, trans = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = weights_from_alpha_reference(alphas.reshape(-1), ctx.chunks.packed_info)
            used = [(o.view(alphas.shape), g) for o, g in zip(found, (g_weights, g_trans), strict=True) if g is not None]
            return torch.autograd.grad([o for o, _ in used], alphas, [g for _, g in used], create_graph=True)[0], None
        out = torch.zeros(alphas.shape)
        arrays = _flat(trans, g_weights, g_trans, out)
        run_shares(compositing_loops.alpha_backward, n_shares(alphas.numel()), *_flat(alphas), *ctx.chunks, *arrays)
        return out, None
