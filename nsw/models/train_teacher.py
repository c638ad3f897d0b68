"""Train the toy teacher from nothing: `python -m nsw.models.train_teacher FOLDER` (extra `synth` for its pictures).

It path-traces scenes of `nsw.scenes.make.scattered` into FOLDER, trains on them, and writes the weights, in half precision,
and a manifest to `data/toy_teacher`. A stopped call continues when it is repeated. Neither a scene nor a view of the
bundled `toybox` is among the pictures; its toys are, in other places, sizes and colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate

from nsw.models import io
from nsw.models.teacher import CLASSES, TOYS, Prompt, ToyTeacher, resized
from nsw.models.training import fit, write_manifest

TOY_OF = {  # instance names of `toybox` whose word is another
    "red letter block": "letter block",
    "blue letter block": "letter block",
    "roof block": "roof",
    "ring tower": "tower",
    "thin hoop": "hoop",
}
IGNORED = -100


@dataclass(frozen=True)
class TrainingSettings:
    """How the teacher was trained: scenes 0 to n_scenes - 1, the last `n_held` of them to score it."""

    n_scenes: int = 150
    n_held: int = 10
    n_steps: int = 2400
    batch: int = 16
    size: int = 64
    lr: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class Pictures:
    """Pictures with straight alpha [n, 4, H, W] and instances [n, H, W] (-1 nothing); `words_of[i]` maps instance + 1 to labels."""

    rgba: Float[Tensor, "n 4 H W"]
    ids: Int[Tensor, "n H W"]
    words_of: list[Int[Tensor, "k 2"]]

    def __len__(self) -> int:
        return len(self.ids)


def word_labels(names: list[str], classes: list[str]) -> Int[Tensor, "k 2"]:
    """Return (class, toy) labels of nothing and of every instance; things without a name of their own have no toy.

    >>> word_labels(["board", "thin hoop", "plain ball 0"], ["board", "ring", "ball"]).tolist()
    [[0, -100], [1, -100], [4, 6], [3, -100]]
    """
    toys = [TOY_OF.get(name, name) for name in names]
    rows = [(CLASSES.index(kind), TOYS.index(toy) if toy in TOYS else IGNORED) for kind, toy in zip(classes, toys, strict=True)]
    return torch.tensor([(0, IGNORED), *rows])


def read_pictures(files: list[Path]) -> Pictures:
    """Return all pictures of the files that `scattered.make_pictures` wrote."""
    rgba, ids, words = [], [], []
    for file in files:
        with np.load(file) as stored:
            rgba.append(torch.from_numpy(stored["rgba"]).permute(0, 3, 1, 2).float() / 255)
            ids.append(torch.from_numpy(stored["ids"].astype(np.int64)))
            words += [word_labels(stored["names"].tolist(), stored["classes"].tolist())] * len(stored["ids"])
    return Pictures(torch.cat(rgba), torch.cat(ids), words)


def augmented(
    rgba: Float[Tensor, "4 H W"], ids: Tensor, size: int, g: torch.Generator, square: bool = True, least: float = 0.6
) -> tuple[Float[Tensor, "3 h w"], Tensor]:
    """Return a picture, cut out, mirrored, tinted, sometimes blurred, over white or a random colour, and its map [h, w].

    Args:
        size: of the shorter side afterwards, pixels.
        square: cut squares; otherwise the picture keeps its shape.
        least: smallest share of a side that is kept.
    """
    uniform = lambda low, high: float(low + (high - low) * torch.rand((), generator=g))  # noqa: E731
    share, shorter = uniform(least, 1.0), min(ids.shape)
    sides = (shorter, shorter) if square else ids.shape
    cut, shape = [round(side * share) for side in sides], [round(size * side / shorter) for side in sides]
    top, left = (int(uniform(0, side - n + 1)) for side, n in zip(ids.shape, cut, strict=True))
    rgba, ids = (x[..., top : top + cut[0], left : left + cut[1]] for x in (rgba, ids))
    tint = torch.tensor([uniform(0.85, 1.15) for _ in range(3)])[:, None, None]
    behind = torch.rand(3, 1, 1, generator=g) if uniform(0, 1) < 0.4 else torch.ones(3, 1, 1)
    picture = (rgba[:3] * tint) * rgba[3:] + behind * (1 - rgba[3:])
    picture = interpolate(picture[None], size=shape, mode="bilinear", antialias=True)
    if uniform(0, 1) < 0.4:  # a picture made of splats is softer than a photograph
        factor = uniform(0.45, 0.8)
        picture = interpolate(picture, size=[round(side * factor) for side in shape], mode="bilinear", antialias=True)
        picture = interpolate(picture, size=shape, mode="bicubic", align_corners=False)
    rows, columns = (((torch.arange(side) + 0.5) * n / side).long() for side, n in zip(shape, cut, strict=True))
    picture, ids = picture[0].clamp(0, 1), ids[rows][:, columns]
    return (picture.flip(-1), ids.flip(-1)) if uniform(0, 1) < 0.5 else (picture, ids)


def random_prompt(ids: Int[Tensor, "s s"], g: torch.Generator) -> tuple[Prompt, int]:
    """Return a point in, or a loose box around, an instance drawn at random, and the instance; the board counts as one."""
    seen, counts = ids[ids >= 0].unique(return_counts=True)
    seen = seen[counts >= 6]
    if len(seen) == 0:
        return Prompt(points=((0.5, 0.5),)), int(ids[len(ids) // 2, len(ids) // 2])
    instance = int(seen[torch.randint(len(seen), (), generator=g)])
    places = ((ids == instance).nonzero().flip(1) + 0.5) / len(ids)
    if torch.rand((), generator=g) < 0.5:
        return Prompt(points=(tuple(places[torch.randint(len(places), (), generator=g)].tolist()),)), instance
    loose = 0.02 * torch.randn(4, generator=g)
    corners = (torch.cat([places.amin(0), places.amax(0)]) + loose).clamp(0, 1).tolist()
    x0, y0, x1, y1 = corners
    return Prompt(box=(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))), instance


def losses(model: ToyTeacher, pictures: Float[Tensor, "n 3 s s"], ids: list[Tensor], words: list[Tensor], g) -> dict[str, Tensor]:
    r"""Return the loss terms: cross entropy of cosines with the words, $-\log \mathrm{softmax}_k(F \cdot t_k / \tau)$, over
    classes and over toys, and of masks decoded from one prompt a picture."""
    features, n_classes = model(pictures), len(CLASSES)
    cosines = torch.einsum("nmhw,km->nkhw", features, model.unit_vectors()) / model.settings.temperature
    logits = resized(cosines, *pictures.shape[2:])
    labels = torch.stack([table[instance + 1] for table, instance in zip(words, ids, strict=True)])
    prompts, wanted = zip(*(random_prompt(instance, g) for instance in ids), strict=True)
    true = torch.stack([(instance == target).float() for instance, target in zip(ids, wanted, strict=True)])
    mask = resized(model.mask_logits(features, prompts)[:, None], *pictures.shape[2:])[:, 0]
    share = mask.sigmoid()
    overlap = 2 * (share * true).sum((1, 2)) / (share.sum((1, 2)) + true.sum((1, 2)) + 1)
    return {
        "classes": cross_entropy(logits[:, :n_classes], labels[..., 0], ignore_index=IGNORED),
        "toys": cross_entropy(logits[:, n_classes:], labels[..., 1], ignore_index=IGNORED),
        "masks": binary_cross_entropy_with_logits(mask, true) + 1 - overlap.mean(),
    }


def train(pictures: Pictures, settings: TrainingSettings, checkpoint: Path) -> ToyTeacher:
    """Train the teacher; the state is kept in `checkpoint`, from which a repeated call goes on."""
    torch.manual_seed(settings.seed)
    model = ToyTeacher()

    def terms(step: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        chosen = torch.randint(len(pictures), (settings.batch,), generator=g).tolist()
        batch, ids = zip(*(augmented(pictures.rgba[i], pictures.ids[i], settings.size, g) for i in chosen), strict=True)
        return losses(model, torch.stack(batch), list(ids), [pictures.words_of[i] for i in chosen], g)

    fit(model, terms, settings.n_steps, settings.lr, checkpoint)
    return model


@torch.no_grad()
def accuracy(model: ToyTeacher, pictures: Pictures) -> float:
    """Return the share of pixels on things whose class the teacher names, over white."""
    right = total = 0
    for i in range(len(pictures)):
        rgba, true = pictures.rgba[i], pictures.words_of[i][pictures.ids[i] + 1][..., 0]
        features = model((rgba[:3] * rgba[3:] + 1 - rgba[3:])[None])
        cosines = resized(torch.einsum("nmhw,km->nkhw", features, model.unit_vectors()[: len(CLASSES)]), *true.shape)
        things = true > 0
        right, total = right + int((cosines.argmax(1)[0] == true)[things].sum()), total + int(things.sum())
    return right / total


def main() -> None:
    import argparse

    from nsw.scenes.bundled import data_dir
    from nsw.scenes.make.scattered import make_pictures

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the pictures and the checkpoint")
    folder, settings = parser.parse_args().folder, TrainingSettings()
    files = make_pictures(folder, range(settings.n_scenes))
    train_files, held_files = files[: -settings.n_held], files[-settings.n_held :]
    model = train(read_pictures(train_files), settings, folder / "checkpoint.safetensors")
    out = io.save(model.half(), data_dir() / "toy_teacher")
    score = accuracy(io.load(out), read_pictures(held_files))
    facts = {
        "command": "python -m nsw.models.train_teacher FOLDER",
        "trained_on": "path-traced scenes of nsw.scenes.make.scattered (the toys of toybox in random places, sizes and colours, "
        "and plain blocks, balls and rings); no view of the bundled toybox",
        "settings": settings.__dict__,
        "pixel_accuracy_on_held_scenes": round(score, 4),
    }
    write_manifest(out, facts)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, accuracy {score:.3f}")


if __name__ == "__main__":
    main()
