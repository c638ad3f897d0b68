"""Without a GPU: what CUDA refuses is refused by the pretended card too, and a few notebooks run through on it.

All notebooks, and with the gpu presets' branches: `python -m tests.gpu.pretend [--preset gpu]`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for CUDA and has no place for a pretended card"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="a pretended card needs a C++ compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="a pretended card is made for Linux alone"),
]
ROOT = Path(__file__).parents[2]


def test_what_cuda_refuses_is_refused():
    went = subprocess.run([sys.executable, "-m", "tests.gpu.pretended_laws"], cwd=ROOT, capture_output=True, text=True)
    assert went.returncode == 0, went.stderr[-2000:]


@pytest.mark.parametrize("number", ["00", "01", "28"])
def test_a_notebook_runs_as_on_a_gpu(number, tmp_path):
    command = [sys.executable, "-m", "tests.gpu.pretend", number, "--out", str(tmp_path)]
    went = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert went.returncode == 0, went.stdout[-4000:] + went.stderr[-1000:]
