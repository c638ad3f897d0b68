"""What several of these tests start from."""

from __future__ import annotations

import pytest

from nsw.scenes import load
from nsw.scenes.bundled import data_dir


@pytest.fixture(scope="session")
def scene():
    """Return the bundled toys, 24 pixels wide."""
    if not (data_dir() / "toybox").is_dir():
        pytest.skip(f"the bundled scene toybox is not in {data_dir()}")
    return load("toybox", size=24)
