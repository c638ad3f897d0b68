"""Every notebook has the sixteen parts, keeps the limits, and reads like one book."""

from __future__ import annotations

import ast
import base64
import inspect
import io
import re
import statistics
import textwrap
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from nsw.runs.notebooks import parameters, slug_of

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
METHODS = [path for path in NOTEBOOKS if not path.name.startswith("00_")]
SECTIONS = [
    "Budget",
    "The problem",
    "The idea",
    "The mechanism",
    "Train",
    "Look",
    "Look inside",
    "Does the claim hold?",
    "Switch it off",
    "When it breaks",
    "Exercises",
    "Take it away",
]
FIGURES = {"show", "images", "heat", "lines", "bars", "sliders", "viewer", "compare", "ray_inspector", "matrix"}
FORBIDDEN = re.compile(r"\b(simply|just|obviously|trivially|of course|we|let's|let us)\b", re.I)
LONGEST = 132  # characters of a code line: a learner reads without scrolling sideways
UNSAFE_MAPS = re.compile(r"\b(jet|rainbow|hsv|gist_rainbow|nipy_spectral|RdYlGn)\b")


def ids(paths):
    return [path.stem for path in paths]


@pytest.fixture(scope="module")
def read():
    cache = {}
    return lambda path: cache.setdefault(path, nbformat.read(path, 4))


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def code_cells(notebook, solutions: bool = True):
    return [c for c in notebook.cells if c.cell_type == "code" and (solutions or "solution" not in tags(c))]


def lines_of(cell) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]


def prose(notebook) -> str:
    """Return the markdown without code, formulas, links' addresses and pictures."""
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for pattern in (r"```.*?```", r"\$\$.*?\$\$", r"\$[^$\n]+\$", r"!\[[^\]]*\]\([^)]*\)", r"`[^`\n]+`", r"<[^>]+>"):
        text = re.sub(pattern, " ", text, flags=re.S)
    return re.sub(r"\]\([^)]*\)", "]", text)


def tree(notebook) -> ast.Module:
    """Return all code as one module; magics are not allowed."""
    return ast.parse("\n".join(c.source for c in code_cells(notebook)))


def widget_calls(node: ast.AST) -> list[tuple[str, ast.Call]]:
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    return [(n.func.attr, n) for n in calls if isinstance(n.func.value, ast.Name) and n.func.value.id == "widgets"]


def test_there_are_notebooks():
    assert NOTEBOOKS and all(re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem) for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_is_committed_clean(path, read):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3" and "widgets" not in notebook.metadata
    for cell in code_cells(notebook):
        assert not cell.outputs and cell.execution_count is None, f"run Clear Outputs: {cell.source[:60]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_title(path, read):
    first = read(path).cells[0].source
    assert re.match(rf"# {path.stem[:2]} \S", first)
    if path in METHODS:
        assert re.search(r"\b(19|20)\d\d\b", first) and "Official code" in first
        assert re.search(r"\b(MIT|Apache-2.0|BSD|GPL|licen[cs]e)", first), "name the licences"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_parameters_cell(path, read):
    notebook = read(path)
    tagged = [c for c in code_cells(notebook) if "parameters" in tags(c)]
    assert len(tagged) == 1
    lines = tagged[0].source.splitlines()
    assert 1 <= len(lines) <= 8
    for line in lines:
        assert re.fullmatch(r"\w+: (int|float|bool|str) = .+?  # \S.+", line), f"name: type = value  # help, not {line!r}"
    found = parameters(notebook)
    assert (found["preset"].default, found["seed"].default) == ("laptop", 0)
    assert all(type(p.default).__name__ == p.kind and p.help for p in found.values())
    started = "\n".join(c.source for c in code_cells(notebook))
    if path in METHODS:
        assert f'nsw.start("{slug_of(path)}", preset=preset, seed=seed' in started
        assert f'widgets.budget("{slug_of(path)}")' in started and "widgets.form(" in started


@pytest.mark.parametrize("path", METHODS, ids=ids(METHODS))
def test_sections_in_order(path, read):
    text = "\n".join(c.source for c in read(path).cells if c.cell_type == "markdown")
    headings = [h.strip() for h in re.findall(r"^## (.+)$", text, re.M)]
    assert [h for h in headings if h in SECTIONS] == SECTIONS
    second = read(path).cells[1].source
    assert "You will" in second and "Before" in second and "Level" in second
    for word in ("At full scale", "Where next", "References"):
        assert word in text


@pytest.mark.parametrize("path", METHODS, ids=ids(METHODS))
def test_size(path, read):
    notebook = read(path)
    cells = code_cells(notebook)
    counts = [len(lines_of(c)) for c in cells]
    assert len(cells) <= 32 and statistics.median(counts) <= 6 and max(counts) <= 25, counts
    story = sum(len(lines_of(c)) for c in code_cells(notebook, solutions=False))
    assert 110 <= story <= 170, f"{story} code lines"
    words = len(re.findall(r"[A-Za-z][A-Za-z'-]*", prose(notebook)))
    assert 800 <= words <= 1500, f"{words} words"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_code_lines_are_short(path, read):
    long = [line for cell in code_cells(read(path)) for line in cell.source.splitlines() if len(line) > LONGEST]
    assert not long, f"{len(long)} lines over {LONGEST} characters, the first: {long[0]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_words(path, read):
    assert not (found := FORBIDDEN.findall(prose(read(path)))), found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_code_tells_the_story_only(path, read):
    module = tree(read(path))
    nodes = list(ast.walk(module))
    assert sum(isinstance(n, ast.FunctionDef) for n in nodes) <= 2
    assert not any(isinstance(n, ast.Try | ast.ClassDef) for n in nodes)
    for n in nodes:
        if isinstance(n, ast.If | ast.IfExp):
            assert "preset" not in {name.id for name in ast.walk(n.test) if isinstance(name, ast.Name)}, ast.unparse(n.test)
    names = {n.id for n in nodes if isinstance(n, ast.Name)}
    modules = {a.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module.split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    assert not names & {"Path", "open"} and not modules & {"os", "pathlib", "sys", "glob", "shutil", "subprocess"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_figures_speak_to_everybody(path, read):
    notebook = read(path)
    figures = 0
    for cell in code_cells(notebook):
        for name, call in widget_calls(ast.parse(cell.source)):
            if name not in FIGURES:
                continue
            figures += 1
            alt = next((k.value for k in call.keywords if k.arg == "alt"), None)
            assert alt is not None, f"no alt text: {ast.unparse(call)[:80]}"
            if isinstance(alt, ast.Constant):
                assert len(alt.value.split()) >= 4, f"say what is to be seen, not {alt.value!r}"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert all(alt.strip() for alt in re.findall(r"!\[([^\]]*)\]", cell.source))
        assert not UNSAFE_MAPS.search(cell.source if cell.cell_type == "code" else "")
    assert figures >= (6 if path in METHODS else 1), f"{figures} figures"


@pytest.mark.parametrize("path", METHODS, ids=ids(METHODS))
def test_training_loop_is_visible(path, read):
    loops = [c for c in code_cells(read(path)) if "run.steps(" in c.source]
    assert loops and all(len(lines_of(c)) <= 25 for c in loops)
    body = "\n".join(c.source for c in loops)
    assert "save=" in body and ".backward()" in body and "run.loss(" in body


def bound_at_top(node: ast.AST) -> set[str]:
    """Return the names that a cell binds, those inside functions and comprehensions left out."""
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return set()
    own = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
    return own.union(*map(bound_at_top, ast.iter_child_nodes(node)))


def asked_for(function: ast.Lambda | ast.FunctionDef) -> set[str]:
    """Return the names that a function takes from the notebook."""
    names = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
    own = {n.id for n in names if isinstance(n.ctx, ast.Store)} | {n.arg for n in ast.walk(function) if isinstance(n, ast.arg)}
    return {n.id for n in names if isinstance(n.ctx, ast.Load)} - own


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_what_is_dragged_later_draws_what_it_drew_at_first(path, read):
    """A slider asks for names when it moves: none of them may have come to mean something else in a later cell."""
    cells = [ast.parse(c.source) for c in code_cells(read(path))]
    functions: dict[str, set[str]] = {}
    for i, cell in enumerate(cells):
        for node in ast.walk(cell):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda) and isinstance(node.targets[0], ast.Name):
                functions[node.targets[0].id] = asked_for(node.value)
            elif isinstance(node, ast.FunctionDef):
                functions[node.name] = asked_for(node)
        drawn = [call.args[0] for name, call in widget_calls(cell) if name in ("sliders", "viewer", "ray_inspector", "matrix")]
        needed = set().union(
            *(asked_for(d) if isinstance(d, ast.Lambda) else {n.id for n in ast.walk(d) if isinstance(n, ast.Name)} for d in drawn)
        )
        while (more := needed.union(*(functions.get(name, set()) for name in needed))) != needed:
            needed = more
        for later in cells[i + 1 :]:
            assert not needed & bound_at_top(later), (
                f"{needed & bound_at_top(later)} of a slider are bound again in: {ast.unparse(later)[:80]}"
            )


@pytest.mark.parametrize("path", METHODS, ids=ids(METHODS))
def test_claims_are_asserted(path, read):
    cells = code_cells(read(path))
    claims = "\n".join(c.source for c in cells)
    assert claims.count("run.claim(") >= 1 and "paper_value=" in claims and "hardware=" in claims
    checking = [c for c in cells if "run.claims.check()" in c.source]
    assert len(checking) == 1 and lines_of(checking[0])[-1].strip() == "run.claims.check()"


@pytest.mark.parametrize("path", METHODS, ids=ids(METHODS))
def test_source_cards_are_short(path, read):
    module = tree(read(path))
    names: dict = {}
    for node in module.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), path.name, "exec"), names)
    cards = [card for name, call in widget_calls(module) if name == "source" for card in call.args]
    assert len(cards) >= 3
    for card in cards:
        function = eval(compile(ast.Expression(card), path.name, "eval"), names)
        assert inspect.getmodule(function).__name__.startswith("nsw."), ast.unparse(card)
        documented = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        described = documented.body[0].end_lineno if ast.get_docstring(documented) else documented.lineno
        assert documented.end_lineno - described <= 30, f"{ast.unparse(card)} is too long for a card"


@pytest.mark.parametrize("path", METHODS, ids=ids(METHODS))
def test_exercises(path, read):
    cells = read(path).cells
    checks = [
        call
        for c in cells
        if c.cell_type == "code" and "solution" not in tags(c)
        for n, call in widget_calls(ast.parse(c.source))
        if n == "check"
    ]
    assert len(checks) >= 3
    assert all(any(k.arg == "hint" for k in call.keywords) for call in checks)
    solutions = [c for c in cells if "solution" in tags(c)]
    assert len(solutions) >= len(checks) and all(c.metadata.get("jupyter", {}).get("source_hidden") for c in solutions)
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown").partition("## Exercises")[2]
    assert len(re.findall(r"\d+ minutes?", text)) >= 3 and re.search(r"\b(easy|medium|hard|build)\b", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_links_lead_somewhere(path, read):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([\w./-]+\.ipynb)(?:#[^)]*)?\)", cell.source):
                assert (FOLDER / target).is_file(), target
            for target in re.findall(r"\(attachment:([^)]+)\)", cell.source):
                assert target in cell.get("attachments", {}), target
            for bundle in cell.get("attachments", {}).values():
                kind, data = next(iter(bundle.items()))  # JupyterLab takes the first, and shows no SVG that is attached
                assert kind == "image/png"
                Image.open(io.BytesIO(base64.b64decode(data))).verify()
