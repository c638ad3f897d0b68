"""Points linked to their nearest neighbours, and features that travel along the links.

Ververas et al., "SAGS: Structure-Aware 3D Gaussian Splatting", ECCV 2024, section 3.2, as the official code computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.kernels.links import linked_lowest, linked_sum
from nsw.models.neighbours import nearest


@dataclass(frozen=True)
class Graph:
    """N points and E links, each from a point to one of its neighbours; every point links to itself too.

    Attributes:
        n: points.
        source, target: [E], sorted by source: target is a neighbour of source.
        length: [E], distance of the two.
    """

    n: int
    source: Int[Tensor, "E"]
    target: Int[Tensor, "E"]
    length: Float[Tensor, "E"]

    def restricted(self, keep: Bool[Tensor, "N"]) -> Graph:
        """Return the links between the kept points alone, numbered anew. Points at the border lose neighbours."""
        number = keep.cumsum(0) - 1
        inside = keep[self.source] & keep[self.target]
        return Graph(int(keep.sum()), number[self.source[inside]], number[self.target[inside]], self.length[inside])

    @property
    def degree(self) -> Int[Tensor, "N"]:
        """How many neighbours each point has, itself among them."""
        return torch.bincount(self.source, minlength=self.n)

    @cached_property
    def reach(self) -> Float[Tensor, "N"]:
        """How far each point is from the farthest of its neighbours."""
        return self.length.new_zeros(self.n).scatter_reduce(0, self.source, self.length, "amax")

    @cached_property
    def weights(self) -> Float[Tensor, "E"]:
        """How loud each link is, as `link_weights` says, over the number of neighbours; found once a graph."""
        return link_weights(self) / self.degree[self.source]

    @cached_property
    def outwards(self) -> Links:
        """For every point, its neighbours."""
        return Links(self.target, _starts(self.source, self.n), self.weights)

    @cached_property
    def inwards(self) -> Links:
        """For every point, those that have it as a neighbour."""
        order = self.target.argsort(stable=True)
        return Links(self.source[order], _starts(self.target, self.n), self.weights[order])


@dataclass(frozen=True)
class Links:
    """Links of a graph seen from one of their two sides, sorted by the point on that side.

    Attributes:
        others: [E], the point on the other side.
        starts: [N], where each point's links begin.
        weights: [E], how loud each is.
    """

    others: Int[Tensor, "E"]
    starts: Int[Tensor, "N"]
    weights: Float[Tensor, "E"]

    def summed(self, values: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """Return for every point the weighted sum of the values on the other sides."""
        return linked_sum(values, self.others, self.starts, self.weights)


class _Carried(torch.autograd.Function):
    """Values carried along the links; their gradient goes back along the same links, four times faster than torch finds it."""

    @staticmethod
    def forward(ctx, values: Tensor, graph: Graph) -> Tensor:
        ctx.graph = graph
        return graph.outwards.summed(values)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.graph.inwards.summed(grad.contiguous()), None


def graph_of(points: Float[Tensor, "N 3"], k: int = 10) -> Graph:
    """Return the graph of the k nearest neighbours, the point itself among them.

    >>> graph_of(torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]]), 2).target.tolist()
    [0, 1, 1, 0, 2, 1]
    """
    length, near = nearest(points, points, k)
    source = torch.arange(len(points), device=points.device).repeat_interleave(near.shape[1])
    return Graph(len(points), source, near.flatten(), length.flatten())


def strongest_difference(f: Float[Tensor, "N C"], graph: Graph) -> Float[Tensor, "N C"]:
    r"""Return how far each feature stands above the lowest of those points that have it as a neighbour.

    $$a_t = \max_{s\,:\,t \in N(s)} (f_t - f_s)$$  (official code; channel by channel, never below 0)
    """
    return f - linked_lowest(f, graph.inwards.others, graph.inwards.starts)


def link_weights(graph: Graph) -> Float[Tensor, "E"]:
    r"""Return $w_{ij} = d_{ij}^{-1} / \sum_{j'} d_{ij'}^{-1}$, 0 from a point to itself."""
    inverse = torch.where(graph.source == graph.target, 0.0, 1 / graph.length.clamp_min(1e-12))
    return inverse / inverse.new_zeros(graph.n).index_add(0, graph.source, inverse).clamp_min(1e-30)[graph.source]


def message(a: Float[Tensor, "N C"], graph: Graph) -> Float[Tensor, "N C"]:
    r"""Return what each point hears from its neighbours, nearer ones louder.

    $$b_i = \tfrac1{|N(i)|} \sum_{j \in N(i)} w_{ij}\,a_j$$  (official code: weights that already sum to 1 are averaged again)
    """
    return _Carried.apply(a, graph)


def _starts(ends: Int[Tensor, "E"], n: int) -> Int[Tensor, "N"]:
    """Return where each point's links begin once they are sorted by `ends`."""
    count = torch.bincount(ends, minlength=n)
    return count.cumsum(0) - count
