"""Each notebook is executed once at `smoke`, whichever tests ask for what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import slider_sweep

from nsw.runs import headless
from nsw.runs.screen import Screen


@pytest.fixture(scope="session")
def at_smoke(tmp_path_factory) -> Callable[[Path], headless.Job]:
    """Return a function from a notebook to its finished job; controls are moved after the last cell."""
    jobs: dict[Path, headless.Job] = {}

    def job_of(path: Path) -> headless.Job:
        if path not in jobs:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("NSW_RUNS", str(tmp_path_factory.mktemp(path.stem)))
                patch.setattr(headless, "read_notebook", slider_sweep.with_sweep)
                (job,) = headless.plan([str(path)], preset="smoke")
                jobs[path] = headless.execute(job, Screen())
                job.execution = None  # it holds the executed notebook with all its pictures
        return jobs[path]

    return job_of
