"""Training on two processes, in parts, sharded, and through a kill: the same run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import syncflow

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
STAGES = [
    {"stage": "joint", "steps": 4, "clean_video": 0.5, "independent": 0.2, "text_dropout": 0.3, "motion_weight": 1.0},
    {"stage": "audio", "steps": 3},
]
SHARDED = {
    "adaptor": {"stage": "joint", "clean_video": 0.5, "independent": 0.2, "motion_weight": 1.0, "model": {"depth": 2}},
    "audio_rope": {
        "stage": "sync",
        "bridge_dropout": 0.3,
        "model": {"depth": 3, "bridge": "audio_rope", "first_block": 1},
    },
    "global_local": {
        "stage": "joint",
        "clean_video": 0.0,
        "independent": 0.0,
        "synergy_video": 0.1,
        "synergy_audio": 0.3,
        "recompute": True,
        "model": {"depth": 2, "bridge": "global_local"},
    },
}

pytestmark = pytest.mark.slow


def command(run: Path, settings: dict, *launcher: str) -> tuple[list[str], dict[str, str]]:
    arguments = [sys.executable, *launcher, "-m", "tests.training.small_run", str(run), json.dumps(settings)]
    return arguments, environment()


def environment() -> dict[str, str]:
    """In which a process finds the package and the tests, and says where it crashes."""
    path = os.pathsep.join([str(Path(syncflow.__file__).parent.parent), str(ROOT), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"}


def trained(run: Path, settings: dict, *launcher: str) -> dict[str, torch.Tensor]:
    arguments, variables = command(run, settings, *launcher)
    done = subprocess.run(arguments, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-10_000:]
    return torch.load(run / "weights.pt", weights_only=True)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], what: str) -> None:
    for name, value in expected.items():
        other = found[name]
        if name.endswith("kv_linear.bias"):  # that of the keys changes nothing: its gradient is rounding
            value, other = value.chunk(2)[1], other.chunk(2)[1]
        torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-5, msg=f"{what}: {name}")


@pytest.mark.parametrize("settings", STAGES, ids=lambda settings: settings["stage"])
def test_two_processes_and_parts_train_as_one_process_does(settings: dict, tmp_path: Path) -> None:
    """The rows of a step are dealt, and their masked means are those of the step, not of a part."""
    whole = trained(tmp_path / "whole", settings | {"batch": 8})
    parts = trained(tmp_path / "parts", settings | {"batch": 2, "accumulate": 4})
    processes = trained(tmp_path / "processes", settings | {"batch": 2, "accumulate": 2}, *TORCHRUN)
    fewer = trained(tmp_path / "fewer", settings | {"batch": 4})
    assert_same(parts, whole, "parts")
    assert_same(processes, whole, "processes")
    moved = [name for name, value in whole.items() if not torch.allclose(fewer[name], value, rtol=1e-3, atol=1e-4)]
    assert moved  # or everything would be the same


@pytest.mark.parametrize("bridge", SHARDED)
def test_sharded_weights_train_as_whole_ones_do(bridge: str, tmp_path: Path) -> None:
    """FSDP on two processes against one process with the batch of both: optimisers, average, clipping, parts."""
    settings = SHARDED[bridge] | {"steps": 3}
    whole = trained(tmp_path / "whole", settings | {"batch": 8})
    shards = trained(tmp_path / "shards", settings | {"batch": 2, "accumulate": 2, "shard": True}, *TORCHRUN)
    assert_same(shards, whole, "shards")
    saved = [torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("whole", "shards")]
    assert_same(saved[1]["model"], saved[0]["model"], "checkpoint")
    assert all(a.shape == b.shape for a, b in zip(*(one["average"] for one in saved), strict=True))


def test_the_others_wait_for_the_first_process_as_long_as_it_encodes() -> None:
    """PyTorch gives up after 10 minutes on GPUs and 30 on CPUs."""
    run_two_processes(
        "import torch, torch.distributed as d; from syncflow.training.processes import make_accelerator; "
        "make_accelerator(); group = d.distributed_c10d._get_default_group()._get_backend(torch.device('cpu')); "
        "assert group.options._timeout.days == 7"
    )


def test_no_process_ends_before_the_others_are_done(tmp_path: Path) -> None:
    """One that does takes its connections from those that still read."""
    file = tmp_path / "written by the first"
    run_two_processes(
        "import time; from pathlib import Path; import torch.distributed as d; "
        "from syncflow.training.processes import end_together, processes; first = processes().is_main_process; "
        f"first and (time.sleep(1), Path({str(file)!r}).touch()); end_together(); "
        f"assert Path({str(file)!r}).exists() and not d.is_initialized()"
    )


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not list threads in /proc")
def test_connections_end_before_the_interpreter(tmp_path: Path) -> None:
    """Their threads crash in one that is half gone. Sharded tensors keep them, and so does a scattered checkpoint."""
    settings = {"stage": "joint", "steps": 1, "batch": 2, "shard": True}
    trained(tmp_path, settings, *TORCHRUN)
    arguments = [str(tmp_path), json.dumps(settings | {"steps": 2})]
    run_two_processes(
        "import sys; from pathlib import Path; from syncflow.training.processes import make_accelerator; "
        "threads = lambda: [p.read_text().strip() for p in Path('/proc/self/task').glob('*/comm')]; "
        "make_accelerator(); assert any('gloo' in name for name in threads()), threads(); "
        f"sys.argv[1:] = {arguments!r}; from tests.training.small_run import main; main(); "
        "assert not any('gloo' in name for name in threads()), threads()"
    )


def run_two_processes(code: str) -> None:
    """Let two processes run some code to its end."""
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "--no-python", sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-10_000:]


def losses(run: Path) -> dict[int, float]:
    """The loss that was logged last for each step."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("loss/loss")}


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_a_run_that_was_killed_has_the_same_losses(sharded: bool, tmp_path: Path) -> None:
    """SIGKILL while it trains, whenever that is; every step leaves a checkpoint."""
    steps, launcher = (60, TORCHRUN) if sharded else (200, ())
    settings = {"stage": "joint", "steps": steps, "batch": 2, "shard": sharded, "checkpoint_minutes": 0.0}
    expected = trained(tmp_path / "straight", settings, *launcher)
    run = tmp_path / "killed"
    arguments, variables = command(run, settings, *launcher)
    with subprocess.Popen(arguments, env=variables, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while not (run / "checkpoint.pt").is_file() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(int.from_bytes(os.urandom(1)) / 256)
        kill_tree(process.pid)
    at = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < at < steps
    found = trained(run, settings, *launcher)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == [], at
    straight, resumed = losses(tmp_path / "straight"), losses(run)
    later = [step for step in straight if step > at]
    assert later and [resumed[step] for step in later] == [straight[step] for step in later]


def kill_tree(process: int) -> None:
    """SIGKILL a launcher and its workers, which may have sessions of their own."""
    children = Path(f"/proc/{process}/task/{process}/children")
    workers = [int(child) for child in children.read_text().split()] if children.is_file() else []
    for one in (process, *workers):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
