"""Fetch public data sets."""

from __future__ import annotations

from pathlib import Path

DATASETS: dict = {}


def downloaded() -> dict[str, Path]:
    """Return the scenes already downloaded, by name."""
    return {}
