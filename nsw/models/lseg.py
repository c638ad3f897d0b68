"""LSeg as a feature teacher: every pixel answers to words (Li, Weinberger, Belongie, Koltun, Ranftl, ICLR 2022).

Its picture side is DPT over a ViT-L/16, and one more 1 x 1 convolution to CLIP's channels; its word side is CLIP ViT-B/32. Both run
through transformers (extra `priors`), from a folder on disk:

    config.json         {"model_type": "lseg"}; other entries are changes to the sizes below
    model.safetensors   the tensors of the official checkpoint's `state_dict`, by their official names, with or without "net."
    text/               CLIP ViT-B/32 as transformers saves it

The official file is a pickle, which runs whatever is in it: no code here opens one. Where you trust it,
`safetensors.torch.save_file` writes its tensors. Nothing is ever downloaded.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize

from nsw.errors import InputError
from nsw.models.state import read_json
from nsw.models.teacher import CLASSES, Prompt
from nsw.models.teacher_priors import pointed_at, prepared, transformers_or_say

SIZES = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    backbone_out_indices=(5, 11, 17, 23),
    neck_hidden_sizes=(256, 512, 1024, 1024),
    use_batch_norm_in_fusion_residual=True,
    layer_norm_eps=1e-6,
)
SIDE = 480  # pixels to which a picture is brought, as in the official evaluation
POOL = 4  # the network answers at half of that; so many places a side become one, for the sake of memory

_RULES = [
    (r"^pretrained\.model\.cls_token$", "dpt.embeddings.cls_token"),
    (r"^pretrained\.model\.pos_embed$", "dpt.embeddings.position_embeddings"),
    (r"^pretrained\.model\.patch_embed\.proj\.", "dpt.embeddings.patch_embeddings.projection."),
    (r"^pretrained\.model\.norm\.", "dpt.layernorm."),
    (r"^pretrained\.model\.blocks\.", "dpt.encoder.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^scratch\.head1\.", "head1."),
    (r"\.out_conv\.", ".projection."),
    (r"\.resConfUnit([12])\.", r".residual_layer\1."),
    (r"\.conv([12])\.", r".convolution\1."),
    (r"\.bn([12])\.", r".batch_norm\1."),
]
for _n in range(1, 5):
    _RULES += [
        (rf"^pretrained\.act_postprocess{_n}\.0\.project\.0\.", f"neck.reassemble_stage.readout_projects.{_n - 1}.0."),
        (rf"^pretrained\.act_postprocess{_n}\.3\.", f"neck.reassemble_stage.layers.{_n - 1}.projection."),
        (rf"^pretrained\.act_postprocess{_n}\.4\.", f"neck.reassemble_stage.layers.{_n - 1}.resize."),
        (rf"^scratch\.layer{_n}_rn\.", f"neck.convs.{_n - 1}."),
        (rf"^scratch\.refinenet{_n}\.", f"neck.fusion_stage.layers.{4 - _n}."),
    ]
_UNUSED = (
    r"^(clip_pretrained|scratch\.output_conv|scratch\.head_block|pretrained\.model\.head)\b|^logit_scale$|num_batches_tracked$"
)


def renamed(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the picture side's tensors by the names of transformers' DPT; one matrix of queries, keys and values becomes three."""
    state = {}
    for name, value in official.items():
        name = name.removeprefix("net.")
        if re.search(_UNUSED, name):
            continue
        for pattern, new in _RULES:
            name = re.sub(pattern, new, name)
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = piece.contiguous()
        else:
            state[name] = value
    return state


class _PictureSide(nn.Module):
    def __init__(self, config, n_channels: int):
        from transformers.models.dpt.modeling_dpt import DPTModel, DPTNeck

        super().__init__()
        self.dpt, self.neck = DPTModel(config, add_pooling_layer=False), DPTNeck(config)
        self.head1 = nn.Conv2d(config.fusion_hidden_size, n_channels, 1)

    def forward(self, x: Float[Tensor, "1 3 s s"]) -> Float[Tensor, "1 M s/2 s/2"]:
        config = self.dpt.config
        layers = self.dpt(x, output_hidden_states=True).hidden_states[1:]
        side = x.shape[-1] // config.patch_size
        return self.head1(self.neck([layers[i] for i in config.backbone_out_indices], side, side)[-1])


class LSegTeacher:
    """LSeg: the features of a picture lie where CLIP's words do. A mask is what is like the place pointed at.

    Raises:
        InputError: when transformers is not installed, or weights are missing or do not fit.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu", side: int = SIDE):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        hub, folder = transformers_or_say(), Path(folder)
        sizes = read_json(folder / "config.json", "description of a model")
        sizes.pop("model_type", None)
        stored = dict(local_files_only=True, use_safetensors=True)
        try:
            words = hub.CLIPTextModelWithProjection.from_pretrained(folder / "text", **stored)
            self.tokenizer = hub.CLIPTokenizerFast.from_pretrained(folder / "text", local_files_only=True)
            model = _PictureSide(hub.DPTConfig(**{**SIZES, **sizes}), words.config.projection_dim)
            lacking, left_over = model.load_state_dict(renamed(load_file(folder / "model.safetensors")), strict=False)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise InputError(
                f"{folder} holds no readable weights of LSeg ({first}): make it anew, as nsw/models/lseg.py says."
            ) from error
        lacking = [name for name in lacking if not name.endswith("num_batches_tracked")]
        if lacking or left_over:
            raise InputError(
                f"The weights in {folder} are not those of LSeg: {len(lacking)} tensors are missing, {len(left_over)} unknown."
            )
        self.model, self.text = (part.eval().requires_grad_(False).to(device) for part in (model, words))
        self.name, self.words, self.device, self.side = f"LSeg from {folder} (transformers)", CLASSES, device, side

    @torch.no_grad()
    def encode(self, picture: Float[Tensor, "H W 3"]) -> Float[Tensor, "M h w"]:
        unit = normalize(self.model(prepared(picture, self.side, [0.5] * 3, [0.5] * 3, self.device)), dim=1)
        return normalize(avg_pool2d(unit, POOL)[0], dim=0)

    @torch.no_grad()
    def embed(self, word: str) -> Float[Tensor, "M"]:
        return normalize(self.text(**self.tokenizer([word], return_tensors="pt").to(self.device)).text_embeds, dim=-1)[0]

    def decode_mask(self, features: Float[Tensor, "M h w"], prompt: Prompt) -> Float[Tensor, "h w"]:
        return pointed_at(features, prompt)
