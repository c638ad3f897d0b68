"""CLIP and SAM as feature teachers, through transformers, from a folder of weights on disk. Nothing is ever downloaded.

`find_teacher` looks at what a folder holds; LSeg has a file of its own, `lseg.py`. All need the extra `priors`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from nsw.errors import InputError
from nsw.models.state import read_json
from nsw.models.teacher import CLASSES, FeatureTeacher, Prompt, resized, toy_teacher


def find_teacher(folder: str | Path = "", device: torch.device | str = "cpu", needs_words: bool = False) -> FeatureTeacher:
    """Return the teacher whose weights lie in a folder as transformers saves them; the bundled one for no folder.

    Raises:
        InputError: when the folder holds neither CLIP nor LSeg nor SAM, transformers is not installed, or SAM is to know words.
    """
    from nsw.models.lseg import LSegTeacher

    if not str(folder):
        return toy_teacher().to(device)
    config = read_json(Path(folder) / "config.json", "description of a model")
    kinds = {"clip": ClipTeacher, "lseg": LSegTeacher, "sam": SamTeacher}
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in kinds:
        raise InputError(f'{folder} holds a model of type "{kind}": a feature teacher is {", ".join(kinds)}.')
    teacher = kinds[kind](folder, device)
    if needs_words and not teacher.words:
        raise InputError(f"{teacher.name} answers points and boxes and knows no words: name a folder of CLIP or LSeg.")
    return teacher


def transformers_or_say():
    """Return the library, or raise `InputError` with the command that installs it."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            'CLIP, LSeg and SAM need transformers, which is not installed: run `pip install "nsw[priors]"`.'
        ) from error
    return transformers


def prepared(picture: Float[Tensor, "H W 3"], size: int, mean, std, device) -> Float[Tensor, "1 3 s s"]:
    """Return a picture as the networks take it: square, by stretching, so that places keep their shares of the sides."""
    x = resized(picture.permute(2, 0, 1)[None].float().to(device), size, size)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (mean, std))
    return (x - mean) / std


def pointed_at(features: Float[Tensor, "M h w"], prompt: Prompt) -> Float[Tensor, "h w"]:
    """Return how like each place is to the one pointed at: the mask of a teacher that has no decoder for masks."""
    x, y = prompt.centre
    unit = normalize(features, dim=0)
    height, width = unit.shape[1:]
    asked = unit[:, min(int(y * height), height - 1), min(int(x * width), width - 1)]
    cosine = torch.einsum("m,mhw->hw", asked, unit)
    return torch.sigmoid((cosine - 0.8) / 0.05)


class ClipTeacher:
    """Dense CLIP features: the values of the last attention layer, patch by patch (Zhou, Loy and Dai, MaskCLIP, ECCV 2022).

    CLIP has no mask decoder: a mask is where features are like those pointed at.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu"):
        hub = transformers_or_say()
        self.model = hub.CLIPModel.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False).to(device)
        self.tokenizer = hub.CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
        self.name, self.words, self.device = f"CLIP from {folder} (transformers)", CLASSES, device

    @torch.no_grad()
    def encode(self, picture: Float[Tensor, "H W 3"]) -> Float[Tensor, "M h w"]:
        vision, settings = self.model.vision_model, self.model.config.vision_config
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        pixels = prepared(picture, settings.image_size, mean, std, self.device)
        x, last = vision(pixels, output_hidden_states=True).hidden_states[-2], vision.encoder.layers[-1]
        values = last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(x)))
        unit = normalize(self.model.visual_projection(vision.post_layernorm(values))[0, 1:], dim=-1)
        side = settings.image_size // settings.patch_size
        return unit.T.reshape(-1, side, side)

    @torch.no_grad()
    def embed(self, word: str) -> Float[Tensor, "M"]:
        tokens = self.tokenizer([f"a photo of a {word}"], return_tensors="pt").to(self.device)
        pooled = self.model.text_model(**tokens).pooler_output
        return normalize(self.model.text_projection(pooled), dim=-1)[0]

    def decode_mask(self, features: Float[Tensor, "M h w"], prompt: Prompt) -> Float[Tensor, "h w"]:
        return pointed_at(features, prompt)


class SamTeacher:
    """The picture encoder and the mask decoder of SAM (Kirillov et al., ICCV 2023). It knows no words."""

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu"):
        self.model = transformers_or_say().SamModel.from_pretrained(folder, local_files_only=True)
        self.model = self.model.eval().requires_grad_(False).to(device)
        self.side = self.model.config.vision_config.image_size
        self.name, self.words, self.device = f"SAM from {folder} (transformers)", (), device

    @torch.no_grad()
    def encode(self, picture: Float[Tensor, "H W 3"]) -> Float[Tensor, "M h w"]:
        pixels = prepared(picture, self.side, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), self.device)
        return self.model.get_image_embeddings(pixels)[0]

    def embed(self, word: str) -> Float[Tensor, "M"]:
        raise InputError(f'SAM knows no words, so it cannot be asked for "{word}": give it points and boxes, or take CLIP.')

    @torch.no_grad()
    def decode_mask(self, features: Float[Tensor, "M h w"], prompt: Prompt) -> Float[Tensor, "h w"]:
        asked = {}
        if prompt.points:
            asked["input_points"] = torch.tensor(prompt.points, device=self.device)[None, None] * self.side
        if prompt.box is not None:
            asked["input_boxes"] = torch.tensor(prompt.box, device=self.device)[None, None] * self.side
        answer = self.model(image_embeddings=features[None].to(self.device), multimask_output=False, **asked)
        return resized(answer.pred_masks[0, 0][None].sigmoid(), *features.shape[1:])[0, 0]
