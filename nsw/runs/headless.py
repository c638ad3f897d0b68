"""`nsw run`: notebooks executed without a browser, one folder and one line of the final table each."""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nsw.errors import InputError
from nsw.models.state import read_json, write_bytes, write_json
from nsw.runs import folders, measured, provenance
from nsw.runs.claims import HOLDS, Claim, meets, stops
from nsw.runs.kernel import Execution, Outcome
from nsw.runs.notebooks import all_notebooks, check_parameters, find_notebook, parameters, read_notebook, slug_of
from nsw.runs.screen import Screen
from nsw.runs.table import coloured, text_table

LIMIT_MINUTES = {"smoke": 5.0, "laptop": 45.0, "gpu": 24 * 60.0}


@dataclass
class Job:
    """One notebook with its parameters, the folder it writes to and how it went."""

    path: Path
    slug: str
    preset: str
    seed: int
    values: dict[str, Any]
    folder: Path
    limit: float
    execution: Execution | None = None
    outcome: Outcome | None = None
    claims: dict[str, Any] | None = field(default=None)

    @property
    def name(self) -> str:
        return f"{self.path.stem} ({self.preset}, seed {self.seed})"

    @property
    def output(self) -> Path:
        return self.folder / self.path.name

    @property
    def good(self) -> bool:
        return self.outcome is not None and self.outcome.status == "ok" and not self.failed_claims

    @property
    def failed_claims(self) -> list[str]:
        return [row["title"] for row in (self.claims or {}).get("claims", []) if stops(row)]

    @property
    def verdict(self) -> tuple[str, str]:
        """How the job went, and the colour to say it in."""
        if self.outcome is None:
            return "not run", "yellow"
        if self.failed_claims:
            return "claims not reproduced", "red"
        words = {"ok": ("done", "green"), "failed": ("failed", "red"), "timeout": ("time limit", "red")}
        return {**words, "died": ("kernel died", "red"), "stopped": ("stopped", "yellow")}[self.outcome.status]

    @functools.cached_property
    def expected_seconds(self) -> float | None:
        return (measured.budget(self.slug, self.preset) or {}).get("seconds")


def plan(
    names: Sequence[str],
    *,
    preset: str | None = None,
    given: Mapping[str, str] | None = None,
    every: bool = False,
    seeds: Sequence[int] = (),
    timeout: float | None = None,
) -> list[Job]:
    """Return the jobs, everything checked before the first kernel starts.

    Args:
        names: notebooks by path, file name or slug.
        preset: value for the parameter `preset`; by default the notebook's own.
        given: further parameters by name, as text.
        every: all numbered notebooks.
        seeds: one job for each.
        timeout: minutes a job may take; by default 5 at smoke, 45 at laptop, a day at gpu.

    Raises:
        InputError: for an unknown notebook, parameter or preset, or a value of the wrong type.
    """
    given = dict(given or {})
    if every and names:
        raise InputError("Give notebooks or --all, not both.")
    if preset is not None and given.setdefault("preset", preset) != preset:
        raise InputError(f"The preset is given twice, as {preset} and as {given['preset']}.")
    if seeds and "seed" in given:
        raise InputError("The seed is given twice: use --seeds or -p seed, not both.")
    if timeout is not None and not timeout > 0:
        raise InputError(f"The time limit is {timeout:g} minutes: expected more than 0.")
    paths = all_notebooks() if every else [find_notebook(name) for name in names]
    if not paths:
        raise InputError(
            f"Which notebook? Name one, or use --all: {', '.join(p.stem for p in all_notebooks()) or 'none was found'}."
        )
    jobs = []
    for path in dict.fromkeys(paths):
        for seed in dict.fromkeys(seeds) or [None]:
            jobs.append(_job(path, given if seed is None else {**given, "seed": str(seed)}, timeout))
    return jobs


def _job(path: Path, given: Mapping[str, str], timeout: float | None) -> Job:
    known = parameters(read_notebook(path))
    values = check_parameters(path, known, given)
    now = {name: values.get(name, parameter.default) for name, parameter in known.items()}
    preset, seed = now.get("preset", "laptop"), now.get("seed", 0)
    slug = slug_of(path)
    folder = folders.run_dir(slug, preset, seed)
    other = [
        f"{name}-{value}"
        for name, value in sorted(values.items())
        if name not in ("preset", "seed") and value != known[name].default
    ]
    if other:  # a changed setting is another experiment: it must not overwrite, or count as, the plain one
        folder = folder.with_name(
            f"{folder.name}-{'-'.join(''.join(c if c.isalnum() or c in '.-' else '_' for c in o) for o in other)}"[:120]
        )
    limit = 60.0 * (timeout if timeout is not None else LIMIT_MINUTES.get(preset, 45.0))
    return Job(path, slug, preset, seed, values, folder, limit)


def execute(job: Job, screen: Screen, *, resume: bool = False, threads: int | None = None) -> Job:
    """Execute one job; write the executed notebook and `budget.json` to its folder."""
    from papermill.parameterize import parameterize_notebook

    folders.make_folder(job.folder)
    notebook = read_notebook(job.path)
    notebook.metadata["papermill"] = {}
    notebook = parameterize_notebook(notebook, job.values, language="python", kernel_name="python3")
    environment = {"NSW_RUN_DIR": str(job.folder), "NSW_RESUME": "1" if resume else "0", "NSW_HEADLESS": "1"}
    if threads:
        counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
        environment |= dict.fromkeys(counts, str(threads))
    began, wall = time.monotonic(), time.time()

    def listen(done: int, total: int, line: str) -> None:
        screen.update(job, began, done, total, line)

    job.execution = Execution(notebook, job.path.parent, environment, job.limit, listen)
    screen.begin(job)
    job.outcome = job.execution.run()
    import nbformat

    write_bytes(job.output, nbformat.writes(notebook).encode("utf-8"))
    claims = job.folder / "claims.json"
    if claims.is_file() and claims.stat().st_mtime >= wall - 1.0:  # an older file belongs to an earlier run
        job.claims = read_json(claims, "claim table")
    write_json(job.folder / "budget.json", _budget(job))
    screen.end(job)
    return job


def _budget(job: Job) -> dict[str, Any]:
    assert job.outcome is not None
    return {
        "notebook": job.path.name,
        "preset": job.preset,
        "seed": job.seed,
        "parameters": job.values,
        "status": job.outcome.status,
        "reason": job.outcome.reason,
        "seconds": round(job.outcome.seconds, 2),
        "peak_mb": round(job.outcome.peak_mb, 1),
        "hardware": provenance.hardware(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def run_jobs(jobs: Sequence[Job], *, parallel: int = 1, resume: bool = False) -> bool:
    """Execute jobs, `parallel` at a time; return whether all of them were finished (False after Ctrl-C).

    The first Ctrl-C lets the training loops write their checkpoints; the second ends the kernels.
    """
    parallel = min(parallel, len(jobs))
    threads = max(1, provenance.cores() // parallel) if parallel > 1 else None
    screen = Screen()
    pool = ThreadPoolExecutor(parallel)
    waiting: set[Future[Job]] = {pool.submit(execute, job, screen, resume=resume, threads=threads) for job in jobs}
    interrupted = 0
    while waiting:
        try:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            screen.tick()
            for future in done:
                if not future.cancelled():
                    future.result()
        except KeyboardInterrupt:
            interrupted += 1
            print("\nStopping after the running step (again to end at once).", file=sys.stderr)
            for future in waiting:
                future.cancel()
            for job in jobs:
                if job.execution is not None and job.outcome is None:
                    job.execution.interrupt() if interrupted == 1 else job.execution.kill()
    pool.shutdown()
    return not interrupted


def report(jobs: Sequence[Job]) -> str:
    """Return the table at the end, what was written, and the reason of everything that went wrong."""
    rows = []
    for job in jobs:
        outcome = job.outcome or Outcome()
        claimed = (job.claims or {}).get("claims", [])
        held = sum(row["verdict"] == HOLDS for row in claimed)
        asserted = held + len(job.failed_claims)
        numbers = [f"{outcome.seconds:.1f}", f"{outcome.peak_mb:.0f}"] if job.outcome else ["", ""]
        word, colour = job.verdict
        rows.append(
            [
                job.path.stem,
                job.preset,
                str(job.seed),
                *numbers,
                f"{held}/{asserted}" if claimed else "none",
                coloured(word, colour),
            ]
        )
    lines = [text_table(["notebook", "preset", "seed", "seconds", "peak MB", "claims held", "verdict"], rows), "", *paired(jobs)]
    for job in jobs:
        if job.outcome is None:
            continue
        lines.append(f"{job.path.stem}: {_relative(job.output)}")
        videos = sorted(path for path in job.folder.glob("*") if path.suffix in (".mp4", ".gif"))
        lines += [f"  video   {_relative(path)}" for path in videos]
        lines += [f"  claims  {_relative(job.folder / 'claims.json')}"] if job.claims else []
        lines += [f"  {row['verdict']}: {row['title']}" for row in (job.claims or {}).get("claims", [])]
        lines += [f"  {coloured(job.outcome.reason, 'red')}"] if job.outcome.reason else []
    return "\n".join(lines)


def paired(jobs: Sequence[Job]) -> list[str]:
    """Return, for notebooks that ran with several seeds, each claim's gain over them, every seed against its own baseline."""
    groups: dict[tuple[str, str], dict[int, list[Claim]]] = {}
    for job in jobs:
        if job.claims:
            rows = [Claim(**row) for row in job.claims["claims"]]
            groups.setdefault((job.path.stem, job.preset), {})[job.seed] = rows
    lines = []
    for (name, preset), of_seed in groups.items():
        if len(of_seed) < 2:
            continue
        titles = dict.fromkeys(row.title for rows in of_seed.values() for row in rows)
        every = [[row for rows in of_seed.values() for row in rows if row.title == title] for title in titles]
        seeds = f"{name} ({preset}), gain over seeds {', '.join(map(str, of_seed))}"
        lines += [text_table([seeds, "mean", "range", "asked", "met"], [_over_seeds(rows) for rows in every]), ""]
    return lines


def _over_seeds(rows: Sequence[Claim]) -> list[str]:
    """Return a claim's line: mean and range of the gains that are numbers, what was asked, and how many runs met it."""
    gains = [row.gain for row in rows if row.gain is not None]
    mean = replace(rows[0], gain=statistics.fmean(gains)).measured if gains else "none"
    ends = f"{min(gains):.3g} to {max(gains):.3g}" if gains else "none"
    met = f"{sum(meets(row.gain, row.at_least, row.at_most) for row in rows)}/{len(rows)}" if rows[0].asked else ""
    return [rows[0].title, mean, ends, rows[0].asked, met]


def _relative(path: Path) -> str:
    cwd = Path.cwd()
    return str(path.relative_to(cwd)) if path.is_relative_to(cwd) else str(path)


def record(jobs: Sequence[Job]) -> None:
    """Add the good jobs, run with the notebook's own parameters, to `data/measured.json`."""
    for job in jobs:
        plain = set(job.values) <= {"preset", "seed"}
        if job.good and plain and job.outcome is not None:
            budget = _budget(job)
            claims = (job.claims or {}).get("claims", [])
            numbers = {name: budget[name] for name in ("seconds", "peak_mb", "hardware", "date")}
            measured.record(job.slug, job.preset, job.seed, claims=claims, **numbers)


def run(jobs: Sequence[Job], *, parallel: int = 1, resume: bool = False, save: bool = False) -> int:
    """Execute the jobs, print the table and return the exit status: 0, 1 when something failed, 130 after Ctrl-C."""
    if parallel < 1:
        raise InputError(f"-j is {parallel}: expected 1 or more notebooks at a time.")
    finished = run_jobs(jobs, parallel=parallel, resume=resume)
    print(report(jobs))
    if save:
        record(jobs)
    if not finished or any(job.outcome is not None and job.outcome.status == "stopped" for job in jobs):
        return 130
    return 0 if all(job.good for job in jobs) else 1
