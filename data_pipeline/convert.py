"""Raw logs to a data folder: TFRecord shards a split, `schema.json` and `statistics.json`."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import labels as label_rules
from data_pipeline import schema as schemas
from data_pipeline import statistics as stats
from data_pipeline import storage
from data_pipeline.folder import SCHEMA_FILE, STATISTICS_FILE
from data_pipeline.index import Shard
from data_pipeline.processes import Run
from data_pipeline.records import arrow_type, flat_values, list_lengths
from data_pipeline.schema import Column, Schema
from data_pipeline.sources.base import Source, SourceBatch
from data_pipeline.split_rules import DayRule, SplitRule
from data_pipeline.staging import Staging, staged_data_folder
from data_pipeline.write import SplitWriter, check_record_format, write_index
from hm3_tf import __version__
from hm3_tf.errors import DataError, did_you_mean
from hm3_tf.progress import Progress

_LOGGER = logging.getLogger("hm3_tf.convert")

SPLITS = ("train", "validation", "test")

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
    """

    number: int
    source: Source
    first_row: int
    staging: Staging
    split: SplitRule
    nesting: str
    record_format: str
    days: DayRule | None


@dataclasses.dataclass(frozen=True)
class _WrittenPart:
    """What a part became: the number of rows that were read, and what was written, by split."""

    rows: int
    splits: dict[str, _WrittenSplit]


def convert(
    source: Source,
    output_dir: str,
    split: SplitRule,
    *,
    nesting: str = "coerce",
    record_format: str = "packed",
    days: DayRule | None = None,
    run: Run = map,
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
      run: Runs the parts: `map` in this process, a `process_pool`, or Ray (`ray_convert`).

    Returns:
      {split: its statistics}.

    Raises:
      DataError: A column is missing or of another type, a number is NaN or infinite, labels break the hierarchy, or the
        training split is empty; of several parts with errors any one is named.
      ConfigError: The policy or the format is unknown.
      Hm3Error: The folder cannot be written.
    """
    label_rules.check_policy(nesting, "--nesting")
    check_record_format(record_format)
    origin = repr((__version__, schemas.to_json(source.schema), source.origin, split, nesting, record_format, days))
    with staged_data_folder(output_dir, origin) as staging:
        for name in SPLITS:
            storage.make_folder(storage.join(staging.folder, name))
        sources = source.parts()
        rows = list(run(_count_rows, sources)) if split.by_row_number and len(sources) > 1 else [0] * len(sources)
        parts = [
            _Part(i, part, first_row, staging, split, nesting, record_format, days)
            for i, (part, first_row) in enumerate(zip(sources, itertools.accumulate(rows, initial=0)))
        ]
        return _write_metadata(
            staging.folder, source, _write_parts(parts, source.schema, run, sum(rows)), record_format
        )


def _count_rows(source: Source) -> int:
    return source.count_rows()


def _write_parts(parts: list[_Part], schema: Schema, run: Run, total: int) -> dict[str, _WrittenSplit]:
    """Writes the parts that are not written yet, and returns what was written of all, by split."""
    splits = {name: _WrittenSplit([], stats.StatisticsBuilder(schema)) for name in SPLITS}
    missing = {part.number: part for part in parts if not part.staging.has(part.number)}
    if len(missing) < len(parts):
        _LOGGER.info("convert: %d of %d parts of the log are written, goes on", len(parts) - len(missing), len(parts))
    with Progress("convert", total or None) as progress:
        write = functools.partial(_write_part, on_rows=progress.advance) if run is map else _write_part
        written, rows = run(write, list(missing.values())), 0
        for part in parts:
            if part.number in missing:
                next(written)
            result = part.staging.read(part.number)
            rows += result.rows
            progress.reach(rows)
            for name, each in result.splits.items():
                splits[name].merge(each)
    return splits


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
    rows = 0
    for batch in part.source.batches():
        days = part.days(batch.rows) if part.days else None
        _write_batch(batch, schema, splits, part.split(batch.rows, part.first_row + rows), part.nesting, days)
        rows += batch.rows.num_rows
        on_rows(batch.rows.num_rows)
    written = {name: _WrittenSplit(each.writer.finish(), each.statistics) for name, each in splits.items()}
    part.staging.write(part.number, _WrittenPart(rows, written))


def _write_metadata(
    folder: str, source: Source, splits: dict[str, _WrittenSplit], record_format: str
) -> dict[str, stats.SplitStatistics]:
    """Writes the indexes, `statistics.json` and last `schema.json` of a data folder, and returns {split: its statistics}.

    Raises:
      DataError: The training split is empty.
    """
    results = {name: part.statistics.result() for name, part in splits.items()}
    if not results["train"].rows:
        counts = {name: result.rows for name, result in results.items()}
        raise DataError(f"--split: expected rows for the training split, got {counts}; check --input and --split")
    for name, part in splits.items():
        write_index(storage.join(folder, name), record_format, part.shards)
    storage.write_text(storage.join(folder, STATISTICS_FILE), stats.to_json(results))
    schema = _size(source.schema, source, results["train"])
    storage.write_text(storage.join(folder, SCHEMA_FILE), schemas.to_json(schema))
    return results


def _write_batch(
    batch: SourceBatch,
    schema: Schema,
    splits: dict[str, _Split],
    assignment: np.ndarray,
    nesting: str,
    days: np.ndarray | None,
) -> None:
    rows = pa.RecordBatch.from_pydict({column.name: _typed(batch, column) for column in schema.columns})
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
                f"{batch.file}: row {batch.first_row + int(np.argmax(where))}: expected labels that keep the hierarchy, "
                f"got {kind} ({np.count_nonzero(where)} such rows in this batch); use --nesting=coerce or drop, or mend the log"
            )


def _typed(batch: SourceBatch, column: Column) -> pa.Array:
    """Returns a column of a raw batch in its `arrow_type`, checked."""
    names = batch.rows.schema.names
    if column.name not in names:
        raise DataError(
            f"{batch.file}: expected the column {column.name!r} of the schema, found none; "
            f"{did_you_mean(column.name, names)}"
        )
    raw = batch.rows.column(column.name)
    target = arrow_type(column)
    try:
        array = raw if raw.type == target else pc.cast(_castable(raw, target), target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{batch.file}: column {column.name!r}: expected {column.dtype} as the schema says, got {raw.type} in rows "
            f"{batch.first_row} to {batch.first_row + batch.rows.num_rows - 1} ({error}); mend the schema or the log"
        ) from error
    if column.dtype == "float" and column.role != "ignored":
        _refuse_non_finite(batch, column, array)
    if column.role == "weight":
        _refuse_negative(batch, column, array)
    if column.shape and column.shape[0] is not None:
        _refuse_other_lengths(batch, column, array)
    return array


def _castable(raw: pa.Array, target: pa.DataType) -> pa.Array:
    """Casts numbers to text before bytes, and integers to double before float: Arrow does not go there in one step."""
    if pa.types.is_binary(target) and not _is_text(raw.type):
        return pc.cast(raw, pa.string())
    if pa.types.is_int64(target) and pa.types.is_uint64(raw.type):
        return raw.view(pa.int64())  # ids are hashed by their bits
    if pa.types.is_float32(target) and pa.types.is_integer(raw.type):
        return pc.cast(raw, pa.float64(), safe=False)
    return raw


def _is_text(arrow: pa.DataType) -> bool:
    tests = (pa.types.is_large_string, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(test(arrow) for test in tests)


def _refuse_non_finite(batch: SourceBatch, column: Column, array: pa.Array) -> None:
    flat = array.flatten() if column.shape else array
    bad = pc.fill_null(pc.invert(pc.is_finite(flat)), False).to_numpy(zero_copy_only=False)
    if bad.any():
        place = row = int(np.argmax(bad))
        if column.shape:
            row = int(np.searchsorted(np.cumsum(list_lengths(array)), place, side="right"))
        raise DataError(
            f"{batch.file}: row {batch.first_row + row}: column {column.name!r}: expected a finite number, or null for a "
            f"missing one, got {flat[place].as_py()}; mend the log, or give the column the role 'ignored'"
        )


def _refuse_negative(batch: SourceBatch, column: Column, array: pa.Array) -> None:
    negative = pc.fill_null(pc.less(array, 0), False).to_numpy(zero_copy_only=False)
    if negative.any():
        row = int(np.argmax(negative))
        raise DataError(
            f"{batch.file}: row {batch.first_row + row}: column {column.name!r}: expected a weight of at least 0, got "
            f"{array[row].as_py()}; mend the log"
        )


def _refuse_other_lengths(batch: SourceBatch, column: Column, array: pa.Array) -> None:
    lengths = list_lengths(array)
    bad = lengths != column.shape[0]
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"{batch.file}: row {batch.first_row + row}: column {column.name!r}: expected {column.shape[0]} values as the "
            f"schema says, got {lengths[row]}"
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
