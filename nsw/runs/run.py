"""A run: one notebook, one preset, one seed, one folder."""

from __future__ import annotations

import contextlib
import html
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import nsw
from nsw.errors import InputError
from nsw.models.state import read_json, write_json
from nsw.runs import folders, provenance
from nsw.runs.claims import Claim, Claims, make_claim
from nsw.runs.measure import Timer, numbers, peak_memory_mb, seed_everything
from nsw.runs.model_card import TrainedSeconds
from nsw.runs.settings import PRESETS, Settings, check_preset, check_seed

CHECKPOINT_SECONDS = 30.0


class Run:
    """Seed, progress, stop and resume, provenance and claims of one run. Made by `nsw.start`.

    Attributes:
        slug, preset, seed: which notebook, at which size, with which random numbers.
        device: where tensors live; backend: "cpu kernels" or "gsplat + nerfacc".
        folder: everything this run writes.
        generator: seeded generator on `device`; its state is part of every checkpoint.
        resume: whether loops continue from their checkpoints.
        log: one dict a step: "loop", "step" and the values of `loss` and `record`.
        trained: seconds of the loops, by the models they saved.
        claims: the claim table.
        provenance: versions, commit, machine, settings, scene.
        checkpoint_seconds: time between two checkpoints of a loop.
    """

    def __init__(self, slug: str, preset: str, seed: int, folder: Path, device: torch.device, resume: bool) -> None:
        self.slug, self.preset, self.seed, self.folder, self.device, self.resume = slug, preset, seed, folder, device, resume
        self.backend = "gsplat + nerfacc" if device.type == "cuda" else "cpu kernels"
        self.generator = seed_everything(seed, device)
        self.provenance: dict[str, Any] = {"slug": slug, "preset": preset, "seed": seed, "backend": self.backend}
        self.provenance |= {**provenance.collect(device), "settings": {}, "scenes": {}}
        self.claims = Claims()
        self.log: list[dict[str, Any]] = []
        self.timings: dict[str, float] = {}
        self.trained = TrainedSeconds()
        self.checkpoint_seconds = CHECKPOINT_SECONDS
        self._loop, self._step, self._depth = "", 0, 0
        self._another_scene = False
        self._began = time.monotonic()

    def __repr__(self) -> str:
        about = f"{self.slug}, preset {self.preset}, seed {self.seed}, {self.device} ({self.backend})"
        return f"{about}{', resumed' if self.resume else ''}\n{self.provenance['hardware']}\n{self.folder}"

    def _repr_html_(self) -> str:
        first, *rest = (html.escape(line) for line in repr(self).splitlines())
        return f'<div><b>{first}</b><br><span style="opacity:.75;font-size:90%">{"<br>".join(rest)}</span></div>'

    def settings(self, **rows: Sequence[Any]) -> Settings:
        """Return the preset's column of a table of (smoke, laptop, gpu) rows, shown with that column marked.

        >>> run = nsw.start("demo", preset="smoke", out=getfixture("tmp_path"))
        demo, preset smoke, seed 0, ...
        >>> run.settings(n_steps=(100, 2000, 30000)).n_steps
                  [smoke]  laptop  gpu
        n_steps   100      2000    30000
        100
        """
        chosen = Settings(self.preset, rows)
        self.provenance["settings"] |= chosen.as_dict()
        self._write_about()
        _display(chosen)
        return chosen

    def use_scene(self, scene: Any, claims_on: str = "", instead: str = "") -> Any:
        """Note the scene's name, size and digest in the provenance, print what its reader decided, and return the scene.

        Args:
            claims_on: the bundled scene on which the claims' thresholds were set, "" for any. After another one, and after a
                scene of the user's own, claims are shown and none is asserted.
            instead: what else stands in for what the thresholds were set on ("another teacher"), "" for nothing: the same holds.
        """
        height, width = scene.images.shape[1:3]
        about = {"digest": scene.digest, "frames": len(scene), "size": [width, height], "source": str(scene.source or "")}
        if scene.notes and scene.name not in self.provenance["scenes"]:
            print(*scene.notes, sep="\n")
        elsewhere = claims_on not in ("", scene.name)
        which = "a scene of your own" if scene.is_own else f"another scene than {claims_on}" if elsewhere else instead
        if which and not self._another_scene:
            self._another_scene = True
            print(f"{which[0].upper() + which[1:]}: the claims below are measured and shown, none is asserted.")
        self.provenance["scenes"][scene.name] = about
        self._write_about()
        return scene

    def steps(
        self,
        n: int,
        name: str = "train",
        save: Mapping[str, Any] | None = None,
        picture: Callable[[], Any] | None = None,
        every: int | None = None,
    ) -> Iterator[int]:
        """Yield step numbers 0 ... n - 1 with progress, a live picture, pause and stop, checkpoints and resume.

        With `resume`, a finished loop restores its final state and yields nothing, and an interrupted one continues from its
        last checkpoint with the same result, as long as a step depends on `step`, on `save` and on random states only.

        Args:
            n: number of steps.
            name: names the loop in the log and its checkpoint file; one name a loop.
            save: objects with `state_dict` and `load_state_dict`; read anew for each checkpoint, so an entry may be replaced.
            picture: returns an image [H, W, 3] or a `Render`; called now and then, without gradients and random states.
            every: steps between two pictures; by default about every 1.5 s.

        Raises:
            InputError: for a checkpoint of other settings, and when the disk is full or read-only.
        """
        from nsw.runs.steps import steps

        return steps(self, n, name=name, save=save, picture=picture, every=every)

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """Note that a loop is open; a loop inside another one gives the log back to the outer one when it ends."""
        outer = (self._loop, self._step) if self._depth else None
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if outer is not None:
                self._loop, self._step = outer

    def _enter(self, loop: str, step: int) -> None:
        self._loop, self._step = loop, step

    def _entry(self) -> dict[str, Any]:
        if not self.log or (self.log[-1]["loop"], self.log[-1]["step"]) != (self._loop, self._step):
            self.log.append({"loop": self._loop, "step": self._step})
        return self.log[-1]

    def latest(self) -> dict[str, float]:
        """Return the newest values of the current loop."""
        entry = self.log[-1] if self.log and self.log[-1]["loop"] == self._loop else {}
        return {name: value for name, value in entry.items() if name not in ("loop", "step")}

    def loss(self, **terms: Tensor | float) -> Tensor:
        """Return the sum of the terms and log each of them.

        Raises:
            FloatingPointError: naming step and term, when a term is not finite.
        """
        if not terms:
            raise InputError("run.loss was given no term: call it as run.loss(colour=..., tv=...).")
        tensors = [term if isinstance(term, Tensor) else torch.tensor(float(term), device=self.device) for term in terms.values()]
        for name, term in zip(terms, tensors, strict=True):
            if term.numel() != 1:
                raise InputError(f"The loss term {name} has shape {list(term.shape)}: expected one number, take its mean first.")
        stacked = torch.stack([term.reshape(()) for term in tensors])
        total = stacked.sum()
        *each, whole = torch.cat([stacked, total[None]]).detach().tolist()  # at once: a GPU is waited for
        values = dict(zip(terms, each, strict=True))
        for name, value in values.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f'Step {self._step} of {self._loop or "the run"}: the loss term "{name}" is {value}. '
                    "The last finite values were " + (", ".join(f"{k} {v:.4g}" for k, v in self.latest().items()) or "never") + "."
                )
        self.record(**values, loss=whole)
        return total

    def record(self, **values: Tensor | float) -> None:
        """Log numbers at the current step."""
        self._entry().update(zip(values, numbers(values.values()), strict=True))

    def history(self, name: str, loop: str | None = None) -> tuple[list[int], list[float]]:
        """Return (steps, values) of a logged number, from the last loop that logged it or from the named one."""
        entries = [entry for entry in self.log if name in entry and loop in (None, entry["loop"])]
        if not entries:
            known = sorted({key for entry in self.log for key in entry} - {"loop", "step"})
            raise InputError(f'Nothing was logged as "{name}": there is {", ".join(known) or "nothing yet"}.')
        chosen = [entry for entry in entries if entry["loop"] == entries[-1]["loop"]]
        return [entry["step"] for entry in chosen], [entry[name] for entry in chosen]

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[Timer]:
        """Measure the seconds of a block, GPU work included; they go to the run's budget."""
        from nsw.metrics import clock

        timer, began = Timer(name), clock()
        try:
            yield timer
        finally:
            timer.seconds = clock() - began
            self.timings[name] = timer.seconds

    def peak_memory_mb(self) -> float:
        """Return the most memory this process has held, in MB."""
        return peak_memory_mb()

    def claim(self, title: str, **values: Any) -> Claim:
        """Add a row to the claim table: the paper's claim beside what this run measured.

        Args:
            title: the claim in words.
            ours, baseline: a number, or a list over seeds; the mean is judged.
            at_least, at_most: threshold on what `measure` gives; a number, or three (smoke, laptop, gpu), None to not assert.
            measure: "difference" (by how much ours is better, in `unit`), "ratio" (ours / baseline) or "value" (ours).
            unit: unit of ours and baseline. better: "higher" or "lower".
            paper, paper_value, dataset, hardware: where the claim is made, and the number measured there.
            presets: presets at which the claim is asserted; at others one that misses its threshold says "not reproduced", no more.
        """
        from nsw.runs import measured

        recorded = measured.spread(self.slug, self.preset, title)
        if self._another_scene:
            values["judged"], recorded = False, None  # what was asked and what was recorded belong to another scene
        row = make_claim(title, preset=self.preset, recorded=recorded, **values)
        self.claims.add(row)
        self._write_claims()
        return row

    def _write_claims(self) -> None:
        from nsw import metrics

        write_json(
            self.folder / "claims.json",
            {
                "format": 1,
                "slug": self.slug,
                "preset": self.preset,
                "seed": self.seed,
                "protocol": {"name": metrics.PROTOCOL, "version": metrics.PROTOCOL_VERSION},
                "certified": not self.claims.edited,
                "edited": self.claims.edited,
                "seconds": round(time.monotonic() - self._began, 2),
                "peak_mb": round(self.peak_memory_mb(), 1),
                "claims": [_finite(row.as_dict()) for row in self.claims],
                "provenance": _plain(self.provenance),
            },
        )

    def _write_about(self) -> None:
        write_json(self.folder / "run.json", _plain(self.provenance))

    def path(self, filename: str) -> Path:
        """Return a path inside the run's folder, its parent created.

        Raises:
            InputError: for a name that leads out of the folder.
        """
        path = (self.folder / filename).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise InputError(f'"{filename}" leads out of the run\'s folder {self.folder}: give a name inside it.')
        folders.make_folder(path.parent)
        return path

    def keep(self, name: str, *, model: torch.nn.Module, scene: Any = None, seconds: float | None = None) -> Path:
        """Save a model, and the scene it belongs to, under `models/<name>/`: `nsw view` and `nsw export` read it there.

        A card beside it says what the model is and what it did: bytes, seconds to train, PSNR on test views and pictures a
        second. `nsw board` gathers the cards in one table, and `widgets.compare_runs` shows two of them side by side.

        Args:
            seconds: time of training; by default that of all loops of this run that saved the model.
        """
        from nsw.models.io import save
        from nsw.runs import model_card

        folder = save(model, self.path(f"models/{name}"))
        if scene is not None:
            self.use_scene(scene)
            about = {"scene": scene.name, "source": str(scene.source or ""), "aabb": scene.aabb.tolist()}
            about |= {"background": scene.background, "width": scene.cameras.width, "height": scene.cameras.height}
            write_json(folder / "scene.json", about)
        about = {"slug": self.slug, "preset": self.preset, "seed": self.seed, "device": str(self.device)}
        about |= {"hardware": self.provenance["hardware"], "date": self.provenance["date"][:10]}
        spent = self.trained.of(model) if seconds is None else seconds
        model_card.write(folder, model, scene, spent, about, self.preset)
        return folder

    def save_image(self, name: str, image: Any) -> Path:
        """Write an image [H, W, 3] in [0, 1] (or uint8) as `images/<name>.png`; return its path."""
        import io

        from PIL import Image

        from nsw.models.state import write_bytes

        array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
        if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
            raise InputError(f'The image "{name}" has shape {list(array.shape)}: expected [H, W, 3].')
        if array.dtype != np.uint8:
            array = (np.clip(np.nan_to_num(array), 0.0, 1.0) * 255.0).round().astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format="PNG", optimize=True)
        path = self.path(f"images/{name}.png")
        write_bytes(path, buffer.getvalue())
        return path


def _plain(value: Any) -> Any:
    """Return the value as JSON can hold it."""
    return json.loads(json.dumps(value, default=str))


def _finite(value: Any) -> Any:
    """Return the value with NaN and infinities as None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _display(thing: Any) -> None:
    """Show in a notebook, print elsewhere."""
    from nsw.runs.progress import in_kernel

    if in_kernel():
        from IPython.display import display

        display(thing)
    else:
        print(thing)


def _set_aside(folder: Path) -> None:
    """Move the checkpoints of an earlier run aside, so that a later resume cannot mix two runs; one generation is kept."""
    import shutil

    current, old = folder / "checkpoints", folder / "checkpoints.old"
    if current.is_dir() and any(current.iterdir()):
        shutil.rmtree(old, ignore_errors=True)
        current.rename(old)
    for part in folder.glob("**/.*.part"):  # left by a process that was killed while writing
        part.unlink(missing_ok=True)


def start(
    slug: str,
    preset: str = "laptop",
    seed: int = 0,
    resume: bool = False,
    out: Path | str | None = None,
    device: str = "auto",
) -> Run:
    """Begin a run: seed everything, choose the device, open the run's folder, and say so.

    Args:
        slug: short name of the notebook, as in its file name.
        preset: "smoke", "laptop" or "gpu".
        seed: seeds torch, numpy, Python and `run.generator`.
        resume: continue loops from the checkpoints of the last run in the same folder.
        out: the run's folder; by default `runs/<slug>/<preset>-seed<seed>` (see `NSW_RUNS`).
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: for an unknown preset or device, a bad seed, or a folder that cannot be written.
    """
    if not isinstance(slug, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", slug):
        raise InputError(
            f"The run's name is {slug!r}: expected lower-case letters, digits and underscores, as in a notebook's file name."
        )
    preset, seed = check_preset(preset), check_seed(seed)
    if not isinstance(resume, bool):
        raise InputError(f"resume is {resume!r}: expected True or False.")
    chosen = nsw.device(device)
    resume = resume or os.environ.get("NSW_RESUME") == "1"
    folder = Path(out or os.environ.get("NSW_RUN_DIR") or folders.run_dir(slug, preset, seed)).expanduser().absolute()
    folders.make_folder(folder)
    if not resume:
        _set_aside(folder)
    run = Run(slug, preset, seed, folder, chosen, resume)
    run._write_about()
    _display(run)
    if preset == PRESETS[2] and chosen.type == "cpu":
        print("No CUDA GPU here: the gpu preset runs on the CPU kernels and may take hours.")
    return run


def load_about(folder: Path | str) -> dict[str, Any]:
    """Return the provenance that a run wrote to its folder."""
    return read_json(Path(folder) / "run.json", "run")
