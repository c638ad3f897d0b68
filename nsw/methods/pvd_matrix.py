"""The matrix of all conversions: every architecture as a teacher of every other one, measured, shown in pairs and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from nsw.methods import pvd
from nsw.methods.pvd_inspect import Make
from nsw.methods.pvd_teacher import Plan
from nsw.metrics import PROTOCOL, PROTOCOL_VERSION, clock
from nsw.models.state import write_json
from nsw.scenes.scene import Scene


@dataclass(frozen=True)
class Conversion:
    """One cell of the matrix: the new model, its PSNR in dB against photographs, and the seconds it took."""

    model: nn.Module
    psnr: float
    seconds: float


def conversion(
    model: nn.Module,
    make: Make,
    scene: Scene,
    plan: Plan,
    score: Callable[[nn.Module], float],
    seed: int = 0,
    warm: bool = True,
) -> Conversion:
    """Convert a model, and measure what came out and how long it took, all that the student needs included.

    Args:
        warm: compile the kernels by a first, shortest conversion that no clock sees; not needed where that was done before.
    """
    device = next(model.parameters()).device
    for how in (replace(plan, n_steps=2, n_samples=256, n_poses=4), plan)[not warm :]:
        torch.manual_seed(seed)
        began = clock()
        learned = pvd.convert(model, make, scene, how, torch.Generator(device).manual_seed(seed))
        seconds = clock() - began
    return Conversion(learned, score(learned), seconds)


def pairs_of(students: Iterable[str]) -> list[tuple[str, str]]:
    """Return (teacher, student) of every conversion, in the order in which `matrix` needs them.

    >>> pairs_of(["hash", "mlp"])
    [('hash', 'hash'), ('hash', 'mlp'), ('mlp', 'hash'), ('mlp', 'mlp')]
    """
    names = list(students)
    return [(teacher, student) for teacher in names for student in names]


def matrix(
    first: nn.Module,
    students: Mapping[str, Make],
    scene: Scene,
    plan: Plan,
    score: Callable[[nn.Module], float],
    seed: int = 0,
    pairs: Iterable[tuple[str, str]] | None = None,
) -> dict[str, dict[str, Conversion]]:
    """Return every conversion, as {teacher: {student: ...}}.

    The teacher of the row that has the first student's name is `first`; those of the other rows are what it has become, so
    that a whole row costs no training on photographs. A conversion to the same architecture starts anew as well. Once every
    architecture was student and teacher, all kernels are compiled.

    Args:
        pairs: `pairs_of(students)`, perhaps through what shows how far it is.
    """
    name = next(iter(students))
    anew, rows = replace(plan, inherit=False), {teacher: {} for teacher in students}
    for teacher, student in pairs_of(students) if pairs is None else pairs:
        model, how = first if teacher == name else rows[name][teacher].model, anew if student == teacher else plan
        warm = name in (teacher, student)
        rows[teacher][student] = conversion(model, students[student], scene, how, score, seed, warm)
    return rows


def teacher_of(rows: Mapping[str, Mapping[str, Conversion]], first: nn.Module, teacher: str) -> nn.Module:
    """Return the model that taught a row of the matrix."""
    name = next(iter(rows))
    return first if teacher == name else rows[name][teacher].model


def pair(rows: Mapping[str, Mapping[str, Conversion]], first: nn.Module, draw: Callable, teacher: str, student: str) -> dict:
    """Return titled pictures of one entry of the matrix: its teacher, its student, five times their difference."""
    theirs, ours = draw(teacher_of(rows, first, teacher)), draw(rows[teacher][student].model)
    gap = (5 * (ours - theirs).abs()).clamp(max=1)
    return {f"teacher, {teacher}": theirs, f"student, {student}": ours, "difference, five times": gap}


def sheet(rows: Mapping[str, Mapping[str, Conversion]]) -> dict:
    """Return what `nsw.widgets.matrix` writes into its entries: PSNR in dB, and below it seconds."""
    notes = {a: {b: f"{cell.seconds:.2g} s" for b, cell in row.items()} for a, row in rows.items()}
    return {"values": {a: {b: cell.psnr for b, cell in row.items()} for a, row in rows.items()}, "notes": notes, "unit": "dB"}


def table_of(conversions: Mapping[str, Conversion]) -> list[dict[str, object]]:
    """Return a row for each of several ways to the same network: PSNR in dB and seconds."""
    return [{"network": name, "PSNR (dB)": cell.psnr, "seconds": cell.seconds} for name, cell in conversions.items()]


def gains(rows: Mapping[str, Mapping[str, Conversion]], first_psnr: float) -> dict[str, float]:
    """Return for every conversion how much better its student is than its teacher, in dB, {"teacher to student": ...}."""
    taught = psnr_of_teachers(rows, first_psnr)
    return {f"{a} to {b}": cell.psnr - taught[a] for a, row in rows.items() for b, cell in row.items()}


def psnr_of_teachers(rows: Mapping[str, Mapping[str, Conversion]], first_psnr: float) -> dict[str, float]:
    """Return the PSNR in dB of the model that taught each row."""
    name = next(iter(rows))
    return {teacher: first_psnr if teacher == name else rows[name][teacher].psnr for teacher in rows}


def save_matrix(path: Path, rows: Mapping[str, Mapping[str, Conversion]], first: nn.Module, first_psnr: float) -> Path:
    """Write every entry of the matrix to a JSON file, whole or not at all: architectures, sizes, PSNR in dB, seconds."""
    taught = psnr_of_teachers(rows, first_psnr)
    entries = [
        {
            "teacher": t,
            "student": s,
            "teacher_model": type(teacher_of(rows, first, t)).__name__,
            "student_model": type(cell.model).__name__,
            "student_parameters": sum(p.numel() for p in cell.model.parameters()),
            "teacher_psnr": round(taught[t], 3),
            "psnr": round(cell.psnr, 3),
            "seconds": round(cell.seconds, 3),
        }
        for t, row in rows.items()
        for s, cell in row.items()
    ]
    protocol = {"name": PROTOCOL, "version": PROTOCOL_VERSION}
    write_json(path, {"format": 1, "protocol": protocol, "seconds_without": "the teacher's training", "conversions": entries})
    return path
