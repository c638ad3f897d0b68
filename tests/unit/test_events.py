"""Pause, Stop and the viewer answer while the training cell is running, in a real kernel."""

from __future__ import annotations

import sys
import time

import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

from nsw.runs.events import answer_at_once

TRAIN = """
import time, torch, nsw
run = nsw.start("demo", preset="smoke", out=r"{folder}")
model = torch.nn.Linear(1, 1)
for step in run.steps(600, save={{"model": model}}):
    time.sleep(0.05)
    run.record(at=time.monotonic())
steps, at = run.history("at")
print("GAP", max(b - a for a, b in zip(at, at[1:])), "LAST", steps[-1], flush=True)
"""

TURN = """
import time, torch
from nsw import widgets
from nsw.cameras import orbit
from nsw.renderers.render import Render
def render(cameras):
    picture = torch.rand(1, cameras.height, cameras.width, 3)
    return Render(picture, picture[..., 0], picture[..., 0])
view = widgets.viewer(render, orbit(4, radius=3.0, width=32, height=32), alt="noise", size=32)
seen, end = [], time.monotonic() + 30
view.on_change.append(seen.append)
print("TRAINING", flush=True)
while time.monotonic() < end and len(seen) < 3:
    time.sleep(0.01)
turned = [float((a.cam_from_world - b.cam_from_world).abs().max()) for a, b in zip(seen, seen[1:])]
print("SEEN", len(seen), "TURNED", min(turned, default=0.0), "LAST", flush=True)
"""


class Front:
    """As much of a notebook front end as a click needs."""

    def __init__(self, client) -> None:
        self.client, self.buttons, self.frame, self.text = client, {}, "", ""

    def read(self, until, seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            message = self.client.get_iopub_msg(timeout=max(deadline - time.monotonic(), 0.1))
            content = message["content"]
            state = content.get("data", {}).get("state", {}) if message["msg_type"] in ("comm_open", "comm_msg") else {}
            if state.get("description") in ("Pause", "Stop", "Continue"):
                self.buttons[state["description"]] = content["comm_id"]
            if "css_width" in state:
                self.frame = content["comm_id"]
            if message["msg_type"] in ("stream", "error"):
                self.text += content.get("text") or "\n".join(content["traceback"])

    def send(self, comm: str, **data) -> None:
        self.client.shell_channel.send(self.client.session.msg("comm_msg", {"comm_id": comm, "data": data}))

    def click(self, name: str) -> None:
        self.send(self.buttons[name], method="custom", content={"event": "click"})

    def drag(self, kind: str, x: float) -> None:
        self.send(self.frame, method="custom", content={"type": kind, "x": x, "y": 9.0, "button": 1, "buttons": [1]})

    def confirm(self, frame: int) -> None:
        """Say that a picture has arrived, and that it is on the screen."""
        feedback = {"index": frame, "timestamp": time.time(), "localtime": time.time()}
        self.send(self.frame, method="update", state={"_has_visible_views": True, "_frame_feedback": feedback})


@pytest.fixture
def front():
    manager = KernelManager(kernel_name="python3")
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=40"]
    manager._kernel_spec = KernelSpec(argv=argv, display_name="Python 3", language="python")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    yield Front(client)
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_pause_continue_and_stop_while_the_cell_runs(front, tmp_path):
    front.client.execute(TRAIN.format(folder=tmp_path), allow_stdin=True)
    front.client.execute("print('NEXT CELL')", allow_stdin=True)
    front.read(lambda: {"Pause", "Stop"} <= set(front.buttons) or "Error" in front.text)
    time.sleep(0.5)
    front.click("Pause")
    front.read(lambda: "Continue" in front.buttons)
    time.sleep(1.0)  # the gap that is looked for below
    front.click("Continue")
    time.sleep(0.5)
    front.click("Stop")
    front.read(lambda: "NEXT CELL" in front.text)
    assert "train stopped at step" in front.text and "checkpoint kept" in front.text, front.text
    words = front.text.partition("GAP ")[2].split()
    assert float(words[0]) > 0.9 and int(words[2]) < 599
    assert (tmp_path / "checkpoints" / "train.safetensors").is_file()


def test_the_viewer_turns_while_the_cell_runs(front):
    front.client.execute(TURN, allow_stdin=True)
    front.read(lambda: "TRAINING" in front.text or "Error" in front.text)
    front.drag("pointer_down", 5.0)
    for k in range(40):
        front.drag("pointer_move", 6.0 + k)
        front.confirm(k)
        time.sleep(0.05)
    front.read(lambda: "LAST" in front.text or "Error" in front.text)
    words = front.text.partition("SEEN ")[2].split() or pytest.fail(front.text)
    assert int(words[0]) >= 3 and float(words[2]) > 0, front.text


def test_outside_a_kernel_nothing_happens():
    assert answer_at_once() is False
