"""NeRF (Mildenhall et al., ECCV 2020): what the paper adds to volume rendering, apart from its network and samplers.

The network is `nsw.models.mlp.NerfMLP`, the encoding `nsw.models.encodings.frequency_encoding`, stratified and importance
sampling and the quadrature are in `nsw.renderers.volume`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nsw.cameras import Cameras, Rays, camera_rays, pixel_rays
from nsw.kernels.occupancy import ray_aabb_intersect
from nsw.losses import loss_mse
from nsw.models.encodings import encoded_size, frequency_encoding
from nsw.renderers.volume import RayRender


def useful_pixels(
    cameras: Cameras, aabb: Float[Tensor, "2 3"], usable: Bool[Tensor, "N H W"] | None = None
) -> Int[Tensor, "M"]:  # fmt: skip
    """Return the pixels, numbered over camera, row and column, whose rays meet the box.

    The others show the background whatever a field inside the box says: a network learns nothing from them.

    Args:
        usable: leave out the pixels that are False, as `Scene.usable` says it.
    """
    useful, box, n_pixels = [], aabb.to(cameras.Ks).reshape(1, 6), cameras.width * cameras.height
    for i in range(len(cameras)):  # picture by picture, because rays on their way take ten times the memory of their pixels
        rays = camera_rays(cameras[i])
        useful.append(ray_aabb_intersect(rays.origins, rays.directions, box)[2][:, 0].nonzero()[:, 0] + i * n_pixels)
    useful = torch.cat(useful)
    return useful if usable is None else useful[usable.reshape(-1).to(useful.device)[useful]]


def ray_batch(
    pixels: Float[Tensor, "N H W 3"],
    cameras: Cameras,
    n_rays: int,
    generator: torch.Generator,
    among: Int[Tensor, "M"] | None = None,
) -> tuple[Rays, Float[Tensor, "n_rays 3"]]:
    """Return rays through random pixels of all pictures, and the pixels' colours.

    Nothing is remembered between calls: the batch depends on the generator's state alone, so a resumed run repeats it.

    Args:
        pixels: pictures in [0, 1], background included, in the order of the cameras.
        generator: on the pictures' device.
        among: pixel numbers to choose from, as `useful_pixels` gives them; all by default.
    """
    n, height, width = pixels.shape[:3]
    index = torch.randint(n * height * width if among is None else len(among), (n_rays,), generator=generator, device=pixels.device)
    index = index if among is None else among[index]
    camera, row, column = torch.unravel_index(index, (n, height, width))
    return pixel_rays(cameras, camera, row, column), pixels.view(-1, 3)[index]


def learning_rate(step: int, n_steps: int, start: float = 5e-4, factor: float = 0.1) -> float:
    r"""Return the learning rate of a step, falling continuously by `factor` over `n_steps`.

    $$\mathrm{lr}(k) = \mathrm{lr}_0 \cdot 0.1^{k / \tau}$$

    >>> round(learning_rate(1000, 1000), 6)
    5e-05
    """
    return start * factor ** (step / n_steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def loss_terms(out: RayRender, colours: Float[Tensor, "R 3"]) -> dict[str, Float[Tensor, ""]]:
    r"""Return the squared colour error of the picture and, where there was one, of the coarse pass before it.

    $$L = \overline{\lVert\hat C_f - C\rVert^2} + \overline{\lVert\hat C_c - C\rVert^2}$$  (NeRF, eq. 6)

    The coarse network needs its own term: the fine samples that it places carry no gradient back to it.
    """
    terms = {"fine": loss_mse(out.rgb, colours)}
    if out.coarse is not None:
        terms["coarse"] = loss_mse(out.coarse.rgb, colours)
    return terms


def ndc_rays(
    origins_cam: Float[Tensor, "R 3"],
    directions_cam: Float[Tensor, "R 3"],
    focal: tuple[float, float],
    width: int,
    height: int,
    near: float = 1.0,
) -> tuple[Float[Tensor, "R 3"], Float[Tensor, "R 3"]]:
    r"""Return rays in normalised device coordinates, in which the frustum beyond `near` is the cube [-1, 1]^3.

    $$x' = \tfrac{f_x}{W/2}\tfrac{x}{z},\quad y' = \tfrac{f_y}{H/2}\tfrac{y}{z},\quad z' = 1 - \tfrac{2n}{z}$$
    A straight ray stays straight; t' in [0, 1] of the new one runs from the near plane to infinity (NeRF, appendix C,
    here for OpenCV's axes, z forward). For forward-facing scenes only: every ray needs z direction > 0. Colour still
    depends on the direction in the world, not on the new one, which has no unit length.

    Args:
        origins_cam, directions_cam: rays in the axes of the reference camera.
        focal: (fx, fy) in pixels.
        near: distance n of the near plane, to which origins are moved first.
    """
    o, d = origins_cam, directions_cam
    o = o + ((near - o[:, 2]) / d[:, 2])[:, None] * d
    scale = o.new_tensor([2 * focal[0] / width, 2 * focal[1] / height])
    at_origin, slope = o[:, :2] / o[:, 2:], d[:, :2] / d[:, 2:]
    moved = torch.cat([scale * at_origin, 1 - 2 * near / o[:, 2:]], dim=-1)
    turned = torch.cat([scale * (slope - at_origin), 2 * near / o[:, 2:]], dim=-1)
    return moved, turned


def fit_image(
    image: Float[Tensor, "H W 3"], levels: int, n_steps: int = 300, width: int = 64, depth: int = 3, lr: float = 1e-2, seed: int = 0
) -> Float[Tensor, "H W 3"]:
    """Fit a small network (x, y) -> colour to a picture, all pixels in every step, and return what it learned.

    The experiment behind the encoding (NeRF, section 5.1; Tancik et al. 2020): the network is the same for every number of
    `levels`, only what it is told about a position changes.

    Args:
        levels: octaves of the encoding, 0 for raw coordinates.
        width, depth: units and number of hidden layers.
    """
    height, width_px = image.shape[:2]
    rows, columns = (torch.linspace(-1, 1, n, device=image.device) for n in (height, width_px))
    inputs = frequency_encoding(torch.cartesian_prod(rows, columns), levels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = [encoded_size(2, levels)] + [width] * depth
        hidden = [layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(a, b), nn.ReLU(inplace=True))]
        network = nn.Sequential(*hidden, nn.Linear(width, 3), nn.Sigmoid()).to(image.device)
        for layer in network[:-1:2]:  # He's start: torch's own is too small for the three colours to part within 100 steps
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    with torch.enable_grad():  # also from inside a slider's callback
        for step in range(n_steps):
            set_learning_rate(optimizer, learning_rate(step, n_steps, lr))
            loss = (network(inputs) - image.reshape(-1, 3)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network(inputs).detach().view_as(image)


def spectrum(image: Float[Tensor, "H W 3"]) -> Float[Tensor, "H W"]:
    """Return log10 of the picture's Fourier amplitude, averaged over colours, frequency zero in the middle."""
    amplitude = torch.fft.fft2(image - image.mean(dim=(0, 1)), dim=(0, 1)).abs().mean(-1)
    return torch.fft.fftshift(amplitude).clamp_min(1e-3).log10()


def encoding_picture(image: Float[Tensor, "H W 3"], levels: int, n_steps: int = 150, zoom: int = 2) -> Float[Tensor, "h w 3"]:
    """Return the picture, what a small network with that encoding learns of it, and the spectra of both, side by side.

    Args:
        n_steps: as for `fit_image`.
        zoom: each pixel becomes zoom x zoom equal ones.
    """
    fitted = fit_image(image, levels, n_steps)
    spectra = [(spectrum(picture) / 6 + 0.5).clamp(0, 1)[..., None].expand_as(image) for picture in (image, fitted)]
    return torch.cat([image, fitted, *spectra], dim=1).repeat_interleave(zoom, dim=0).repeat_interleave(zoom, dim=1)


def flops_per_picture(model: nn.Module, n_pixels: int, samples_per_pixel: int) -> float:
    """Return the floating-point operations of rendering a picture: a multiplication and an addition per weight and sample.

    Args:
        model: one network; for a pair add the two.
    """
    return 2.0 * sum(p.numel() for p in model.parameters() if p.ndim == 2) * n_pixels * samples_per_pixel
