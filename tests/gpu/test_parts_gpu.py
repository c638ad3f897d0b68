"""On a GPU: parts are placed, cut through levels of detail, and stitched as on the CPU."""

from __future__ import annotations

import pytest
import torch

from nsw import formats
from nsw.cameras import orbit
from nsw.methods import gaussian_stitching_fit as fitting
from nsw.methods import gaussian_stitching_inspect as inspect
from nsw.methods import gaussian_stitching_parts as parts
from nsw.models.parts import joined, part_of
from nsw.models.placing import placed
from nsw.renderers.detail import DetailTree

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here: gsplat's own rasterizer cannot run")


def halves(device: str):
    first, second = (parts.vase(look, 3_000).to(device) for look in (parts.ORIGINAL, parts.OTHER))
    low = first.means[:, 2] < 0
    return part_of(first, low), part_of(second, ~low), first


def test_a_part_is_placed_and_written_as_on_the_cpu(tmp_path):
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    cpu, gpu = (placed(halves(device)[0], turn, torch.ones(3), 2.0) for device in ("cpu", "cuda"))
    for name, value in cpu.params.items():
        assert torch.allclose(value, gpu.params[name].cpu(), atol=1e-5), name
    back = formats.load(formats.save(gpu, tmp_path / "part.spz"))
    assert len(back) == len(cpu)


def test_a_cut_through_levels_of_detail_is_the_same():
    camera = orbit(1, 2.6, 20.0, width=96, height=96)
    counts = [len(DetailTree(parts.vase(parts.ORIGINAL).to(device), budget=4_000).cut(camera)) for device in ("cpu", "cuda")]
    assert abs(counts[0] - counts[1]) < 100 and counts[0] <= 4_000


def test_stitching_takes_the_seam_away():
    source, target, whole = halves("cuda")
    cameras = parts.vase_scene(parts.ORIGINAL, 48, 6, 2).cameras
    stitching = fitting.Stitching(source, target, cameras, fitting.Stitch(tau=0.5)).fit(120)
    before, after = (
        inspect.seam_contrast(joined(source, part), source, part, whole, cameras) for part in (target, stitching.target)
    )
    assert abs(after) < 0.5 * before
