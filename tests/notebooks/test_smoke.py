"""Every notebook runs from the first cell to the last at `smoke`, solutions included, and its claims hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsw.runs import headless
from nsw.runs.screen import Screen

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
LIMIT_MINUTES = 5.0  # the budget is 45 s on two free cores; a shared machine may be several times slower
LIMIT_MB = 2048.0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebook_at_smoke(path, tmp_path, monkeypatch):
    monkeypatch.setenv("NSW_RUNS", str(tmp_path))
    (job,) = headless.plan([str(path)], preset="smoke", timeout=LIMIT_MINUTES)
    headless.execute(job, Screen())
    assert job.outcome.status == "ok", job.outcome.reason
    assert job.outcome.peak_mb < LIMIT_MB
    if not path.name.startswith("00_"):
        assert job.claims is not None and job.claims["certified"] and job.claims["claims"]
        assert not job.failed_claims
    assert job.output.is_file() and (job.folder / "budget.json").is_file()
