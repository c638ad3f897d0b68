"""A run: seeds, settings, loss guard, log, folder, stop and resume."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nsw
from nsw import InputError, metrics
from nsw.runs import steps as steps_of
from nsw.runs.progress import Bar, Eta, reporter, track
from nsw.runs.steps import Stopped

TRAIN = """
import os, random, signal, sys
import numpy as np, torch, nsw
from torch import nn

def train(run, n=12, die_at=None, how="raise"):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    run.checkpoint_seconds = 0.0
    for step in run.steps(n, save={"optimizer": optimizer, "model": model, "schedule": schedule}):
        if step == die_at and how == "raise":
            raise RuntimeError("power cut")
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        x = torch.rand(16, 4) + torch.rand(16, 4, generator=run.generator)
        target = x.sum(-1, keepdim=True) + float(np.random.rand()) * 0.01 + random.random() * 0.01
        optimizer.zero_grad()
        loss = run.loss(colour=(model(x) - target).square().mean(), size=1e-3 * model[0].weight.square().mean())
        loss.backward()
        optimizer.step()
        schedule.step()
        run.record(rate=schedule.get_last_lr()[0])
    return model
"""
exec(TRAIN)


def start(folder: Path, **settings) -> nsw.runs.run.Run:
    return nsw.start("demo", **{"preset": "smoke", "out": folder, **settings})


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_same_seed_same_run(tmp_path):
    a, b = train(start(tmp_path / "a")), train(start(tmp_path / "b"))  # noqa: F821
    other = train(start(tmp_path / "c", seed=1))  # noqa: F821
    assert same(a, b) and not same(a, other)


def test_seeds_every_generator(tmp_path):
    draws = []
    for name in "ab":
        run = start(tmp_path / name, seed=5)
        draws.append((torch.rand(1).item(), np.random.rand(), random.random(), torch.rand(1, generator=run.generator).item()))
    assert draws[0] == draws[1]


def test_resume_after_an_exception_is_bit_identical(tmp_path):
    whole_run = start(tmp_path / "whole")
    whole = train(whole_run)  # noqa: F821
    with pytest.raises(RuntimeError, match="power cut"):
        train(start(tmp_path / "cut"), die_at=7)  # noqa: F821
    resumed_run = start(tmp_path / "cut", resume=True)
    resumed = train(resumed_run)  # noqa: F821
    assert same(whole, resumed)
    assert resumed_run.history("colour") == whole_run.history("colour")
    assert resumed_run.history("rate") == whole_run.history("rate")
    assert torch.equal(torch.rand(3), torch.rand(3)) is False  # the generators go on


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_resume_after_a_kill_is_bit_identical(tmp_path):
    code = TRAIN + "\ntrain(nsw.start('demo', preset='smoke', out=sys.argv[1]), die_at=5, how='kill')"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "cut")], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    whole = train(start(tmp_path / "whole"))  # noqa: F821
    assert same(whole, train(start(tmp_path / "cut", resume=True)))  # noqa: F821


def test_a_finished_loop_is_restored_and_yields_nothing(tmp_path, capsys):
    model = train(start(tmp_path))  # noqa: F821
    after = torch.rand(2)
    run = start(tmp_path, resume=True)
    restored = train(run)  # noqa: F821
    assert same(model, restored)
    assert torch.equal(torch.rand(2), after)  # what follows the loop sees the same random numbers
    assert len(run.history("colour")[0]) == 12
    assert "restored" in capsys.readouterr().out


def test_without_resume_an_old_checkpoint_is_set_aside(tmp_path):
    train(start(tmp_path))  # noqa: F821
    run = start(tmp_path)
    assert not (tmp_path / "checkpoints").exists() and (tmp_path / "checkpoints.old" / "train.safetensors").is_file()
    run.resume = True
    assert len(list(run.steps(3, save={"m": nn.Linear(1, 1)}))) == 3


def test_two_loops_resume_in_the_second(tmp_path):
    def both(run, die=False):
        a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        for name, model in (("coarse", a), ("fine", b)):
            run.checkpoint_seconds = 0.0
            for step in run.steps(5, name=name, save={"model": model}):
                if die and name == "fine" and step == 3:
                    raise RuntimeError
                with torch.no_grad():
                    model.weight += torch.rand(2, 2)
                run.record(norm=model.weight.norm())
        return a, b

    whole = both(start(tmp_path / "whole"))
    with pytest.raises(RuntimeError):
        both(start(tmp_path / "cut"), die=True)
    run = start(tmp_path / "cut", resume=True)
    again = both(run)
    assert same(whole[0], again[0]) and same(whole[1], again[1])
    assert run.history("norm", "coarse")[0] == run.history("norm")[0] == [0, 1, 2, 3, 4]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run = start(tmp_path)
    run.settings(n=(3, 30, 300))
    train(run)  # noqa: F821
    other = start(tmp_path, resume=True)
    other.settings(n=(4, 30, 300))
    with pytest.raises(InputError, match="resume=False"):
        train(other)  # noqa: F821
    with pytest.raises(InputError, match="steps 12, this run has 20"):
        same_settings = start(tmp_path, resume=True)
        same_settings.settings(n=(3, 30, 300))
        train(same_settings, n=20)  # noqa: F821


def test_ctrl_c_ends_the_step_and_keeps_a_checkpoint(tmp_path):
    run, model, seen = start(tmp_path), nn.Linear(1, 1), []
    with pytest.raises(Stopped, match="stopped at step 3 of 10, checkpoint kept"):
        for step in run.steps(10, save={"model": model}):
            if step == 2:
                signal.raise_signal(signal.SIGINT)
            seen.append(step)
    assert seen == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = start(tmp_path, resume=True)
    assert list(again.steps(10, save={"model": model})) == [3, 4, 5, 6, 7, 8, 9]


def test_a_second_ctrl_c_interrupts_at_once(tmp_path):
    run = start(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        for _ in run.steps(10):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_during_a_save_leaves_a_whole_checkpoint(tmp_path):
    class Slow(nn.Linear):
        def state_dict(self, *args, **kwargs):
            if getattr(self, "hit", False):
                self.hit = False
                signal.raise_signal(signal.SIGINT)
            return super().state_dict(*args, **kwargs)

    run, model = start(tmp_path), Slow(1, 1)
    run.checkpoint_seconds = 0.0
    with pytest.raises(Stopped):
        for step in run.steps(5, save={"model": model}):
            model.hit = step == 1
    assert list(start(tmp_path, resume=True).steps(5, save={"model": nn.Linear(1, 1)})) == [3, 4]
    assert not list(tmp_path.glob("**/*.part"))


def test_break_restores_the_signal_handler(tmp_path):
    for _ in start(tmp_path).steps(5):
        break
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_pictures_leave_random_numbers_alone(tmp_path, monkeypatch):
    def draws(picture, folder):
        run = start(folder)
        out = [float(torch.rand(1) + torch.rand(1, generator=run.generator)) for _ in run.steps(4, picture=picture)]
        return out + [float(torch.rand(1)), random.random()]

    calls = []

    def picture():
        calls.append(torch.is_grad_enabled())
        random.random()
        return torch.rand(2, 2, 3)

    assert draws(picture, tmp_path / "a") == draws(None, tmp_path / "b")
    assert calls and not any(calls)


def test_loss_names_step_and_term(tmp_path):
    run = start(tmp_path)
    with pytest.raises(FloatingPointError, match=r'Step 2 of train: the loss term "tv" is nan.*colour 1'):
        for step in run.steps(5):
            run.loss(colour=torch.tensor(1.0), tv=torch.tensor(float("nan") if step == 2 else 0.5))
    with pytest.raises(FloatingPointError, match="inf"):
        run.loss(colour=torch.tensor(float("inf")))


def test_loss_is_the_sum_and_keeps_gradients(tmp_path):
    run, x = start(tmp_path), torch.tensor([3.0], requires_grad=True)
    total = run.loss(a=x**2, b=2 * x, c=1)
    total.backward()
    assert total.item() == 16.0 and x.grad.item() == 8.0
    assert run.latest() == {"a": 9.0, "b": 6.0, "c": 1.0, "loss": 16.0}
    with pytest.raises(InputError, match="take its mean"):
        run.loss(a=torch.ones(3))
    with pytest.raises(InputError, match="no term"):
        run.loss()
    with pytest.raises(InputError, match='Nothing was logged as "psnr"'):
        run.history("psnr")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"preset": "huge"}, '"smoke", "laptop" or "gpu"'),
        ({"preset": None}, '"smoke", "laptop" or "gpu"'),
        ({"seed": -1}, "whole number"),
        ({"seed": 1.5}, "whole number"),
        ({"seed": True}, "whole number"),
        ({"seed": "3"}, "whole number"),
        ({"resume": "yes"}, "True or False"),
        ({"device": "tpu"}, "Unknown device"),
        ({"slug": "../etc"}, "lower-case letters"),
        ({"slug": ""}, "lower-case letters"),
    ],
)
def test_start_says_what_is_wrong(tmp_path, settings, says):
    with pytest.raises(InputError, match=says):
        nsw.start(**{"slug": "demo", "preset": "smoke", "out": tmp_path, **settings})
    assert not list(tmp_path.iterdir())


def test_start_in_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file"):
        start(tmp_path / "file")
    with pytest.raises(InputError, match="Cannot write"):
        start(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n": -1}, "whole number of steps"),
        ({"n": 2.5}, "whole number of steps"),
        ({"n": True}, "whole number of steps"),
        ({"n": 2, "name": "../up"}, "cannot name a file"),
        ({"n": 2, "name": "ends in a dot."}, "cannot name a file"),
        ({"n": 2, "save": {"model": 3}}, "state_dict"),
    ],
)
def test_steps_says_what_is_wrong(tmp_path, arguments, says):
    with pytest.raises(InputError, match=says):
        list(start(tmp_path).steps(**arguments))


def test_a_loop_may_be_named_in_words(tmp_path):
    run, model = start(tmp_path), torch.nn.Linear(2, 1)
    assert list(run.steps(2, name="motion, no growth", save={"model": model})) == [0, 1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["motion, no growth.safetensors"]


def test_settings_choose_a_column(tmp_path, capsys):
    run = start(tmp_path, preset="laptop")
    chosen = run.settings(image_size=(48, 100, 800), sizes=((1, 2), (3, 4), (5, 6)))
    assert (chosen.image_size, chosen.sizes) == (100, (3, 4))
    assert "[laptop]" in capsys.readouterr().out
    assert "100</td>" in chosen._repr_html_() and "(this run)" in chosen._repr_html_()
    assert json.loads((tmp_path / "run.json").read_text())["settings"] == {"image_size": 100, "sizes": [3, 4]}
    with pytest.raises(InputError, match="three values"):
        run.settings(lr=0.1)
    with pytest.raises(AttributeError, match="do not change"):
        chosen.image_size = 3


def test_provenance_names_machine_and_versions(tmp_path):
    about = start(tmp_path).provenance
    assert about["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]  # the wheel of a CUDA build hides its suffix
    assert about["device"] == "cpu" and about["backend"] == "cpu kernels" and "cores" in about["hardware"]
    assert about["threads"] == torch.get_num_threads() and about["seed"] == 0


def test_paths_stay_in_the_folder(tmp_path):
    run = start(tmp_path / "run")
    assert run.path("a/b.txt") == (tmp_path / "run/a/b.txt").resolve()
    with pytest.raises(InputError, match="leads out"):
        run.path("../b.txt")
    from PIL import Image

    file = run.save_image("left", torch.full((4, 6, 3), 0.5))
    assert Image.open(file).size == (6, 4) and np.asarray(Image.open(file)).max() == 128
    with pytest.raises(InputError, match="expected \\[H, W, 3\\]"):
        run.save_image("bad", torch.zeros(3, 4, 6))


def test_a_loop_inside_a_loop_gives_the_log_back(tmp_path):
    run = start(tmp_path)
    for step in run.steps(3, name="outer"):
        for _ in run.steps(2, name="inner"):
            run.record(low=1.0)
        run.record(high=step)
    run.record(final=7.0)
    assert run.history("high", "outer") == ([0, 1, 2], [0.0, 1.0, 2.0])
    assert run.history("final") == ([2], [7.0])


def test_timed_measures_the_block(tmp_path):
    run = start(tmp_path)
    with run.timed("baseline") as timer:
        sum(range(10000))
    assert 0 < timer.seconds < 60 and run.timings == {"baseline": timer.seconds}
    assert 20 < run.peak_memory_mb() < 100_000


def test_clocks_count_steps_and_not_pictures_checkpoints_or_what_comes_before(tmp_path, monkeypatch):
    now, counter = [100.0], torch.nn.Linear(1, 1)
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    save, write = steps_of.save_checkpoint, lambda seconds: now.__setitem__(0, now[0] + seconds)
    monkeypatch.setattr(steps_of, "save_checkpoint", lambda *given: (write(7.0), save(*given)))
    monkeypatch.setattr(steps_of, "reporter", lambda *given: (write(11.0), reporter(*given))[1])
    run = start(tmp_path)
    with run.timed("loop") as timer:
        for _ in run.steps(3, save={"model": counter}, picture=lambda: (write(5.0), torch.zeros(2, 2, 3))[1]):
            write(1.0)
        write(0.5)
    assert timer.seconds == pytest.approx(3.5) and now[0] == pytest.approx(100 + 11 + 3 + 5 + 7 + 0.5)


@pytest.mark.parametrize(("values", "written"), [({}, "2/4, 3 s, 3 s left"), ({"loss": 0.5}, "2/4, loss 0.5  3 s, 3 s left")])
def test_a_bar_says_what_it_knows_without_gaps(capsys, values, written):
    now = [0.0]
    eta = Eta(4, clock=lambda: now[0])
    bar = Bar(eta, "blocks")
    for now[0] in (1.5, 3.0):
        eta.step()
    bar.update(2, values)
    bar.close()
    shown = capsys.readouterr().err
    assert "blocks" in shown and " 50%|" in shown and written in shown


def test_eta_counts_this_session_only():
    now = [0.0]
    eta = Eta(1000, done=900, clock=lambda: now[0])
    assert eta.remaining is None
    for _ in range(50):
        now[0] += 2.0
        eta.step()
    assert eta.remaining == pytest.approx(100.0)  # not the 4 s that 950 steps in 100 s would suggest
    now[0] += 500.0
    eta.skip()  # a pause
    now[0] += 2.0
    eta.step()
    assert eta.remaining == pytest.approx(49 * 2.0 * 2.0, rel=0.01)  # the overhead so far is as large as the work, at most


def test_eta_does_not_take_the_first_step_for_an_example():
    now = [0.0]
    eta = Eta(500, clock=lambda: now[0])
    now[0] += 8.0  # kernels are compiled
    eta.step()
    assert eta.remaining is None
    now[0] += 0.1
    eta.step()
    assert eta.remaining == pytest.approx(49.8) and eta.working == pytest.approx(8.1)


def test_eta_follows_a_change_of_pace():
    now = [0.0]
    eta = Eta(200, clock=lambda: now[0])
    for seconds in [0.1] * 50 + [1.0] * 50:
        now[0] += seconds
        eta.step()
    assert eta.remaining == pytest.approx(100.0, rel=0.1)


def test_import_is_light():
    heavy = ["torch", "numpy", "scipy", "numba", "gsplat", "nerfacc", "plotly", "ipywidgets", "jupyter_rfb", "viser"]
    heavy += ["papermill", "nbformat", "mitsuba", "pycolmap", "trimesh", "PIL", "IPython"]
    code = f"import sys, nsw, nsw.cli; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_track_tells_how_far_it_is_and_what_is_left(capsys, monkeypatch):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr("nsw.runs.progress.time.monotonic", lambda: float(next(clock)))
    assert list(track(iter("ab"), "letters", total=2)) == ["a", "b"]
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("letters 1/2") and first.endswith("left") and last.startswith("letters 2/2") and "left" not in last
