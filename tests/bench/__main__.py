"""Run every measurement, one after the other, each with its tables: `python -m tests.bench`. Pages go to `results/`.

`python -m tests.bench scaling viewer` runs some of them.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import nsw

names = sys.argv[1:] or sorted(script.stem.removeprefix("bench_") for script in Path(__file__).parent.glob("bench_*.py"))
print(f"nsw {nsw.__version__}; threads of torch spin {os.environ['GOMP_SPINCOUNT']} times before they sleep", flush=True)
failed = []
for name in names:
    print(f"\n== bench_{name}", flush=True)
    began = time.perf_counter()
    if subprocess.run([sys.executable, str(Path(__file__).parent / f"bench_{name}.py")]).returncode:
        failed.append(name)
    print(f"({time.perf_counter() - began:.0f} s)", flush=True)
sys.exit(f"did not finish: {', '.join(failed)}" if failed else 0)
