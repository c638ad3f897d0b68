"""`nsw board`: the claims of all runs as one table, the models they kept as another, and the gallery of executed notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsw.errors import InputError
from nsw.models.state import read_json
from nsw.runs import folders, model_table
from nsw.runs.claims import FAILS, HOLDS, stops
from nsw.runs.kept import kept_models
from nsw.runs.settings import PRESETS
from nsw.runs.table import coloured, short, text_table

COLOURS = {HOLDS: "green", FAILS: "red"}


@dataclass(frozen=True)
class Entry:
    """One run on disk.

    Attributes:
        folder: of the run.
        slug, preset, seed: as in its claims or budget.
        notebook: the executed notebook, or None for a run that was not made by `nsw run`.
        claims: the contents of claims.json, or None.
        budget: the contents of budget.json, or None.
    """

    folder: Path
    slug: str
    preset: str
    seed: int
    notebook: Path | None
    claims: dict[str, Any] | None
    budget: dict[str, Any] | None

    @property
    def rows(self) -> list[dict[str, Any]]:
        return (self.claims or {}).get("claims", [])

    @property
    def name(self) -> str:
        return self.notebook.stem if self.notebook else self.slug

    @property
    def status(self) -> str:
        """ "done", or what went wrong."""
        if any(stops(row) for row in self.rows):
            return FAILS
        status = (self.budget or {}).get("status", "ok")
        return "done" if status == "ok" else status

    @property
    def plain(self) -> bool:
        """Whether the notebook ran with its own parameters, preset and seed aside."""
        return set((self.budget or {}).get("parameters", {})) <= {"preset", "seed"}


def collect(root: Path | None = None) -> list[Entry]:
    """Return every run below `root` that has claims or an executed notebook, ordered by notebook, preset and seed.

    Raises:
        InputError: when a claims.json or budget.json is damaged.
    """
    root = root or folders.runs_dir()
    entries = []
    for folder in sorted({path.parent for name in ("claims.json", "budget.json") for path in root.glob(f"*/*/{name}")}):
        claims, budget = (_optional(folder / name) for name in ("claims.json", "budget.json"))
        about = claims or budget or {}
        notebook = folder / budget["notebook"] if budget and "notebook" in budget else None
        notebook = notebook if notebook is not None and notebook.is_file() else None
        preset, seed = about.get("preset", "laptop"), about.get("seed", 0)
        entries.append(Entry(folder, folder.parent.name, preset, seed, notebook, claims, budget))
    order = {preset: i for i, preset in enumerate(PRESETS)}
    return sorted(entries, key=lambda e: (e.name, order.get(e.preset, 9), e.seed, e.folder.name))


def _optional(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}: it was not written by nsw; remove it.")
    return value


def number(value: float | None, unit: str = "") -> str:
    """Return a number in four digits with its unit; a dash for None.

    >>> number(27.12345, "dB"), number(None)
    ('27.12 dB', '-')
    """
    return "-" if value is None else f"{short(value)} {unit}".rstrip()


def measured(row: dict[str, Any]) -> str:
    """Return what a claim's row measured, and the spread over the recorded seeds."""
    unit = "x" if row["measure"] == "ratio" else row["unit"]
    text = number(row["gain"], unit)
    recorded = row.get("recorded")
    if recorded and recorded["n"] > 1:
        text += f" ({recorded['min']:.3g} to {recorded['max']:.3g}, {recorded['n']} seeds)"
    return text


def claim_rows(entries: Sequence[Entry]) -> list[list[str]]:
    """Return one row a claim: notebook, preset, seed, claim, baseline, ours, measured, paper, verdict."""
    rows = []
    for entry in entries:
        for row in entry.rows:
            paper = " ".join(str(row[key]) for key in ("paper_value", "dataset", "hardware") if row[key])
            numbers = [number(row["baseline"], row["unit"]), number(row["ours"], row["unit"]), measured(row)]
            rows.append([entry.name, entry.preset, str(entry.seed), row["title"], *numbers, paper or "-", row["verdict"]])
    return rows


CLAIM_HEAD = ["notebook", "preset", "seed", "claim", "baseline", "ours", "measured", "paper", "verdict"]


def terminal(entries: Sequence[Entry]) -> str:
    """Return the tables of runs and claims for a terminal."""
    runs = []
    for entry in entries:
        budget = entry.budget or {}
        colour = "green" if entry.status == "done" else "red"
        seconds, memory = budget.get("seconds"), budget.get("peak_mb")
        times = [number(seconds), "-" if memory is None else f"{memory:.0f}"]
        runs.append([entry.name, entry.preset, str(entry.seed), *times, budget.get("date", "-"), coloured(entry.status, colour)])
    lines = [text_table(["notebook", "preset", "seed", "seconds", "peak MB", "date", "status"], runs)]
    rows = [
        [*row[:4], *row[6:8], coloured(row[8], COLOURS[row[8]]) if row[8] in COLOURS else row[8]] for row in claim_rows(entries)
    ]
    if rows:
        lines += ["", text_table([*CLAIM_HEAD[:4], *CLAIM_HEAD[6:]], rows)]
    return "\n".join(lines)


def board(out: Path | None = None, readme: bool = False, root: Path | None = None) -> int:
    """Print the tables, build the gallery and, if asked, write the README's tables and pictures anew.

    Args:
        out: folder of the gallery; by default board/ beside the runs.
        readme: also rewrite README.md of the checkout.
        root: folder of the runs.
    """
    from nsw.runs.gallery import build
    from nsw.runs.readme import update

    entries, models = collect(root), kept_models(root)
    if not entries and not models:
        raise InputError(f"There is no run in {root or folders.runs_dir()}: nsw run --all --preset smoke makes them.")
    tables = [terminal(entries)] if entries else []
    if models:
        tables.append(f"{text_table(model_table.HEAD, model_table.rows(models))}\n{model_table.NOTE}")
    print("\n\n".join(tables))
    page = build(entries, out or folders.runs_dir().parent / "board", models)
    print(f"\nGallery: {page}")
    if readme:
        checkout = folders.repo_dir()
        if checkout is None:
            raise InputError("There is no README.md to write: nsw is not running from a checkout.")
        for path in update(entries, checkout, models):
            print(f"Written: {path}")
    return 0
