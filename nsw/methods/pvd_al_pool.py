"""What active learning in distillation (PVD-AL) picks and keeps: the hardest, the pool of rays to be asked again, and a diary."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.cameras import Cameras, Rays
from nsw.methods.pvd_poses import turned


def hardest(errors: Float[Tensor, "R"], share: float) -> Int[Tensor, "n"]:
    """Return the indices of the largest errors, the largest first.

    >>> hardest(torch.tensor([0.1, 0.9, 0.3, 0.2]), 0.5).tolist()
    [1, 2]
    """
    return errors.topk(max(1, round(share * len(errors)))).indices


def renew_poses(
    cameras: Cameras, errors: Float[Tensor, "C"], hard: float, generator: torch.Generator, paired: bool = True
) -> tuple[Cameras, Int[Tensor, "n"]]:
    """Return cameras among which random ones have given way to the hardest, each turned by up to 9 degrees; and which did.

    Args:
        cameras: those of the start, every time: turned again and again, poses would drift away from the scene.
        errors: mean error of each camera's own rays, in the cameras' order.
        generator: on the CPU.
        paired: False does as the official code: reads errors, which a shuffled loader listed, as if in the cameras' order.
    """
    if not paired:
        errors = errors[torch.randperm(len(errors), generator=generator).to(errors.device)]
    worst = hardest(errors, hard).cpu()
    others = torch.ones(len(cameras), dtype=torch.bool)
    others[worst] = False
    places = others.nonzero()[:, 0]
    places = places[torch.randperm(len(places), generator=generator)[: len(worst)]]
    worst = worst[: len(places)]
    poses = cameras.cam_from_world.clone()
    poses[places.to(poses.device)] = turned(cameras.cam_from_world[worst.to(poses.device)].cpu(), generator).to(poses)
    return replace(cameras, cam_from_world=poses), places


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


class Diary:
    """What was hard at the end of each epoch: slot 0 is the start, the last one the end.

    Attributes:
        steps: [E], -1 where nothing is written yet.
        rays: [E, n, 7], the pool's first n rays; which slot a ray takes is chance. NaN for an empty slot.
        errors: [E, C], mean error of each pose's own rays in the epoch before; NaN where there is none.
        scores: [E, S], whatever is watched.
    """

    def __init__(
        self, n_steps: int, epoch: int, capacity: int, n_poses: int, n_scores: int, device: torch.device, most: int = 2048
    ):
        slots = -(-n_steps // epoch) + 1
        self.epoch = epoch
        self.steps = torch.full((slots,), -1, device=device)
        self.rays = torch.full((slots, min(capacity, most), 7), torch.nan, device=device)
        self.errors, self.scores = (torch.full((slots, n), torch.nan, device=device) for n in (n_poses, n_scores))

    def write(self, step: int, pool: RayPool, errors: Float[Tensor, "C"], scores: Float[Tensor, "S"]) -> None:
        """Fill the slot of a step; one that is full is overwritten."""
        slot, n = -(-step // self.epoch), self.rays.shape[1]
        self.steps[slot] = step
        self.rays[slot] = torch.where((pool.born[:n] >= 0)[:, None], pool.rays[:n], torch.nan)
        self.errors[slot], self.scores[slot] = errors, scores

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("steps", "rays", "errors", "scores")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, mine in self.state_dict().items():
            mine.copy_(state[name])
