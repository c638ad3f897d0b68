"""A JupyterLab of its own for the browser tests: free port, own folders; and pages that remember their errors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
]
ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition, seconds: float, what):
    """Return the first answer that is not None or False; say what was awaited (a text, or a function that finds it)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = condition()
        if answer is not None and answer is not False:
            return answer
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:.0f} s for {what() if callable(what) else what}")


class Watched:
    """A page that remembers its errors and every request that leaves this machine."""

    def __init__(self, page):
        self.page, self.errors, self.outside = page, [], []
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: self.errors.append(f"{e}\n{e.stack}"))
        page.on("request", lambda r: self.outside.append(r.url) if not self._local(r.url) else None)

    @staticmethod
    def _local(url: str) -> bool:
        return url.startswith(("http://127.0.0.1:", "http://localhost:", "ws://127.0.0.1:", "data:", "blob:"))


def assert_outputs_are_sound(page) -> None:
    """Assert that no output of the open notebook failed to render: no script error, no broken picture."""
    assert "Javascript Error" not in page.locator(".jp-Notebook").text_content()
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count() == 0
    broken = """() => [...document.querySelectorAll('.jp-OutputArea img')]
        .filter(img => img.src && img.complete && !img.naturalWidth).map(img => img.alt)"""
    assert page.evaluate(broken) == []


class Lab:
    """A running JupyterLab over a folder."""

    def __init__(self, folder: Path):
        self.folder, self.port, self.token = folder / "work", free_port(), "browser-test"
        self.folder.mkdir(parents=True)
        settings = folder / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        quiet = {"fetchNews": "false", "checkForUpdates": False}
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet), encoding="utf-8")
        paths = {
            name: str(folder / name.split("_")[1].lower())
            for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
        }
        # Kernels and labextensions of this environment come first; the user's own Jupyter folders stay out of it.
        environment = {**os.environ, **paths, "NSW_RUNS": str(folder / "runs"), "IPYTHONDIR": str(folder / "ipython")}
        self.runs = folder / "runs"
        options = ["--no-browser", "--allow-root", f"--port={self.port}", "--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0"]
        options += [f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.folder}"]
        self.log = (folder / "lab.log").open("w", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], stdout=self.log, stderr=self.log, env=environment, cwd=self.folder
        )
        until(self._answers, 90, f"JupyterLab on port {self.port}, see {self.log.name}")

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"JupyterLab ended with {self.process.returncode}, see {self.log.name}"
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api?token={self.token}", timeout=5).status == 200
        except (urllib.error.URLError, OSError):
            return False

    def open(self, page, notebook: str) -> None:
        """Open a notebook in a fresh workspace and wait for its kernel."""
        page.goto(f"http://127.0.0.1:{self.port}/lab/workspaces/{Path(notebook).stem}/tree/{notebook}?token={self.token}")
        page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell", timeout=90_000)
        page.wait_for_selector("text=| Idle", timeout=90_000)

    def menu(self, page, name: str) -> None:
        page.click(".lm-MenuBar-itemLabel:text-is('Run')")
        page.click(f".lm-Menu-itemLabel:text-is('{name}')")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()
