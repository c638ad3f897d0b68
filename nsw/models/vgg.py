"""VGG-16 (Simonyan and Zisserman 2015) as LPIPS reads it: five layers of features, weights from torchvision's file on disk.

torchvision itself is not needed. The file is read with torch's loader that admits tensors only.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from nsw.errors import InputError

# Places of the convolutions in torchvision's `features`; None is a pooling. A group ends where LPIPS reads.
_GROUPS = ((0, 2), (None, 5, 7), (None, 10, 12, 14), (None, 17, 19, 21), (None, 24, 26, 28))
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS's own, for pictures in [-1, 1]

Weights = dict[str, Tensor]


@functools.lru_cache(2)
def load_weights(path: Path, wanted: tuple[str, ...] = ()) -> Weights:
    """Return the tensors of a `.pth` file.

    Raises:
        InputError: when it cannot be read or lacks one of `wanted`.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged file raises whatever the unpickler stumbles over
        raise InputError(f"{path} is damaged or not a file of weights ({type(error).__name__}): download it again.") from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise InputError(f"{path} lacks {missing[0]}: it does not hold the expected network.")
    return found


def vgg_names() -> tuple[str, ...]:
    """Return the names of the tensors that `features` reads."""
    places = [place for group in _GROUPS for place in group if place is not None]
    return tuple(f"features.{place}.{kind}" for place in places for kind in ("weight", "bias"))


def features(weights: Weights, pictures: Float[Tensor, "n 3 H W"]) -> list[Float[Tensor, "n c h w"]]:
    """Return the five layers (relu1_2, relu2_2, relu3_3, relu4_3, relu5_3) of pictures in [0, 1]."""
    shift, scale = (pictures.new_tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
    x, layers = (2 * pictures - 1 - shift) / scale, []
    for group in _GROUPS:
        for place in group:
            if place is None:
                x = max_pool2d(x, 2)
            else:
                x = conv2d(x, weights[f"features.{place}.weight"], weights[f"features.{place}.bias"], padding=1).relu()
        layers.append(x)
    return layers


def distance(vgg: Weights, linear: Weights, a: Float[Tensor, "n 3 H W"], b: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n"]:
    r"""Return LPIPS per picture: $\sum_l \mathrm{mean}_{hw}\, w_l \cdot (\hat f_l(a) - \hat f_l(b))^2$ (Zhang et al. 2018, eq. 1).

    The features of a pixel are brought to length one before they are compared.

    Args:
        linear: `lin<l>.model.1.weight` [1, c, 1, 1], the weights of the channels.
    """
    total = a.new_zeros(len(a))
    for level, (f, g) in enumerate(zip(features(vgg, a), features(vgg, b), strict=True)):
        f, g = (x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt() for x in (f, g))
        total = total + conv2d((f - g).square(), linear[f"lin{level}.model.1.weight"]).mean((1, 2, 3))
    return total
