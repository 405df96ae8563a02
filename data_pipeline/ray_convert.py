"""Conversion by the machines of a Ray cluster: each file of the log is a task of Ray Data, and has shards of its own."""

import itertools
import os
from collections.abc import Callable

from data_pipeline import statistics as stats
from data_pipeline import storage
from data_pipeline.convert import WrittenSplit, new_data_folder, write_metadata, write_splits
from data_pipeline.ray_tasks import run_tasks
from data_pipeline.sources.base import FileSource
from data_pipeline.split_rules import SplitRule
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
        rows = list(run_tasks(ray, lambda i: parts[i].count_rows(), len(parts)))
        first_rows = list(itertools.accumulate(rows, initial=0))

        def write(i: int) -> dict[str, WrittenSplit]:
            return write_splits(parts[i], folder, split(first_rows[i]), nesting, record_format, name=f"part-{i:05d}")

        splits: dict[str, WrittenSplit] = {}
        with Progress("convert", first_rows[-1]) as progress:
            for count, written in zip(rows, run_tasks(ray, write, len(parts))):
                for name, part in written.items():
                    splits.setdefault(name, WrittenSplit([], stats.StatisticsBuilder(source.schema))).merge(part)
                progress.advance(count)
        return write_metadata(folder, source, splits, record_format)
