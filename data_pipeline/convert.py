"""Raw logs to a data folder: TFRecord shards a split, `schema.json` and `statistics.json`."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import labels as label_rules
from data_pipeline import schema as schemas
from data_pipeline import statistics as stats
from data_pipeline import storage
from data_pipeline.folder import SCHEMA_FILE, STATISTICS_FILE
from data_pipeline.records import arrow_type, flat_values, list_lengths
from data_pipeline.schema import Column, Schema
from data_pipeline.sources.base import Source, SourceBatch
from data_pipeline.split_rules import DayRule, SplitRule
from data_pipeline.write import Shard, SplitWriter, check_record_format, write_index
from hm3_tf.errors import DataError, did_you_mean
from hm3_tf.progress import Progress

SPLITS = ("train", "validation", "test")

_BUCKETS_A_VALUE = 5  # hash buckets for each distinct value: about a fifth of the values share theirs with another
_LEAST_BUCKETS, _MOST_BUCKETS = 1_000, 2**22


@dataclasses.dataclass
class _Split:
    writer: SplitWriter
    statistics: stats.StatisticsBuilder


@dataclasses.dataclass(frozen=True)
class WrittenSplit:
    """What was written of a split, by one process or by several.

    Attributes:
      shards: Its shards in order.
      statistics: Of their rows.
    """

    shards: list[Shard]
    statistics: stats.StatisticsBuilder

    def merge(self, other: "WrittenSplit") -> None:
        """Adds what another process has written."""
        self.shards.extend(other.shards)
        self.statistics.merge(other.statistics)


def convert(
    source: Source,
    output_dir: str,
    split: SplitRule,
    *,
    nesting: str = "coerce",
    record_format: str = "packed",
    total_rows: int | None = None,
    days: DayRule | None = None,
) -> dict[str, stats.SplitStatistics]:
    """Writes a raw log as a data folder, which appears under its name only when complete.

    Behavior columns are written as they came; readers apply the nesting policy. Under `coerce` rows that break the
    hierarchy are counted, under `drop` they are counted and left out, under `error` the first one ends the conversion.

    Args:
      source: The raw log.
      output_dir: The data folder; it must not exist, or be empty.
      split: Rule that gives each row its split.
      nesting: `coerce`, `drop` or `error`.
      record_format: `packed` or `row`.
      total_rows: Number of rows, where known, for the progress bar.
      days: Rule that gives each row its day, where each day is to have shards of its own, named by it.

    Returns:
      {split: its statistics}.

    Raises:
      DataError: A column is missing or of another type, a number is NaN or infinite, labels break the hierarchy, or the
        training split is empty.
      ConfigError: The policy or the format is unknown.
      Hm3Error: The folder cannot be written.
    """
    with new_data_folder(output_dir, nesting, record_format) as folder, Progress("convert", total_rows) as progress:
        splits = write_splits(source, folder, split, nesting, record_format, days=days, on_rows=progress.advance)
        return write_metadata(folder, source, splits, record_format)


@contextlib.contextmanager
def new_data_folder(output_dir: str, nesting: str, record_format: str) -> Iterator[str]:
    """Yields a data folder with an empty folder a split, which appears as `output_dir` when the block ends well.

    Raises:
      ConfigError: The policy or the format is unknown.
      Hm3Error: The folder exists with something in it, or cannot be written.
    """
    label_rules.check_policy(nesting, "--nesting")
    check_record_format(record_format)
    storage.open_file_system(output_dir)
    with storage.staged_folder(output_dir) as folder:
        for name in SPLITS:
            storage.make_folder(storage.join(folder, name))
        yield folder


def write_splits(
    source: Source,
    folder: str,
    split: SplitRule,
    nesting: str,
    record_format: str,
    *,
    days: DayRule | None = None,
    name: str = "part",
    on_rows: Callable[[int], None] = lambda rows: None,
) -> dict[str, WrittenSplit]:
    """Writes the rows of a log, or of a part of it, as shards.

    Args:
      source: The log.
      folder: Data folder with a folder a split.
      split: Rule that gives each row its split.
      nesting: `coerce`, `drop` or `error`.
      record_format: `packed` or `row`.
      days: Rule that gives each row its day, where each day is to have shards of its own, named by it.
      name: What the names of the other shards begin with; a part has its own.
      on_rows: Called with the number of rows that were written since.

    Returns:
      {split: what was written of it}.

    Raises:
      DataError: As `convert`.
    """
    storage.open_file_system(folder)
    schema = source.schema
    splits = {
        part: _Split(
            SplitWriter(storage.join(folder, part), schema.columns, record_format, name=name),
            stats.StatisticsBuilder(schema),
        )
        for part in SPLITS
    }
    for batch in source.batches():
        _write_batch(batch, schema, splits, split(batch.rows), nesting, days(batch.rows) if days else None)
        on_rows(batch.rows.num_rows)
    return {part: WrittenSplit(each.writer.finish(), each.statistics) for part, each in splits.items()}


def write_metadata(
    folder: str, source: Source, splits: dict[str, WrittenSplit], record_format: str
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
