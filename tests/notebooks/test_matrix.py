"""Each of the twenty-five conversions of notebook 10 works: at `smoke` what comes out is above a floor of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "10_pvd.ipynb"
# PSNR in dB against photographs, {teacher: {student: floor}}: half-way between the lowest of three seeds and the highest that
# the same conversion has after a single step, so that half of what training gains is the margin
FLOORS = {
    "hash": dict(hash=16.6, mlp=17.4, vm=15.8, dense=17.0, splats=18.2),
    "mlp": dict(hash=16.5, mlp=17.0, vm=15.3, dense=15.5, splats=16.5),
    "vm": dict(hash=16.7, mlp=17.2, vm=15.2, dense=16.0, splats=17.0),
    "dense": dict(hash=16.6, mlp=16.6, vm=15.6, dense=16.5, splats=17.8),
    "splats": dict(hash=14.9, mlp=15.0, vm=13.6, dense=14.6, splats=17.4),
}
PAIRS = [(teacher, student) for teacher, row in FLOORS.items() for student in row]


@pytest.fixture(scope="module")
def conversions(at_smoke) -> dict[tuple[str, str], dict]:
    """Return the entries of the matrix that the notebook keeps, by teacher and student."""
    job = at_smoke(NOTEBOOK)
    assert job.outcome.status == "ok", job.outcome.reason
    entries = json.loads((job.folder / "matrix.json").read_text())["conversions"]
    return {(entry["teacher"], entry["student"]): entry for entry in entries}


def test_the_matrix_is_whole(conversions):
    assert set(conversions) == set(PAIRS)


@pytest.mark.parametrize("teacher, student", PAIRS)
def test_a_conversion_keeps_its_floor(conversions, teacher, student):
    assert conversions[teacher, student]["psnr"] >= FLOORS[teacher][student]
