"""Fixtures of the browser tests: a Chromium driven by Playwright, and a JupyterLab over an empty folder."""

from __future__ import annotations

import contextlib

import pytest
from install import find_browser
from lab_server import FLAGS, Lab, Watched


@pytest.fixture(scope="module")  # Playwright keeps an event loop running in this thread, which other tests must not find
def browser():
    path = find_browser()
    if path is None:
        pytest.skip("no chromium or chrome found: install one, or name it in NSW_BROWSER")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def watched(browser):
    """Open watched pages; close them afterwards."""
    with contextlib.ExitStack() as open_pages:

        def new(width: int = 1300, height: int = 1000) -> Watched:
            context = browser.new_context(viewport={"width": width, "height": height})
            open_pages.callback(context.close)
            return Watched(context.new_page())

        yield new


@pytest.fixture(scope="module")
def lab(tmp_path_factory, browser):
    running = Lab(tmp_path_factory.mktemp("lab"))
    yield running
    running.close()
