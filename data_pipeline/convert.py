"""Raw logs to a data folder: TFRecord shards a split, `schema.json` and `statistics.json`."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import tensorflow as tf

from data_pipeline import labels as label_rules
from data_pipeline import schema as schemas
from data_pipeline import statistics as stats
from data_pipeline import storage
from data_pipeline.bad_records import BAD_RECORDS_FILE, BadRecords
from data_pipeline.folder import SCHEMA_FILE, STATISTICS_FILE
from data_pipeline.index import Shard
from data_pipeline.processes import Run, run_here
from data_pipeline.records import flat_values
from data_pipeline.schema import Column, Schema
from data_pipeline.sources.base import Source, SourceBatch
from data_pipeline.split_rules import LEFT_OUT, SPLITS, DayRule, SplitRule
from data_pipeline.staging import Staging, staged_data_folder
from data_pipeline.typed_rows import ruled_rows, typed_rows
from data_pipeline.write import SplitWriter, check_record_format, write_index
from hm3_tf import __version__
from hm3_tf.errors import DataError
from hm3_tf.progress import Progress

_LOGGER = logging.getLogger(__name__)

_BUCKETS_A_VALUE = 5  # hash buckets for each distinct value: about a fifth of the values share theirs with another
_LEAST_BUCKETS, _MOST_BUCKETS = 1_000, 2**22


@dataclasses.dataclass
class _Split:
    writer: SplitWriter
    statistics: stats.StatisticsBuilder


@dataclasses.dataclass(frozen=True)
class _WrittenSplit:
    """What was written of a split: its shards in order, and the statistics of their rows."""

    shards: list[Shard]
    statistics: stats.StatisticsBuilder

    def merge(self, other: "_WrittenSplit") -> None:
        """Adds what was written after it."""
        self.shards.extend(other.shards)
        self.statistics.merge(other.statistics)


@dataclasses.dataclass(frozen=True)
class _Part:
    """A part of the log to write.

    Attributes:
      number: Its number.
      source: Its rows.
      first_row: Number of the first of them in the log, if the split goes by it.
      staging: The data folder.
      split, nesting, record_format, days: As of `convert`.
      most_bad: Bad records that are skipped; None where the first one is an error.
    """

    number: int
    source: Source
    first_row: int
    staging: Staging
    split: SplitRule
    nesting: str
    record_format: str
    days: DayRule | None
    most_bad: int | None


@dataclasses.dataclass(frozen=True)
class _WrittenPart:
    """What a part became.

    Attributes:
      rows: The number of rows that were read.
      splits: What was written, by split.
      left_out: {why: rows that the source or the rule of the split leaves out}.
      bad: What could not be read.
    """

    rows: int
    splits: dict[str, _WrittenSplit]
    left_out: collections.Counter[str]
    bad: BadRecords | None


def convert(
    source: Source,
    output_dir: str,
    split: SplitRule,
    *,
    nesting: str = "coerce",
    record_format: str = "packed",
    days: DayRule | None = None,
    bad: BadRecords | None = None,
    run: Run = run_here,
) -> dict[str, stats.SplitStatistics]:
    """Writes a raw log as a data folder, which appears under its name only when complete.

    Behavior columns are written as they came; readers apply the nesting policy. Under `coerce` rows that break the
    hierarchy are counted, under `drop` they are counted and left out, under `error` the first one ends the conversion.

    The parts of the log are written each by itself, with shards of their own. So the files are the same, byte for byte, for the
    same log and arguments, whatever runs the parts; and a conversion that was killed goes on from the parts that are there.

    Args:
      source: The raw log.
      output_dir: The data folder; it must not exist, or be empty.
      split: Rule that gives each row its split.
      nesting: `coerce`, `drop` or `error`.
      record_format: `packed` or `row`.
      days: Rule that gives each row its day, where each day is to have shards of its own, named by it.
      bad: Takes what cannot be read, which is then in `bad_records.jsonl`; None where the first bad record is an error.
      run: Runs the parts: `run_here` in this process, a `process_pool`, or Ray (`ray_tasks`).

    Returns:
      {split: its statistics}.

    Raises:
      DataError: A column is missing or of another type, a number is NaN or infinite, labels break the hierarchy, the
        training split is empty, or more records are bad than `bad` takes; of several parts with errors any one is named.
      ConfigError: The policy or the format is unknown.
      Hm3Error: The folder cannot be written.
    """
    label_rules.check_policy(nesting, "--nesting")
    check_record_format(record_format)
    most_bad = bad.most if bad is not None else None
    rules = (split, nesting, record_format, days, most_bad)
    sources = source.parts()
    origin = repr((__version__, schemas.to_json(source.schema), source.origin, len(sources), rules))
    with staged_data_folder(output_dir, origin) as staging:
        for name in SPLITS:
            storage.make_folder(storage.join(staging.folder, name))
        counts = [0] * len(sources)
        if split.by_row_number and len(sources) > 1:
            counts = list(run(functools.partial(_count_rows, most_bad=most_bad), sources))
        parts = [
            _Part(i, part, first_row, staging, *rules)
            for i, (part, first_row) in enumerate(zip(sources, itertools.accumulate(counts, initial=0)))
        ]
        splits = _write_parts(parts, source.schema, run, sum(counts), bad)
        return _write_metadata(staging.folder, source, splits, record_format, bad)


def _count_rows(source: Source, most_bad: int | None) -> int:
    return source.count_rows(None if most_bad is None else BadRecords(most_bad))


def _write_parts(
    parts: list[_Part], schema: Schema, run: Run, total: int, bad: BadRecords | None
) -> dict[str, _WrittenSplit]:
    """Writes the parts that are not written yet, and returns what was written of all, by split; `bad` takes what cannot be."""
    splits = {name: _WrittenSplit([], stats.StatisticsBuilder(schema)) for name in SPLITS}
    missing = {part.number: part for part in parts if not _is_written(part)}
    if len(missing) < len(parts):
        _LOGGER.info("convert: %d of %d parts of the log are written, goes on", len(parts) - len(missing), len(parts))
    with Progress("convert", total or None) as progress:
        write: Callable[[_Part], None] = _write_part
        if run is run_here or len(missing) <= 1:
            run, write = run_here, functools.partial(_write_part, on_rows=progress.advance)
        rows, left_out = 0, collections.Counter[str]()
        with contextlib.closing(run(write, list(missing.values()))) as written:
            for part in parts:
                if part.number in missing:
                    next(written)
                result = part.staging.read(part.number)
                rows += result.rows
                progress.reach(rows)
                for name, each in result.splits.items():
                    splits[name].merge(each)
                left_out.update(result.left_out)
                if bad is not None:
                    bad.merge(result.bad)
    for reason, count in left_out.items():
        _LOGGER.info("convert: %s rows left out: %s", f"{count:,}", reason)
    return splits


def _is_written(part: _Part) -> bool:
    """Whether a part has a record, and its shards are as long as that says."""
    result = part.staging.read(part.number)
    return result is not None and all(
        _size_of(storage.join(part.staging.folder, name, shard.file)) == shard.bytes
        for name, each in result.splits.items()
        for shard in each.shards
    )


def _size_of(path: str) -> int:
    return tf.io.gfile.stat(path).length if tf.io.gfile.exists(path) else -1


def _write_part(part: _Part, on_rows: Callable[[int], None] = lambda rows: None) -> None:
    """Writes the rows of a part of the log as shards, and leaves its record."""
    storage.open_file_system(part.staging.folder)
    schema = part.source.schema
    splits = {
        name: _Split(
            SplitWriter(
                storage.join(part.staging.folder, name),
                schema.columns,
                part.record_format,
                name=f"part-{part.number:05d}",
            ),
            stats.StatisticsBuilder(schema),
        )
        for name in SPLITS
    }
    rows, bad = 0, None if part.most_bad is None else BadRecords(part.most_bad)
    left_out = collections.Counter[str]()
    for batch in part.source.batches(bad):
        count = batch.rows.num_rows
        left_out.update(batch.left_out)
        batch, ruled = ruled_rows(batch, _rules(part, part.first_row + rows), bad)
        rows += count
        on_rows(count)
        typed, kept = typed_rows(batch, schema, bad)
        if kept is not None:
            batch, ruled = batch.filter(kept), [rule[kept] for rule in ruled]
        left_out["of the last date of --split or later"] += int(np.count_nonzero(ruled[0] == LEFT_OUT))
        _write_batch(batch, typed, schema, splits, ruled[0], part.nesting, ruled[1] if part.days else None)
    written = {name: _WrittenSplit(each.writer.finish(), each.statistics) for name, each in splits.items()}
    part.staging.write(part.number, _WrittenPart(rows, written, +left_out, bad))


def _rules(part: _Part, first_row: int) -> list[Callable[[pa.RecordBatch, int], np.ndarray]]:
    """Returns the rules of the split, and of the day if there is one, for a batch whose first row in the log is `first_row`."""
    days = part.days
    split = [lambda rows, start: part.split(rows, first_row + start)]
    return split + ([lambda rows, _start: days(rows)] if days else [])


def _write_metadata(
    folder: str,
    source: Source,
    splits: dict[str, _WrittenSplit],
    record_format: str,
    bad: BadRecords | None,
) -> dict[str, stats.SplitStatistics]:
    """Writes the indexes, `statistics.json` and last `schema.json` of a data folder, and returns {split: its statistics}.

    Where bad records were skipped there is a `bad_records.jsonl` too.

    Raises:
      DataError: The training split is empty.
    """
    results = {name: part.statistics.result() for name, part in splits.items()}
    if bad:
        bad.tell()
    if not results["train"].rows:
        counts = {name: result.rows for name, result in results.items()}
        skipped = f" ({bad.summary()})" if bad else ""
        raise DataError(
            f"--split: expected rows for the training split, got {counts}{skipped}; check --input and --split"
        )
    for name, part in splits.items():
        write_index(storage.join(folder, name), record_format, part.shards)
    storage.write_text(storage.join(folder, STATISTICS_FILE), stats.to_json(results))
    if bad:
        storage.write_text(storage.join(folder, BAD_RECORDS_FILE), bad.to_jsonl())
    schema = _size(source.schema, source, results["train"])
    storage.write_text(storage.join(folder, SCHEMA_FILE), schemas.to_json(schema))
    return results


def _write_batch(
    batch: SourceBatch,
    rows: pa.RecordBatch,
    schema: Schema,
    splits: dict[str, _Split],
    assignment: np.ndarray,
    nesting: str,
    days: np.ndarray | None,
) -> None:
    values = {column.name: flat_values(column, rows.column(column.name)) for column in schema.with_role("behavior")}
    labels, violations = label_rules.nest(schema.levels, label_rules.raw_flags(schema.levels, values))
    keep = np.ones(rows.num_rows, bool)
    if nesting == "error":
        _refuse_violations(batch, violations)
    elif nesting == "drop":
        keep = ~np.any(list(violations.values()), axis=0)
    for code, part in enumerate(splits.values()):
        mine = assignment == code
        part.statistics.add_violations({kind: where & mine for kind, where in violations.items()})
        mine &= keep
        if not mine.any():
            continue
        kept = rows if mine.all() else rows.filter(pa.array(mine))
        part.writer.write(kept, None if days is None else days[mine])
        columns = {column.name: flat_values(column, kept.column(column.name)) for column in schema.columns}
        part.statistics.add_rows(columns, {name: label[mine] for name, label in labels.items()})


def _refuse_violations(batch: SourceBatch, violations: dict[str, np.ndarray]) -> None:
    for kind, where in violations.items():
        if where.any():
            raise DataError(
                f"{batch.file}: row {batch.number(int(np.argmax(where)))}: expected labels that keep the hierarchy, "
                f"got {kind} ({np.count_nonzero(where)} such rows in this batch); use --nesting=coerce or drop, or mend the log"
            )


def _size(schema: Schema, source: Source, train: stats.SplitStatistics) -> Schema:
    """Returns the schema with the buckets of inferred columns set from the distinct values of the training split.

    Columns that share a table are sized by the one of them that has the most values.
    """
    tables: dict[str, int] = {}
    for column in schema.inputs:
        if column.name in source.inferred and column.hashing is not None:
            table = column.hashing.table or column.name
            tables[table] = max(tables.get(table, 0), train.columns[column.name]["cardinality"])

    def sized(column: Column) -> Column:
        if column.name not in source.inferred or column.hashing is None:
            return column
        values = tables[column.hashing.table or column.name]
        buckets = 1 + min(max(_LEAST_BUCKETS, _BUCKETS_A_VALUE * values), _MOST_BUCKETS)
        return dataclasses.replace(column, hashing=dataclasses.replace(column.hashing, buckets=buckets))

    return dataclasses.replace(schema, columns=tuple(sized(column) for column in schema.columns))
