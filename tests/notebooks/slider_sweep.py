"""Every control of an executed notebook moved to both of its ends, in its own kernel, through the callbacks that a page calls.

The runner is headless, so a panel would only leave its still. Two cells are added around the notebook: the first makes panels
alive although no page shows them, the last moves them once everything else is done, so that no number of the run changes.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsw.models.state import write_json
from nsw.runs.notebooks import read_notebook

PANELS = ("slider_panel", "matrix_panel", "film_player", "weight_bank", "inspector", "run_comparison")
BOXES = ("nsw-sliders", "nsw-film", "nsw-weights", "nsw-inspector", "nsw-compare-runs")
REPORT = "sliders.json"


def with_sweep(path: Path) -> Any:
    """Return a notebook as nbformat 4 with the two cells around it."""
    from nbformat.v4 import new_code_cell

    notebook = read_notebook(path)
    home = f"import nsw, sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport slider_sweep\nslider_sweep.come_alive()"
    first, last = (new_code_cell(source, metadata={"tags": []}) for source in (home, "slider_sweep.sweep()"))
    notebook.cells = [first, *notebook.cells, last]
    return notebook


def come_alive() -> None:
    """Let panels be made without a page, and draw at once what is asked of them: at rest, and never later."""
    from nsw.widgets import frontend

    for name in PANELS:
        importlib.import_module(f"nsw.widgets.{name}").live = lambda: True
    frontend.Latest.submit = lambda latest, value: None if Sweep.silent else latest.work(value, False)


@dataclass
class Sweep:
    """What was moved and what went wrong."""

    silent = False  # of all sweeps: a control goes back to its place without being drawn
    boxes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def sweep() -> None:
    """Move every control to both ends, one at a time; write what was found beside the run's other files."""
    import ipywidgets

    found = Sweep()
    boxes = [w for w in list(ipywidgets.widgets.widget._instances.values()) if set(getattr(w, "_dom_classes", ())) & set(BOXES)]
    for box in boxes:
        found.boxes += 1
        rest = _shown(box)
        for control in _controls(box):
            _move(box, control, f"panel {found.boxes}, {control.description or control.tooltip}", rest, found)
    write_json(Path(os.environ["NSW_RUN_DIR"]) / REPORT, vars(found))


def _move(box: Any, control: Any, name: str, rest: tuple, found: Sweep) -> None:
    """Move one control to both ends and back; `rest` is what its box shows while all of them are at their places."""
    start, ends = control.value, _ends(control)
    seen, began = [], time.perf_counter()
    for end in ends:
        try:
            control.value = end
        except Exception as error:  # whatever a callback raises is what is looked for; the other controls are moved as well
            found.problems.append(f"{name} = {end!r} raised {type(error).__name__}: {error}")
        seen.append(_shown(box))
        found.problems += [f"{name} = {end!r}: {text}" for text in _texts(box) if 'role="alert"' in text]
    Sweep.silent, control.value, Sweep.silent = True, start, False
    found.seconds[name] = round(time.perf_counter() - began, 3)
    turns = "nsw-weights" in box._dom_classes and hasattr(control, "options")  # it says whose weights the sliders show
    if seen and not turns and all(picture == rest for picture in seen):
        found.problems.append(f"{name}: nothing changes between {ends[0]!r}, {start!r} and {ends[-1]!r}")


def _inside(widget: Any) -> Iterator[Any]:
    """Yield a widget and all that it holds."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from _inside(child)


def _controls(box: Any) -> list[Any]:
    """Return a box's sliders, checkboxes, lists and what words are typed into; no button of a player."""
    import ipywidgets

    kinds = (ipywidgets.IntSlider, ipywidgets.FloatSlider, ipywidgets.Checkbox, ipywidgets.Dropdown, ipywidgets.Combobox)
    return [w for w in _inside(box) if isinstance(w, kinds)]


def _ends(control: Any) -> tuple:
    """Return the two ends of a control that can be moved."""
    if hasattr(control, "options"):
        values = [value for _, value in control._options_full] if hasattr(control, "_options_full") else control.options
        return (values[0], values[-1]) if len(values) > 1 else ()
    return (False, True) if isinstance(control.value, bool) else (control.min, control.max)


def _shown(box: Any) -> tuple:
    """Return what a box shows below its controls: pictures, charts and words."""
    return (*_texts(box), *(repr(w.outputs) for w in _inside(box) if hasattr(w, "outputs")), *_bars(box))


def _texts(box: Any) -> list[str]:
    import ipywidgets

    return [w.value for w in _inside(box) if isinstance(w, ipywidgets.HTML)]


def _bars(box: Any) -> list[str]:
    """Return the pictures of dividers, which hold them as bytes."""
    from nsw.widgets.comparison import ComparisonBar

    return [repr((w.left, w.right)) for w in _inside(box) if isinstance(w, ComparisonBar)]
