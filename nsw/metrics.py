"""How pictures and geometry are scored: one named, versioned protocol for every number that NSW prints.

Protocol "nsw-view", version 1: sRGB display values clamped to [0, 1]; pictures with alpha composited over the scene's
background (white unless said); smaller sizes made by alpha-weighted area averaging of the stored 8-bit pictures; PSNR per
view, then averaged over views (not from pooled error); SSIM with an 11x11 Gaussian window, sigma 1.5, borders mirrored,
averaged over views; depth error is the mean absolute difference of camera z over pixels that hit the true surface.
Change any of these and the version goes up.

Meshes are scored by protocol "nsw-surface", version 1: 30,000 points drawn on the mesh and 30,000 of the true ones, nearest
distances, the mean of both directions (Chamfer distance), and the angle between normals at the true points.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.errors import InputError

PROTOCOL = "nsw-view"
PROTOCOL_VERSION = 1
_left_out = [0.0]  # seconds of this process that `clock` does not count


def describe(scene=None, split: str = "test", first: int | None = None) -> str:
    """Return the one line that is printed under numbers.

    Args:
        first: how many views of the split were scored, where not all were.

    >>> describe()
    'nsw-view v1: PSNR and SSIM (11x11) per view then averaged, sRGB in [0, 1], area resize'
    """
    text = f"{PROTOCOL} v{PROTOCOL_VERSION}: PSNR and SSIM (11x11) per view then averaged, sRGB in [0, 1], area resize"
    if scene is None:
        return text
    height, width = scene.images.shape[1:3]
    background = "no" if scene.background == "none" else scene.background
    some = "" if first is None else f", the first {first}"
    return f"{text}; {scene.name} {width}x{height}, {len(scene.frames(split))} {split} views, {background} background{some}"


def psnr(
    predicted: Float[Tensor, "*n H W 3"], target: Float[Tensor, "*n H W 3"], mask: Bool[Tensor, "*n H W"] | None = None
) -> float:
    """Return the peak signal-to-noise ratio in dB, per picture and then averaged.

    PSNR = -10 log10(MSE) for values in [0, 1]. Equal pictures give 100 dB rather than infinity, so that means stay finite.

    Args:
        predicted: clamped to [0, 1] here.
        target: in [0, 1].
        mask: score only pixels that are True; pictures without any are left out.

    >>> round(psnr(torch.zeros(4, 4, 3), torch.full((4, 4, 3), 0.1)), 2)
    20.0
    """
    return _mean(psnr_per_view(predicted, target, mask))


def psnr_per_view(predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> list[float]:
    """Return the PSNR in dB of each picture; see `psnr`."""
    predicted, target = _batched(predicted, target)
    shape = predicted.shape[:-1]
    mask = torch.ones(1, dtype=torch.bool, device=predicted.device).expand(shape) if mask is None else mask.reshape(shape)
    per_view = []
    for ours, theirs, counts in zip(predicted, target, mask, strict=True):  # in double precision, one picture at a time
        if bool(counts.any()):
            per_view.append((ours.double().clamp(0, 1) - theirs.double()).square().mean(-1)[counts].mean())
    return [float(-10.0 * torch.log10(mse.clamp_min(1e-10))) for mse in per_view]


def ssim(predicted: Float[Tensor, "*n H W 3"], target: Float[Tensor, "*n H W 3"]) -> float:
    """Return structural similarity (Wang et al. 2004), 11x11 Gaussian window, sigma 1.5, averaged over pictures.

    Raises:
        InputError: for pictures smaller than the window.
    """
    return float(torch.tensor(ssim_per_view(predicted, target)).mean())


def ssim_per_view(predicted: Tensor, target: Tensor) -> list[float]:
    """Return the structural similarity of each picture; see `ssim`."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    predicted, target = _batched(predicted, target)
    if min(predicted.shape[1:3]) < 11:
        raise InputError(
            f"SSIM needs pictures of at least 11x11 pixels, got {predicted.shape[2]}x{predicted.shape[1]}: train at a larger size."
        )
    pairs = zip(*(t.float().clamp(0, 1).permute(0, 3, 1, 2).split(1) for t in (predicted, target)), strict=True)
    return [float(structural_similarity_index_measure(x, y, data_range=1.0, kernel_size=11, sigma=1.5)) for x, y in pairs]


def vgg_file(hub: Path | None = None) -> Path:
    """Return where the VGG weights of `lpips` belong, in a folder of torch-hub layout; by default torch's own."""
    return (Path(hub) if hub else Path(torch.hub.get_dir())) / "checkpoints" / "vgg16-397923af.pth"


def lpips(predicted: Float[Tensor, "*n H W 3"], target: Float[Tensor, "*n H W 3"], weights: Path | None = None) -> float | None:
    """Return LPIPS (Zhang et al. 2018, VGG) when its weights are on disk, else None; nothing is ever downloaded.

    Args:
        weights: a folder with torchvision's `vgg16-397923af.pth` in torch-hub layout (`checkpoints/`); default is torch's own
            hub folder. The weights of the channels come with torchmetrics.

    Raises:
        InputError: for pictures too small for VGG's four poolings, and damaged weights.
    """
    path = vgg_file(weights)
    if not path.is_file():
        return None
    from importlib.util import find_spec

    from nsw.models import vgg

    predicted, target = _batched(predicted, target)
    if min(predicted.shape[1:3]) < 16:
        raise InputError(
            f"LPIPS needs pictures of at least 16x16 pixels, got {predicted.shape[2]}x{predicted.shape[1]}: train at a larger one."
        )
    home = Path(find_spec("torchmetrics").origin).parent
    linear = vgg.load_weights(home / "functional" / "image" / "lpips_models" / "vgg.pth")
    network = vgg.load_weights(path, vgg.vgg_names())
    x, y = (t.detach().float().cpu().clamp(0, 1).permute(0, 3, 1, 2) for t in (predicted, target))
    return float(torch.cat([vgg.distance(network, linear, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]).mean())


def depth_error(
    predicted: Float[Tensor, "*n H W"], true: Float[Tensor, "*n H W"], mask: Bool[Tensor, "*n H W"] | None = None
) -> float:
    """Return the mean absolute error of camera depth in world units where the true depth is known (> 0)."""
    mask = true > 0 if mask is None else mask & (true > 0)
    if not bool(mask.any()):
        raise InputError("Depth error was asked for, but no pixel has a true depth: choose a scene with depth.")
    return float((predicted - true).abs()[mask].double().mean())


def normal_error_degrees(predicted: Float[Tensor, "*n H W 3"], true: Float[Tensor, "*n H W 3"]) -> float:
    """Return the mean angle in degrees between normals where the true normal is known (length > 0.5)."""
    mask = true.norm(dim=-1) > 0.5
    if not bool(mask.any()):
        raise InputError("Normal error was asked for, but no pixel has a true normal: choose a scene with normals.")
    a = torch.nn.functional.normalize(predicted[mask].double(), dim=-1)
    b = torch.nn.functional.normalize(true[mask].double(), dim=-1)
    # atan2 keeps small angles exact, where acos loses half the digits
    return float(torch.rad2deg(torch.atan2(torch.cross(a, b, dim=-1).norm(dim=-1), (a * b).sum(-1))).mean())


@dataclass(frozen=True)
class ViewScores:
    """Scores over a split: mean PSNR in dB, mean SSIM, mean depth error (None without true depth), PSNR of every view."""

    psnr: float
    ssim: float
    depth_error: float | None
    per_view: tuple[float, ...]
    protocol: str


def evaluate(render: Callable, scene, split: str = "test", background: float = 1.0) -> ViewScores:
    """Render every view of a split and score it against the pictures.

    Args:
        render: `render(cameras) -> Render` for a batch of one camera, background included.
        scene: the scene; its masks are honoured.
    """
    frames = scene.frames(split)
    per_view, similar, depths = [], [], []
    for frame in frames.tolist():  # scored where they were drawn, then let go: the rasterizer's lists of 200 views fill a GPU
        with torch.no_grad():
            drawn = render(scene.cameras[frame])
        rgb = drawn.rgb.detach()
        target = scene.pixels([frame], background).to(rgb.device)
        per_view += psnr_per_view(rgb, target, None if scene.masks is None else scene.masks[frame].to(rgb.device))
        similar += ssim_per_view(rgb, target)
        depths += [] if scene.depth is None else [drawn.depth.detach().cpu()]
    depth = None if scene.depth is None else depth_error(torch.cat(depths), scene.depth[frames].float())
    return ViewScores(_mean(per_view), float(torch.tensor(similar).mean()), depth, tuple(per_view), describe(scene, split))


@torch.no_grad()
def seconds_in_turns(acts: Mapping[str, Callable[[], object]], rounds: int = 20) -> dict[str, float]:
    """Return the seconds that each act takes: the least of some rounds in which all take turns.

    Whatever else the machine does makes an act longer and never shorter, so the least is nearest to the act alone. In turns,
    a busy spell meets all of them; every other round runs backwards, so that none always follows the longest. A first round,
    which compiles and fills caches, is not counted. Acts of a millisecond want some hundred rounds, and no long ones beside.

    >>> sorted(seconds_in_turns({"a picture": lambda: torch.zeros(9, 9, 3), "nothing": lambda: None}, rounds=2))
    ['a picture', 'nothing']
    """
    least = dict.fromkeys(acts, float("inf"))
    for turn in range(-1, rounds):
        for name in list(acts)[:: -1 if turn % 2 == 0 else 1]:
            began = clock()
            acts[name]()
            if (took := clock() - began) < least[name] and turn >= 0:
                least[name] = took
    return least


def clock() -> float:
    """Return seconds for differences, once a GPU that is in use has done what it was asked: it works on while Python goes on.

    What `leave_out` was told of is not among them: a loop's live pictures, checkpoints and pauses, and the compiler of kernels.
    So a training that is watched, or the first one on a machine, is no longer than another, and equal seconds are equal.

    >>> clock() <= clock()
    True
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return ticks()


def ticks() -> float:
    """Return `clock` without waiting for a GPU."""
    return time.perf_counter() - _left_out[0]


def leave_out(seconds: float) -> None:
    """Take seconds that have passed, as `ticks` counts them, from every later reading of `clock`."""
    _left_out[0] += seconds


@contextlib.contextmanager
def left_out(wait: bool = False) -> Iterator[None]:
    """Leave out what happens inside; `wait` first lets a GPU finish what was asked of it before."""
    began = clock() if wait else ticks()
    try:
        yield
    finally:
        leave_out(ticks() - began)


def until_spent(seconds: float, percents: Iterable[object] = ()) -> Iterator[float]:
    """Yield how many seconds have gone by on `clock`, until so many have: the loop of a training whose budget is a time.

    Args:
        percents: gone on with by an item for every hundredth of the time, and to its end, such as `nsw.track(range(100), ...)`;
            what that takes is left out.

    >>> next(until_spent(60.0)) < 60.0, list(until_spent(0.0))
    (True, [])
    """
    bar, shown, began = iter(percents), 0, clock()
    while (spent := clock() - began) < seconds:
        with left_out():
            while shown <= 100 * spent / seconds:
                next(bar, None)
                shown += 1
        yield spent
    for _ in bar:
        pass


def _batched(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if predicted.shape != target.shape:
        raise InputError(f"Pictures to compare differ in size: {tuple(predicted.shape)} against {tuple(target.shape)}.")
    return predicted.reshape(-1, *predicted.shape[-3:]), target.reshape(-1, *target.shape[-3:])


def _mean(values: list[float]) -> float:
    if not values:
        raise InputError("There is no pixel to score: the mask is empty in every view.")
    return sum(values) / len(values)


SURFACE_PROTOCOL = "nsw-surface v1: 30,000 points on each surface, nearest distances, mean of both ways"


@dataclass(frozen=True)
class SurfaceScores:
    """How far a mesh is from the true surface, in world units and degrees.

    Attributes:
        chamfer: mean of `accuracy` and `completeness`, as the DTU benchmark defines it.
        accuracy: mean distance of the mesh's points to the truth: crumbs and bumps make it large.
        completeness: mean distance of the true points to the mesh: holes make it large.
        normal_error: mean angle between the normal of a true point and that of the mesh's point nearest to it.
    """

    chamfer: float
    accuracy: float
    completeness: float
    normal_error: float


def surface_scores(
    mesh, points: Float[Tensor, "P 3"], normals: Float[Tensor, "P 3"], n: int = 30_000, seed: int = 0
) -> SurfaceScores:
    r"""Compare a mesh with points of the true surface by the protocol `SURFACE_PROTOCOL`.

    $$\mathrm{CD} = \tfrac12\Big(\overline{\min_q |p - q|}\,\Big|_{p \in M} + \overline{\min_p |p - q|}\,\Big|_{q \in T}\Big)$$

    Args:
        mesh: a trimesh.Trimesh.
        points, normals: of the truth, dense and even, for example `nsw.scenes.surface.surface_points`.
        n: points drawn on each side.
        seed: of the draws.

    Raises:
        InputError: when the mesh has no faces.
    """
    import trimesh

    from nsw.models.neighbours import nearest

    if len(mesh.faces) == 0:
        raise InputError("There is no surface to score: the mesh has no faces; look at the depth maps it was made from.")
    found, faces = trimesh.sample.sample_surface(mesh, n, seed=seed)
    picked = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:n]
    found, truth = torch.from_numpy(found), points.detach().cpu().double()
    to_truth, _ = nearest(found, truth, 1)
    to_mesh, at = nearest(truth[picked], found, 1)
    drawn = torch.from_numpy(mesh.face_normals[faces[at[:, 0].numpy()]].copy())
    angle = normal_error_degrees(drawn, normals[picked].detach().cpu())
    accuracy, completeness = float(to_truth.mean()), float(to_mesh.mean())
    return SurfaceScores((accuracy + completeness) / 2, accuracy, completeness, angle)


def distances_to(points: Float[Tensor, "N 3"], truth: Float[Tensor, "P 3"]) -> Float[Tensor, "N"]:
    """Return the distance of each point to the nearest true one.

    >>> distances_to(torch.tensor([[0.0, 0, 2]]), torch.zeros(1, 3))
    tensor([2.])
    """
    from nsw.models.neighbours import nearest

    return nearest(points, truth, 1)[0][:, 0].cpu().float()
