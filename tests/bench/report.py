"""Where measurements are kept: one page each under `results/`, with the machine and the date."""

from __future__ import annotations

import datetime
from pathlib import Path

FOLDER = Path(__file__).parent / "results"


def write(name: str, title: str, machine: str, lines: list[str]) -> None:
    """Write `results/name.md`."""
    FOLDER.mkdir(exist_ok=True)
    head = [f"# {title}, measured {datetime.date.today().isoformat()}", "", f"{machine}.", ""]
    (FOLDER / f"{name}.md").write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
