"""The form built from a notebook's parameters cell: the same lines that papermill reads, as fields to fill in."""

from __future__ import annotations

import ast
import html
import io
import re
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nsw.errors import InputError
from nsw.widgets.frontend import emit, failure_line, live, shell

MENU = "Run > Run Selected Cell and All Below"


@dataclass(frozen=True)
class Parameter:
    """One line `name: kind = default  # help` of a parameters cell; `choices` is empty where any value of the kind will do."""

    name: str
    kind: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None


def parse(cell: str) -> list[Parameter]:
    """Return the parameters of a cell, or an empty list for a cell that is not a parameters cell.

    A parameters cell holds nothing but lines `name: type = literal  # help`; comments and a leading docstring may stand
    between them. Whatever else a cell holds, it is not read as one, and nothing in it is ever evaluated.

    >>> parse('n: int = 3  # rays, 1 to 9')[0].high
    9
    """
    try:
        body = ast.parse(cell).body
        comments = _comments(cell)
    except (SyntaxError, ValueError, MemoryError, RecursionError, tokenize.TokenError):
        return []
    found = []
    for node in body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            continue
        simple = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
        if not simple or node.target.id.startswith("_"):
            return []
        try:
            default = ast.literal_eval(node.value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return []
        found.append(_parameter(node.target.id, ast.unparse(node.annotation), default, comments.get(node.end_lineno, "")))
    return found


def _comments(cell: str) -> dict[int, str]:
    """Return the comment at the end of each line."""
    tokens = tokenize.generate_tokens(io.StringIO(cell).readline)
    return {token.start[0]: token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT}


def _parameter(name: str, kind: str, default: Any, help_text: str) -> Parameter:
    """Return one parameter with the choices or limits that its help states."""
    kind = kind.strip("\"'")
    choices: tuple[str, ...] = ()
    low = high = None
    if kind == "str":
        words = tuple(re.split(r",\s*|\s+or\s+", help_text.split(";")[0].split(":")[-1].strip()))
        whole = len(words) > 1 and all(re.fullmatch(r"[\w.-]+", word) for word in words) and default in words
        choices = ("smoke", "laptop", "gpu") if name == "preset" else words if whole else ()
    elif kind in ("int", "float"):
        limits = re.search(r"(-?\d+(?:\.\d+)?)\s+to\s+(-?\d+(?:\.\d+)?)", help_text)
        if limits and float(limits[1]) <= default <= float(limits[2]):
            low, high = (type(default)(limits[i]) if isinstance(default, float) else int(float(limits[i])) for i in (1, 2))
    return Parameter(name, kind, default, help_text, choices, low, high)


def find(cells: Sequence[str]) -> list[Parameter]:
    """Return the parameters of the newest parameters cell among executed cells.

    Raises:
        InputError: when there is none.
    """
    for cell in reversed(cells):
        parameters = parse(cell)
        if parameters:
            return parameters
    raise InputError(
        "form() found no executed parameters cell: run the cell whose lines read `name: type = value  # help` first "
        "(every value a literal), then this one."
    )


def field(parameter: Parameter, value: Any):
    """Return the input control of one parameter."""
    import ipywidgets

    look = dict(description=parameter.name, style={"description_width": "140px"}, layout={"width": "360px"})
    kind = parameter.kind
    if kind == "bool" and isinstance(value, bool):
        return ipywidgets.Checkbox(value=value, **look)
    if parameter.choices:
        own = () if value in parameter.choices or not isinstance(value, str) else (value,)  # a folder named in the cell stays
        return ipywidgets.Dropdown(
            options=(*parameter.choices, *own), value=value if own or value in parameter.choices else parameter.default, **look
        )
    if kind in ("int", "float") and isinstance(value, int | float) and not isinstance(value, bool):
        plain, bounded = (
            (ipywidgets.IntText, ipywidgets.BoundedIntText)
            if kind == "int"
            else (ipywidgets.FloatText, ipywidgets.BoundedFloatText)
        )
        if parameter.low is not None:
            return bounded(value=min(max(value, parameter.low), parameter.high), min=parameter.low, max=parameter.high, **look)
        return plain(value=value, **look)
    return ipywidgets.Text(value="" if value is None else str(value), **look)


def read(parameter: Parameter, entered: Any) -> Any:
    """Return what was entered as the parameter's own type.

    Raises:
        InputError: when it is not of that type.
    """
    if not isinstance(entered, str) or parameter.kind == "str":
        return entered
    if entered.strip() in ("", "None") and "None" in parameter.kind:
        return None
    if parameter.kind.replace(" ", "") in ("str|None", "None|str", "Path|None"):
        return entered
    try:
        value = ast.literal_eval(entered)
    except (ValueError, SyntaxError):
        raise InputError(f'{parameter.name}: "{entered}" is not a value of type {parameter.kind}.') from None
    if parameter.kind in ("int", "float", "bool") and type(value).__name__ not in (parameter.kind, "int"):
        raise InputError(f'{parameter.name}: "{entered}" is not a value of type {parameter.kind}.')
    return value


def form() -> None:
    """Show the parameters cell of this notebook as a form; its button sets the variables and runs the cells below.

    Executed headless, the values in force are shown as a table.
    """
    running = shell()
    if running is None:
        raise InputError("form() works inside a notebook: it reads the notebook's parameters cell.")
    parameters = find(list(running.history_manager.input_hist_raw))
    values = {p.name: running.user_ns.get(p.name, p.default) for p in parameters}
    box = _box(parameters, values, running.user_ns) if live() else None
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(p.name)}</th><td>{html.escape(repr(values[p.name]))}</td>"
        f"<td style='text-align:left'>{html.escape(p.help)}</td></tr>"
        for p in parameters
    )
    plain = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    emit({"text/html": f"<table><caption>Parameters of this run</caption>{rows}</table>", "text/plain": plain}, box)


def _box(parameters: list[Parameter], values: dict[str, Any], namespace: dict[str, Any]):
    """Return the live form."""
    import ipywidgets

    fields = {p.name: field(p, values[p.name]) for p in parameters}
    notes = [ipywidgets.HTML(f'<span style="opacity:0.8">{html.escape(p.help)}</span>') for p in parameters]
    apply = ipywidgets.Button(description="Apply and run the cells below", button_style="primary", layout={"width": "260px"})
    apply.add_class("nsw-apply")
    status = ipywidgets.HTML()
    run_below = _runner()

    def press(_: Any) -> None:
        try:
            entered = {p.name: read(p, fields[p.name].value) for p in parameters}
        except InputError as error:
            status.value = f'<span role="alert" style="color:#b00020">{html.escape(failure_line(error))}</span>'
            return
        namespace.update(entered)
        said = ", ".join(f"{name} = {value!r}" for name, value in entered.items())
        after = "Running the cells below." if run_below else f"Now choose {MENU}."
        status.value = f'<span role="status">Set {html.escape(said)}. {html.escape(after)}</span>'
        if run_below:
            run_below()

    apply.on_click(press)
    rows = [
        ipywidgets.HBox([control, note], layout={"flex_flow": "row wrap"})
        for control, note in zip(fields.values(), notes, strict=True)
    ]
    box = ipywidgets.VBox([*rows, apply, status])
    box.add_class("nsw-form")
    return box


def _runner():
    """Return a function that runs the cells below the form in JupyterLab, or None when that cannot be asked for."""
    try:
        from ipylab import JupyterFrontEnd
    except ImportError:
        return None
    lab = JupyterFrontEnd()

    def run_below() -> None:
        # The click made the form's own cell the active one; starting below it keeps the form as it is.
        lab.commands.execute("notebook:move-cursor-down")
        lab.commands.execute("notebook:run-all-below")

    return run_below
