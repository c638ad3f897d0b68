"""Checkpoints of a training loop: objects with `state_dict`, random states and the log so far."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nsw.errors import InputError
from nsw.models.state import load_state, save_state


def random_states(generator: torch.Generator | None = None) -> dict[str, Any]:
    """Return the states of torch's, numpy's and Python's generators, and of the run's own."""
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}
    if generator is not None:
        states["generator"] = generator.get_state()
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: Mapping[str, Any], generator: torch.Generator | None = None) -> None:
    """Put every generator back where `random_states` found it."""
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    if generator is not None and "generator" in states:
        generator.set_state(states["generator"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])


def checkpoint_path(folder: Path, name: str) -> Path:
    """Return the file of the loop `name` of a run."""
    return folder / "checkpoints" / f"{name}.safetensors"


def save_checkpoint(path: Path, objects: Mapping[str, Any], about: Mapping[str, Any], generator: torch.Generator | None) -> None:
    """Write the objects' states, the random states and `about` to one file, replaced in one step.

    Raises:
        InputError: when the file cannot be written; an earlier checkpoint is then untouched.
    """
    state = {
        "objects": {name: thing.state_dict() for name, thing in objects.items()},
        "random": random_states(generator),
        "about": dict(about),
    }
    save_state(path, state, "checkpoint")


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what `save_checkpoint` wrote: {"objects", "random", "about"}."""
    stored = load_state(path, "checkpoint", device)
    if not isinstance(stored, dict) or set(stored) != {"objects", "random", "about"}:
        raise InputError(f"{path} is not a checkpoint of a training loop: remove it and start again.")
    return stored


def restore_objects(objects: Mapping[str, Any], stored: Mapping[str, Any], path: Path) -> None:
    """Load states into the objects, modules before optimisers.

    A module may replace its parameters while loading (a grid of another size, more splats): optimisers are then pointed
    at the new ones before their own state is loaded.

    Raises:
        InputError: when names or shapes do not match.
    """
    if set(objects) != set(stored):
        raise InputError(
            f"{path} holds {', '.join(sorted(stored)) or 'nothing'}, the loop saves {', '.join(sorted(objects)) or 'nothing'}: "
            "start again with resume=False."
        )
    optimizers = [name for name, thing in objects.items() if isinstance(thing, torch.optim.Optimizer)]
    modules = [name for name in objects if name not in optimizers]
    named = {name: objects[name] for name in modules if isinstance(objects[name], torch.nn.Module)}
    before = {(name, key): value for name, module in named.items() for key, value in module.named_parameters()}
    try:
        for name in modules:
            objects[name].load_state_dict(stored[name])
        after = {(name, key): value for name, module in named.items() for key, value in module.named_parameters()}
        replaced = {id(old): after[key] for key, old in before.items() if key in after and after[key] is not old}
        for name in optimizers:
            for group in objects[name].param_groups:
                group["params"] = [replaced.get(id(p), p) for p in group["params"]]
            objects[name].load_state_dict(stored[name])
    except (RuntimeError, ValueError, KeyError) as error:
        last = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{path} does not fit the loop's objects ({last}): start again with resume=False.") from error
