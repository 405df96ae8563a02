"""The event join by the machines of a Ray cluster: a task joins a share of the users, with the engine of one machine."""

import collections
import contextlib
import dataclasses
import itertools
import os
import tempfile
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import tensorflow as tf

from data_pipeline import storage
from data_pipeline.event_engine import EventCounts, in_order
from data_pipeline.event_join import EventJoin, JoinReport, part_name, write_report
from data_pipeline.hashing import fingerprint
from data_pipeline.joined_files import NewColumns, write_joined
from data_pipeline.ray_tasks import run_tasks
from hm3_tf.progress import Progress
from hm3_tf.ray_session import connected

_GROUP_ROWS = 65_536
_MOST_SHARES = 512  # a task has a file of each open: Arrow takes 1,024, and many a machine no more files


def join_on_ray(join: EventJoin, output: str, memory_limit: str, address: str | None = None) -> JoinReport:
    """Writes what `join_events` writes: the same files with the same rows in the same order, and the same report.

    All machines read the tables and write the folder under the same paths.

    Args:
      join: What is joined.
      output: Folder to write, new or empty.
      memory_limit: What DuckDB may hold in memory in a task; each of Ray's CPUs has one at a time.
      address: Of the cluster, see `connected`; None for a Ray of this machine.

    Returns:
      What was found.

    Raises:
      DataError: As `join_events`; of several files with errors any one is named.
      UsageError: As `join_events`.
      Hm3Error: As `join_events`; or Ray is not installed, or there is no cluster at the address.
    """
    output = storage.absolute(output)
    join.check(output)
    with storage.staged_folder(output) as folder, connected(address, os.cpu_count() or 1) as ray:
        with tempfile.TemporaryDirectory(prefix="shares-", dir=folder) as work:
            count = min(int(ray.cluster_resources()["CPU"]), _MOST_SHARES)
            report = _run(_Shares(join, work, count, memory_limit), folder)
        write_report(folder, report)
    return report


def _run(shares: "_Shares", folder: str) -> JoinReport:
    join = shares.join
    shown, happened = (len(table.files.each()) for table in (join.impressions, join.events))
    counted = run_tasks(lambda i: join.impressions.files.each()[i].count_rows(), range(shown))
    first_ids = list(itertools.accumulate(counted, initial=0))
    rows = first_ids[-1]
    join.require_rows(rows)

    def split(i: int) -> collections.Counter[str]:
        return shares.split_impressions(i, first_ids[i]) if i < shown else shares.split_events(i - shown)

    seen = collections.Counter[str]()
    with Progress("split files by user", shown + happened, "files") as progress:
        for events in run_tasks(split, range(shown + happened)):
            seen.update(events)
            progress.advance(1)
    join.require_behaviors(seen)
    same_impressions, counts = 0, {window.behavior: EventCounts(0, 0, 0, 0) for window in join.windows}
    with Progress("join shares of the users", shares.count, "shares") as progress:
        for same, found in run_tasks(shares.join_share, range(shares.count)):
            same_impressions += same
            counts = {behavior: counts[behavior] + found[behavior] for behavior in counts}
            progress.advance(1)
    labelled = collections.Counter[str]()
    with Progress("write impressions", rows) as progress:
        for i, found in enumerate(run_tasks(lambda i: shares.write(i, *first_ids[i : i + 2]), range(shown))):
            os.rename(shares.path(part_name(i)), storage.join(folder, part_name(i)))
            labelled.update(found)
            progress.advance(first_ids[i + 1] - first_ids[i])
    return JoinReport(rows, same_impressions, dict(labelled), counts, join.without_window(seen))


@dataclasses.dataclass(frozen=True)
class _Shares:
    """The tasks of a join that is cut by users. They leave files for each other, and the same ones if one is run again.

    Attributes:
      join: What is joined.
      folder: Where the files are.
      count: Shares.
      memory_limit: What DuckDB may hold in memory in a task.
    """

    join: EventJoin
    folder: str
    count: int
    memory_limit: str

    def path(self, *names: str) -> str:
        """Returns the path of something in the folder."""
        return storage.join(self.folder, *names)

    def split_impressions(self, i: int, first_id: int) -> collections.Counter[str]:
        """Writes the keys of a file of impressions, numbered from `first_id`, into each share; it has no events."""
        self._split("impressions", i, self.join.of_files(impressions=i).impression_keys(first_id))
        return collections.Counter()

    def split_events(self, i: int) -> collections.Counter[str]:
        """Writes the keys of a file of events into each share, and returns {behavior: events}."""
        seen = collections.Counter[str]()
        self._split("events", i, self.join.of_files(events=i).event_keys(seen))
        return seen

    def _split(self, table: str, i: int, batches: Iterator[pa.RecordBatch]) -> None:
        """Writes rows into a folder for each share."""
        shared = (batch.append_column("share", self._shares_of(batch.column("user"))) for batch in batches)
        _write_rows(shared, self.path(table), i, ["share"])

    def _shares_of(self, users: pa.Array) -> pa.Array:
        hashes = fingerprint(tf.constant(users.to_numpy(zero_copy_only=False)), salt="join")
        return pa.array(tf.cast(hashes % self.count, tf.int32).numpy())

    def join_share(self, share: int) -> tuple[int, dict[str, EventCounts]]:
        """Joins a share, writes its new columns, and returns (same impressions, {behavior: what became of its events})."""
        with (
            tempfile.TemporaryDirectory(prefix="spill-", dir=self.folder) as spill,
            contextlib.closing(self.join.engine(self.memory_limit, spill, threads=1)) as engine,
        ):
            for keys in _read_rows(self.path("impressions", str(share))):
                engine.add_impressions(keys)
            for keys in _read_rows(self.path("events", str(share))):
                engine.add_events(keys)
            same_impressions, counts = engine.count_same_impressions(), engine.join()
            _write_rows(engine.columns(), self.path("columns"), share)
        return same_impressions, counts

    def write(self, i: int, first_id: int, end_id: int) -> dict[str, int]:
        """Writes a file of the output, and returns {behavior: impressions that have it}."""
        files = self.join.of_files(impressions=i).impressions.files
        number = pads.field("id")
        rows = pads.dataset(self.path("columns"), format="parquet").scanner(
            filter=(number >= first_id) & (number < end_id),
            batch_size=_GROUP_ROWS,
            batch_readahead=1,
            fragment_readahead=1,
        )
        labelled = collections.Counter[str]()
        with tempfile.TemporaryDirectory(prefix="spill-", dir=self.folder) as spill, storage.explained(self.folder):
            columns = NewColumns(in_order(rows.to_reader(), self.memory_limit, spill), files.path)
            for table in write_joined(self.path(part_name(i)), files, columns, self.join.joined_schema()):
                labelled.update(self.join.count_labels(table))
            columns.check_end()
        return dict(labelled)


def _write_rows(
    batches: Iterator[pa.RecordBatch], folder: str, number: int, partitioning: list[str] | None = None
) -> None:
    """Writes rows as Parquet into a folder, or into one in it for each value of a column."""
    first = next(batches, None)
    if first is not None:
        with storage.explained(folder):
            pads.write_dataset(
                pa.RecordBatchReader.from_batches(first.schema, itertools.chain([first], batches)),
                folder,
                format="parquet",
                partitioning=partitioning,
                basename_template=f"{number}-{{i}}.parquet",
                existing_data_behavior="overwrite_or_ignore",
                min_rows_per_group=_GROUP_ROWS,
                max_rows_per_group=_GROUP_ROWS,
            )


def _read_rows(folder: str) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a folder that is there if there are any."""
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        yield from pq.ParquetFile(storage.join(folder, name)).iter_batches(_GROUP_ROWS)
