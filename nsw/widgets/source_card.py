"""A card that shows the very function that runs: its equation, its body, where it is, and what tests it."""

from __future__ import annotations

import ast
import html
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nsw.errors import InputError
from nsw.widgets.frontend import emit

MOST_LINES = 30


@dataclass(frozen=True)
class Card:
    """What a source card says.

    Attributes:
        name: qualified name inside its module.
        lead: first sentence of the docstring.
        equations: LaTeX between `$$` in the docstring, each with the citation that follows it.
        body: source without the docstring.
        place: file relative to the repository, and line.
        tests: test files that name the function.
    """

    name: str
    lead: str
    equations: tuple[tuple[str, str], ...]
    body: str
    place: str
    tests: tuple[str, ...]

    @property
    def too_long(self) -> bool:
        return len(self.body.splitlines()) > MOST_LINES


def card(function: Callable) -> Card:
    """Return the card of a Python function or method.

    Raises:
        InputError: when its source cannot be read.
    """
    plain = inspect.unwrap(function)
    plain = getattr(plain, "__func__", plain)
    plain = getattr(plain, "py_func", plain)  # numba keeps the Python function there
    try:
        lines, first = inspect.getsourcelines(plain)
        file = Path(inspect.getsourcefile(plain) or "")
    except (OSError, TypeError) as error:
        raise InputError(f"source() needs a function written in Python with its file at hand, not {function!r}: {error}.") from None
    doc = inspect.getdoc(plain) or ""
    return Card(
        name=getattr(plain, "__qualname__", repr(plain)),
        lead=doc.split("\n\n")[0].replace("\n", " "),
        equations=tuple(_equations(doc)),
        body=without_docstring("".join(lines)),
        place=f"{relative(file)}:{first}",
        tests=tests_naming(getattr(plain, "__qualname__", ""), getattr(plain, "__module__", "")),
    )


def without_docstring(source: str) -> str:
    """Return a function's source, dedented and without its docstring."""
    source = textwrap.dedent(source)
    node = ast.parse(source).body[0]
    body = getattr(node, "body", [])
    first = body[0] if body else None
    is_doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    if not is_doc or len(body) == 1:
        return source.rstrip()
    lines = source.splitlines()
    return "\n".join(lines[: first.lineno - 1] + lines[first.end_lineno :]).rstrip()


def _equations(doc: str) -> list[tuple[str, str]]:
    found = re.findall(r"\$\$(.+?)\$\$[ \t]*\n?[ \t]*(\([^\n]*\))?", doc, flags=re.DOTALL)
    return [(" ".join(latex.split()), citation.strip()) for latex, citation in found]


def relative(file: Path) -> str:
    """Return a path from the repository's root, with forward slashes; edited functions keep their label."""
    if str(file).startswith("<"):
        return str(file)
    try:
        return file.resolve().relative_to(root()).as_posix()
    except ValueError:
        return file.name


def root() -> Path:
    """Return the folder that holds the package."""
    import nsw

    return Path(nsw.__file__).resolve().parents[1]


@cache
def _test_texts() -> tuple[tuple[str, str], ...]:
    files = sorted((root() / "tests").glob("*/test_*.py"))
    return tuple((file.relative_to(root()).as_posix(), file.read_text(encoding="utf-8")) for file in files)


def tests_naming(name: str, module: str = "") -> tuple[str, ...]:
    """Return the test files that call a function; empty where the tests are not installed.

    Many a function has a common name: where some of the files name its module or class too, only those are meant, and of a
    method no others.
    """
    owner, _, plain = name.rpartition(".")
    home = "|".join(re.escape(word) for word in (owner, module.rpartition(".")[2]) if word)
    calling = [(path, text) for path, text in _test_texts() if plain and re.search(rf"\b{re.escape(plain)}\(", text)]
    near = [(path, text) for path, text in calling if home and re.search(rf"\b({home})\b", text)]
    return tuple(path for path, _ in (near if near or owner else calling))


def highlighted(code: str) -> str:
    """Return Python source as HTML with inline colours that can be read on white and on dark grey."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    formatter = HtmlFormatter(
        noclasses=True, style="xcode", nobackground=True, prestyles="margin:0;white-space:pre;line-height:1.4;font-family:monospace"
    )
    return highlight(code, PythonLexer(), formatter)


def source(*functions: Callable) -> None:
    """Show the cards of functions, one below the other: equation, body, file and line, tests.

    A card is read from the imported function, so it is what runs: also after `edit`, which the card then says.
    """
    for function in functions:
        _show_card(function)


def _show_card(function: Callable) -> None:
    from nsw.widgets.editing import is_edited

    shown = card(function)
    banner = ""
    if is_edited(function):
        banner = (
            '<p role="status" style="margin:0;color:#b00020"><b>Edited.</b> nsw.widgets.restore() brings the original back.</p>'
        )
    if shown.too_long:
        lines = len(shown.body.splitlines())
        banner += f'<p style="margin:0;color:#b00020">{lines} lines: a function on a card should have at most {MOST_LINES}.</p>'
    maths = "".join(
        f'<div style="margin:0.4em 0">$${html.escape(latex)}$$'
        f'<div style="text-align:right;font-size:0.85em">{html.escape(cite)}</div></div>'
        for latex, cite in shown.equations
    )
    tested = ", ".join(f"<code>{html.escape(test)}</code>" for test in shown.tests[:4]) or "no test names it"
    text = (
        '<div style="border:1px solid #8888;border-left:4px solid #0072B2;border-radius:4px;padding:0.5em 0.8em;margin:0.3em 0">'
        f"{banner}<div><b>{html.escape(shown.name)}</b>: {html.escape(shown.lead)}</div>{maths}"
        '<div style="overflow-x:auto;background:#f7f7f7;color:#111;padding:0.4em 0.6em;font-size:0.92em">'
        f"{highlighted(shown.body)}</div>"
        f'<div style="font-size:0.85em;opacity:0.85;padding-top:0.3em"><code>{html.escape(shown.place)}</code>'
        f" &middot; tests: {tested}</div></div>"
    )
    equations = "\n\n".join(f"$${latex}$$ {cite}" for latex, cite in shown.equations)
    markdown = f"**{shown.name}**: {shown.lead}\n\n{equations}\n\n```python\n{shown.body}\n```\n\n`{shown.place}`"
    emit({"text/html": text, "text/markdown": markdown, "text/plain": f"{shown.place}\n{shown.body}"})
