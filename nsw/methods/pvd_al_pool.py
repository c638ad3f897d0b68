"""The pool of active learning in distillation (PVD-AL): rays that a student got wrong and will be asked again."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from nsw.cameras import Rays


class RayPool:
    """Hard rays that wait to be asked again.

    Attributes:
        rays: [capacity, 7], origin, direction, z a unit of t.
        born: [capacity], the step at which each came in; -1 for an empty slot.
    """

    def __init__(self, capacity: int, device: torch.device):
        self.rays = torch.zeros(capacity, 7, device=device)
        self.born = torch.full((capacity,), -1, device=device)
        self._filled: Tensor | None = None

    @property
    def full(self) -> bool:
        """Whether every slot holds a ray: once it is so it stays so, and a GPU is not asked again."""
        if self._filled is not self.born and bool((self.born >= 0).all()):
            self._filled = self.born
        return self._filled is self.born

    def draw(self, n: int, generator: torch.Generator) -> tuple[Int[Tensor, "n"], Rays]:
        """Return n different slots, and their rays."""
        slots = torch.randperm(len(self.born), generator=generator, device=self.born.device)[:n]
        o, d, z = self.rays[slots].split([3, 3, 1], dim=1)
        return slots, Rays(o, d, z[:, 0])

    def put(self, slots: Int[Tensor, "n"], rays: Rays, step: int) -> None:
        """Overwrite slots by rays; what stood there is gone."""
        self.rays[slots] = torch.cat([rays.origins, rays.directions, rays.z_per_t[:, None]], dim=1)
        self.born[slots] = step

    def free(self, n: int) -> Int[Tensor, "m"]:
        """Return up to n empty slots."""
        return (self.born < 0).nonzero()[:n, 0]
