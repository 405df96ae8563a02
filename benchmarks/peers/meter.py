"""What the scripts of all peers share; standard library only, as each runs in an environment of its own."""

import json
import time

BATCH, IDS, WARM_STEPS = 4096, 100_000, 15
COLUMNS = tuple(f"c{i}" for i in range(26))


def report(steps: int, start: tuple[float, float]) -> None:
    """Prints the rates of `steps` steps since `start`, (time.perf_counter(), time.process_time()), as a line of JSON."""
    seconds, cpu_seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    rows = steps * BATCH
    print(json.dumps({"rows": rows, "examples_per_second": rows / seconds, "cpu_seconds": cpu_seconds / rows * 1e5}))
