"""Source cards, editing, the form, checks, tables and the map of methods."""

import inspect
import re

import pytest
import torch

from nsw import InputError, cameras, widgets
from nsw.runs.claims import ClaimError, Claims, make_claim
from nsw.widgets import editing, methods_map, parameter_form, source_card


@pytest.fixture
def shown(monkeypatch):
    out = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: out.append(bundle))
    return out


@pytest.fixture
def clean(shown):
    yield
    editing.restore()


def test_card_holds_equation_body_place_and_tests():
    from nsw.renderers import volume

    card = source_card.card(volume.composite)
    assert r"e^{-\sigma_i\delta_i}" in card.equations[0][0] and "eq. 3" in card.equations[0][1]
    assert '"""' not in card.body and card.body.startswith("def composite(") and "return rgb" in card.body
    file, line = card.place.split(":")
    assert file == "nsw/renderers/volume.py" and int(line) == inspect.getsourcelines(volume.composite)[1]
    assert all(re.fullmatch(r"tests/\w+/test_\w+\.py", test) for test in card.tests)
    # other classes have a `decode` of their own; only tests that name the class are a method's
    assert source_card.tests_naming("RayDistribution.decode") == ("tests/unit/test_nerdf.py",)
    assert source_card.tests_naming("SplatDecoder.decode", "nsw.models.splat_decoder") == ("tests/unit/test_sags.py",)
    assert set(source_card.tests_naming("losses", "nsw.methods.pvd")) == {"tests/unit/test_pvd.py", "tests/unit/test_pvd_al.py"}


def test_card_is_displayed_as_html_and_markdown_and_warns_of_length(shown):
    widgets.source(cameras.look_at)
    assert "look_at" in shown[0]["text/html"] and "```python" in shown[0]["text/markdown"]
    assert "at most 30" not in shown[0]["text/html"]
    widgets.source(cameras.look_at, cameras.Cameras)
    assert "look_at" in shown[1]["text/html"] and "at most 30" in shown[2]["text/html"]
    with pytest.raises(InputError, match="written in Python"):
        widgets.source(len)


def edit_look_at(change=lambda code: code.replace("rotation = torch.stack([x, y, z]", "rotation = torch.stack([x, -y, z]")):
    code = inspect.getsource(cameras.look_at)
    assert change(code) != code
    editing.swap("nsw.cameras:look_at", change(code))


def test_edit_swaps_for_all_callers_and_restore_brings_back(clean, shown, monkeypatch):
    import nsw.renderers.volume as elsewhere

    original = cameras.look_at
    monkeypatch.setattr(elsewhere, "look_at", original, raising=False)  # a module that imported it by name
    before = cameras.orbit(1).cam_from_world
    edit_look_at()
    assert widgets.edited() == ["nsw.cameras:look_at"] and elsewhere.look_at is cameras.look_at is not original
    assert torch.allclose(cameras.orbit(1).cam_from_world[0, 1, :3], -before[0, 1, :3])  # a caller in the same module
    assert "Edited: nsw.cameras:look_at" in shown[-1]["text/plain"]
    assert editing.is_edited(cameras.look_at) and "-y, z" in source_card.card(cameras.look_at).body
    widgets.restore()
    assert cameras.look_at is original and elsewhere.look_at is original and widgets.edited() == []
    assert torch.equal(cameras.orbit(1).cam_from_world, before)


def test_edit_twice_restores_the_first_original(clean):
    original = cameras.look_at
    edit_look_at()
    edit_look_at(lambda code: code.replace("1e-6", "1e-5"))
    widgets.restore()
    assert cameras.look_at is original


def test_methods_of_classes_can_be_edited(clean):
    scale = cameras.Cameras.resized
    code = "def resized(self, width, height):\n    return 'mine'\n"
    editing.swap("nsw.cameras:Cameras.resized", code)
    assert cameras.orbit(1).resized(4, 4) == "mine"
    widgets.restore()
    assert cameras.Cameras.resized is scale


@pytest.mark.parametrize(
    ("target", "code", "message"),
    [
        ("os:getcwd", "def getcwd():\n    return 1\n", "nsw.module:function"),
        ("nsw.cameras", "x = 1", "nsw.module:function"),
        ("nsw.cameras:nothing", "def nothing():\n    pass\n", "no such function"),
        ("nsw.cameras:look_at", "def other():\n    pass\n", "must define look_at"),
        ("nsw.cameras:Nope.look_at", "def look_at():\n    pass\n", "has no Nope.look_at"),
    ],
)
def test_an_edit_that_cannot_be_is_refused_and_changes_nothing(clean, target, code, message):
    original = cameras.look_at
    with pytest.raises(InputError, match=message):
        editing.swap(target, code)
    with pytest.raises(SyntaxError):
        editing.swap("nsw.cameras:look_at", "def look_at(:\n")
    assert cameras.look_at is original and widgets.edited() == []


def test_edit_refuses_what_is_not_ours():
    for function in (len, torch.relu, lambda: 0, inspect.getsource):
        with pytest.raises(InputError, match="function of nsw"):
            widgets.edit(function)


def test_claims_are_not_certified_while_something_is_edited(clean, shown):
    claims = Claims()
    claims.add(make_claim("sharper", preset="smoke", ours=27.0, baseline=25.0, at_least=1.5))
    claims.check()
    edit_look_at()
    with pytest.raises(ClaimError, match="nsw.cameras:look_at"):
        claims.check()
    widgets.claim_table(claims)
    assert "Not certified" in shown[-1]["text/html"] and "not certified" in shown[-1]["text/html"]


def test_edit_writes_a_cell_that_ipython_runs(clean, shown):
    from IPython.core.interactiveshell import InteractiveShell

    running = InteractiveShell.instance()
    cells = []
    running.set_next_input = lambda text, replace=False: cells.append(text)
    try:
        widgets.edit(cameras.look_at)
        assert cells[0].startswith("%%nsw_edit nsw.cameras:look_at\ndef look_at(")
        original = cameras.look_at
        running.run_cell(cells[0].replace("1e-6", "1e-7")).raise_error()
        assert cameras.look_at is not original and widgets.edited() == ["nsw.cameras:look_at"]
    finally:
        InteractiveShell.clear_instance()


CELL = """preset: str = "laptop"  # smoke, laptop or gpu
seed: int = 0  # 0 to 99
rate: float = 1e-3  # step size, 0.0 to 1.0
live: bool = True  # show pictures while training
kind: str = "dense"  # grid: dense or hashed
out: str | None = None  # folder
"""


def test_form_reads_types_choices_and_limits():
    found = {p.name: p for p in parameter_form.parse(CELL)}
    assert list(found) == ["preset", "seed", "rate", "live", "kind", "out"]
    assert found["preset"].choices == ("smoke", "laptop", "gpu") and found["kind"].choices == ("dense", "hashed")
    assert (found["seed"].low, found["seed"].high) == (0, 99) and (found["rate"].low, found["rate"].high) == (0.0, 1.0)
    kinds = {name: type(parameter_form.field(p, p.default)).__name__ for name, p in found.items()}
    assert kinds == {
        "preset": "Dropdown",
        "seed": "BoundedIntText",
        "rate": "BoundedFloatText",
        "live": "Checkbox",
        "kind": "Dropdown",
        "out": "Text",
    }
    own = parameter_form.field(found["kind"], "photos/of mine")
    assert own.value == "photos/of mine" and own.options == ("dense", "hashed", "photos/of mine")
    assert parameter_form.read(found["out"], "") is None and parameter_form.read(found["out"], "x") == "x"


@pytest.mark.parametrize(
    "cell",
    [
        "",
        "%pip list",
        "!rm -rf nothing",
        "x = 3",
        "x: int",
        "x: int = 1\nprint(x)",
        'x: int = __import__("os").getpid()',
        "x: int = (lambda: 1)()",
        "x: int = [",
        "_x: int = 3",
        "a.b: int = 3",
        "x: int = 1; import os",
        "(" * 3000,
        "x: int = 1\n\x00",
        '"""only a docstring"""',
    ],
    ids=lambda cell: repr(cell[:20]),
)
def test_other_cells_are_not_parameters_cells_and_never_run(cell):
    assert parameter_form.parse(cell) == []
    with pytest.raises(InputError, match="found no executed parameters cell"):
        parameter_form.find(["", cell])


def test_form_takes_the_newest_parameters_cell():
    assert parameter_form.find([CELL, "seed: int = 7  # other", "print(1)"])[0].default == 7


@pytest.mark.parametrize(
    ("kind", "text"), [("int", "abc"), ("int", "1.5"), ("float", "'x'"), ("bool", "maybe"), ("int", "__import__('os')")]
)
def test_wrong_entries_are_named(kind, text):
    with pytest.raises(InputError, match=f"not a value of type {kind}"):
        parameter_form.read(parameter_form.Parameter("n", kind, 0, ""), text)


def test_form_in_a_shell_shows_values_and_applies(shown, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell

    running = InteractiveShell.instance()
    try:
        running.run_cell(CELL + "\n", store_history=True).raise_error()
        running.user_ns["seed"] = 5  # as papermill's injected cell sets it
        widgets.form()
        assert "seed = 5" in shown[-1]["text/plain"] and "smoke, laptop or gpu" in shown[-1]["text/html"]
        found = parameter_form.find(list(running.history_manager.input_hist_raw))
        ran = []
        monkeypatch.setattr(parameter_form, "_runner", lambda: lambda: ran.append(running.user_ns["preset"]))
        box = parameter_form._box(found, {p.name: p.default for p in found}, running.user_ns)
        fields, apply, status = box.children[:-2], box.children[-2], box.children[-1]
        fields[0].children[0].value = "smoke"
        apply.click()
        assert ran == ["smoke"] and "preset = &#x27;smoke&#x27;" in status.value
        monkeypatch.setattr(parameter_form, "_runner", lambda: None)
        box = parameter_form._box(found, {p.name: p.default for p in found}, running.user_ns)
        box.children[-2].click()
        assert "Run Selected Cell and All Below" in box.children[-1].value
    finally:
        InteractiveShell.clear_instance()
    with pytest.raises(InputError, match="inside a notebook"):
        widgets.form()


def said(shown):
    return shown[-1]["text/plain"]


def test_check_says_not_yet_without_raising(shown):
    for answer in (None, ...):
        widgets.check(answer, 3, hint="count them")
        assert said(shown).startswith("\u25cb Not yet: there is no answer") and "count them" in said(shown)
    widgets.check(lambda x: None, lambda x: x, [1.0])
    assert "does it end with return?" in said(shown)
    widgets.check(lambda x: 1 / 0, lambda x: x, [1.0])
    assert "ZeroDivisionError" in said(shown)
    widgets.check(5, lambda x: x, [1.0])
    assert "expected a function, got int" in said(shown)


def test_check_names_the_first_input_that_differs(shown):
    widgets.check(lambda x: x.abs(), lambda x: x, [torch.ones(3), torch.tensor([1.0, -2.0])])
    assert "input 2 of 2, ([1.0, -2.0])" in said(shown) and "gives 2 at index [1], expected -2" in said(shown)
    widgets.check(lambda x: x[:1], lambda x: x, [torch.ones(3)])
    assert "shape [1], expected [3]" in said(shown)
    widgets.check(lambda x: (x, x + 1), lambda x: (x, x), [torch.ones(2)])
    assert "part 2" in said(shown)
    widgets.check(lambda x: x * float("nan"), lambda x: x, [torch.ones(2)])
    assert "nan" in said(shown)


def test_check_accepts_right_answers_within_tolerance(shown):
    widgets.check(lambda a, b: a + b + 1e-6, lambda a, b: a + b, [(1.0, 2.0), (torch.ones(2), 1.0)])
    assert said(shown) == "\u2713 Right: your answer agrees with the reference on all 2 inputs."
    widgets.check("b", "b")
    assert "Right" in said(shown)
    widgets.check(2.02, 2.0, tolerance=0.05)
    assert "Right" in said(shown)
    widgets.check(lambda x: x + 1, [2, 3], [1, 2])
    assert "Right" in said(shown)


def test_check_guards_the_reference_from_in_place_answers(shown):
    given = torch.ones(2)
    widgets.check(lambda x: x.mul_(0), lambda x: x * 0, [given])
    assert "Right" in said(shown) and given.sum() == 2


def test_strict_check_raises(shown):
    with pytest.raises(AssertionError, match="expected 3"):
        widgets.check(4, 3, strict=True)
    with pytest.raises(AssertionError, match="no answer yet"):
        widgets.check(..., 3, strict=True)
    widgets.check(3, 3, strict=True)
    assert "Right" in said(shown)


def test_claim_table_says_verdicts_in_words_with_the_paper_beside(shown):
    rows = [
        make_claim(
            "sharper",
            preset="smoke",
            ours=[27.0, 27.4],
            baseline=25.0,
            at_least=1.5,
            paper="X 2020",
            paper_value="33 dB",
            dataset="D",
            hardware="V100",
        ),
        make_claim("faster <b>", preset="smoke", ours=2.0, baseline=4.0, at_most=0.1, measure="ratio", unit="s"),
    ]
    widgets.claim_table(rows)
    text = shown[-1]["text/html"]
    assert "\u2713 holds" in text and "\u2717 not reproduced" in text and "faster &lt;b&gt;" in text
    assert "X 2020; 33 dB; D; V100" in text and "27 to 27.4, 2 seeds" in text and "nsw-view" in text
    assert "holds" in said(shown) and "0.5 x" in said(shown)


def test_recorded_numbers_that_are_written_alike_are_written_once(shown):
    spreads = {"same": dict(n=3, mean=1.0, min=0.99999, max=1.00001), "apart": dict(n=3, mean=1.0, min=0.9, max=1.1)}
    numbers = dict(preset="smoke", ours=2.0, baseline=1.0, at_least=0.5)
    widgets.claim_table([make_claim(title, **numbers, recorded=spread) for title, spread in spreads.items()])
    assert "(recorded: 1 over 3 seeds)" in said(shown) and "(recorded: 0.9 to 1.1 over 3 seeds)" in said(shown)


def test_tables_have_words_for_columns_and_a_dash_for_no_number(shown):
    rows = [{"model": "a", "f1": float("nan"), "n": 12345}, {"model": "b", "f1": 0.5, "n": 2}]
    widgets.table(rows, heads={"n": "discs", "f1": "F1"})
    assert re.match(r"model\s+F1\s+discs\na\s+\u2013\s+12,345\nb\s+0.5\s+2$", said(shown))
    assert "<th" in shown[-1]["text/html"] and ">discs</th>" in shown[-1]["text/html"] and "nan" not in shown[-1]["text/html"]


def test_a_column_without_a_word_is_left_out_of_a_table(shown):
    widgets.table([{"model": "a", "floaters": "", "depth error": None}, {"model": "b", "floaters": "", "depth error": 0.25}])
    assert re.match(r"model\s+depth error\na\s*\nb\s+0.25$", said(shown))


def test_budget_reads_the_record(shown, monkeypatch):
    record = {"nerf": {"smoke": {"seconds": 31.2, "peak_mb": 612, "hardware": "2 cores", "date": "2026-01-02", "seeds": {}}}}
    monkeypatch.setattr("nsw.runs.measured.load", lambda path=None: record)
    widgets.budget("nerf")
    assert re.search(r"smoke\s+31 s\s+0.6 GB\s+2 cores\s+2026-01-02", said(shown)) and "not measured yet" in said(shown)


def test_method_map_links_what_exists_and_greys_the_rest(shown, tmp_path):
    for name in ("00_start", "01_nerf", "77_brand_new"):
        (tmp_path / f"{name}.ipynb").touch()
    widgets.method_map(tmp_path)
    text = shown[-1]["text/html"]
    assert 'href="01_nerf.ipynb"' in text and "TensoRF (2022): no notebook yet" in text
    assert int(re.search(r"position:relative;width:(\d+)px", text).group(1)) <= 848  # the room of a JupyterLab cell at 1300 px
    assert "brand new" in text and "aria-label" in text  # a notebook that the map does not know still appears
    assert set(methods_map.notebooks_of(tmp_path)) == {"start", "nerf", "brand_new"}
    slugs = {m.slug for m in methods_map.METHODS}
    assert all(set(m.after) <= slugs for m in methods_map.METHODS)
