"""Hard training sets made of easy ones: few views, noisy views, pixels of salt and pepper. Test views stay as they are."""

from __future__ import annotations

from dataclasses import replace

import torch

from nsw.scenes.scene import Scene


def fewer_views(scene: Scene, n: int) -> Scene:
    """Return the scene with `n` of its training views, spread evenly over their order; all of them where there are fewer."""
    train = scene.frames("train")
    kept = train[torch.linspace(0, len(train) - 1, min(n, len(train))).round().long()]
    return replace(scene, splits={**scene.splits, "train": kept})


def noisy_views(scene: Scene, share: float = 0.2, sigma: float = 0.2, seed: int = 0) -> Scene:
    """Return the scene with Gaussian noise of standard deviation `sigma` on a share of its training views."""
    generator = torch.Generator().manual_seed(seed)
    train, images = scene.frames("train"), scene.images.clone()
    for i in train[torch.randperm(len(train), generator=generator)[: round(share * len(train))]].tolist():
        colours = images[i, ..., :3].float() + 255 * sigma * torch.randn(images[i, ..., :3].shape, generator=generator)
        images[i, ..., :3] = colours.round().clamp(0, 255).byte()
    return replace(scene, images=images)


def salt_and_pepper(scene: Scene, share: float = 0.1, seed: int = 0) -> Scene:
    """Return the scene with a share of its training pixels replaced by black or white."""
    generator = torch.Generator().manual_seed(seed)
    images = scene.images.clone()
    for i in scene.frames("train").tolist():
        hit = torch.rand(images.shape[1:3], generator=generator) < share
        grey = torch.randint(2, (int(hit.sum()), 1), generator=generator, dtype=torch.uint8) * 255
        images[i, ..., :3][hit] = grey.expand(-1, 3)
    return replace(scene, images=images)
