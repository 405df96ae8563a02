"""Rows of damaged Parquet, CSV and JSON files: what can be read before and after the damage, which is named and counted."""

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset as pads
import pyarrow.json

from data_pipeline.bad_records import BadRecord, BadRecords, by_halves
from data_pipeline.sources.batch import BATCH_ROWS, UNREADABLE, SourceBatch, damage

_CHUNK_BYTES = 2**20


def parquet_batches(
    fragment: pads.ParquetFileFragment, first_row: int, columns: Sequence[str], bad: BadRecords
) -> Iterator[SourceBatch]:
    """Yields the rows of a Parquet file, in the types of the file; of a row group those before what cannot be read in it.

    Args:
      fragment: The file, or some of its row groups.
      first_row: Number of the first of their rows in the file.
      columns: The columns.
      bad: Takes what cannot be read.
    """
    try:
        groups = fragment.split_by_row_group()
        counts = [group.row_groups[0].num_rows for group in groups]
    except UNREADABLE as error:
        bad.add(_rest(fragment.path, first_row, error))
        return
    for group, count in zip(groups, counts):
        read = 0
        try:
            for rows in group.to_batches(columns=list(columns), batch_size=BATCH_ROWS):
                yield SourceBatch(fragment.path, first_row + read, rows)
                read += rows.num_rows
        except UNREADABLE as error:
            lost = count - read
            bad.add(BadRecord(fragment.path, "row", first_row + read, damage(fragment.path, error), lost, lost))
        first_row += count


def csv_batches(
    fragment: pads.Fragment,
    types: pa.Schema,
    read_options: pa.csv.ReadOptions,
    parse_options: pa.csv.ParseOptions,
    nulls: Sequence[str],
    bad: BadRecords,
) -> Iterator[SourceBatch]:
    """Yields the rows of a CSV file that have all their fields, each of its type.

    Columns are read as bytes and cast here, so that one value does not cost the rows around it.

    Args:
      fragment: The file.
      types: The columns and their types.
      read_options: How the file is cut into rows; it is set to one thread.
      parse_options: How these are cut into fields; it gets a handler of rows with another number of them.
      nulls: What stands for a missing value.
      bad: Takes what cannot be read.
    """
    path, other_rows = fragment.path, dict[int, str]()
    header = 0 if read_options.column_names else 1

    def skip(row: pa.csv.InvalidRow) -> str:
        other_rows[row.number - 1 - header] = f"expected {row.expected_columns} fields, got {row.actual_columns}"
        return "error" if len(other_rows) > bad.most else "skip"

    parse_options.invalid_row_handler = skip
    read_options.use_threads = False  # with threads Arrow does not number the rows
    convert_options = pa.csv.ConvertOptions(
        include_columns=types.names,
        column_types={name: pa.binary() for name in types.names},
        null_values=list(nulls),
        strings_can_be_null=True,
    )
    next_row, named = 0, 0
    fault = _gzip_fault(fragment) if path.endswith(".gz") else None
    if fault:
        bad.add(BadRecord(path, "row", 0, fault, None, None))
        return
    try:
        stream = fragment.filesystem.open_input_stream(path)
        for rows in pa.csv.open_csv(stream, read_options, parse_options, convert_options):
            numbers = np.arange(next_row, next_row + rows.num_rows + len(other_rows))
            numbers = np.setdiff1d(numbers, [*other_rows])[: rows.num_rows]
            named = _name(path, other_rows, named, bad)
            if len(numbers):
                next_row = int(numbers[-1]) + 1
                yield _typed(SourceBatch(path, int(numbers[0]), rows, numbers), types, bad)
    except UNREADABLE as error:
        _name(path, other_rows, named, bad)
        bad.add(_rest(path, next_row, error))
    else:
        _name(path, other_rows, named, bad)


def json_batches(fragment: pads.Fragment, types: pa.Schema, bad: BadRecords) -> Iterator[SourceBatch]:
    """Yields the rows of a file of JSON objects, a line each, that are of the types.

    Args:
      fragment: The file.
      types: The columns and their types.
      bad: Takes what cannot be read.
    """
    options = pyarrow.json.ParseOptions(explicit_schema=types, unexpected_field_behavior="ignore")
    path, row, lines = fragment.path, 0, list[bytes]()

    def parse(start: int, stop: int) -> list[pa.RecordBatch]:
        text = io.BytesIO(b"".join(lines[start:stop]))
        return pyarrow.json.read_json(text, parse_options=options).combine_chunks().to_batches()

    try:
        with io.BufferedReader(fragment.filesystem.open_input_file(path)) as file:
            while lines := file.readlines(_CHUNK_BYTES):
                for _, _, part in by_halves(0, len(lines), parse, UNREADABLE):
                    if isinstance(part, Exception):
                        bad.add(BadRecord(path, "row", row, damage(path, part)))
                        row += 1
                        continue
                    for rows in part:  # one, or none of blank lines
                        yield SourceBatch(path, row, rows)
                        row += rows.num_rows
    except UNREADABLE as error:
        bad.add(_rest(path, row, error))


def _name(path: str, reasons: dict[int, str], named: int, bad: BadRecords) -> int:
    """Adds the rows with another number of fields that were found since `named` of them, and returns how many there are."""
    for row in [*reasons][named:]:
        bad.add(BadRecord(path, "row", row, reasons[row]))
    return len(reasons)


def _typed(batch: SourceBatch, types: pa.Schema, bad: BadRecords) -> SourceBatch:
    """Returns the rows all of whose texts are of the types."""
    kept, columns = np.ones(batch.rows.num_rows, bool), {}
    for field in types:
        texts, parts = batch.rows.column(field.name), []

        def cast(start: int, stop: int, texts: pa.Array = texts, target: pa.DataType = field.type) -> pa.Array:
            return _parse(texts.slice(start, stop - start), target)

        for start, stop, part in by_halves(0, len(texts), cast, UNREADABLE):
            if isinstance(part, Exception):
                part = pa.nulls(stop - start, field.type)
                if kept[start:stop].all():
                    reason = f"column {field.name!r}: expected {field.type}, got {texts[start].as_py()!r:.80}"
                    bad.add(BadRecord(batch.file, "row", batch.number(start), reason))
                kept[start:stop] = False
            parts.append(part)
        columns[field.name] = pa.concat_arrays(parts)
    typed = SourceBatch(batch.file, batch.first_row, pa.RecordBatch.from_pydict(columns), batch.numbers)
    return typed if kept.all() else typed.filter(kept)


def _parse(texts: pa.Array, target: pa.DataType) -> pa.Array:
    """Returns texts in a type, as Arrow's reader of CSV files takes them; text that is not UTF-8 is refused, but as binary."""
    if pa.types.is_binary(target):
        return texts
    if pa.types.is_null(target) and texts.null_count == len(texts):
        return pa.nulls(len(texts))
    strings = pc.cast(texts, pa.string())
    if pa.types.is_string(target):
        return strings
    strings = pc.utf8_trim_whitespace(strings)
    if pa.types.is_time(target):  # which Arrow does not cast from text
        strings = pc.binary_join_element_wise("1970-01-01", strings, " ")
        return pc.cast(pc.cast(strings, pa.timestamp(target.unit)), target)
    return pc.cast(strings, target)


def _gzip_fault(fragment: pads.Fragment) -> str | None:
    """Returns what is wrong with a compressed file, whose checksum is at its end; None if it is sound, or was only cut off.

    Up to a cut all is as it was written, but of changed bytes nobody knows what they have spoiled.
    """
    try:
        with fragment.filesystem.open_input_file(fragment.path) as file, gzip.open(file) as plain:
            while plain.read(_CHUNK_BYTES):
                pass
    except EOFError:
        return None
    except (OSError, zlib.error) as error:
        return damage(fragment.path, error)
    return None


def _rest(path: str, row: int, error: Exception) -> BadRecord:
    return BadRecord(path, "row", row, f"the rest of the file: {damage(path, error)}", None, None)
