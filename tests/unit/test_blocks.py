"""Blocks: the same files from processes and from a Ray cluster, whatever is killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nsw.errors import InputError
from nsw.models.io import pack
from nsw.models.state import load_state, save_state, state_bytes
from nsw.runs.blocks import costs, fingerprint, run_blocks

posix_only = pytest.mark.skipif(os.name != "posix", reason="Windows has neither SIGKILL nor SIGINT for one process")


@dataclass(frozen=True)
class Given:
    """A block's input: what it counts from, and where it says that it began."""

    seed: int
    signs: Path
    how: str = "well"


def fit(given: dict, path: Path) -> None:
    """Fit a small network; `how` is what goes wrong in the middle, the first time only."""
    given = Given(**given)
    torch.manual_seed(given.seed)
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(20):
        loss = (model(torch.randn(64, 8)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 10:
            _midway(given)
    if given.how != "writes nothing":
        save_state(path, {"model": model.state_dict(), "threads": torch.get_num_threads()}, "block")


def _midway(given: Given) -> None:
    sign = given.signs / f"{given.seed}-{os.getpid()}"
    first = not list(given.signs.glob(f"{given.seed}-*"))
    sign.touch()
    if given.how == "raises":
        raise ValueError("the scales are not finite")
    if given.how == "refuses":
        raise InputError("There is no scene here.")
    if first and given.how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    while first and given.how == "hangs":
        time.sleep(0.01)


def same(files: list[Path], others: list[Path]) -> bool:
    return [f.read_bytes() for f in files] == [f.read_bytes() for f in others]


def inputs(signs: Path, *how: str) -> list[dict]:
    signs.mkdir(exist_ok=True)
    return [vars(Given(seed, signs, word)) for seed, word in enumerate(how)]


def begun(signs: Path, seed: int) -> int:
    return len(list(signs.glob(f"{seed}-*")))


def wait_for(condition, process: subprocess.Popen) -> None:
    """Wait as long as the process lives: if it ends first, the condition never comes."""
    while not condition():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What three blocks give when nothing goes wrong."""
    folder, ballast = tmp_path_factory.mktemp("expected"), torch.ones(2**28)  # 1 GB here, of which a child must not speak
    assert ballast.nbytes == 2**30
    return run_blocks(fit, inputs(folder / "signs", "well", "well", "well"), folder, workers=2, threads=1, progress=False)


def test_files_in_the_order_of_the_inputs_with_what_they_cost(expected):
    model = torch.nn.Linear(8, 8)
    for seed, path in enumerate(expected):
        state = load_state(path, "block")
        torch.manual_seed(seed)
        model.load_state_dict(state["model"])
        assert not torch.equal(model.weight, torch.nn.Linear(8, 8).weight) and state["threads"] == 1
    assert len({path.read_bytes() for path in expected}) == 3
    for cost in costs(expected):
        assert cost.seconds > 0 and 50 < cost.peak_mb < 1024
    assert not list((expected[0].parent / "working").iterdir())


def test_a_process_does_one_block_after_the_other_and_one_that_ends_is_replaced(tmp_path, expected):
    """Four blocks and one worker: the first two come from one process, the third ends it, the fourth gets a new one."""
    signs, how = tmp_path / "signs", ("well", "well", "raises", "well")
    with pytest.raises(InputError, match=r"^Block 2 stopped .*: the other 3 are finished and kept"):
        run_blocks(fit, inputs(signs, *how), tmp_path, workers=1, threads=1, progress=False)
    seeds, processes = zip(*sorted(sign.name.split("-") for sign in signs.iterdir()), strict=True)
    assert seeds == ("0", "1", "2", "3") and processes[0] == processes[1] == processes[2] != processes[3]
    assert same([tmp_path / path.name for path in expected[:2]], expected[:2])
    logs = [(tmp_path / f"block-00{i}.log").read_text(encoding="utf-8") for i in range(4)]
    assert "the scales are not finite" in logs[2] and not any("finite" in log for log in (*logs[:2], logs[3]))


@posix_only
def test_only_what_is_missing_or_changed_runs_again(tmp_path, expected, capsys):
    """After a kill the killed block alone; after a change of its input the changed one alone; without resume, all."""
    signs, run = tmp_path / "signs", {"folder": tmp_path, "threads": 1}
    given = inputs(signs, "well", "dies")
    with pytest.raises(InputError, match=r"^Block 1 was ended by SIGKILL .*status -9.* other 1 is finished and kept"):
        run_blocks(fit, given, **run)
    assert "blocks 2/2  failed 1" in capsys.readouterr().out
    assert same(run_blocks(fit, given, **run), expected[:2])
    assert [begun(signs, seed) for seed in (0, 1, 7)] == [1, 2, 0]
    run_blocks(fit, [given[0], vars(Given(7, signs))], **run)
    assert [begun(signs, seed) for seed in (0, 1, 7)] == [1, 2, 1]
    run_blocks(fit, given[:1], resume=False, **run)
    assert [begun(signs, seed) for seed in (0, 1, 7)] == [2, 2, 1]


def digest(work, given) -> str:
    return fingerprint(f"{work.__module__}:{work.__qualname__}", state_bytes(pack(given), "input"))


def test_a_fingerprint_sees_every_number_and_nothing_else():
    """Shared or copied, contiguous or not: equal inputs are equal; one changed weight, type, shape or function is not."""
    torch.manual_seed(0)
    layer, twin = torch.nn.Linear(40, 40), torch.nn.Linear(40, 40)
    twin.load_state_dict(layer.state_dict())
    shared, word = torch.rand(50, 50), "".join(["a", "b"])
    one = {"layer": layer.state_dict(), "maps": [shared, shared], "words": [word, word]}
    two = {"layer": twin.state_dict(), "maps": [shared.clone(), shared.t().contiguous().t()], "words": ["".join(["a", "b"]), "ab"]}
    assert digest(fit, one) == digest(fit, two) != digest(same, one)
    with torch.no_grad():
        twin.weight[20, 20] += 1e-6
    assert digest(fit, one) != digest(fit, two)
    kinds = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(4, dtype=torch.bfloat16)]
    assert len({digest(fit, x) for x in kinds}) == 4


def test_failures_are_one_sentence(tmp_path):
    sentence = r"Block 0 stopped with exit status 1 \(ValueError: the scales are not finite\); block 1 .*wrote no file block-001"
    with pytest.raises(InputError, match=sentence):
        run_blocks(fit, inputs(tmp_path / "signs", "raises", "writes nothing"), tmp_path, progress=False)
    assert "_midway" in (tmp_path / "block-000.log").read_text(encoding="utf-8")


def test_what_other_processes_cannot_load_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="into a module, at its top level"):
        run_blocks(lambda given, path: None, [1], tmp_path)
    with pytest.raises(InputError, match=r"input of block 1 cannot be sent .* Cannot store a lock: only tensors"):
        run_blocks(fit, [1, threading.Lock()], tmp_path)
    with pytest.raises(InputError, match='not in "threads"'):
        run_blocks(fit, [1], tmp_path, where="threads")
    with pytest.raises(InputError, match="one worker"):
        run_blocks(fit, [1], tmp_path, workers=0)


def _driver(tmp_path: Path) -> subprocess.Popen:
    """Start a process that runs two blocks, the second of which hangs the first time."""
    code = f"""
        from pathlib import Path
        from test_blocks import fit, inputs
        from nsw.runs.blocks import run_blocks
        folder = Path({str(tmp_path)!r})
        run_blocks(fit, inputs(folder / "signs", "well", "hangs"), folder, threads=1)
        """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@posix_only
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL] if os.name == "posix" else [])
def test_ctrl_c_or_a_kill_ends_the_blocks_too_and_a_later_call_goes_on(tmp_path, expected, sent):
    import psutil

    driver, signs = _driver(tmp_path), tmp_path / "signs"
    wait_for(lambda: begun(signs, 1) and (tmp_path / "block-000.safetensors").is_file(), driver)
    children = psutil.Process(driver.pid).children(recursive=True)
    assert children
    driver.send_signal(sent)
    said = driver.communicate()[0]
    assert ("KeyboardInterrupt" in said) == (sent == signal.SIGINT)
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert not (tmp_path / "block-001.safetensors").exists()
    if sent == signal.SIGKILL:
        assert same(run_blocks(fit, inputs(signs, "well", "hangs"), tmp_path, threads=1, progress=False), expected[:2])
        assert begun(signs, 0) == 1


def fit_on_a_node(given: dict, path: Path) -> None:
    """Fit as above, but a block that is on the node to be lost waits there for its end, and the others wait until one is."""
    import ray

    signs = given["signs"]
    (signs / f"{given['seed']}-{os.getpid()}").touch()
    if ray.get_runtime_context().get_node_id() == (signs / "doomed").read_text(encoding="utf-8"):
        (signs / "there").touch()
        while True:
            time.sleep(0.01)
    while not (signs / "there").exists():
        time.sleep(0.01)
    fit(given, path)


def lose_a_node(folder: Path) -> None:
    """Run three blocks, one of them bad, on two local nodes; kill one node once a block has begun there; print what happened."""
    from nsw.runs.blocks_on_ray import import_ray

    ray = import_ray()
    import psutil
    from ray.cluster_utils import Cluster

    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200, "health_check_failure_threshold": 5}
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False, "include_log_monitor": False}
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={**node, "_system_config": quick})
    try:
        doomed, signs = cluster.add_node(**node), folder / "signs"  # after connecting: this process belongs to the head
        given = inputs(signs, "well", "well", "refuses")
        (signs / "doomed").write_text(doomed.node_id, encoding="utf-8")
        listening = [c.laddr.ip for p in psutil.Process().children(True) for c in p.net_connections() if c.status == "LISTEN"]
        print("listens on", sorted({ip.removeprefix("::ffff:") for ip in listening}))

        def kill() -> None:
            while not (signs / "there").exists():
                time.sleep(0.01)
            cluster.remove_node(doomed, allow_graceful=False)

        threading.Thread(target=kill, daemon=True).start()
        with pytest.raises(InputError, match=r"^Block 2 stopped \(There is no scene here\.\): the other 2 are finished and kept"):
            run_blocks(fit_on_a_node, given, folder, where="ray", threads=1)
        print("began", sorted(begun(signs, seed) for seed in range(3)))
        with pytest.raises(InputError, match="asks for 2 cores and 0 GPUs, the largest node of the Ray cluster has 1 and 0"):
            run_blocks(fit, given, folder / "refused", where="ray", threads=2)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.skipif(sys.platform == "win32", reason="Ray starts clusters of several nodes on Linux and macOS only")
def test_a_lost_node_loses_nothing(tmp_path, expected):
    """A node is killed while it works on a block: the block runs again on the other, and all files are those of processes."""
    pytest.importorskip("ray", reason="Ray is not installed (extra cluster) or has no wheel for this system")
    code = "import sys, pathlib; from test_blocks import lose_a_node; lose_a_node(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "listens on ['127.0.0.1']" in done.stdout and "began [1, 1, 2]" in done.stdout
    files = [tmp_path / path.name for path in expected[:2]]
    assert same(files, expected[:2]) and all(cost.peak_mb > 50 for cost in costs(files))


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'run `pip install "nsw\[cluster\]"`'):
        run_blocks(fit, inputs(tmp_path / "signs", "well"), tmp_path, where="ray")
