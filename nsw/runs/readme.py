"""README.md's first picture and its tables of methods and of models, made from executed notebooks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nsw.errors import InputError
from nsw.models.state import write_bytes
from nsw.runs import measured, model_table
from nsw.runs.board import Entry, number
from nsw.runs.board import measured as measured_text
from nsw.runs.claims import FAILS, HOLDS, SHOWN
from nsw.runs.gallery import cover, shrunk
from nsw.runs.kept import Kept
from nsw.runs.notebooks import read_notebook
from nsw.runs.progress import duration

THUMBNAIL_WIDTH = 240
STRIP_CELL, STRIP_COLUMNS = (288, 150), 4
FAINT = 12  # of 255: what differs less from white belongs to a margin
CLAIMS_SHOWN = 3
_PREFERRED = ("laptop", "gpu", "smoke")


def best_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Return one run a notebook: finished, with claims, its own parameters; laptop before gpu and smoke, low seeds first."""
    ready = [entry for entry in entries if entry.notebook and entry.rows and entry.plain]
    ready.sort(key=lambda e: (e.name, _PREFERRED.index(e.preset), e.seed))
    return list({entry.name: entry for entry in reversed(ready)}.values())[::-1]


def method_row(entry: Entry, title: str, picture: str | None, alt: str) -> str:
    """Return one row of the table of methods."""
    budget = measured.budget(entry.slug, entry.preset) or entry.budget or {}
    claims = [row for row in entry.rows if row["verdict"] != SHOWN] or entry.rows
    shown, named = foremost(claims)
    spreads = [{**row, "recorded": measured.spread(entry.slug, entry.preset, row["title"])} for row in shown]
    told = "<br>".join(f"{_cell(row['title'])}: **{_cell(measured_text(row))}** ({row['verdict']})" for row in spreads)
    if named:
        short = (f"{_cell(row['title'])} {_cell(measured_text({**row, 'recorded': None}))}" for row in named)
        told += f"<br>{FAILS}: {'; '.join(short)}"
    if rest := len(claims) - len(shown) - len(named):
        told += f"<br>and {rest} more " + ("that hold" if shown[0]["verdict"] == HOLDS else f"({shown[0]['verdict']})")
    paper = "<br>".join(dict.fromkeys(_cell(str(row["paper_value"])) for row in shown if row["paper_value"])) or "-"
    image = f'<img src="{picture}" width="{THUMBNAIL_WIDTH // 2}" alt="{_cell(alt)}">' if picture else ""
    memory = number(budget.get("peak_mb"), "MB") if budget.get("peak_mb") is None else f"{budget['peak_mb'] / 1000:.1f} GB"
    link = f"[{title}](notebooks/{entry.name}.ipynb)"
    return f"| {image} | {link} | {told} | {paper} | {duration(budget.get('seconds'))}, {memory} ({entry.preset}) |"


def foremost(claims: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the claims that a row tells in full, and those that do not hold and are named in one line besides.

    In full: the first that holds, those that do not hold, and where there is room others that hold; with the paper's number first.
    """
    order = sorted(claims, key=lambda row: not row["paper_value"])
    good, bad = ([row for row in order if (row["verdict"] == FAILS) is fails] for fails in (False, True))
    told = [*good[:1], *bad, *good[1:]][:CLAIMS_SHOWN]
    return told, bad[CLAIMS_SHOWN - len(good[:1]) :]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").replace('"', "'").split())


def title_of(notebook: Any, default: str) -> str:
    """Return the notebook's first heading."""
    for cell in notebook.cells:
        match = re.search(r"^#\s+(.+)$", cell.source, re.M) if cell.cell_type == "markdown" else None
        if match:
            return re.sub(r"^\d+\s*[:.]?\s*", "", match[1]).strip()
    return default


def methods_table(entries: Sequence[Entry], checkout: Path, pictures: Path) -> tuple[str, list[Path]]:
    """Return the markdown table and the pictures written for it."""
    lines = ["| | notebook | claim, measured in the run | paper | time, peak memory |", "|---|---|---|---|---|"]
    written = []
    for entry in entries:
        assert entry.notebook is not None
        notebook = read_notebook(entry.notebook)
        found = cover(entry, notebook)
        path = None
        if found is not None:
            path = pictures / f"{entry.name}.png"
            write_bytes(path, shrunk(found[0], THUMBNAIL_WIDTH))
            written.append(path)
        shown = path.relative_to(checkout).as_posix() if path else None
        lines.append(method_row(entry, title_of(notebook, entry.slug), shown, found[1] if found else ""))
    machines = dict.fromkeys((measured.budget(e.slug, e.preset) or e.budget or {}).get("hardware", "this machine") for e in entries)
    protocols = dict.fromkeys(f"{e.claims['protocol']['name']} v{e.claims['protocol']['version']}" for e in entries if e.claims)
    lines += ["", f"Measured on {'; '.join(machines)}; protocol {', '.join(protocols)}. Brackets: range over recorded seeds."]
    return "\n".join(lines), written


def strip(images: Sequence[bytes], size: tuple[int, int] = STRIP_CELL, gap: int = 16, columns: int = STRIP_COLUMNS) -> bytes:
    """Return a PNG of pictures in rows, each without its white margin and as large as a cell (width, height) lets it."""
    import io

    from PIL import Image, ImageChops, ImageOps

    opened = [Image.open(io.BytesIO(png)).convert("RGB") for png in images]
    rows = -(-len(opened) // columns)
    columns = -(-len(opened) // rows)  # four pictures stand two by two, not three and one
    sheet = Image.new("RGB", tuple(n * (side + gap) - gap for n, side in zip((columns, rows), size, strict=True)), "white")
    for i, im in enumerate(opened):
        ink = ImageChops.invert(im).point(lambda level: 255 * (level > FAINT)).getbbox()
        scaled = ImageOps.contain(im.crop(ink), size, Image.Resampling.LANCZOS)
        left, top = (n * (side + gap) for n, side in zip((i % columns, i // columns), size, strict=True))
        sheet.paste(scaled, (left + (size[0] - scaled.width) // 2, top + (size[1] - scaled.height) // 2))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def replace_between(text: str, name: str, content: str, path: Path) -> str:
    """Return `text` with `content` between <!-- name --> and <!-- /name -->.

    >>> replace_between("a <!-- x --> old <!-- /x --> b", "x", "new", Path("README.md")).split()
    ['a', '<!--', 'x', '-->', 'new', '<!--', '/x', '-->', 'b']
    """
    pattern = re.compile(rf"(<!-- {name} -->).*?(<!-- /{name} -->)", re.S)
    if len(pattern.findall(text)) != 1:
        raise InputError(f"{path} must hold <!-- {name} --> and <!-- /{name} --> once, in this order: nothing was written.")
    return pattern.sub(lambda match: f"{match[1]}\n{content}\n{match[2]}", text)


def update(entries: Sequence[Entry], checkout: Path, models: Sequence[Kept] = ()) -> list[Path]:
    """Rewrite the picture and the tables of README.md; return what was written.

    The first picture is `data/pictures/readme.png`: the covers of all runs, in rows.

    Raises:
        InputError: when no notebook was executed to its claims, or README.md lacks its marks.
    """
    best = best_entries(entries)
    if not best:
        raise InputError("No executed notebook with claims was found: nsw run --all makes them.")
    readme, pictures = checkout / "README.md", checkout / "data" / "pictures"
    text = readme.read_text(encoding="utf-8")
    for name in ("picture", "methods", "models"):  # before anything is written
        replace_between(text, name, "", readme)
    table, written = methods_table(best, checkout, pictures)
    notebooks = [(entry, read_notebook(entry.notebook)) for entry in best if entry.notebook]
    found = [(title_of(notebook, entry.slug), cover(entry, notebook)) for entry, notebook in notebooks]
    covers, titles = [picture for _, picture in found if picture], [title for title, picture in found if picture]
    if covers:
        path = pictures / "readme.png"
        write_bytes(path, shrunk(strip([png for png, _ in covers]), 1200))
        alt = f"What each notebook learned, beside a photograph: {', '.join(titles)}"
        text = replace_between(text, "picture", f"![{alt}]({path.relative_to(checkout).as_posix()})", readme)
        written.append(path)
    if model_table.best(models):
        text = replace_between(text, "models", model_table.markdown(models), readme)
    write_bytes(readme, replace_between(text, "methods", table, readme).encode("utf-8"))
    return [*written, readme]
