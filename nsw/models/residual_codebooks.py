"""Vectors as sums of a few codewords: residual vector quantisation (R-VQ).

Zeghidour et al. 2021 ("SoundStream"); Lee et al. 2024, section 3.2, for the scales and rotations of splats.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

FIT_ROWS = 10_000  # the first codewords come from at most so many vectors


@torch.no_grad()
def assign(x: Float[Tensor, "N D"], codewords: Float[Tensor, "L K D"]) -> Int[Tensor, "N L"]:
    r"""Return the nearest codeword of every stage: each quantises what the stages before it left over.

    $$i_l = \arg\min_k \lVert r_l - Z_l[k] \rVert, \qquad r_{l+1} = r_l - Z_l[i_l], \qquad r_1 = x$$  (Lee et al. 2024, eq. 5)

    >>> assign(torch.tensor([[4.9]]), torch.tensor([[[0.0], [4.0]], [[0.0], [1.0]]]))
    tensor([[1, 1]])
    """
    left, chosen = x, []
    for stage in codewords:
        # The nearest has the largest r z - |z|^2 / 2, since |r - z|^2 = |r|^2 - 2 (r z - |z|^2 / 2).
        nearness = torch.addmm(-0.5 * stage.square().sum(dim=1), left, stage.T)
        chosen.append(nearness.argmax(dim=1))
        left = left - stage[chosen[-1]]
    return torch.stack(chosen, dim=1)


def total(indices: Int[Tensor, "N L"], codewords: Float[Tensor, "L K D"], stages: int | None = None) -> Float[Tensor, "N D"]:
    r"""Return $\hat x = \sum_l Z_l[i_l]$, over the first `stages` alone when given: a prefix of a code is a coarser code."""
    n = len(codewords) if stages is None else stages
    terms = [stage[index] for stage, index in zip(codewords[:n], indices.T[:n], strict=True)]
    return torch.stack(terms).sum(dim=0) if terms else codewords.new_zeros(len(indices), codewords.shape[2])


def straight_through(x: Float[Tensor, "N D"], quantised: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    r"""Return the quantised value with the gradient of x: $x + \mathrm{sg}(\hat x - x)$."""
    return x + (quantised - x).detach()


def stage_errors(x: Float[Tensor, "N D"], codewords: Float[Tensor, "L K D"]) -> list[float]:
    """Return the root mean square of what is left over before the first stage and after each one."""
    indices = assign(x, codewords)
    left = [x - total(indices, codewords, n) for n in range(len(codewords) + 1)]
    return [float(rest.square().sum(dim=1).mean().sqrt()) for rest in left]


class ResidualCodebooks(nn.Module):
    """L codebooks of K codewords each; nothing is quantised before `fit` has given them their first values.

    Args:
        n_stages: L.
        n_codewords: K, a power of two: an index takes log2 K bits.
        n_values: D, numbers of a vector.

    Attributes:
        codewords: [L, K, D].
        ready: whether `fit` was called. Part of the state.
        indices: [N, L], the code of the vectors that were quantised last; `loss` is about them.
    """

    def __init__(self, n_stages: int, n_codewords: int, n_values: int):
        super().__init__()
        self.codewords = nn.Parameter(torch.zeros(n_stages, n_codewords, n_values))
        self.register_buffer("ready", torch.tensor(False))
        self.indices: Tensor | None = None

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "N D"], seed: int = 0) -> ResidualCodebooks:
        """Set the codewords, stage by stage, to k-means centres of what is left over; return the codebooks."""
        import warnings

        from scipy.cluster.vq import kmeans2

        picked = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:FIT_ROWS]
        left = x.detach().cpu().double()[picked]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a codeword that nobody needs is no trouble
            for stage in self.codewords:
                k = min(len(stage), len(left))
                centres, index = kmeans2(left.numpy(), k, minit="points", seed=seed)
                stage[:k] = torch.from_numpy(centres).to(stage)
                left = left - torch.from_numpy(centres[index])
        self.ready.fill_(True)
        return self

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Return x as its code says it, with the gradient of x; x itself before `fit`."""
        if not bool(self.ready):
            return x
        self.indices = assign(x.detach(), self.codewords)
        return straight_through(x, total(self.indices, self.codewords))

    def loss(self, x: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
        r"""Return what moves the codewords, and nothing else: $\frac1N\sum_l\sum_n \lVert \mathrm{sg}(r_l) - Z_l[i_l]\rVert^2$.

        Call it after `forward` of the same x, which has found the indices.
        """
        left, sum_ = x.detach(), self.codewords.new_zeros(())
        for stage, index in zip(self.codewords, self.indices.T, strict=True):
            error = left - stage[index]
            sum_, left = sum_ + error.square().sum(dim=1).mean(), error.detach()
        return sum_
