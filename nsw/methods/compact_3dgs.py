"""Compact 3D Gaussian representation (Lee, Rho, Sun, Ko, Park, CVPR 2024): what its training adds to that of 3DGS.

Three cures for three reasons why a scene of splats weighs hundreds of megabytes. A mask, learned with the picture, removes
splats; a hash grid and a small network replace the harmonics; codebooks replace scales and rotations. The model is
`nsw.models.compact_gaussians`, the file is `compact_3dgs_codec.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from nsw.kernels.harmonics import spherical_harmonics
from nsw.methods import density_control as density
from nsw.methods import gaussian_splatting as gs
from nsw.models.compact_gaussians import CompactGaussians, CompactSettings
from nsw.models.gaussians import Gaussians
from nsw.models.sh import SH0
from nsw.scenes.scene import Scene

PUPILS = 4096  # splats in one of the field's lessons, at most


@dataclass(frozen=True)
class Compression:
    """When and how hard splats are pressed; the defaults are the paper's for 30,000 steps of a real scene.

    Attributes:
        mask_weight: of `loss_mask`. The paper takes 4e-3 for synthetic scenes.
        press_from: step from which the mask presses. The paper's presses from the start, but a mask of its takes six rounds of
            growth to close; one that closes within a round takes away what growth has put there.
        relax: step from which the mask presses no more, so that what remains can settle; the paper's presses to the end.
        lr_mask: of the mask's Adam.
        prune_every: remove masked splats this often once density control, which does it too, has ended.
        quantise_last: the codebooks act for this many last steps.
        lr_codewords: of the codebooks' Adam.
        field_from: step at which the colour field takes over. The paper's field paints from the start; in a short run it
            does better when it first learns the harmonics that splats have found, see `learn_colours`.
        field_lessons: steps of that learning; no picture is drawn in them.
        lr_field: of the colour field's Adam, after its warm-up.
        warm_up: steps over which that rate grows from a hundredth.
        field_decay: factor on that rate after 1/6, 1/2 and 5/6 of the field's time.
        keep_at_least: the mask never prunes below this many splats.
    """

    mask_weight: float = 5e-4
    press_from: int = 0
    relax: int = 30_000
    lr_mask: float = 1e-2
    prune_every: int = 1000
    quantise_last: int = 1000
    lr_codewords: float = 1e-4
    field_from: int = 0
    field_lessons: int = 1200
    lr_field: float = 1e-2
    warm_up: int = 100
    field_decay: float = 0.33
    keep_at_least: int = 16

    @classmethod
    def for_budget(cls, n_steps: int, every: int, **changes) -> Compression:
        """Return the plan of a run of n_steps, found by trials, in proportion to them; splats change every `every` steps."""
        times = dict(prune_every=every, quantise_last=n_steps // 30, warm_up=min(100, n_steps // 90))
        decay = 0.33 if n_steps > 10_000 else 0.5
        return cls(**times, field_decay=decay, field_lessons=2400, lr_codewords=1e-3, **changes)

    def field_rate(self, step: int, n_steps: int) -> float:
        """Return the colour field's rate at a step.

        >>> [f"{Compression().field_rate(step, 30_000):.4f}" for step in (0, 100, 5000, 15_000)]
        ['0.0001', '0.0100', '0.0033', '0.0011']
        """
        step, n_steps = step - self.field_from, n_steps - self.field_from
        ramp = min(1.0, 0.01 + 0.99 * step / max(self.warm_up, 1))
        return self.lr_field * ramp * self.field_decay ** sum(step * 6 >= n_steps * k for k in (1, 3, 5))


def loss_mask(gaussians: CompactGaussians) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_i \sigma(m_i)$: what no picture asks for lets go of its mask (Lee et al. 2024, eq. 3)."""
    return gaussians.mask.sigmoid().mean()


def learn_colours(
    gaussians: CompactGaussians, origins: Float[Tensor, "C 3"], n_steps: int, rate: float = 2e-2, seed: int = 0
) -> float:
    r"""Teach the field the harmonics of the splats, as cameras that are drawn anew for every splat and step see them.

    $$\min\ \textstyle\sum_i o_i\,\lVert \mathrm{MLP}(f(\mu_i), B(d_{ic})) - \sum_k B_k(d_{ic})\,h_{ik} \rVert^2$$

    A picture shows the network one direction at a time, and what it learns there it forgets at the next one. Here every
    step has them all. Not in the paper, whose 30,000 pictures do the same.

    Returns:
        The last weighted mean squared error, in colours.
    """
    field, degree, generator = gaussians.field, gaussians.settings.sh_degree, gs.generator_at(seed, 0, 5)
    optimizer = torch.optim.Adam(field.parameters(), lr=rate, eps=1e-15, fused=True)
    means, sh, opacities = gaussians.means.detach(), gaussians.sh.detach(), gaussians.activated_opacities.detach()
    origins, error, size = origins.to(means.device), means.new_zeros(()), (min(len(means), PUPILS),)
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = rate * 0.05 ** (step / n_steps)
        rows = torch.randint(len(means), size, generator=generator).to(means.device)
        ways = means[rows] - origins[torch.randint(len(origins), size, generator=generator).to(means.device)]
        taught = spherical_harmonics(degree, ways, sh[rows])
        said = SH0 * field.sh0(field.features(means[rows]), normalize(ways, dim=-1))[:, 0]
        error = (opacities[rows, None] * (said - taught).square()).mean()
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        optimizer.step()
    field.ready.fill_(True)
    return float(error.detach())


class Compact(gs.Training):
    """Compact Gaussians being trained: the training of 3DGS, and the mask, the field and the codebooks beside it.

    Args:
        gaussians: the model.
        compression: when and how hard.
        origins: where the training cameras stand; asked where the field has lessons.
        Others as in `gaussian_splatting.Training`.
    """

    gaussians: CompactGaussians

    def __init__(
        self,
        gaussians: CompactGaussians,
        scene_scale: float,
        n_steps: int,
        compression: Compression,
        origins: Float[Tensor, "C 3"] | None = None,
        **options,
    ):
        super().__init__(gaussians, scene_scale, n_steps, **options)
        self.compression, self.origins = compression, origins
        if gaussians.field is not None and compression.field_from == 0:
            gaussians.field.ready.fill_(True)
        self.extra = self._extra_optimizers()

    def _extra_optimizers(self) -> dict[str, torch.optim.Adam]:
        """Return one Adam for the colour field and one for the codebooks, where the model has them."""
        splats = self.gaussians
        codes = [part for part in (splats.scale_codes, splats.quat_codes) if part is not None]
        parts = {"field": [splats.field] if splats.field is not None else [], "codewords": codes}
        groups = {name: [p for module in modules for p in module.parameters()] for name, modules in parts.items()}
        return {name: torch.optim.Adam(group, lr=0.0, eps=1e-15, fused=True) for name, group in groups.items() if group}

    def penalty(self, step: int) -> Float[Tensor, ""]:
        """Return the weighted loss of the mask, and what moves the codewords; to be added to the loss of the picture."""
        plan = self.compression
        weight = plan.mask_weight * (plan.press_from <= step < plan.relax)
        return weight * loss_mask(self.gaussians) + self.gaussians.loss_codebooks()

    def step(self, step: int, meta: dict) -> density.Refined | None:
        """Take one step after `backward`: the mask, the field and the codebooks, then what 3DGS does, then pruning."""
        plan = self.compression
        rates = {"field": plan.field_rate(step, self.n_steps), "codewords": plan.lr_codewords, "mask": plan.lr_mask}
        for name, optimizer in {**self.extra, "mask": self.optimizers["mask"]}.items():
            optimizer.param_groups[0]["lr"] = rates[name]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        refined = super().step(step, meta)
        ends = (self.n_steps - 1 - plan.quantise_last, self.n_steps - 1)
        if refined is not None or step in ends or (step > 0 and step % plan.prune_every == 0):
            self.prune_masked()
        if self.gaussians.field is not None and step == plan.field_from - 1:
            learn_colours(self.gaussians, self.origins, plan.field_lessons, seed=self.seed)
        if step == ends[0]:
            self.gaussians.fit_codebooks(self.seed)
        return refined

    @torch.no_grad()
    def prune_masked(self) -> int:
        """Remove the splats that the mask has let go of; return how many. The largest `keep_at_least` open again."""
        splats = self.gaussians
        doomed = ~splats.kept
        spared = splats.mask.argsort(descending=True)[: self.compression.keep_at_least]
        splats.mask[spared] = torch.where(doomed[spared], 0.0, splats.mask[spared])
        doomed[spared] = False
        if bool(doomed.any()):
            density.prune(splats.params, self.optimizers, self.rows, doomed)
        return int(doomed.sum())

    def state_dict(self) -> dict:
        return super().state_dict() | {"extra": {name: optimizer.state_dict() for name, optimizer in self.extra.items()}}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        for name, optimizer in self.extra.items():
            optimizer.load_state_dict(state["extra"][name])


def draw(gaussians: CompactGaussians, cameras, **options):
    """Draw compact Gaussians where a renderer of Gaussians is asked for."""
    return gaussians.render_view(cameras, **options)


def fit(training: Compact, scene: Scene, steps: Iterable[int], seed: int = 0) -> Compact:
    """Train as the notebook's loop does it, without watching."""
    return gs.fit(training, scene, steps, seed, penalty=training.penalty, draw=draw)


def refit(
    gaussians: Gaussians, scene: Scene, plan: Compression, n_steps: int, last: int, steps: Iterable[int], seed: int = 0
) -> CompactGaussians:
    """Return trained splats after their last steps once more, with a mask that presses in the first two thirds of them.

    Cheap enough to try several weights. The mask learns faster than in a whole training, or it would not close in time.

    Args:
        plan: of which `mask_weight` counts; times and rate of the mask are replaced.
        n_steps, last: steps of the whole training, and how many of them are done again.
        steps: `last` steps, counted from 0.
    """
    first = n_steps - last
    plan = replace(plan, press_from=first, relax=n_steps - last // 3, lr_mask=20 / last)
    masked = CompactGaussians.from_gaussians(gaussians, CompactSettings(gaussians.settings.sh_degree))
    training = Compact(masked, scene.scale, n_steps, plan, seed=seed)
    return fit(training, scene, (first + step for step in steps), seed).gaussians


def sweep(
    gaussians: Gaussians, scene: Scene, plan: Compression, n_steps: int, steps: Callable[..., Iterable[int]], seed: int = 0
) -> dict[float, CompactGaussians]:
    """Return what is left of trained splats by the weight of the mask, as a multiple of the plan's: short refits.

    Args:
        n_steps: steps of the whole training; the last quarter of them is done again for each weight.
        steps: takes how many and a name, and yields steps counted from 0, as `Run.steps` does.
    """
    last, found = max(n_steps // 4, 1), {}
    for times in (0.5, 1.0, 2.0, 4.0):
        heavier = replace(plan, mask_weight=times * plan.mask_weight)
        found[times] = refit(gaussians, scene, heavier, n_steps, last, steps(last, name=f"weight {times:g}"), seed)
    return found
