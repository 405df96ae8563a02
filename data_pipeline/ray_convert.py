"""Conversion by the machines of a Ray cluster: each file of the log is a task of Ray Data, and has shards of its own."""

import itertools
import logging
import os
import pickle
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from data_pipeline import statistics as stats
from data_pipeline import storage
from data_pipeline.convert import WrittenSplit, new_data_folder, write_metadata, write_splits
from data_pipeline.sources.base import FileSource
from data_pipeline.split_rules import SplitRule
from hm3_tf.errors import Hm3Error
from hm3_tf.progress import Progress
from hm3_tf.ray_session import connected


def convert_on_ray(
    source: FileSource,
    output_dir: str,
    split: Callable[[int], SplitRule],
    *,
    nesting: str = "coerce",
    record_format: str = "packed",
    address: str | None = None,
) -> dict[str, stats.SplitStatistics]:
    """Writes a raw log as a data folder: the rows that `convert` writes, each in the same split and in the same order.

    The shards are others: those of a file begin anew. All machines read the log and write the folder under the same paths.

    Args:
      source: The raw log.
      output_dir: The data folder; it must not exist, or be empty.
      split: Returns the rule that gives each row its split, for rows from this number on.
      nesting: `coerce`, `drop` or `error`.
      record_format: `packed` or `row`.
      address: Of the cluster, see `connected`; None for a Ray of this machine.

    Returns:
      {split: its statistics}.

    Raises:
      DataError: As `convert`; of several files with errors any one is named.
      ConfigError: The policy or the format is unknown.
      Hm3Error: The folder cannot be written, Ray is not installed, or there is no cluster at the address.
    """
    output_dir = storage.absolute(output_dir)
    parts = source.parts()
    with new_data_folder(output_dir, nesting, record_format) as folder, connected(address, os.cpu_count() or 1) as ray:
        rows = list(_run_tasks(ray, lambda i: parts[i].count_rows(), len(parts)))
        first_rows = list(itertools.accumulate(rows, initial=0))

        def write(i: int) -> dict[str, WrittenSplit]:
            return write_splits(parts[i], folder, split(first_rows[i]), nesting, record_format, name=f"part-{i:05d}")

        splits: dict[str, WrittenSplit] = {}
        with Progress("convert", first_rows[-1]) as progress:
            for count, written in zip(rows, _run_tasks(ray, write, len(parts))):
                for name, part in written.items():
                    splits.setdefault(name, WrittenSplit([], stats.StatisticsBuilder(source.schema))).merge(part)
                progress.advance(count)
        return write_metadata(folder, source, splits, record_format)


def _run_tasks(ray: Any, task: Callable[[int], Any], count: int) -> Iterator[Any]:
    """Yields the results of a task for 0, 1, ... `count` - 1, in this order.

    Raises:
      Hm3Error: One of them did.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans, and that its bars are off

    def run(row: dict[str, int]) -> dict[str, bytes]:
        try:
            result = task(row["item"])
        except Hm3Error as error:  # as a result: Ray would make its traceback the message
            result = error
        return {
            "result": zlib.compress(pickle.dumps(result), level=1)
        }  # most of it are sketches, which are mostly empty

    tasks = ray.data.from_items(list(range(count)), override_num_blocks=count).map(run)
    tasks.context.enable_progress_bars = False
    tasks.context.execution_options.preserve_order = True
    for row in tasks.iter_rows():
        result = pickle.loads(zlib.decompress(row["result"]))
        if isinstance(result, Hm3Error):
            raise result
        yield result
