"""Executed notebooks as plain web pages: no server, no network, one copy of plotly beside them."""

from __future__ import annotations

import base64
import copy
import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nsw.models.state import write_bytes
from nsw.runs import model_table
from nsw.runs.board import CLAIM_HEAD, Entry, claim_rows
from nsw.runs.kept import Kept
from nsw.runs.progress import duration

PLOTLY = "application/vnd.plotly.v1+json"
COVER_WIDTH = 480
_TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js_requirejs -%}<script src="plotly.min.js"></script>{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
"""
# code first, so that a dollar sign in it is not taken for mathematics
_CODE_OR_MATH = re.compile(
    r"(?P<code>```.*?```|`[^`\n]+`)|\$\$(?P<display>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^\s$](?:[^$\n]*?[^\s\\$])?)\$(?![\w$])", re.S
)
_DISPLAY = re.compile(r"\$\$(?P<display>.+?)\$\$", re.S)


def mathml(tex: str, display: bool) -> str:
    """Return TeX as MathML, which browsers draw without a script; TeX it cannot read stays as it is, in code.

    >>> mathml("x^2", display=False)[:5]
    '<math'
    """
    from latex2mathml.converter import convert

    try:
        found = convert(tex.strip(), display="block" if display else "inline")
        for bold in ("bold", "bold-italic"):  # browsers only know the variant "normal"
            found = found.replace(f'mathvariant="{bold}"', 'mathvariant="normal" style="font-weight:bold"')
        return found
    except Exception:  # noqa: BLE001 - whatever the converter stumbles over, the reader still sees the formula's source
        return f"<code>{html.escape(tex.strip())}</code>"


class _Formulas:
    """Put a word in the place of each formula before markdown is rendered, and MathML in its place after."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def _keep(self, tex: str, display: bool) -> str:
        self._found.append(mathml(tex, display))
        return f"NSWFORMULA{len(self._found) - 1}END"

    def hide(self, text: str) -> str:
        """Replace formulas of markdown, code left alone."""

        def replace(match: re.Match[str]) -> str:
            if match["code"]:
                return match["code"]
            return self._keep(match["display"] or match["inline"], bool(match["display"]))

        return _CODE_OR_MATH.sub(replace, text)

    def hide_in_html(self, text: str) -> str:
        """Replace $$ ... $$ of an HTML output."""
        return _DISPLAY.sub(lambda match: self._keep(html.unescape(match["display"]), True), text)

    def show(self, page: str) -> str:
        return re.sub(r"NSWFORMULA(\d+)END", lambda match: self._found[int(match[1])], page)


def _figure(data: dict[str, Any], still: str, name: str) -> str:
    """Return a plotly figure as HTML that draws itself, with its still for pages without scripts."""
    spec = json.dumps({key: data.get(key, {}) for key in ("data", "layout", "config")}).replace("</", "<\\/")
    script = f"(function(){{const f={spec};Plotly.newPlot('{name}',f.data,f.layout,f.config)}})()"
    return f'<div id="{name}"></div><script>{script}</script><noscript>{still}</noscript>'


def _prepared(notebook: Any, formulas: _Formulas) -> Any:
    """Return a copy whose outputs need nothing from outside the page."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            cell.source = formulas.hide(cell.source)
        for j, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            data.pop("application/vnd.jupyter.widget-view+json", None)
            if PLOTLY in data:
                still = data.pop("image/svg+xml", "")
                data["text/html"] = _figure(data.pop(PLOTLY), still, f"figure-{i}-{j}")
            elif "text/html" in data:
                data["text/html"] = formulas.hide_in_html(data["text/html"])
            elif "text/markdown" in data:
                data["text/markdown"] = formulas.hide(data["text/markdown"])
    return notebook


def notebook_page(notebook: Any, title: str) -> str:
    """Return an executed notebook as one HTML page that needs `plotly.min.js` beside it and nothing else."""
    from nbconvert import HTMLExporter

    formulas = _Formulas()
    exporter = HTMLExporter(raw_template=_TEMPLATE)
    page, _ = exporter.from_notebook_node(_prepared(notebook, formulas), resources={"metadata": {"name": title}})
    return formulas.show(page)


def pictures(notebook: Any) -> list[tuple[bytes, str, list[str]]]:
    """Return (PNG, alt text, the cell's tags) of every picture output."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            png = output.get("data", {}).get("image/png")
            if png:
                alt = output.get("metadata", {}).get("image/png", {}).get("alt") or output["data"].get("text/plain", "")
                found.append((base64.b64decode(png), alt, list(cell.metadata.get("tags", []))))
    return found


def cover(entry: Entry, notebook: Any) -> tuple[bytes, str] | None:
    """Return the picture that stands for a run and its alt text.

    The first that exists of: `images/cover.png` of the run (`run.save_image("cover", image)`), the picture of a cell tagged
    `cover`, the notebook's first picture.
    """
    saved = entry.folder / "images" / "cover.png"
    if saved.is_file():
        return saved.read_bytes(), f"{entry.name}: a picture of the trained model"
    found = pictures(notebook)
    tagged = [(png, alt) for png, alt, tags in found if "cover" in tags]
    return next(iter(tagged + [(png, alt) for png, alt, _ in found]), None)


def shrunk(png: bytes, width: int = COVER_WIDTH) -> bytes:
    """Return a PNG at most `width` pixels wide, in 256 colours when that is smaller."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    written = []
    for candidate in (picture, picture.quantize(256)):
        buffer = io.BytesIO()
        candidate.save(buffer, format="PNG", optimize=True)
        written.append(buffer.getvalue())
    return min(written, key=len)


_STYLE = """
:root { color-scheme: light dark; --line: #8886; --good: #007a5a; --bad: #b3361a; }
@media (prefers-color-scheme: dark) { :root { --good: #4fd1a5; --bad: #ff9b7a; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem; max-width: 1200px; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .6rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 1rem; padding: 0; list-style: none; }
.cards li { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.cards a { color: inherit; text-decoration: none; display: block; }
.cards a:focus-visible, .cards a:hover { outline: 3px solid #0072b2; outline-offset: -3px; }
.cards img { width: 100%; height: 150px; object-fit: contain; display: block; background: #8882; }
.cards div { padding: .6rem .8rem; } .cards b { display: block; } .quiet { opacity: .75; font-size: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .4rem .7rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.holds { color: var(--good); font-weight: 600; } .not-reproduced { color: var(--bad); font-weight: 600; }
"""


def _card(entry: Entry, page: str, picture: tuple[str, str] | None) -> str:
    budget = entry.budget or {}
    held = sum(row["verdict"] == "holds" for row in entry.rows)
    asserted = sum(row["verdict"] != "not asserted" for row in entry.rows)
    facts = [entry.preset, f"seed {entry.seed}", duration(budget.get("seconds")), f"{held} of {asserted} claims hold"]
    image = f'<img src="{picture[0]}" alt="{html.escape(picture[1], quote=True)}" loading="lazy">' if picture else ""
    title = html.escape(entry.name.replace("_", " "))
    about = f'<div><b>{title}</b><span class="quiet">{html.escape(", ".join(facts))}</span></div>'
    return f'<li><a href="{page}">{image}{about}</a></li>'


def _plain_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<h2>{title}</h2><div class="wide"><table><thead><tr>{_head(head)}</tr></thead><tbody>{cells}</tbody></table></div>'


def _models(models: Sequence[Kept]) -> str:
    table = _plain_table("Trained models", model_table.HEAD, model_table.rows(models))
    return f'{table}<p class="quiet">{html.escape(model_table.NOTE)}</p>'


def _head(names: Sequence[str]) -> str:
    return "".join(f"<th>{name}</th>" for name in names)


def index_page(entries: Sequence[Entry], cards: Sequence[str], models: Sequence[Kept] = ()) -> str:
    """Return the gallery's first page: a card a notebook, the table of all trained models, then that of all claims."""
    body = ""
    for row in claim_rows(entries):
        verdict = f'<td class="{row[-1].replace(" ", "-")}">{html.escape(row[-1])}</td>'
        body += "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[:-1]) + verdict + "</tr>"
    protocols = sorted({f"{p['name']} v{p['version']}" for e in entries if e.claims and (p := e.claims.get("protocol"))})
    machines = sorted({e.budget["hardware"] for e in entries if e.budget and "hardware" in e.budget})
    note = f"Protocol {', '.join(protocols) or 'not noted'}. Measured on {'; '.join(machines) or 'this machine'}."
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>NSW: executed notebooks and claims</title><style>{_STYLE}</style></head><body>"
        "<h1>NSW: executed notebooks and claims</h1>"
        f'<p class="quiet">{html.escape(note)}</p><ul class="cards">{"".join(cards)}</ul>'
        f"{_models(models) if models else ''}"
        f'<h2>Claims</h2><div class="wide"><table><thead><tr>{_head(CLAIM_HEAD)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></body></html>\n"
    )


def build(entries: Sequence[Entry], out: Path, models: Sequence[Kept] = ()) -> Path:
    """Write the gallery and return its first page."""
    from plotly.offline import get_plotlyjs

    from nsw.runs.notebooks import read_notebook

    write_bytes(out / "plotly.min.js", get_plotlyjs().encode("utf-8"))
    cards = []
    for entry in entries:
        if entry.notebook is None:
            continue
        notebook, stem = read_notebook(entry.notebook), f"{entry.notebook.stem}-{entry.folder.name}"
        write_bytes(out / f"{stem}.html", notebook_page(notebook, entry.name).encode("utf-8"))
        picture = cover(entry, notebook)
        if picture is not None:
            write_bytes(out / f"{stem}.png", shrunk(picture[0]))
            picture = (f"{stem}.png", picture[1])
        cards.append(_card(entry, f"{stem}.html", picture))
    write_bytes(out / "index.html", index_page(entries, cards, models).encode("utf-8"))
    return out / "index.html"
