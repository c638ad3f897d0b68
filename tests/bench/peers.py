"""What peers reached, measured once beside each other: two cores of an AMD EPYC with AVX-512, 24 GB, no GPU, torch 2.13.0.

Peers that pip cannot install are never part of this project: these figures stand for them. Absolute times belong to that machine.
Elsewhere they are of use as ratios to a program that is run again: the one-file sketch in numba, `prototype`.
"""

from __future__ import annotations

GARDEN = "garden"

# Splats (or the name of a scene), width, height; milliseconds forward and with backward, medians of one run, of the sketch in
# numba, of hand-written C++ ("ceiling"), of OpenSplat's CPU kernel, of tiled plain torch; last, how many times faster than
# OpenSplat, with backward, these kernels are meant to be.
_ROWS = (
    (1_000, 128, 128, (0.9, 1.8), (0.8, 2.0), (15.6, 32.5), (25, 83), 20),
    (1_000, 256, 256, (2.0, 5.3), (2.3, 5.9), (61, 124), (80, 264), 25),
    (1_000, 512, 384, (4.2, 11.8), (5.1, 13.5), (204, 339), (238, 864), 30),
    (10_000, 128, 128, (2.4, 4.5), (2.1, 4.6), (26, 48), (92, 286), 13),
    (10_000, 256, 256, (4.8, 10.9), (4.7, 11.5), (90, 170), (231, 768), 18),
    (10_000, 512, 384, (7.4, 19.6), (8.1, 20.9), (254, 408), (422, 1534), 23),
    (50_000, 128, 128, (7.6, 17.0), (7.4, 16.3), (53, 98), (348, 836), 9),
    (50_000, 256, 256, (11.7, 27.5), (11.6, 28.1), (147, 278), (583, 1812), 13),
    (50_000, 512, 384, (15.0, 41.8), (14.6, 36.3), (301, 463), (865, 3304), 14),
    (140_000, 128, 128, (29.1, 63.6), (26.3, 58.1), (126, 220), (1153, 2891), 6),
    (140_000, 256, 256, (25.3, 61.7), (25.9, 55.4), (190, 335), (1500, 4487), 9),
    (140_000, 512, 384, (33.8, 78.4), (29.8, 72.2), (388, 677), (1706, 5175), 12),
    # gsplat's own garden, see bench_rasterization.py
    (GARDEN, 128, 128, (17.7, 33.6), (14.4, 28.0), (118, 219), (440, 1046), 10),
    (GARDEN, 256, 256, (21.0, 41.2), (19.1, 42.4), (215, 417), (539, 1451), 14),
    (GARDEN, 512, 384, (29.7, 69.5), (28.2, 64.6), (507, 853), (728, 2430), 15),
)
_NAMES = ("prototype", "ceiling", "OpenSplat", "tiled torch", "target")
RASTERIZATION = {row[:3]: dict(zip(_NAMES, row[3:], strict=True)) for row in _ROWS}

# Seconds of training on lego at 100 px to a test PSNR in dB, of one-file sketches with a schedule as long as the best of several
# runs; "target" are the seconds these methods are meant to need
LEGO = {
    "splats": {"sketch": {24: 1.0, 26: 1.7, 28: 2.8, 30: 6.0}, "target": {26: 1.5, 30: 5.0, 34: 120.0}},
    "plenoxels": {"sketch": {24: 1.1, 26: 2.0, 28: 4.0, 30: 7.3}, "target": {30: 6.0}},
    "dvgo": {"sketch": {24: 8.8, 26: 15.8, 28: 24.5, 30: 51.0}, "target": {26: 6.0, 30: 20.0}},
    "vm": {"sketch": {24: 11.9, 26: 17.1, 28: 26.3, 30: 46.0}, "target": {26: 6.0, 30: 20.0}},
    "hash": {"sketch": {24: 3.8, 26: 6.0, 28: 10.0, 30: 18.5}, "target": {26: 4.0, 30: 10.0, 34: 120.0}},
}
VIEWER = {(50_000, 256, 256): 15.0, (139_000, 512, 384): 35.0}  # milliseconds a picture may take
COMPILING = {"cold": 20.0, "import": 0.4}  # seconds


def times_opensplat(scene: int | str, width: int, height: int, prototype_ms: float, kernels_ms: float) -> float:
    """Return how many times faster than OpenSplat the kernels are, with backward, by way of the sketch that both ran beside."""
    peer = RASTERIZATION[scene, width, height]
    return peer["OpenSplat"][1] / peer["prototype"][1] * prototype_ms / kernels_ms
