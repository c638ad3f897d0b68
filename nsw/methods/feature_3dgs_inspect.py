"""Score the features of Feature 3DGS: labels against the truth, agreement of views, prompts and edits; and show their colours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.cameras import Cameras, camera_rays, project
from nsw.errors import InputError
from nsw.methods.feature_3dgs import agreement, composited, feature_map, loss_feature
from nsw.methods.feature_3dgs_edit import deleted, likeness, rivals, selected
from nsw.models.feature_gaussians import FeatureGaussians
from nsw.models.gaussians import Gaussians
from nsw.models.state import read_json
from nsw.models.teacher import CLASSES, FeatureTeacher, Prompt, resized
from nsw.renderers.splat_probe import recoloured
from nsw.scenes.scene import Scene

# Okabe and Ito's colours, which colour-blind people tell apart, for the classes of the toys.
COLOURS = torch.tensor([[1, 1, 1], [0.65, 0.65, 0.65], [0.0, 0.45, 0.70], [0.84, 0.37, 0.0], [0.0, 0.62, 0.45], [0.94, 0.89, 0.26]])


def true_classes(scene: Scene, frames: str | Sequence[int], classes: Sequence[str] = CLASSES) -> Int[Tensor, "n H W"]:
    """Return the class of every pixel as an index into `classes`, of which the first is "nothing".

    Raises:
        InputError: when the scene does not say what its instances are, or names a class that is not listed.
    """
    if scene.ids is None or scene.source is None:
        raise InputError(f"Scene {scene.name} has no instance ids: take a bundled scene, for example toybox.")
    named = read_json(scene.source / "transforms.json", "scene").get("id_classes", [])
    if len(named) != len(scene.id_names) or not set(named) <= set(classes):
        raise InputError(f"Scene {scene.name} has classes {sorted(set(named))}, expected some of {', '.join(classes)}.")
    table = torch.tensor([0] + [classes.index(name) for name in named])
    return table[scene.ids[scene.frames(frames)].long() + 1]


def labelled(
    maps: Float[Tensor, "n M h w"], teacher: FeatureTeacher, size: tuple[int, int], words: Sequence[str] = CLASSES
) -> Int[Tensor, "n H W"]:
    """Return the word that every pixel's feature points to: $\\arg\\max_k \\cos(F(p), t_k)$."""
    maps = resized(maps, *size).permute(0, 2, 3, 1)
    return likeness(maps, teacher, words).argmax(-1).cpu()


def mean_iou(predicted: Int[Tensor, "*n"], true: Int[Tensor, "*n"], n_classes: int = len(CLASSES)) -> float:
    r"""Return the mean over classes, "nothing" left out, of $|P_k \cap T_k| / |P_k \cup T_k|$, pixels of all views pooled.

    >>> mean_iou(torch.tensor([1, 1, 2, 0]), torch.tensor([1, 2, 2, 0]), 3)
    0.5
    """
    pairs = torch.bincount((true.long() * n_classes + predicted.long()).flatten(), minlength=n_classes**2)
    table = pairs.reshape(n_classes, n_classes).double()
    hits = table.diag()
    union = table.sum(0) + table.sum(1) - hits
    seen = union[1:] > 0
    return float((hits[1:][seen] / union[1:][seen]).mean())


def pixel_accuracy(predicted: Int[Tensor, "*n"], true: Int[Tensor, "*n"]) -> float:
    """Return the share of pixels on things whose class is right."""
    return float((predicted == true)[true > 0].double().mean())


def flips(labels: Int[Tensor, "n H W"], scene: Scene, frames: Sequence[int], tolerance: float = 0.02) -> float:
    """Return the share of surface points, seen in two neighbouring frames of the list, that get two labels.

    A pixel is carried over by the true depth; it counts where the other view sees the same surface, to within `tolerance`
    world units, and the same instance.
    """
    frames = torch.as_tensor(frames)
    changed = total = 0
    for a in range(len(frames)):
        origin = scene.cameras[frames[a : a + 1]].origins[0]
        others = scene.cameras[frames].origins
        b = int((others - origin).norm(dim=1).argsort()[1]) if len(frames) > 1 else a
        one, two = int(frames[a]), int(frames[b])
        rays, depth = camera_rays(scene.cameras[one]), scene.depth[one].flatten()
        places = rays.at_depth(depth)
        pixels, z = project(scene.cameras[two], places)
        column, row = pixels[0].floor().long().unbind(-1)
        height, width = labels.shape[1:]
        inside = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        column, row = column.clamp(0, width - 1), row.clamp(0, height - 1)
        same = inside & ((scene.depth[two][row, column] - z[0]).abs() < tolerance)
        same &= scene.ids[one].flatten() == scene.ids[two][row, column]
        changed += int((labels[a].flatten() != labels[b][row, column])[same].sum())
        total += int(same.sum())
    return changed / max(total, 1)


def marks(labels: Int[Tensor, "n H W"], true: Int[Tensor, "n H W"], scene: Scene, frames: Sequence[int]) -> dict[str, float]:
    """Return all scores of labels, as a row of a table."""
    row = {"mIoU": mean_iou(labels, true), "right pixels": pixel_accuracy(labels, true)}
    return row | {"names that flip": flips(labels, scene, frames)}


def rows_of(
    maps: Mapping[str, Float[Tensor, "n M h w"]],
    teacher: FeatureTeacher,
    true: Int[Tensor, "n H W"],
    scene: Scene,
    frames: Sequence[int],
) -> list[dict[str, Any]]:
    """Return rows of a table, one for each set of maps: the `marks` of its names, and its mean cosine with the last set."""
    size, last = (true.shape[1], true.shape[2]), list(maps.values())[-1]
    named = {name: marks(labelled(each, teacher, size), true, scene, frames) for name, each in maps.items()}
    return [{"variant": name} | row | {"cosine": agreement(maps[name], last)} for name, row in named.items()]


def doubt(lifted: FeatureGaussians, camera: Cameras) -> Float[Tensor, "H W"]:
    r"""Return a picture of how far views disagree on splats: $1 - \|\bar f_i\|$, features being means of unit vectors."""
    return composited(lifted, camera, 1 - lifted.features.detach().norm(dim=1, keepdim=True))[0, ..., 0]


@dataclass(frozen=True)
class Asked:
    """One thing seen in one frame: what is asked, and the true mask [H, W]."""

    frame: int
    name: str
    point: Prompt
    box: Prompt
    mask: Bool[Tensor, "H W"]


def questions(scene: Scene, frames: str | Sequence[int], least: int = 12, skip: Sequence[str] = ("board",)) -> list[Asked]:
    """Return a point and a box prompt for every instance with at least `least` pixels: the point lies deepest inside it."""
    from scipy.ndimage import distance_transform_edt

    asked = []
    for frame in scene.frames(frames).tolist():
        ids = scene.ids[frame]
        for instance in ids[ids >= 0].unique().tolist():
            mask = ids == instance
            if scene.id_names[instance] in skip or int(mask.sum()) < least:
                continue
            size = torch.tensor(mask.shape)
            inside = torch.from_numpy(distance_transform_edt(torch.nn.functional.pad(mask, (1, 1, 1, 1)).numpy()))[1:-1, 1:-1]
            row, column = divmod(int(inside.argmax()), mask.shape[1])
            place = ((column + 0.5) / mask.shape[1], (row + 0.5) / mask.shape[0])
            places = mask.nonzero()
            (top, left), (bottom, right) = (places.amin(0) / size).tolist(), ((places.amax(0) + 1) / size).tolist()
            box = Prompt(box=(left, top, right, bottom))
            asked.append(Asked(frame, scene.id_names[instance], Prompt(points=(place,)), box, mask))
    return asked


def largest(asked: Iterable[Asked]) -> Asked:
    """Return the question about what covers most pixels."""
    return max(asked, key=lambda one: int(one.mask.sum()))


def mask_iou(probability: Float[Tensor, "h w"], mask: Bool[Tensor, "H W"]) -> float:
    """Return intersection over union of a soft mask, brought to the picture's size and cut at one half, with the true one."""
    predicted = spread(probability, mask.shape) > 0.5
    union = int((predicted | mask).sum())
    return float((predicted & mask).sum()) / union if union else 1.0


def prompted_iou(asked: Sequence[Asked], mask_of: Callable[[Asked, Prompt], Tensor]) -> dict[str, float]:
    """Return the mean IoU of masks from points and from boxes."""
    scores = {kind: [mask_iou(mask_of(a, getattr(a, kind)), a.mask) for a in asked] for kind in ("point", "box")}
    return {kind: sum(values) / len(values) for kind, values in scores.items()}


def pulls_on(
    gaussians: Gaussians, camera: Cameras, target: Float[Tensor, "1 M h w"], n_features: int
) -> dict[str, dict[str, float]]:
    """Return how hard the feature loss of one view pulls on places, opacities and random features: norms of gradients x 1000.

    Geometry enters the loss "detached", as in the paper, and "joint" with the features.
    """
    pulls = {}
    for name, joint in (("detached", False), ("joint", True)):
        model = FeatureGaussians.around(gaussians, n_features, target.shape[1])
        torch.nn.init.normal_(model.features, std=0.1, generator=torch.Generator(target.device).manual_seed(0))
        loss_feature(feature_map(model, camera, target.shape[2:], joint=joint), target).backward()
        grads = {part: model.params[part].grad for part in ("means", "opacities", "features")}
        pulls[name] = {part: 0.0 if grad is None else 1000 * float(grad.norm()) for part, grad in grads.items()}
    return pulls


def edit_iou(
    before: Float[Tensor, "n H W 3"], after: Float[Tensor, "n H W 3"], mask: Bool[Tensor, "n H W"], least: float = 0.08
) -> float:
    """Return intersection over union, pooled over views, of the pixels that an edit changed by `least` with a true mask."""
    changed = (before - after).abs().amax(-1) > least
    return float((changed & mask).sum() / (changed | mask).sum().clamp_min(1))


def deletion_iou(
    model: FeatureGaussians, features: Float[Tensor, "N M"], teacher: FeatureTeacher, draw: Callable, true: Int[Tensor, "n H W"]
) -> float:
    """Return the mean of `edit_iou` when blocks, balls, rings and figures are deleted, each by its word.

    Args:
        draw: pictures [n, H, W, 3] of a model from the views of `true`.
    """
    before, words = draw(model), dict(enumerate(CLASSES[2:], 2))
    chosen = {i: selected(features, teacher, word, rivals(teacher, word)) for i, word in words.items()}
    return sum(edit_iou(before, draw(deleted(model, chosen[i])), true == i) for i in words) / len(words)


def spread(mask: Float[Tensor, "h w"], size: Sequence[int]) -> Float[Tensor, "H W"]:
    """Return a soft mask at the size of a picture."""
    return resized(mask[None, None].float().cpu(), *size)[0, 0].clamp(0, 1)


class FeatureColours:
    """Three directions in which features differ most, as red, green and blue: one choice for all maps that are compared.

    Args:
        maps: features to choose them from.
    """

    def __init__(self, maps: Float[Tensor, "n M h w"]):
        rows = torch.nn.functional.normalize(maps.cpu(), dim=1).permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).double()
        self.mean = rows.mean(0)
        values, vectors = torch.linalg.eigh((rows - self.mean).T @ (rows - self.mean))
        self.axes = vectors[:, -3:].flip(-1)
        self.axes = self.axes * torch.where(self.axes.sum(0) < 0, -1.0, 1.0)
        shades = (rows - self.mean) @ self.axes
        self.low, self.high = (torch.quantile(shades[:: max(len(shades) // 50_000, 1)], q, dim=0) for q in (0.01, 0.99))

    def __call__(self, features: Float[Tensor, "M h w"]) -> Float[Tensor, "h w 3"]:
        """Return a picture of a map of features."""
        unit = torch.nn.functional.normalize(features.cpu(), dim=0).permute(1, 2, 0).double()
        return (((unit - self.mean) @ self.axes - self.low) / (self.high - self.low)).clamp(0, 1).float()

    def painted(self, model: Gaussians, vectors: Float[Tensor, "N M"]) -> Gaussians:
        """Return the splats in the colours of their features."""
        return recoloured(model, self(vectors.T[:, None])[0])
