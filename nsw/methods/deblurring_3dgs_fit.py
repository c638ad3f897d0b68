"""The training of Deblurring 3DGS: splats and what blurs them learn together; points are added once, pruning spares the far.

Lee et al., ECCV 2024, sections 3.2 to 3.4; how blur changes splats is in `deblurring_3dgs.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nsw.cameras import Cameras
from nsw.losses import loss_photometric
from nsw.methods import gaussian_splatting as gs
from nsw.methods.deblurring_3dgs import Blur, blurred_view, copies, extra_points, spared
from nsw.methods.density_control import Refined, prune, regroup
from nsw.models.gaussians import Gaussians, neighbour_distance
from nsw.models.state import load_state, save_state
from nsw.scenes.scene import Scene

ADDED = 3  # value of rows["origin"] of the points that are added once


def joined(metas: Sequence[dict]) -> dict:
    """Return the rasterizer's dictionaries of pictures that were averaged as one of several cameras, for density control."""
    means2d = [meta["means2d"] for meta in metas]
    grads = {
        name: torch.cat([getattr(x, name) for x in means2d])
        for name in ("grad", "absgrad")
        if getattr(means2d[0], name, None) is not None
    }
    return {
        **{name: metas[0][name] for name in ("width", "height")},
        "n_cameras": len(metas),
        "means2d": SimpleNamespace(**grads),
        "radii": torch.cat([meta["radii"] for meta in metas]),
    }


@dataclass(frozen=True)
class Cloud:
    """What makes up for starting points that blur has ruined; the defaults are the paper's.

    Attributes:
        add_at: step after which points are added, once; -1 never does.
        n_add: how many are tried.
        reach: world length within which a new point needs a neighbour.
        spare: how many times fainter the farthest splat may be than the nearest before it is removed; 1 treats all alike.
    """

    add_at: int = 2500
    n_add: int = 200_000
    reach: float = 2.0
    spare: float = 3.0


class Deblurring(gs.Training):
    """Splats being trained together with what blurs them.

    Args:
        cameras: the training views; depth is the mean of theirs.
        network: None leaves the blur out: plain Gaussian splatting with the same steps.
        blur: how the network's numbers are used.
        explain: (network, splats, camera, blur) to the sets of splats whose pictures are averaged.
        cloud: extra points and lenient pruning; None leaves both out.
        Others as in `gaussian_splatting.Training`; its density control must not reset opacities.
    """

    def __init__(self, gaussians: Gaussians, scene_scale: float, n_steps: int, cameras: Cameras,
                 network: nn.Module | None = None, blur: Blur | None = None, cloud: Cloud | None = None,
                 explain: Callable = copies, **options):  # fmt: skip
        super().__init__(gaussians, scene_scale, n_steps, **options)
        self.blur, self.network, self.cloud, self.explain = blur or Blur(), network, cloud, explain
        self.toward = cameras.cam_from_world[:, 2].mean(0).to(gaussians.means)  # mean depth is linear in the place
        self.network_optimizer = None if network is None else torch.optim.Adam(network.parameters(), lr=self.blur.lr, fused=True)
        if cloud and self.control:  # `refine` removes what nobody spares, `prune_near` the rest
            self.lowest = self.control.prune_opacity
            self.control = replace(self.control, prune_opacity=self.lowest / cloud.spare)
        self.metas: list[dict] = []
        self.old_places = self.new_places = torch.zeros(0, 3)  # of the splats when points were added, and of those points

    def sets(self, camera: Cameras, step: int) -> list:
        """Return the sets of splats that are rendered for a training view at a step."""
        blurred = self.network is not None and step >= self.blur.start
        return self.explain(self.network, self.gaussians, camera, self.blur) if blurred else [self.gaussians]

    def picture(
        self, camera: Cameras, step: int, background: Tensor | float | None = None, sh_degree: int = 3
    ) -> Float[Tensor, "1 H W 3"]:
        """Return the picture that a blurred photograph is compared with."""
        sets = self.sets(camera, step)
        blur = self.blur if sets[0] is not self.gaussians else Blur()
        rgb, self.metas = blurred_view(sets, camera, blur, background, sh_degree)
        return rgb

    def step(self, step: int) -> Refined | None:
        """Take one step of the splats and of the network after `backward`; add points when it is time."""
        if self.network is not None and step >= self.blur.start:
            self.network_optimizer.param_groups[0]["lr"] = self.blur.lr * 0.1 ** (step / self.n_steps)
            self.network_optimizer.step()
            self.network_optimizer.zero_grad(set_to_none=True)
        refined = super().step(step, joined(self.metas))
        if self.cloud and refined:
            self.prune_near()
        if self.cloud and step == self.cloud.add_at:
            chance = gs.generator_at(self.seed, step, 5)
            self.append(*extra_points(self.gaussians, self.cloud.n_add, self.cloud.reach, generator=chance), step)
        return refined

    def prune_near(self) -> None:
        """Remove splats that are too faint for their depth."""
        means = self.gaussians.means.detach()
        z = means @ self.toward[:3] + self.toward[3]
        doomed = self.gaussians.activated_opacities < spared(z, self.lowest, self.cloud.spare)
        if not bool(doomed.all()):
            prune(self.gaussians.params, self.optimizers, self.rows, doomed)

    @torch.no_grad()
    def append(self, points: Float[Tensor, "P 3"], rgb: Float[Tensor, "P 3"], step: int) -> None:
        """Add faint balls of the local spacing; the paper also starts all old splats anew, which this leaves out."""
        splats, n, old = self.gaussians, len(points), len(self.gaussians)
        if n == 0:
            return
        self.old_places, self.new_places = splats.means.detach().cpu().clone(), points.cpu()
        points, rgb = points.to(splats.means), rgb.to(splats.means)
        spacing = neighbour_distance(torch.cat([splats.means, points]))[old:, None].expand(-1, 3)
        upright = points.new_tensor([1.0, 0, 0, 0]).expand(n, 4)
        added = Gaussians.from_values(
            points, spacing, upright, points.new_full((n,), 0.1), rgb, sh_degree=splats.settings.sh_degree
        )
        rows = torch.arange(old + n, device=points.device)
        regroup(splats.params, self.optimizers, self.rows, rows.clamp_max(old - 1), rows >= old)
        for name, value in added.params.items():
            splats.params[name].data[old:] = value.to(points.device)
        for name, value in (("grad2d", 0), ("count", 0), ("origin", ADDED), ("born", step)):
            self.rows[name][old:] = value

    def state_dict(self) -> dict:
        network = {} if self.network is None else self.network.state_dict()
        optimizer = {} if self.network is None else self.network_optimizer.state_dict()
        places = {"old_places": self.old_places, "new_places": self.new_places}
        return super().state_dict() | {"network": network, "network_optimizer": optimizer, **places}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.old_places, self.new_places = state["old_places"], state["new_places"]
        if self.network is not None:
            self.network.load_state_dict(state["network"])
            self.network_optimizer.load_state_dict(state["network_optimizer"])


def displaced_start(scene: Scene, n: int, error: float, seed: int = 0, **born) -> Gaussians:
    """Return splats at n surface points, each off by `error` world units along an axis, as blurred pictures would place them.

    Args:
        born: as of `Gaussians.from_points`.
    """
    points = gs.starting_points(scene, n, seed)
    away = error * torch.randn(points.xyz.shape, generator=gs.generator_at(seed, 0, 6))
    return Gaussians.from_points(points.xyz + away, points.rgb, **born)


def fit(training: Deblurring, scene: Scene, steps: Iterable[int], seed: int = 0) -> Deblurring:
    """Train as the notebook's loop does it, without watching."""
    for step in steps:
        camera, target, behind = gs.training_view(scene, step, seed, device=training.gaussians.means.device)
        degree = gs.sh_degree_at(step, training.n_steps, training.gaussians.settings.sh_degree)
        loss_photometric(training.picture(camera, step, behind, degree), target).backward()
        training.step(step)
    return training


def fitted_apart(
    trainings: Mapping[str, tuple[Deblurring, Scene]], run_all: Callable[[Callable, list], Sequence[Path]], seed: int = 0
) -> dict[str, Deblurring]:
    """Train plain splats that do not depend on each other in processes of their own, and return the trainings as if trained here.

    For pictures so small that Python takes most of the time of a step: threads would wait for each other.

    Args:
        trainings: by name, each without a network, and with the scene whose pictures it learns.
        run_all: calls a function (input, path) in other processes for each of some inputs, and returns the files, as
            `nsw.runs.blocks.run_blocks` does.
    """
    work = []
    for training, scene in trainings.values():
        splats, rest = training.gaussians, dict(control=training.control, rates=training.rates, seed=training.seed)
        steps, device = training.n_steps, str(splats.means.device)
        work.append({"splats": splats, "scene": scene, "steps": steps, "seed": seed, "device": device, "rest": rest})
    for (training, _), path in zip(trainings.values(), run_all(fit_block, work), strict=True):
        training.load_state_dict(load_state(Path(path), "training"))
    return {name: training for name, (training, _) in trainings.items()}


def fit_block(given: dict, path: Path | str) -> None:
    """Train plain splats and write the training to a file: what `fitted_apart` lets other processes do."""
    scene, n_steps = given["scene"], given["steps"]
    training = Deblurring(given["splats"].to(given["device"]), scene.scale, n_steps, scene.views("train"), **given["rest"])
    save_state(Path(path), fit(training, scene, range(n_steps), given["seed"]).state_dict(), "training")
