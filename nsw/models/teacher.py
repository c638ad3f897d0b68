"""A 2D model that turns one picture into a map of features: the interface, and the small one that comes with NSW.

Larger ones (CLIP, SAM) have the same three methods, see `teacher_priors.py`. `ToyTeacher` is a U-Net trained by
`train_teacher.py` on path-traced toys in random arrangements: it embeds words and decodes masks, like CLIP and SAM, but
knows toys only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from nsw.errors import InputError
from nsw.models.unet import UNet

NOTHING = "nothing"
CLASSES = (NOTHING, "board", "block", "ball", "ring", "figure")
TOYS = ("letter block", "chequered block", "roof", "beach ball", "metal ball", "tower", "hoop", "duck", "giraffe", "pail")


@dataclass(frozen=True)
class Prompt:
    """What a person points at, in shares of the picture's width and height: (0, 0) is the upper left corner.

    Attributes:
        points: (x, y) places inside the thing.
        box: (x0, y0, x1, y1) around the thing, or None.
    """

    points: tuple[tuple[float, float], ...] = ()
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        numbers = [x for point in self.points for x in point] + list(self.box or ())
        if not numbers or not all(0 <= x <= 1 for x in numbers):
            raise InputError(f"A prompt needs points or a box in shares of the picture, from 0 to 1, got {self}.")

    @property
    def centre(self) -> tuple[float, float]:
        """The mean of the points, or the middle of the box."""
        if self.points:
            return tuple(sum(values) / len(self.points) for values in zip(*self.points, strict=True))
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


class FeatureTeacher(Protocol):
    """Any frozen 2D model. A teacher without words or without masks raises `InputError` there and says which one has them.

    Attributes:
        name: shown on screen, with where the weights came from.
        words: what it can be asked for by default.
    """

    name: str
    words: Sequence[str]

    def encode(self, picture: Float[Tensor, "H W 3"]) -> Float[Tensor, "M h w"]:
        """Return the features of a picture with values in [0, 1]."""
        ...

    def embed(self, word: str) -> Float[Tensor, "M"]:
        """Return the unit vector that features of such things point to."""
        ...

    def decode_mask(self, features: Float[Tensor, "M h w"], prompt: Prompt) -> Float[Tensor, "h w"]:
        """Return the probability that each place belongs to the thing pointed at; no encoder is run."""
        ...


@dataclass(frozen=True)
class ToyTeacherSettings:
    """Sizes of the toy teacher: channels M of its features, widths of the four levels of its U-Net, its words.

    `side` is the shorter side, in pixels, to which it brings every picture: it was trained at about that size.
    """

    n_channels: int = 64
    side: int = 80
    widths: tuple[int, ...] = (24, 40, 64, 96)
    words: tuple[str, ...] = CLASSES + TOYS
    temperature: float = 0.07
    name: str = "ToyTeacher (bundled, trained on path-traced toys in random arrangements)"


class ToyTeacher(UNet):
    """A U-Net with features at half its picture's size, one vector a word, and a decoder from prompts to masks."""

    def __init__(self, settings: ToyTeacherSettings | None = None):
        s = settings or ToyTeacherSettings()
        super().__init__(3, s.widths)
        self.settings, self.name, self.words = s, s.name, s.words
        self.head = nn.Conv2d(s.widths[0], s.n_channels, 1)
        self.vectors = nn.Parameter(torch.randn(len(s.words), s.n_channels))
        self.query, self.key = (nn.Conv2d(s.n_channels, 32, 1) for _ in range(2))
        self.squeeze = nn.Conv2d(s.n_channels, 12, 1)
        self.mask = nn.Sequential(
            nn.Conv2d(12 + 4 + 4, 24, 3, 1, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, 1, 2, 2), nn.ReLU(), nn.Conv2d(24, 1, 3, 1, 1)
        )

    def forward(self, pictures: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n M h w"]:
        """Return unit features at half size."""
        return normalize(self.head(self.features(2 * pictures - 1)), dim=1)

    def unit_vectors(self) -> Float[Tensor, "K M"]:
        return normalize(self.vectors, dim=1)

    def mask_logits(self, features: Float[Tensor, "n M h w"], prompts: Sequence[Prompt]) -> Float[Tensor, "n h w"]:
        """Return one mask a map and prompt, as logits."""
        features = normalize(features, dim=1)
        cues = torch.stack([_cues(prompt, features.shape[2:], features.device) for prompt in prompts])
        weight = cues[:, 0] + cues[:, 1] / cues[:, 1].sum((1, 2), keepdim=True).clamp_min(1)
        weight = weight / weight.sum((1, 2), keepdim=True).clamp_min(1e-6)
        asked = (self.query(features) * weight[:, None]).sum((2, 3), keepdim=True)
        likeness = (asked * self.key(features)).unflatten(1, (4, 8)).sum(2) / 8**0.5
        return self.mask(torch.cat([self.squeeze(features), likeness, cues], 1))[:, 0]

    @torch.no_grad()
    def encode(self, picture: Float[Tensor, "H W 3"]) -> Float[Tensor, "M h w"]:
        height, width = picture.shape[:2]
        factor = self.settings.side / min(height, width)
        picture = resized(picture.permute(2, 0, 1)[None].to(self.vectors), round(height * factor), round(width * factor))
        return self(picture)[0]

    @torch.no_grad()
    def embed(self, word: str) -> Float[Tensor, "M"]:
        if word not in self.words:
            raise InputError(f'The toy teacher does not know the word "{word}": it knows {", ".join(self.words)}.')
        return self.unit_vectors()[self.words.index(word)]

    @torch.no_grad()
    def decode_mask(self, features: Float[Tensor, "M h w"], prompt: Prompt) -> Float[Tensor, "h w"]:
        return self.mask_logits(features[None], [prompt])[0].sigmoid()


def _cues(prompt: Prompt, size: Sequence[int], device: torch.device) -> Float[Tensor, "4 h w"]:
    """Return a blob at the points, the inside of the box, and the way from the prompt's centre in x and y."""
    h, w = size
    y, x = torch.meshgrid((torch.arange(h, device=device) + 0.5) / h, (torch.arange(w, device=device) + 0.5) / w, indexing="ij")
    blob, inside = torch.zeros(h, w, device=device), torch.zeros(h, w, device=device)
    for px, py in prompt.points:
        blob = torch.maximum(blob, torch.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 0.02**2)))
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        edge = lambda t: torch.sigmoid(t / 0.01)  # noqa: E731 - soft, so that a box between two pixels is still one
        inside = edge(x - x0) * edge(x1 - x) * edge(y - y0) * edge(y1 - y)
    cx, cy = prompt.centre
    return torch.stack([blob, inside, (x - cx) * 2, (y - cy) * 2])


def resized(maps: Float[Tensor, "n M h w"], height: int, width: int) -> Float[Tensor, "n M H W"]:
    """Return maps at another size, bilinearly, pixel centres on pixel centres."""
    if tuple(maps.shape[2:]) == (height, width):
        return maps
    smaller = height < maps.shape[2]
    return interpolate(maps, size=(height, width), mode="bilinear", align_corners=False, antialias=smaller)


def toy_teacher() -> ToyTeacher:
    """Return the bundled teacher, frozen.

    Raises:
        InputError: when its file is missing.
    """
    from nsw.models import io
    from nsw.scenes.bundled import data_dir

    model = io.load(Path(data_dir()) / "toy_teacher").eval()
    return model.requires_grad_(False)
