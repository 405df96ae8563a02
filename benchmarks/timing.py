"""How the speed benchmarks time `hm3 train`: whole runs of the command, from their metrics.jsonl."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

import workload

WARM_STEPS = 15
LOG_STEPS = 5
_LOOK_SECONDS = 0.5


def run(command: list[str]) -> tuple[float, float, int]:
    """Runs a command.

    Returns:
      (wall seconds, CPU seconds, peak resident bytes) of its process.

    Raises:
      RuntimeError: It failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command} failed: {errors.decode()[-2000:]}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def run_watched(command: list[str]) -> tuple[float, int]:
    """Runs a command of several processes; returns (wall seconds, peak bytes of them together, looked at twice a second).

    Raises:
      RuntimeError: It failed.
    """
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            peak = max(peak, _memory(process.pid))
            time.sleep(_LOOK_SECONDS)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{command} failed: {errors.read().decode()[-2000:]}")
    return time.perf_counter() - start, peak


def _memory(pid: int) -> int:
    """Returns the bytes of a process and of those below it, what they share counted once; 0 where it has ended."""
    try:
        own = re.search(r"^Pss: +(\d+) kB", pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
        below = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return (int(own[1]) * 1024 if own else 0) + sum(_memory(int(child)) for child in below)


def train(folder: pathlib.Path, method: str, *flags: str) -> tuple[float, float, int]:
    """Runs `hm3 train` on W in a new workdir, `folder`/run-METHOD.

    Returns:
      (examples a second after the first steps, 0 where there were no more; CPU seconds and peak resident bytes of the whole
      process).
    """
    workdir = folder / f"run-{method}"
    shutil.rmtree(workdir, ignore_errors=True)
    logged = f"--config.training.log_every_steps={LOG_STEPS}"
    _, cpu_seconds, peak = run(workload.train_command(folder, workdir, method, logged, *flags))
    return examples_per_second(intervals(workdir), workload.BATCH), cpu_seconds, peak


def intervals(workdir: pathlib.Path) -> list[dict]:
    """Returns the figures of a run's intervals after the first steps, each of LOG_STEPS steps."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "epoch_end" not in line and line["step"] > WARM_STEPS]


def examples_per_second(timed: list[dict], batch: int) -> float:
    """Returns the rate over intervals, 0 where there are none."""
    seconds = sum(LOG_STEPS * batch / line["examples_per_second"] for line in timed)
    return len(timed) * LOG_STEPS * batch / seconds if timed else 0.0


def time_training(folder: pathlib.Path, method: str) -> dict[str, float]:
    """Returns the rates of `hm3 train` on W after its first steps.

    CPU seconds are those of the whole run less those of a run that ends after the first steps, per 100,000 examples.
    """
    _, warm_seconds, _ = train(folder, method, f"--config.training.max_steps={WARM_STEPS}")
    rate, cpu_seconds, _ = train(folder, method)
    rows = workload.ROWS - WARM_STEPS * workload.BATCH
    return {"rows": rows, "examples_per_second": rate, "cpu_seconds": (cpu_seconds - warm_seconds) / rows * 1e5}
