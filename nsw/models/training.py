"""How the bundled small networks are trained: a loop that goes on where it was stopped, and what is written beside the weights."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nsw.models.state import load_state, save_state, write_json


def fit(model: nn.Module, terms: Callable[[int], dict[str, Tensor]], n_steps: int, lr: float, checkpoint: Path) -> None:
    """Minimise the sum of `terms(step)` with AdamW; the state is kept in `checkpoint`, from which a repeated call goes on."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, n_steps, pct_start=0.1)
    objects, first, saved = {"model": model, "optimizer": optimizer, "schedule": schedule}, 0, time.monotonic()
    if checkpoint.is_file():
        state = load_state(checkpoint, "checkpoint")
        first = state["step"]
        for name, thing in objects.items():
            thing.load_state_dict(state[name])
    for step in range(first, n_steps):
        values = terms(step)
        optimizer.zero_grad(set_to_none=True)
        sum(values.values()).backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(step, {name: round(value.item(), 4) for name, value in values.items()}, flush=True)
        if time.monotonic() - saved > 15 or step == n_steps - 1:
            states = {name: thing.state_dict() for name, thing in objects.items()}
            save_state(checkpoint, {"step": step + 1, **states}, "checkpoint")
            saved = time.monotonic()


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write what is known of the weights in a folder: licence, facts, and their SHA-256."""
    from nsw.scenes.make.making import LICENCE

    weights = (folder / "model.safetensors").read_bytes()
    files = {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    write_json(folder / "manifest.json", {"format": 1, "name": folder.name, "licence": LICENCE, **facts, "files": files})
