"""Depth Anything as a depth prior, through transformers, from a folder of weights on disk. Nothing is ever downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.errors import InputError
from nsw.models.teacher import resized

SIDE = 518  # the shorter side that Depth Anything was trained at


class DepthAnything:
    """Depth Anything, V1 or V2, relative or metric (Yang et al., CVPR and NeurIPS 2024). Needs the extra `priors`.

    Raises:
        InputError: when transformers is not installed, or the folder's weights are missing or do not fit.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu", side: int = SIDE):
        try:
            from transformers import DepthAnythingForDepthEstimation
        except ImportError as error:
            raise InputError('Depth Anything needs transformers: run `pip install "nsw[priors]"`.') from error
        from safetensors import SafetensorError

        asked = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        try:
            model, about = DepthAnythingForDepthEstimation.from_pretrained(folder, **asked)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise InputError(f"{folder} holds no readable weights of Depth Anything ({first}): download them again.") from error
        if about["missing_keys"]:
            raise InputError(
                f"The weights in {folder} lack {len(about['missing_keys'])} tensors of Depth Anything: download them again."
            )
        self.model = model.eval().requires_grad_(False).to(device)
        self.patch = self.model.config.backbone_config.patch_size
        self.metric = getattr(self.model.config, "depth_estimation_type", "relative") == "metric"
        self.name, self.device, self.side = f"Depth Anything from {folder} (transformers)", device, side

    @torch.no_grad()
    def predict(self, picture: Float[Tensor, "H W 3"]) -> Float[Tensor, "H W"]:
        """Return inverse depth up to an affine map; metric weights say depth, of which this is the inverse."""
        height, width = picture.shape[:2]
        factor = self.side / min(height, width)
        size = [max(1, round(side * factor / self.patch)) * self.patch for side in (height, width)]
        mean, std = (torch.tensor(v, device=self.device)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        pixels = (resized(picture.permute(2, 0, 1)[None].float().to(self.device), *size) - mean) / std
        said = self.model(pixel_values=pixels).predicted_depth
        said = 1 / said.clamp_min(1e-3) if self.metric else said
        return resized(said[None], height, width)[0, 0]
