"""The board: claims gathered, notebooks as pages without a network, README rewritten between its marks."""

from __future__ import annotations

import base64
import io
import json
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from nsw import InputError
from nsw.runs import board, gallery, measured, readme
from nsw.runs.claims import make_claim

MARKS = "<!-- methods -->\n<!-- /methods -->\n<!-- models -->\n<!-- /models -->"
README = f"# X\n<!-- picture -->\nold\n<!-- /picture -->\ntext\n{MARKS}\nend\n"


def png(width: int, colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, width // 2), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def picture(data: bytes, alt: str):
    bundle = {"image/png": base64.b64encode(data).decode(), "text/plain": alt}
    return new_output("display_data", bundle, metadata={"image/png": {"alt": alt}})


def notebook():
    figure = {"data": [{"y": [1, 2]}], "layout": {"title": {"text": "</script>"}}, "config": {}}
    cells = [
        new_markdown_cell("# 02 DVGO\nA grid costs $5. With $\\alpha_i$ and `$code$`:\n\n$$T_i = \\prod_{j<i} (1 - \\alpha_j)$$"),
        new_code_cell("a", outputs=[picture(png(64, "red"), "first picture")]),
        new_code_cell("b", outputs=[picture(png(800, "blue"), 'the "best" picture')], metadata={"tags": ["cover"]}),
        new_code_cell("c", outputs=[new_output("display_data", {gallery.PLOTLY: figure, "image/svg+xml": "<svg></svg>"})]),
        new_code_cell("d", outputs=[new_output("display_data", {"text/html": "<div>$$a &lt; b$$</div>"})]),
    ]
    return new_notebook(cells=cells)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "measured_path", lambda: tmp_path / "measured.json")
    for preset, seed, ours in (("smoke", 0, 26.0), ("laptop", 0, 28.0), ("laptop", 1, 25.1)):
        folder = tmp_path / "runs" / "dvgo" / f"{preset}-seed{seed}"
        folder.mkdir(parents=True)
        row = make_claim(
            "sharper than <NeRF>", preset=preset, ours=ours, baseline=25.0, at_least=0.5, paper_value="+2.9 dB", dataset="lego"
        )
        about = {"slug": "dvgo", "preset": preset, "seed": seed}
        claims = {**about, "protocol": {"name": "nsw-view", "version": 1}, "claims": [row.as_dict()]}
        (folder / "claims.json").write_text(json.dumps(claims))
        budget = {
            **about,
            "notebook": "02_dvgo.ipynb",
            "status": "ok",
            "seconds": 61.2,
            "peak_mb": 900.0,
            "hardware": "CPU",
            "date": "2030-01-01",
        }
        (folder / "budget.json").write_text(json.dumps({**budget, "parameters": {"preset": preset}}))
        nbformat.write(notebook(), folder / "02_dvgo.ipynb")
    return tmp_path


def test_every_run_is_gathered_in_order(runs):
    entries = board.collect(runs / "runs")
    assert [(e.name, e.preset, e.seed, e.status) for e in entries] == [
        ("02_dvgo", "smoke", 0, "done"),
        ("02_dvgo", "laptop", 0, "done"),
        ("02_dvgo", "laptop", 1, "not reproduced"),
    ]
    table = board.terminal(entries)
    assert "not reproduced" in table and "+2.9 dB lego" in table and "61.2" in table


def test_the_gallery_is_complete_and_asks_for_nothing_outside(runs):
    page = gallery.build(board.collect(runs / "runs"), runs / "board")
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r'(?:href|src)="([^"]+)"', text):
        assert (page.parent / target).is_file(), target
    assert "sharper than &lt;NeRF&gt;" in text and "not reproduced" in text
    inner = (page.parent / "02_dvgo-laptop-seed0.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="https?://', inner) and "import mermaid" not in inner
    assert 'src="plotly.min.js"' in inner and (page.parent / "plotly.min.js").stat().st_size > 10**6
    assert "Plotly.newPlot('figure-3-0'" in inner and "<\\/script>" in inner
    assert inner.count("<math") == 3 and "NSWFORMULA" not in inner
    assert "costs $5" in inner and "$code$" in inner


def test_formulas_that_cannot_be_read_stay_readable():
    assert gallery.mathml("\\frac{a}", False).startswith(("<math", "<code>"))
    assert "font-weight:bold" in gallery.mathml("\\mathbf r", False)
    assert "<mi>&#x1D41C;</mi>" in gallery.mathml("\\mathbf{c}", False)


def test_the_cover_is_the_tagged_picture_or_the_saved_one(runs):
    entry = board.collect(runs / "runs")[0]
    assert gallery.cover(entry, notebook())[1] == 'the "best" picture'
    (entry.folder / "images").mkdir()
    (entry.folder / "images" / "cover.png").write_bytes(png(10, "green"))
    assert gallery.cover(entry, notebook())[0] == png(10, "green")
    assert gallery.cover(entry, new_notebook()) is not None
    (entry.folder / "images" / "cover.png").unlink()
    assert gallery.cover(entry, new_notebook()) is None


def test_readme_is_rewritten_between_its_marks(runs):
    (runs / "README.md").write_text(README)
    written = readme.update(board.collect(runs / "runs"), runs)
    text = (runs / "README.md").read_text(encoding="utf-8")
    assert [path.relative_to(runs).as_posix() for path in written] == [
        "data/pictures/02_dvgo.png",
        "data/pictures/readme.png",
        "README.md",
    ]
    picture = "![What each notebook learned, beside a photograph: DVGO](data/pictures/readme.png)"
    assert text.startswith(f"# X\n<!-- picture -->\n{picture}\n<!-- /picture -->") and text.endswith("end\n")
    assert "[DVGO](notebooks/02_dvgo.ipynb)" in text and "**3 dB** (holds)" in text and "1 min 1 s" in text
    assert Image.open(runs / "data/pictures/02_dvgo.png").width <= readme.THUMBNAIL_WIDTH
    again = readme.update(board.collect(runs / "runs"), runs)
    assert (runs / "README.md").read_text(encoding="utf-8") == text and again == written


def test_the_first_picture_fills_its_cells_without_the_margins_of_the_covers():
    cover, kept = Image.new("RGB", (100, 80), "white"), io.BytesIO()
    cover.paste("red", (30, 20, 70, 40))  # twice as wide as high, as the cell is
    cover.save(kept, format="PNG")
    sheet = Image.open(io.BytesIO(readme.strip([kept.getvalue()] * 3, size=(80, 40), gap=10, columns=2)))
    assert sheet.size == (170, 90)
    assert [sheet.getpixel(at) for at in ((2, 2), (77, 37), (92, 2), (2, 87))] == [(255, 0, 0)] * 4
    assert [sheet.getpixel(at) for at in ((85, 20), (130, 70))] == [(255, 255, 255)] * 2


def test_a_readme_without_marks_is_left_alone(runs):
    (runs / "README.md").write_text("# X\n<!-- methods -->\n")
    with pytest.raises(InputError, match="nothing was written"):
        readme.update(board.collect(runs / "runs"), runs)
    assert (runs / "README.md").read_text() == "# X\n<!-- methods -->\n" and not (runs / "data").exists()


def test_runs_with_changed_parameters_do_not_stand_for_the_method(runs):
    for path in (runs / "runs").glob("*/*/budget.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "parameters": {"rate": 3}}))
    (runs / "README.md").write_text(README)
    with pytest.raises(InputError, match="No executed notebook with claims"):
        readme.update(board.collect(runs / "runs"), runs)


def test_no_runs(tmp_path):
    with pytest.raises(InputError, match="There is no run"):
        board.board(tmp_path / "board", root=tmp_path)
    assert not (tmp_path / "board").exists()


def test_a_dozen_notebooks_make_one_readable_readme(runs):
    """Many notebooks with many claims each: a picture in rows, few claims a row, and never a failure left out."""
    source = runs / "runs" / "dvgo" / "laptop-seed0"
    for k in range(12):
        folder = runs / "runs" / f"method{k}" / "laptop-seed0"
        folder.mkdir(parents=True)
        claims = json.loads((source / "claims.json").read_text())
        row = claims["claims"][0]
        rows = [{**row, "title": f"claim {i}", "verdict": "not reproduced" if i in (4, 6) else "holds"} for i in range(8)]
        rows[7]["paper_value"] = "9.9 dB"
        (folder / "claims.json").write_text(json.dumps({**claims, "slug": f"method{k}", "claims": rows}))
        budget = {**json.loads((source / "budget.json").read_text()), "notebook": f"{k + 10}_method{k}.ipynb"}
        (folder / "budget.json").write_text(json.dumps(budget))
        nbformat.write(notebook(), folder / budget["notebook"])
    (runs / "README.md").write_text(README)
    readme.update(board.collect(runs / "runs"), runs)
    text = (runs / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if "10_method0" in line]
    assert line.count("(not reproduced)") == 2 and line.count("(holds)") == 1 and "and 5 more that hold" in line
    assert line.index("claim 0: **3 dB") < line.index("claim 4: **3 dB") < line.index("claim 6: **3 dB")  # what holds comes first
    picture = Image.open(runs / "data/pictures/readme.png")
    assert picture.width <= 1200 and picture.height > 0.4 * picture.width
    assert text.count("| [DVGO](notebooks/") == 13


@pytest.mark.parametrize(
    ("holds", "fails", "full", "named", "end"),
    [
        (4, 6, "HFF", 4, "and 3 more that hold"),
        (8, 1, "HFH", 0, "and 6 more that hold"),
        (0, 5, "FFF", 2, ""),
        (1, 2, "HFF", 0, ""),
    ],
)
def test_a_row_says_what_holds_and_names_everything_that_does_not(runs, holds, fails, full, named, end):
    entry = next(e for e in board.collect(runs / "runs") if e.preset == "laptop")
    row = entry.rows[0]
    good = [{**row, "title": f"good {i}", "verdict": "holds", "paper_value": "1 dB" * (i == holds - 1)} for i in range(holds)]
    bad = [{**row, "title": f"bad {i}", "verdict": "not reproduced", "paper_value": ""} for i in range(fails)]
    entry.claims["claims"] = bad + good
    told = readme.method_row(entry, "X", None, "").split("|")[3].split("<br>")
    assert [("H" if "(holds)" in line else "F") for line in told[:3]] == list(full) and all("**3 dB**" in line for line in told[:3])
    assert (
        told[0].strip().startswith(f"good {holds - 1}" if holds else "bad 0")
    )  # of those that hold, the one with the paper's number
    assert [line.strip() for line in told[3:]] == [text for text in (_named(fails - named, fails), end) if text]


def _named(first: int, end: int) -> str:
    return first < end and "not reproduced: " + "; ".join(f"bad {i} 3 dB" for i in range(first, end))


def test_a_row_without_any_verdict_says_so(runs):
    entry = next(e for e in board.collect(runs / "runs") if e.preset == "laptop")
    entry.claims["claims"] = [{**entry.rows[0], "title": f"row {i}", "verdict": "not asserted"} for i in range(5)]
    assert "row 2: **3 dB** (not asserted)<br>and 2 more (not asserted)" in readme.method_row(entry, "X", None, "")


def test_the_readme_takes_the_spread_that_is_recorded_now(runs):
    for seed, ours in ((0, 28.0), (1, 29.0), (2, 30.0)):
        rows = [make_claim("sharper than <NeRF>", preset="laptop", ours=ours, baseline=25.0, at_least=0.5).as_dict()]
        path = runs / "measured.json"
        measured.record("dvgo", "laptop", seed, seconds=60.0, peak_mb=900.0, claims=rows, hardware="CPU", date="d", path=path)
    (runs / "README.md").write_text(README)
    readme.update(board.collect(runs / "runs"), runs)
    assert "**3 dB (3 to 5, 3 seeds)** (holds)" in (runs / "README.md").read_text(encoding="utf-8")
