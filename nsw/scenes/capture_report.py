"""What became of each photo of a capture, why, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nsw.errors import InputError

FORMAT = 1
BLURRED_BELOW = 0.25
FEW_FEATURES = 200
FEW_MATCHES = 30

_ADVICE = {
    "registered": "",
    "unreadable": "save it as JPEG or PNG",
    "blurred": "take it again with the camera held still or in more light",
    "too few features": "show more texture: avoid plain walls, glass, sky and darkness",
    "too few matches": "take photos between this one and the others, so that two thirds of the view are shared",
    "isolated group": "take photos that join these views with the others",
    "not placed": "take two or three more photos close to this one, each a step to the side",
}


@dataclass(frozen=True)
class Photo:
    """One photo of a capture.

    Attributes:
        name: file name.
        registered: whether its camera was found.
        reason: "registered", "unreadable", "blurred", "too few features", "too few matches", "isolated group" or "not placed".
        sharpness: variance of the Laplacian relative to the median of the set; 1 is usual, below 0.25 is blurred.
        features: how many features were found.
        partners: how many other photos it has verified matches with.
        best_match: the most verified matches with another photo.
        points: how many reconstructed points it sees.
    """

    name: str
    registered: bool
    reason: str
    sharpness: float = 0.0
    features: int = 0
    partners: int = 0
    best_match: int = 0
    points: int = 0

    @property
    def advice(self) -> str:
        return _ADVICE[self.reason]


@dataclass(frozen=True)
class CaptureReport:
    """The outcome of structure from motion on a folder of photos.

    Attributes:
        photos: one entry per photo, by name.
        points: how many points were reconstructed.
        error_px: mean reprojection error, pixels.
        seconds: how long it took.
        cause: for a capture that failed, the sentence that says why; else "".
    """

    photos: Sequence[Photo]
    points: int = 0
    error_px: float = 0.0
    seconds: float = 0.0
    cause: str = ""

    @property
    def registered(self) -> tuple[Photo, ...]:
        return tuple(photo for photo in self.photos if photo.registered)

    @property
    def missing(self) -> tuple[Photo, ...]:
        return tuple(photo for photo in self.photos if not photo.registered)

    def text(self) -> str:
        """Return the report for a person: the outcome, then each reason with its photos and what to do."""
        lines = [
            f"{len(self.registered)} of {len(self.photos)} photos were placed; {self.points} points, "
            f"mean error {self.error_px:.2f} pixels, {self.seconds:.0f} s."
        ]
        if self.cause:
            lines = [self.cause]
        for reason in _ADVICE:
            names = [photo.name for photo in self.missing if photo.reason == reason]
            if names:
                lines.append(f"- {reason} ({len(names)}): {', '.join(names)}. What to do: {_ADVICE[reason]}.")
        return "\n".join(lines)

    def table(self) -> str:
        """Return one line per photo, in columns.

        >>> print(CaptureReport([Photo("a.jpg", True, "registered", 1.1, 900, 4, 312, 250)]).table())
        photo  placed  sharpness  features  partners  best match  points  why not
        a.jpg  yes          1.10       900         4         312     250
        """
        width = max([5, *(len(photo.name) for photo in self.photos)])
        lines = [f"{'photo':{width}}  placed  sharpness  features  partners  best match  points  why not"]
        for p in self.photos:
            why = "" if p.registered else p.reason
            numbers = f"{p.sharpness:9.2f}  {p.features:8d}  {p.partners:8d}  {p.best_match:10d}  {p.points:6d}"
            lines.append(f"{p.name:{width}}  {'yes' if p.registered else 'no':6}  {numbers}  {why}".rstrip())
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.text()}\n\n{self.table()}"

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        data = {"format": FORMAT, **asdict(self), "advice": {reason: text for reason, text in _ADVICE.items() if text}}
        path.write_text(json.dumps(data, indent=1), encoding="utf-8")


def read_report(path: Path) -> CaptureReport:
    """Return the report that `CaptureReport.save` wrote.

    Raises:
        InputError: missing or damaged.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        photos = [Photo(**photo) for photo in data["photos"]]
        return CaptureReport(photos, data["points"], data["error_px"], data["seconds"], data["cause"])
    except OSError as error:
        raise InputError(f"{path}: no capture report there ({error.strerror}); make the scene with `nsw scene photos`.") from None
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path}: not a capture report; make the scene again with `nsw scene photos`.") from None


class CaptureError(InputError):
    """A capture that could not be reconstructed; `report` says what became of each photo."""

    def __init__(self, message: str, report: CaptureReport):
        super().__init__(message)
        self.report = report


def sharpness(picture: np.ndarray) -> float:
    """Return the variance of the Laplacian of a picture's luma, brought to 640 pixels on the longer side.

    The Laplacian keeps the finest detail, which motion and defocus remove first; the variance is in grey levels^2 of
    0..255 after the contrast is brought to a standard deviation of 50, so that dim photos do not count as blurred.
    """
    from scipy.ndimage import laplace, zoom

    grey = picture[..., :3].astype(np.float64) @ [0.299, 0.587, 0.114]
    if max(grey.shape) > 640:
        grey = zoom(grey, 640 / max(grey.shape), order=1)
    spread = grey.std()
    return float(laplace(grey * (50.0 / spread)).var()) if spread > 1.0 else 0.0


def reasons(
    names: Sequence[str],
    placed: Sequence[bool],
    sharp: Sequence[float],
    features: Sequence[int],
    matches: np.ndarray,
    points: Sequence[int],
) -> list[Photo]:
    """Return one `Photo` per readable photo, with the most basic fault of each that was not placed.

    Args:
        sharp: `sharpness` of each photo.
        matches: [n, n] numbers of verified matches, symmetric.
    """
    usual = float(np.median(sharp))
    linked = matches >= FEW_MATCHES
    photos = []
    for i, name in enumerate(names):
        relative = sharp[i] / usual if usual > 0 else 1.0
        reason = "not placed"
        if placed[i]:
            reason = "registered"
        elif relative < BLURRED_BELOW:
            reason = "blurred"
        elif features[i] < FEW_FEATURES:
            reason = "too few features"
        elif not linked[i].any():
            reason = "too few matches"
        elif any(placed) and not linked[_group(linked, i)][:, np.asarray(placed)].any():
            reason = "isolated group"
        best = int(matches[i].max()) if len(names) > 1 else 0
        counts = (int(features[i]), int(linked[i].sum()), best, int(points[i]))
        photos.append(Photo(name, bool(placed[i]), reason, round(relative, 3), *counts))
    return photos


def _group(linked: np.ndarray, start: int) -> list[int]:
    """Return the photos that can be reached from one over verified matches."""
    group, ahead = {start}, [start]
    while ahead:
        for j in np.flatnonzero(linked[ahead.pop()]):
            if int(j) not in group:
                group.add(int(j))
                ahead.append(int(j))
    return sorted(group)
