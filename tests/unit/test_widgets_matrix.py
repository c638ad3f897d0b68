"""The matrix whose entries are clicked, and the chart of a training in stages."""

from __future__ import annotations

import numpy as np
import pytest

from nsw import widgets
from nsw.errors import InputError
from nsw.widgets import matrix_panel
from nsw.widgets.svg_still import svg

VALUES = {"hash": {"hash": 20.0, "vm": 18.0, "mlp": 17.0}, "vm": {"hash": 19.0, "vm": 18.5, "mlp": 16.0}}


def picture(teacher: str, student: str) -> dict:
    return {teacher: np.zeros((8, 8, 3)), f"to {student}": np.full((8, 8, 3), 0.5 if student == "vm" else 1.0)}


def test_a_heat_map_has_its_names_and_numbers():
    sheet = matrix_panel.heat_sheet(VALUES, None, ("teacher", "student"), "dB")
    width, height = matrix_panel.CELL
    assert sheet.shape == (3 * height, 4 * width, 3)

    def at(i, j):
        return sheet[i * height + 3, j * width + 3].astype(int)

    assert at(0, 0).tolist() == [255] * 3 and at(1, 1).sum() > at(1, 2).sum() > at(2, 3).sum()
    assert (sheet[:height, width:] < 100).any() and (sheet[height : 2 * height, :width] < 100).any()


def test_without_a_front_end_a_still_shows_the_matrix_and_one_entry(monkeypatch):
    shown = []
    monkeypatch.setattr("nsw.widgets.pictures.emit", lambda data, *rest, **more: shown.append((data, rest)))
    notes = {row: dict.fromkeys(line, "1 s") for row, line in VALUES.items()}
    widgets.matrix(picture, VALUES, alt="All conversions as a heat map.", notes=notes, unit="dB")
    ((data, rest),) = shown
    assert data["image/png"] and "teacher hash, student vm" in data["text/html"] and rest[0] is None
    with pytest.raises(InputError, match="same columns"):
        widgets.matrix(picture, {"a": {"b": 1.0}, "c": {"d": 1.0}}, alt="Rows that do not fit each other.")


def test_clicks_and_lists_choose_the_same_entry():
    asked = []

    def draw(**chosen):
        return asked.append(chosen) or np.zeros((4, 4, 3))

    sheet = matrix_panel.heat_sheet(VALUES, None, ("teacher", "student"))
    names = (list(VALUES), list(VALUES["hash"]))
    box = matrix_panel._live(draw, np.zeros((4, 4, 3)), sheet, names, ("teacher", "student"), (0, 1), "A matrix of conversions.")
    picker, teacher, student = box.children[:3]
    assert picker.picked == [1, 2] and (picker.rows, picker.columns) == (3, 4)
    picker.picked = [2, 3]
    assert (teacher.value, student.value) == ("vm", "mlp") and asked[-1] == {"teacher": "vm", "student": "mlp"}
    student.value = "hash"
    assert picker.picked == [2, 1] and asked[-1] == {"teacher": "vm", "student": "hash"}
    picker.picked = [0, 0]  # a name, not an entry
    assert picker.picked == [1, 1] and asked[-1] == {"teacher": "hash", "student": "hash"}


def test_stages_are_bands_between_their_ends():
    curves = {"density": ([0, 10, 20], [1.0, 0.1, 0.01])}
    chart = widgets.staged(curves, {"one": 5, "two": 5, "three": 20}, x="step", y="gap", log_y=True)
    bands = [trace for trace in chart.data if trace.fill == "toself"]
    assert [(band.name, min(band.x), max(band.x)) for band in bands] == [("one", 0, 5), ("three", 5, 20)]
    drawn = svg(chart, "a training in two stages")
    assert drawn.count('fill-opacity="0.15"') == 2 and "three" in drawn
