"""What runs keep of a model: training seconds, card, the table of all models, and two of them side by side."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from torch import nn

import nsw
from nsw import InputError, metrics
from nsw.models.gaussians import Gaussians
from nsw.models.mlp import NerfMLP, NerfSettings
from nsw.renderers import can_draw, render_view
from nsw.runs import board, kept, model_table
from nsw.widgets import run_comparison

BOX = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])


def splats(n: int = 30) -> Gaussians:
    return Gaussians.random(BOX, n, torch.Generator().manual_seed(3))


def network() -> NerfMLP:
    return NerfMLP(NerfSettings(depth=1, width=8, skip=0, levels_position=2, levels_direction=1, box=tuple(BOX.flatten().tolist())))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs of the bundled toys, one of splats and one of a network, and one run of another scene."""
    monkeypatch.setenv("NSW_RUNS", str(tmp_path))
    monkeypatch.delenv("NSW_RUN_DIR", raising=False)
    run_comparison._loaded.cache_clear()
    for slug, model, scene, size in (
        ("nerf", network(), "toybox", 20),
        ("gaussian_splatting", splats(), "toybox", 24),
        ("start", splats(5), "shelf", 16),
    ):
        nsw.start(slug, preset="smoke").keep("full", model=model, scene=nsw.scenes.load(scene, size=size))
    return tmp_path


class Holder:
    """Something with a state that holds a model, as `gaussian_splatting.Training` does."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self):
        return self.model.state_dict()

    def load_state_dict(self, state):
        self.model.load_state_dict(state)


def train(run, loop: str, thing, n: int = 3, rest: float = 0.01) -> None:
    for _ in run.steps(n, loop, save={"thing": thing}):
        time.sleep(rest)


def test_seconds_belong_to_the_model_that_a_loop_saved(tmp_path):
    run = nsw.start("demo", preset="smoke", out=tmp_path)
    inner, other, never = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    whole = nn.Sequential(inner, nn.ReLU())
    train(run, "a", Holder(inner))
    train(run, "b", whole)
    train(run, "c", other, rest=0.2)
    a, b, c = (seconds for seconds, _ in run.trained._loops.values())
    assert a >= 0.03 and b >= 0.03 and c >= 0.6
    assert run.trained.of(inner) == run.trained.of(whole) == pytest.approx(a + b)
    assert run.trained.of(other) == c and run.trained.of(never) is None


def test_seconds_leave_out_checkpoints_and_go_on_after_a_resume(tmp_path):
    run, model = nsw.start("demo", preset="smoke", out=tmp_path), nn.Linear(2, 2)
    run.checkpoint_seconds = 0.0
    for step in run.steps(6, save={"thing": model}):
        time.sleep(0.02)
        if step == 3:
            break
    first = run.trained.of(model)
    assert first >= 0.06
    again, model = nsw.start("demo", preset="smoke", out=tmp_path, resume=True), nn.Linear(2, 2)
    train(again, "train", model, n=6, rest=0.0)
    # the checkpoint was written after three whole steps, and those of the second session took almost nothing
    second = again.trained.of(model)
    assert 0.06 <= second < first + 0.5
    third, model = nsw.start("demo", preset="smoke", out=tmp_path, resume=True), nn.Linear(2, 2)
    train(third, "train", model, n=6)
    assert third.trained.of(model) == pytest.approx(second)


def test_a_card_says_what_was_measured(runs):
    found = {k.slug: k for k in kept.kept_models()}
    card = found["gaussian_splatting"].card
    scene = nsw.scenes.load("toybox", size=24)
    frames = scene.frames("test")[torch.linspace(0, len(scene.frames("test")) - 1, 4).round().long()]
    with torch.no_grad():
        drawn = torch.cat([render_view(splats(), scene.views([int(i)])).rgb for i in frames])
    assert card["psnr"] == pytest.approx(metrics.psnr(drawn, scene.pixels(frames)), abs=2e-3)
    assert (card["scene"], card["width"], card["views"], card["model"]) == ("toybox", 24, 4, "Gaussians")
    assert card["bytes"] == (found["gaussian_splatting"].folder / "model.safetensors").stat().st_size
    assert card["parameters"] == sum(p.numel() for p in splats().parameters())
    assert card["seconds_to_train"] is None and card["pictures_per_second"] > 0


def test_seconds_that_are_given_stand_on_the_card(tmp_path):
    run = nsw.start("demo", preset="smoke", out=tmp_path)
    folder = run.keep("one", model=splats(), seconds=12.345)
    card = json.loads((folder / "card.json").read_text())
    assert card["seconds_to_train"] == 12.35 or card["seconds_to_train"] == 12.34
    assert "psnr" not in card and model_table.row(kept.Kept(folder, card))[2:4] == ["-", "-"]


def test_a_model_that_draws_itself_is_asked_to():
    class Own(nn.Module):
        def render_view(self, cameras, *, background, **options):
            return ("drawn", cameras, background, options)

    assert render_view(Own(), "cameras", background=0.5, chunk=3) == ("drawn", "cameras", 0.5, {"chunk": 3})
    assert can_draw(Own()) and not can_draw(nn.Linear(1, 1))


def test_the_table_orders_models_and_the_readme_takes_one_run_a_notebook(runs):
    models = kept.kept_models()
    rows = model_table.rows(models)
    assert [row[0] for row in rows][0] == "start smoke-seed0: full" and len({row[1] for row in rows}) == 2
    laptop = nsw.start("nerf", preset="laptop", seed=1)
    laptop.keep("full", model=network(), scene=nsw.scenes.load("toybox", size=20))
    nsw.start("nerf", preset="laptop", out=runs / "nerf" / "laptop-seed0-rate-3").keep("full", model=network())
    chosen = model_table.best(kept.kept_models())
    assert sorted((k.slug, k.run.name) for k in chosen) == [
        ("gaussian_splatting", "smoke-seed0"),
        ("nerf", "laptop-seed1"),
        ("start", "smoke-seed0"),
    ]
    text = model_table.markdown(kept.kept_models())
    assert text.count("\n") == 6 and "NerfMLP" in text and "Gaussians" in text and text.endswith(f"|\n\n{model_table.NOTE}")


def test_board_shows_the_models(runs, capsys):
    assert board.board(runs / "board", root=runs) == 0
    told, page = capsys.readouterr().out, (runs / "board" / "index.html").read_text(encoding="utf-8")
    assert "gaussian_splatting smoke-seed0: full" in told and model_table.NOTE in told
    assert "Trained models" in page and "leave out its teacher" in page


def test_a_damaged_card_is_named(runs):
    path = runs / "nerf" / "smoke-seed0" / "models" / "full" / "card.json"
    path.write_text("[1, 2]")
    with pytest.raises(InputError, match="card.json holds a list"):
        kept.kept_models()
    path.write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        kept.kept_models()


def test_two_architectures_are_drawn_at_one_size(runs):
    models = run_comparison.drawable_models()
    assert run_comparison.first_choice({k: v for k, v in models.items() if v.slug != "start"}) == (
        "nerf smoke-seed0: full",
        "gaussian_splatting smoke-seed0: full",
    )
    a, b = run_comparison.pair(models["nerf smoke-seed0: full"], models["gaussian_splatting smoke-seed0: full"], 0)
    assert a.shape == b.shape == (24, 24, 3) and not np.array_equal(a, b)
    toys, shelf = run_comparison.pair(models["nerf smoke-seed0: full"], models["start smoke-seed0: full"], 3)
    assert toys.shape == shelf.shape
    photograph, drawn = run_comparison.pair(None, models["gaussian_splatting smoke-seed0: full"], 1)
    truth = nsw.scenes.load("toybox", size=24).pixels("test")[1]
    assert np.abs(photograph.astype(int) - (truth.numpy() * 255).round()).max() <= 1 and drawn.shape == photograph.shape
    with pytest.raises(InputError, match="at least one side"):
        run_comparison.pair(None, None, 0)


def test_a_choice_that_cannot_be_drawn_is_said_in_the_box(runs):
    models = run_comparison.drawable_models()
    labels = run_comparison.first_choice(models)
    a, b = run_comparison.pair(*(models.get(label) for label in labels), 0)
    box = run_comparison._Box(models, labels, run_comparison.comparison.bar(a, b, labels, "two models"))
    before = bytes(box.bar.right)
    assert box.left.options[0] == run_comparison.PHOTOGRAPH not in box.right.options  # two photographs are the same
    box.right.value = "nerf smoke-seed0: full"
    assert bytes(box.bar.right) != before and "nerf smoke-seed0" in box.facts.value and box.bar.labels[1] == box.right.value
    (models["gaussian_splatting smoke-seed0: full"].folder / "model.safetensors").write_bytes(b"cut")
    run_comparison._loaded.cache_clear()
    box.left.value = "gaussian_splatting smoke-seed0: full"
    assert "model.safetensors" in box.error.value


def test_without_a_kept_model_the_comparison_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("NSW_RUNS", str(tmp_path))
    with pytest.raises(InputError, match="run a notebook to its end"):
        run_comparison.compare_runs("two models")
    with pytest.raises(InputError, match="run a notebook to its end"):
        run_comparison.trained_models()
