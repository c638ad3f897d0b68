"""What every format asks of a file and of Gaussians, and the axes they agree on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nsw.errors import InputError
from nsw.models.gaussians import NAMES, Gaussians, GaussiansSettings
from nsw.models.placing import placed

X_SIGNS = (1.0, -1.0, -1.0)  # right, down, front (.ply) to right, up, back (.spz), or back: half a turn about x
Z_SIGNS = (-1.0, -1.0, 1.0)  # right, down, front to left, up, front (.glb), or back: half a turn about z
_Z_UP_TO_Y_DOWN = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
_EDGE = 1e-6  # opacities of 0 and 1 have no finite logit: they are read as this far inside, which no 8-bit file can tell


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def first_bytes(path: Path, n: int) -> bytes:
    """Return up to n bytes from the file's beginning.

    Raises:
        InputError: when there is no such file or it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(n)
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except OSError as error:
        raise InputError(f"Cannot read {path}: {_reason(error)}.") from error


def read_file(path: Path) -> bytes:
    """Return the whole file.

    Raises:
        InputError: when there is no such file or it cannot be read.
    """
    return first_bytes(path, -1)


def logit(opacities: np.ndarray) -> np.ndarray:
    """Return log(o / (1 - o)) in float32, finite also for 0 and 1."""
    inside = np.clip(opacities.astype(np.float64), _EDGE, 1 - _EDGE)
    return np.log(inside / (1 - inside)).astype(np.float32)


def log_scales(lengths: np.ndarray) -> np.ndarray:
    """Return logarithms of lengths >= 0 in float32; a flat splat's 0 becomes 1e-30, which no picture shows."""
    return np.log(np.maximum(lengths.astype(np.float32), np.float32(1e-30)))


def degree_of(n_rest: int) -> int:
    """Return the degree of harmonics that has n_rest coefficients a channel besides the constant one; -1 for none.

    >>> [degree_of(n) for n in (0, 3, 8, 15, 24)]
    [0, 1, 2, 3, -1]
    """
    return {0: 0, 3: 1, 8: 2, 15: 3}.get(n_rest, -1)


def built(path: Path, raw: dict[str, np.ndarray]) -> Gaussians:
    """Return Gaussians of raw values, arrays as in `nsw.models.gaussians`.

    Raises:
        InputError: naming the first splat with a value that is not finite.
    """
    tensors = {name: torch.from_numpy(np.array(raw[name], np.float32, order="C")) for name in NAMES}
    for name, value in tensors.items():
        _refuse_not_finite(path, name, value, "export the file again")
    blank = ~tensors["quats"].any(dim=1)
    tensors["quats"][blank] = torch.tensor([1.0, 0, 0, 0])  # no direction at all: the splat is taken as not turned
    return Gaussians(GaussiansSettings(sh_degree=degree_of(tensors["shN"].shape[1]))).fill(**tensors)


def _refuse_not_finite(path: Path, name: str, value: torch.Tensor, advice: str) -> None:
    if not bool(torch.isfinite(value).all()):
        first = int((~torch.isfinite(value)).nonzero()[0, 0])
        raise InputError(f"{path}: {name} of splat {first} is not finite; {advice}.")


@torch.no_grad()
def raw_values(gaussians: Gaussians, path: Path) -> dict[str, np.ndarray]:
    """Return the raw values to write, in float32; quaternions are normalised, an isotropic model's one scale stands three times.

    Raises:
        InputError: when there is nothing to write, or a value is not finite.
    """
    if len(gaussians) == 0:
        raise InputError(f"{path}: there are no Gaussians to write; train the model first.")
    values = dict(gaussians.params) | {
        "scales": gaussians.log_scales,
        "quats": torch.nn.functional.normalize(gaussians.quats, dim=-1),
    }
    for name, value in values.items():
        _refuse_not_finite(path, name, value, "it cannot be written")
    return {name: value.detach().cpu().numpy().astype(np.float32) for name, value in values.items()}


@torch.no_grad()
def half_turn(gaussians: Gaussians, signs: tuple[float, float, float]) -> Gaussians:
    """Return Gaussians in axes of other signs, two of them -1: exact to the last bit, because nothing but signs changes.

    A splat's own axes take the same signs, which leaves the splat as it is and its quaternion what other tools write: q_R q q_R^-1.
    """
    turned = placed(gaussians, torch.diag(torch.tensor(signs)))
    turned.params["quats"] = torch.nn.Parameter(gaussians.quats * torch.tensor([1.0, *signs], device=gaussians.quats.device))
    return turned


def y_down(gaussians: Gaussians, up: str) -> Gaussians:
    """Return Gaussians with "-y" up, as files without a named axis have it.

    Raises:
        InputError: for another axis than "+z" and "-y".
    """
    if up not in ("+z", "-y"):
        raise InputError(f'The direction that is up is "{up}": expected "+z" or "-y".')
    return placed(gaussians, _Z_UP_TO_Y_DOWN) if up == "+z" else gaussians


def z_up(gaussians: Gaussians, up: str) -> Gaussians:
    """Return Gaussians that stand as the workbench's own models do, with "+z" up.

    Args:
        up: the direction that is up in them, "+z" or "-y", as `nsw.formats.up_of` says.
    """
    return placed(gaussians, _Z_UP_TO_Y_DOWN.T) if up == "-y" else gaussians
