"""The claim table: thresholds, verdicts, seeds, what is written, what cannot be certified."""

from __future__ import annotations

import dataclasses
import json
import sys
import types

import pytest
import torch

import nsw
from nsw import InputError, metrics
from nsw.cameras import orbit
from nsw.runs import measured
from nsw.runs.claims import ClaimError, make_claim, stops
from nsw.scenes import Scene


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "measured_path", lambda: tmp_path / "measured.json")
    return nsw.start("demo", preset="laptop", out=tmp_path / "run")


@pytest.mark.parametrize(
    ("values", "gain", "verdict"),
    [
        ({"ours": 28.0, "baseline": 25.0, "at_least": 3.0}, 3.0, "holds"),
        ({"ours": 28.0, "baseline": 25.0, "at_least": 3.1}, 3.0, "not reproduced"),
        ({"ours": [28.0, 30.0], "baseline": [25.0, 26.0], "at_least": 3.5}, 3.5, "holds"),
        ({"ours": 2.0, "baseline": 5.0, "at_least": 3.0, "better": "lower"}, 3.0, "holds"),
        ({"ours": 2.0, "baseline": 5.0, "at_most": 0.5, "measure": "ratio"}, 0.4, "holds"),
        ({"ours": 3.0, "baseline": 5.0, "at_most": 0.5, "measure": "ratio"}, 0.6, "not reproduced"),
        ({"ours": 3.0, "at_least": 1.0, "at_most": 2.0, "measure": "value"}, 3.0, "not reproduced"),
        ({"ours": 28.0, "baseline": 25.0, "at_least": (1, 9, 1)}, 3.0, "not reproduced"),
        ({"ours": 28.0, "baseline": 25.0, "at_least": (9, 1, 9)}, 3.0, "holds"),
        ({"ours": 28.0, "baseline": 25.0, "at_least": (9, None, 9)}, 3.0, "not asserted"),
        ({"ours": 28.0, "baseline": 25.0, "at_least": 9, "presets": ("gpu",)}, 3.0, "not reproduced"),
        ({"ours": 28.0, "baseline": 25.0, "at_least": 2, "presets": ("gpu",)}, 3.0, "not asserted"),
        ({"ours": 28.0, "baseline": 25.0, "at_least": 9, "judged": False}, 3.0, "not asserted"),
    ],
)
def test_verdicts(values, gain, verdict):
    row = make_claim("x", preset="laptop", **values)
    assert row.gain == pytest.approx(gain) and row.verdict == verdict


def test_a_row_that_is_not_asserted_says_that_it_failed_and_stops_nothing(run):
    row = run.claim("shown", ours=28.0, baseline=25.0, at_least=9, presets=())
    assert row.verdict == "not reproduced" and not row.asserted
    run.claims.check()
    (stored,) = json.loads((run.folder / "claims.json").read_text())["claims"]
    assert not stops(stored) and stops({**stored, "asserted": True})
    run.claim("held to", ours=28.0, baseline=25.0, at_least=9)
    with pytest.raises(ClaimError, match="1 of 2 claims not reproduced in this run: held to"):
        run.claims.check()


def own_scene(folder):
    frames, box = {"train": torch.tensor([0]), "test": torch.tensor([1])}, torch.tensor([[-1.0] * 3, [1.0] * 3])
    pictures = torch.zeros(2, 6, 8, 3, dtype=torch.uint8)
    return Scene("mine", pictures, orbit(2, width=8, height=6), frames, box, 2.0, 6.0, source=folder / "mine")


def test_on_a_scene_of_ones_own_claims_are_shown_and_not_asserted(run, capsys, tmp_path):
    values = dict(ours=28.0, baseline=25.0, at_least=9)
    assert run.claim("before", **values).verdict == "not reproduced"
    run.use_scene(own_scene(tmp_path))
    assert "none is asserted" in capsys.readouterr().out
    row = run.claim("before", **values)
    assert row.verdict == "not asserted" and row.asked == "at least 9 dB better" and row.gain == 3.0
    run.claims.check()


def test_what_was_recorded_on_a_bundled_scene_is_not_shown_beside_ones_own(run, monkeypatch, tmp_path):
    monkeypatch.setattr(measured, "spread", lambda *_: {"n": 3, "mean": 3.0, "min": 2.0, "max": 4.0})
    values = dict(ours=28.0, baseline=25.0, at_least=1.0)
    assert run.claim("before", **values).recorded["n"] == 3
    run.use_scene(own_scene(tmp_path))
    assert run.claim("before", **values).recorded is None


def test_claims_are_asserted_on_the_scene_their_thresholds_were_set_on(run, capsys, tmp_path):
    values = dict(ours=28.0, baseline=25.0, at_least=1.0)
    (tmp_path / "manifest.json").write_text("{}")
    tea = dataclasses.replace(own_scene(tmp_path), name="tea", source=tmp_path)
    for claims_on in ("", "tea"):
        run.use_scene(tea, claims_on)
        assert run.claim("before", **values).verdict == "holds" and not capsys.readouterr().out
    run.use_scene(tea, claims_on="toybox")
    assert "Another scene than toybox" in capsys.readouterr().out
    assert run.claim("before", **values).verdict == "not asserted"


def test_claims_are_not_asserted_when_something_else_stands_in_for_what_they_were_set_on(run, capsys, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    tea = dataclasses.replace(own_scene(tmp_path), name="tea", source=tmp_path)
    run.use_scene(tea, "tea")
    assert not capsys.readouterr().out
    run.use_scene(tea, "tea", instead="another teacher")
    assert "Another teacher: the claims below are measured and shown, none is asserted." in capsys.readouterr().out
    assert run.claim("before", ours=28.0, baseline=25.0, at_least=9).verdict == "not asserted"


@pytest.mark.parametrize("ours", [float("nan"), float("inf"), [30.0, float("nan")]])
def test_what_is_not_a_number_never_holds(ours):
    assert make_claim("x", preset="smoke", ours=ours, baseline=25.0, at_least=1.0).verdict == "not reproduced"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"ours": 1.0, "baseline": 2.0}, "no threshold"),
        ({"ours": 1.0, "at_least": 2.0}, "no baseline"),
        ({"ours": "high", "baseline": 2.0, "at_least": 1}, "expected a number"),
        ({"ours": [], "baseline": 2.0, "at_least": 1}, "empty list"),
        ({"ours": 1.0, "baseline": 2.0, "at_least": (1, 2)}, "three"),
        ({"ours": 1.0, "baseline": 2.0, "at_least": 1, "measure": "vibes"}, "measure is one of"),
        ({"ours": 1.0, "baseline": 2.0, "at_least": 1, "better": "up"}, "higher or lower"),
    ],
)
def test_a_claim_that_makes_no_sense_is_refused(values, says):
    with pytest.raises(InputError, match=says):
        make_claim("x", preset="smoke", **values)


def test_seeds_are_paired():
    row = make_claim("x", preset="smoke", ours=[28.0, 30.0], baseline=[25.0, 26.0], at_least=1)
    assert row.gain_values == (3.0, 4.0) and (row.ours, row.baseline) == (29.0, 25.5)


def test_rows_are_written_beside_the_notebook(run):
    run.claim(
        "sharper", ours=28.0, baseline=25.0, at_least=1.0, paper="Sun 2022", paper_value="+2.88 dB", dataset="d", hardware="2080 Ti"
    )
    run.claim("broken", ours=float("nan"), baseline=25.0, at_least=1.0)
    text = (run.folder / "claims.json").read_text()
    stored = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert stored["protocol"] == {"name": metrics.PROTOCOL, "version": metrics.PROTOCOL_VERSION}
    assert (stored["seed"], stored["preset"], stored["certified"]) == (0, "laptop", True)
    assert [row["verdict"] for row in stored["claims"]] == ["holds", "not reproduced"]
    assert stored["claims"][0]["paper_value"] == "+2.88 dB" and stored["claims"][1]["gain"] is None
    assert stored["provenance"]["versions"]["torch"]


def test_check_raises_with_every_failure(run):
    with pytest.raises(ClaimError, match="no claim"):
        run.claims.check()
    run.claim("sharper", ours=28.0, baseline=25.0, at_least=1.0)
    run.claims.check()
    run.claim("faster", ours=2.0, baseline=1.0, at_most=0.5, measure="ratio")
    run.claim("smaller", ours=2.0, baseline=1.0, at_least=1.0, better="lower", unit="MB")
    with pytest.raises(ClaimError, match=r"2 of 3 claims.*faster: measured 2 x, asked at most 0.5 x; smaller: measured -1 MB"):
        run.claims.check()


def test_a_row_of_the_same_title_is_replaced(run):
    run.claim("sharper", ours=20.0, baseline=25.0, at_least=1.0)
    run.claim("sharper", ours=28.0, baseline=25.0, at_least=1.0)
    assert [row.verdict for row in run.claims] == ["holds"]


def test_an_edited_function_is_not_certified(run, monkeypatch):
    run.claim("sharper", ours=28.0, baseline=25.0, at_least=1.0)
    monkeypatch.setitem(sys.modules, "nsw.widgets.editing", types.SimpleNamespace(edited=lambda: ["nsw.methods.dvgo.density"]))
    with pytest.raises(ClaimError, match="dvgo.density is edited"):
        run.claims.check()
    run.claim("sharper", ours=28.0, baseline=25.0, at_least=1.0)
    assert json.loads((run.folder / "claims.json").read_text())["certified"] is False


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (dict(at_least=1.5), "at least 1.5 dB better"),
        (dict(at_least=-0.3), "at most 0.3 dB worse"),
        (dict(at_least=-0.2, at_most=0.2), "at most 0.2 dB worse and at most 0.2 dB better"),
        (dict(at_most=0.5, measure="ratio"), "at most 0.5 x"),
        (dict(at_least=-1.0, measure="value"), "at least -1 dB"),
    ],
)
def test_what_is_asked_is_said_in_words(run, limits, said):
    assert run.claim("one", ours=28.0, baseline=28.0, **limits).asked == said


def test_recorded_seeds_give_the_spread(run):
    for seed, gain in enumerate((2.0, 3.0, 4.0)):
        rows = [{"title": "sharper", "ours": 25 + gain, "baseline": 25.0, "gain": gain}]
        measured.record("demo", "laptop", seed, seconds=10.0 + seed, peak_mb=500, claims=rows, hardware="CPU", date="2030-01-01")
    row = run.claim("sharper", ours=28.0, baseline=25.0, at_least=1.0)
    assert row.recorded == {"n": 3, "mean": 3.0, "min": 2.0, "max": 4.0}
    assert measured.budget("demo", "laptop")["seconds"] == 12.0
    measured.record("demo", "laptop", 2, seconds=9.0, peak_mb=500, claims=rows, hardware="CPU", date="2030-01-01")
    assert measured.budget("demo", "laptop")["seconds"] == 11.0  # a run replaces the earlier one of its seed
    assert run.claim("new", ours=28.0, baseline=25.0, at_least=1.0).recorded is None
    measured.record("demo", "laptop", 0, seconds=5.0, peak_mb=100, claims=[], hardware="other", date="2030-01-01")
    assert measured.budget("demo", "laptop")["seconds"] == 5.0


def test_a_damaged_record_is_one_sentence(run):
    measured.measured_path().write_text("{")
    with pytest.raises(InputError, match="measured.json is not valid JSON"):
        run.claim("sharper", ours=28.0, baseline=25.0, at_least=1.0)


def test_the_table_reads_well(run):
    run.claim("sharper", ours=28.0, baseline=25.0, at_least=1.0, paper_value="+2.88 dB", dataset="lego", hardware="2080 Ti")
    assert repr(run.claims) == (
        "holds: sharper: baseline 25, ours 28 dB; measured +3 dB, asked at least 1 dB better; paper: +2.88 dB (lego; 2080 Ti)"
    )
