"""The event join at size: rows a second and peak memory of `hm3 join`, on logs that are made first.

python benchmarks/event_join.py [--impressions=5000000] [--events=20000000] [--memory_limit=2GiB]

Ten days, a file each. Nine events of ten follow an impression of their day by a delay of a day in the mean; the others are of
any user and item. One in a hundred comes twice.
"""

import json
import pathlib
import shutil
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timing
import workload
from absl import app, flags

_IMPRESSIONS = flags.DEFINE_integer("impressions", 5_000_000, "Impressions.", lower_bound=1_000)
_EVENTS = flags.DEFINE_integer("events", 20_000_000, "Events.", lower_bound=1_000)
_MEMORY_LIMIT = flags.DEFINE_string("memory_limit", "2GiB", "Passed on.")
_FOLDER = flags.DEFINE_string("folder", None, "Where the logs go; default a temporary folder.")
_DAYS, _DAY_MS = 10, 86_400_000
_ITEMS = 100_000
_BEHAVIORS = np.array(["click", "cart", "purchase"])
_SHARES = (0.8, 0.15, 0.05)


def keys(generator: np.random.Generator, rows: int, users: int, day: int) -> dict[str, np.ndarray]:
    """Returns int64 columns of users, items and times within a day, in order of time."""
    times = np.sort(generator.integers(day * _DAY_MS, (day + 1) * _DAY_MS, rows))
    return {
        "user_id": generator.integers(0, users, rows) + 2**60,
        "item_id": np.int64(_ITEMS * generator.random(rows) ** 3),
        "time": times,
    }


def events_of(
    generator: np.random.Generator, shown: dict[str, np.ndarray], rows: int, users: int, day: int
) -> dict[str, np.ndarray]:
    """Returns columns of events."""
    events = keys(generator, rows, users, day)
    follows = generator.random(rows) < 0.9
    followed = generator.integers(0, len(shown["time"]), rows)[follows]
    for name, values in shown.items():
        events[name][follows] = values[followed]
    events["time"][follows] += np.int64(generator.exponential(_DAY_MS, follows.sum()))
    events["behavior"] = _BEHAVIORS[generator.choice(len(_BEHAVIORS), rows, p=_SHARES)]
    again = generator.random(rows) < 0.01
    again[0] = False
    for values in events.values():
        values[again] = values[np.flatnonzero(again) - 1]
    return events


def write_logs(folder: pathlib.Path) -> None:
    """Writes a file of impressions and one of events for each day."""
    users = max(1, _IMPRESSIONS.value // 50)
    for name in ("impressions", "events"):
        (folder / name).mkdir(parents=True)
    for day in range(_DAYS):
        generator = np.random.default_rng(day)
        shown = keys(generator, _IMPRESSIONS.value // _DAYS, users, day)
        pq.write_table(pa.table(shown), folder / "impressions" / f"{day}.parquet")
        events = events_of(generator, shown, _EVENTS.value // _DAYS, users, day)
        pq.write_table(pa.table(events), folder / "events" / f"{day}.parquet")


def main(_: list[str]) -> None:
    """Prints the figures."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=_FOLDER.value))
    try:
        write_logs(folder)
        tables = [f"--{name}={folder}/{name}" for name in ("impressions", "events")]
        options = ["--window=click:30m,cart:1d,purchase:7d", "--history=click:50", "--time_unit=ms"]
        limits = [f"--memory_limit={_MEMORY_LIMIT.value}", f"--output={folder}/joined"]
        seconds, cpu_seconds, peak = timing.run([str(workload.HM3), "join", *tables, *options, *limits])
        report = json.loads((folder / "joined" / "_join.json").read_text())
    finally:
        shutil.rmtree(folder)
    events = sum(sum(counts.values()) for counts in report["events"].values())
    print(f"{report['impressions']:,} impressions, {events:,} events, labelled {report['labelled']}")
    for behavior, counts in report["events"].items():
        print(f"  {behavior:<10} {counts}")
    print(f"{seconds:.1f} s, {cpu_seconds:.1f} CPU seconds, {events / seconds:,.0f} events/s")
    print(f"at most {peak / 2**30:.2f} GiB of memory, with --memory_limit={_MEMORY_LIMIT.value}")


if __name__ == "__main__":
    app.run(main)
