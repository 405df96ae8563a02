"""Wall seconds from `hm3 train` on W to the end of its first step, and what of it is imports.

python benchmarks/start.py [--folder=bench-out]
"""

import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import timing
import workload
from absl import app, flags

_FOLDER = flags.DEFINE_string("folder", "bench-out", "Folder of the log.")
ROUNDS = 3
IMPORT = [sys.executable, "-c", "import hm3_tf.train"]


def first_step(folder: pathlib.Path) -> float:
    """Returns the seconds until `metrics.jsonl` has the line of the first step."""
    workdir = folder / "run-start"
    shutil.rmtree(workdir, ignore_errors=True)
    fields = ["--config.training.max_steps=1", "--config.training.log_every_steps=1"]
    log = workdir / "metrics.jsonl"
    start = time.perf_counter()
    command = workload.train_command(folder, workdir, "hm3", *fields)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (log.exists() and log.stat().st_size):
            if process.poll():
                raise RuntimeError(f"{command} failed")
            time.sleep(0.01)
        return time.perf_counter() - start


def main(_: list[str]) -> None:
    """Prints the medians."""
    folder = pathlib.Path(_FOLDER.value).absolute()
    workload.write(folder)
    rounds = [(first_step(folder), timing.run(IMPORT)[0]) for _ in range(ROUNDS)]
    step, imports = (statistics.median(values) for values in zip(*rounds))
    print(f"first step after {step:.1f} s, of which importing TensorFlow and the package {imports:.1f} s")


if __name__ == "__main__":
    app.run(main)
