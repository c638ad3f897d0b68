"""Feature teachers: the bundled one knows its toys and keeps the interface; CLIP, LSeg and SAM do, where transformers is."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from nsw import scenes
from nsw.errors import InputError
from nsw.methods import feature_3dgs_inspect as look
from nsw.models import train_teacher as training
from nsw.models.teacher import CLASSES, NOTHING, TOYS, Prompt, ToyTeacher, ToyTeacherSettings, resized, toy_teacher
from nsw.models.teacher_priors import find_teacher
from nsw.scenes.bundled import data_dir


@pytest.fixture(scope="module")
def teacher():
    return toy_teacher()


@pytest.fixture(scope="module")
def scene():
    return scenes.load("toybox", size=64)


def test_the_bundled_weights_are_those_of_the_manifest_and_small():
    folder = data_dir() / "toy_teacher"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for file, sha in manifest["files"].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == sha
    assert sum(p.stat().st_size for p in folder.iterdir()) < 2e6
    assert manifest["licence"] == "CC0-1.0" and "no view of the bundled toybox" in manifest["trained_on"]
    assert manifest["settings"] == training.TrainingSettings().__dict__


def test_features_and_words_are_unit_vectors(teacher, scene):
    features = teacher.encode(scene.pixels([0])[0])
    assert features.shape == (64, 40, 40)
    assert torch.allclose(features.norm(dim=0), torch.ones(40, 40), atol=1e-4)
    assert teacher.encode(scene.pixels([0])[0, :32]).shape == (64, 40, 80)
    vectors = torch.stack([teacher.embed(word) for word in CLASSES + TOYS])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors)), atol=1e-4)
    with pytest.raises(InputError, match="does not know the word"):
        teacher.embed("spaceship")


def test_it_names_most_of_a_scene_that_it_never_saw(teacher, scene):
    frames = scene.frames("test")[:6]
    maps = torch.stack([teacher.encode(picture) for picture in scene.pixels(frames)])
    predicted, true = look.labelled(maps, teacher, (64, 64)), look.true_classes(scene, frames)
    assert look.pixel_accuracy(predicted, true) > 0.7
    nothing = true == CLASSES.index(NOTHING)
    assert float((predicted == true)[nothing].float().mean()) > 0.95


def test_masks_follow_the_prompt(teacher, scene):
    asked = [a for a in look.questions(scene, scene.frames("test")[:4]) if a.name in ("beach ball", "ring tower")]
    assert asked
    features = {a.frame: teacher.encode(scene.pixels([a.frame])[0]) for a in asked}
    iou = look.prompted_iou(asked, lambda a, prompt: teacher.decode_mask(features[a.frame], prompt))
    assert iou["point"] > 0.5 and iou["box"] > 0.5


@pytest.mark.parametrize("bad", [dict(), dict(points=((1.2, 0.5),)), dict(box=(0.1, 0.1, -0.2, 0.5))])
def test_prompts_outside_the_picture_are_refused(bad):
    with pytest.raises(InputError, match="from 0 to 1"):
        Prompt(**bad)


def test_a_point_lies_where_its_cue_is_largest():
    from nsw.models.teacher import _cues

    blob, inside, dx, dy = _cues(Prompt(points=((0.7, 0.2),)), (20, 20), torch.device("cpu"))
    row, column = divmod(int(blob.argmax()), 20)
    assert abs((column + 0.5) / 20 - 0.7) <= 0.025 and abs((row + 0.5) / 20 - 0.2) <= 0.025
    assert float(inside.sum()) == 0 and float(dx[row, column].abs()) <= 0.05 and float(dy[row, column].abs()) <= 0.05
    _, inside, *_ = _cues(Prompt(box=(0.25, 0.5, 0.75, 1.0)), (20, 20), torch.device("cpu"))
    assert abs(float((inside > 0.5).float().mean()) - 0.25) < 0.03


def test_resizing_keeps_pixel_centres():
    x = torch.arange(8.0).expand(1, 1, 8, 8)
    assert torch.allclose(resized(x, 4, 4)[0, 0, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]), atol=0.3)
    assert torch.allclose(resized(x[..., :4], 16, 8)[0, 0, 0, 1:-1], torch.arange(0.25, 3, 0.5))


def test_one_training_step_lowers_the_loss_on_its_own_batch():
    torch.manual_seed(0)
    model = ToyTeacher(ToyTeacherSettings(n_channels=16, widths=(8, 8, 8, 8)))
    ids = [torch.full((32, 32), -1), torch.full((32, 32), -1)]
    for table in ids:
        table[8:20, 6:22] = 0
        table[10:16, 10:16] = 1
    words = [training.word_labels(["board", "duck"], ["board", "figure"])] * 2
    pictures = torch.stack([(table.float() + 1).expand(3, -1, -1) / 2 for table in ids])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    totals = []
    for _ in range(12):
        terms = training.losses(model, pictures, ids, words, torch.Generator().manual_seed(1))
        totals.append(sum(term.item() for term in terms.values()))
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    assert totals[-1] < 0.8 * totals[0]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_random_prompts_ask_for_what_they_point_at():
    ids = torch.full((40, 40), -1)
    ids[5:15, 5:15], ids[20:39, 20:39] = 0, 1
    for seed in range(20):
        prompt, instance = training.random_prompt(ids, torch.Generator().manual_seed(seed))
        if prompt.points:
            (x, y) = prompt.points[0]
            assert ids[int(y * 40), int(x * 40)] == instance
        else:
            x0, y0, x1, y1 = prompt.box
            wanted = (0.125, 0.375) if instance == 0 else (0.5, 0.975)
            assert abs(x0 - wanted[0]) < 0.08 and abs(y1 - wanted[1]) < 0.08


def test_a_folder_that_is_no_teacher_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(InputError, match="There is no description"):
        find_teacher(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(InputError, match='type "bert"'):
        find_teacher(tmp_path)


def write_letters(folder):
    """A tokenizer of CLIP that knows the letters."""
    letters = list("abcdefghijklmnopqrstuvwxyz")
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(c + "</w>" for c in letters)]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocabulary)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


def official_lseg(D=16, F=8, M=12, channels=(4, 8, 16, 16)):
    """Random tensors by the names and shapes of `modules/models/lseg_net.py` of isl-org/lang-seg, small."""
    shapes = {
        "cls_token": (1, 1, D),
        "pos_embed": (1, 5, D),
        "patch_embed.proj.weight": (D, 3, 16, 16),
        "patch_embed.proj.bias": (D,),
    }
    shapes |= {f"norm.{part}": (D,) for part in ("weight", "bias")}
    for i in range(4):
        at = f"blocks.{i}."
        for name, rows, columns in (("attn.qkv", 3 * D, D), ("attn.proj", D, D), ("mlp.fc1", 2 * D, D), ("mlp.fc2", D, 2 * D)):
            shapes |= {f"{at}{name}.weight": (rows, columns), f"{at}{name}.bias": (rows,)}
        shapes |= {f"{at}{name}.{part}": (D,) for name in ("norm1", "norm2") for part in ("weight", "bias")}
    shapes = {f"pretrained.model.{name}": shape for name, shape in shapes.items()}
    for n, (c, kernel) in enumerate(zip(channels, (4, 2, 0, 3), strict=True), 1):
        at = f"pretrained.act_postprocess{n}."
        shapes |= {at + "0.project.0.weight": (D, 2 * D), at + "0.project.0.bias": (D,)}
        shapes |= {at + "3.weight": (c, D, 1, 1), at + "3.bias": (c,)}
        shapes |= {at + "4.weight": (c, c, kernel, kernel), at + "4.bias": (c,)} if kernel else {}
        at = f"scratch.refinenet{n}."
        shapes |= {f"scratch.layer{n}_rn.weight": (F, c, 3, 3), at + "out_conv.weight": (F, F, 1, 1), at + "out_conv.bias": (F,)}
        for unit in (f"{at}resConfUnit1.", f"{at}resConfUnit2."):
            shapes |= {f"{unit}conv{k}.weight": (F, F, 3, 3) for k in (1, 2)}
            shapes |= {f"{unit}bn{k}.{part}": (F,) for k in (1, 2) for part in ("weight", "bias", "running_mean", "running_var")}
            shapes |= {f"{unit}bn{k}.num_batches_tracked": () for k in (1, 2)}
    shapes |= {"scratch.head1.weight": (M, F, 1, 1), "scratch.head1.bias": (M,), "clip_pretrained.ln_final.weight": (4,)}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.2 * torch.rand(shape, generator=generator) + 0.1 * ("running_var" in name) for name, shape in shapes.items()}


def test_lseg_takes_the_official_names_and_keeps_the_interface(tmp_path):
    hub = pytest.importorskip("transformers", reason="transformers is not installed (extra priors)")
    state = official_lseg()
    folder = tmp_path / "lseg"
    folder.mkdir()
    save_file({f"net.{name}": value for name, value in state.items()}, folder / "model.safetensors")
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=32)
    sizes |= dict(backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[4, 8, 16, 16], fusion_hidden_size=8)
    (folder / "config.json").write_text(json.dumps({"model_type": "lseg", **sizes}), encoding="utf-8")
    text = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, projection_dim=12)
    text |= dict(vocab_size=600, max_position_embeddings=77, eos_token_id=1, bos_token_id=0)
    hub.CLIPTextModelWithProjection(hub.CLIPTextConfig(**text)).save_pretrained(folder / "text")
    write_letters(folder / "text")
    teacher = find_teacher(folder)
    query, _, value = (f"dpt.encoder.layer.2.attention.attention.{part}.weight" for part in ("query", "key", "value"))
    weights, qkv = teacher.model.state_dict(), state["pretrained.model.blocks.2.attn.qkv.weight"]
    assert torch.equal(weights[query], qkv[:16]) and torch.equal(weights[value], qkv[32:])
    assert torch.equal(weights["neck.fusion_stage.layers.0.projection.bias"], state["scratch.refinenet4.out_conv.bias"])
    features = teacher.encode(torch.rand(20, 30, 3))
    assert features.shape == (12, 60, 60) and torch.allclose(features.norm(dim=0), torch.ones(60, 60), atol=1e-5)
    assert teacher.embed("ball").shape == (12,) and not torch.allclose(teacher.embed("ball"), teacher.embed("ring"))
    assert teacher.decode_mask(features, Prompt(points=((0.9, 0.1),)))[6, 54] > 0.95
    state.pop("scratch.head1.bias")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(InputError, match="1 tensors are missing, 0 unknown"):
        find_teacher(folder)


def test_clip_and_sam_keep_the_interface(tmp_path):
    """With random weights of a tiny size: shapes, unit vectors, and that the mask depends on the prompt."""
    hub = pytest.importorskip("transformers", reason="transformers is not installed (extra priors)")
    tiny = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    text = dict(**tiny, vocab_size=600, max_position_embeddings=77, eos_token_id=1, bos_token_id=0)
    config = hub.CLIPConfig(text_config=text, vision_config=dict(**tiny, image_size=32, patch_size=8), projection_dim=12)
    hub.CLIPModel(config).save_pretrained(tmp_path / "clip")
    write_letters(tmp_path / "clip")
    clip = find_teacher(tmp_path / "clip")
    features = clip.encode(torch.rand(20, 30, 3))
    assert features.shape == (12, 4, 4) and torch.allclose(features.norm(dim=0), torch.ones(4, 4), atol=1e-5)
    assert clip.embed("ball").shape == (12,) and not torch.allclose(clip.embed("ball"), clip.embed("ring"))
    assert float(clip.decode_mask(features, Prompt(points=((0.9, 0.1),)))[0, 3]) > 0.95
    vision = dict(**tiny, mlp_dim=16, output_channels=8, image_size=64, patch_size=16, global_attn_indexes=[0], window_size=2)
    vision["num_pos_feats"] = 4
    mask = dict(hidden_size=8, mlp_dim=16, num_attention_heads=2, iou_head_hidden_dim=8, num_hidden_layers=1)
    prompts = dict(hidden_size=8, image_size=64, patch_size=16, mask_input_channels=4)
    config = hub.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=mask)
    model = hub.SamModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # the usual start is so small that every mask is 0.5
    model.save_pretrained(tmp_path / "sam")
    sam = find_teacher(tmp_path / "sam")
    features = sam.encode(torch.rand(20, 30, 3))
    assert features.shape == (8, 4, 4)
    masks = [sam.decode_mask(features, p) for p in (Prompt(points=((0.2, 0.2),)), Prompt(box=(0.5, 0.5, 0.9, 0.9)))]
    assert masks[0].shape == (4, 4) and not torch.allclose(*masks)
    with pytest.raises(InputError, match="knows no words"):
        sam.embed("ball")
    with pytest.raises(InputError, match="knows no words: name a folder of CLIP or LSeg"):
        find_teacher(tmp_path / "sam", needs_words=True)
    assert find_teacher(tmp_path / "clip", needs_words=True).words
