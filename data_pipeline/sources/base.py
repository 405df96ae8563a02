"""What a source of raw logs is: Arrow batches, the place of each for error messages, and a schema."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as pads
import tensorflow as tf

from data_pipeline import storage
from data_pipeline.arrow_files import file_system
from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema
from hm3_tf.errors import DataError, UsageError, did_you_mean

BATCH_ROWS = 65_536
_DEFAULT_MAX_LENGTH = 50


@dataclasses.dataclass(frozen=True)
class SourceBatch:
    """Rows of a raw log.

    Attributes:
      file: The file they are from.
      first_row: Number of the first row in that file, from 0.
      rows: The raw columns; nulls are missing values.
    """

    file: str
    first_row: int
    rows: pa.RecordBatch


class Source(Protocol):
    """A raw log."""

    @property
    def schema(self) -> Schema:
        """Its columns and levels."""
        ...

    @property
    def inferred(self) -> frozenset[str]:
        """Names of the columns whose number of hash buckets is to be set from the data."""
        ...

    def batches(self) -> Iterator[SourceBatch]:
        """Yields the rows in order."""
        ...


@dataclasses.dataclass(frozen=True)
class TableFiles:
    """Rows of Parquet or CSV files, in the order of their names.

    Attributes:
      path: A file, a folder of them, or a glob pattern; local or a URL.
      file_format: `parquet` or `csv`.
      column_types: Types of columns that must not be inferred.
      column_names: Names of the columns of CSV files that have no header.
      delimiter: What stands between the columns of CSV files; but for a comma, quotes are text.
      nulls: What stands for a missing value in CSV files.
      only: Number of the one file whose rows are read; None: those of all. It has the column types of all together.
    """

    path: str
    file_format: str
    column_types: tuple[tuple[str, pa.DataType], ...] = ()
    column_names: tuple[str, ...] = ()
    delimiter: str = ","
    nulls: tuple[str, ...] = ("",)
    only: int | None = None

    def dataset(self) -> pads.Dataset:
        """Returns the Arrow data set of the files.

        Raises:
          DataError: There is no such file, or one is not in the format.
        """
        arrow = file_system(self.path)
        pattern = storage.join(self.path, f"**/*.{self.file_format}") if tf.io.gfile.isdir(self.path) else self.path
        files = storage.find_files(pattern)
        if not files:
            raise DataError(f"{self.path}: expected {self.file_format} files, found none; check the path")
        file_format = self._csv_format() if self.file_format == "csv" else self.file_format
        try:
            return pads.dataset(files, format=file_format, filesystem=arrow)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{self.path}: expected {self.file_format} files, got: {error}") from error

    def _csv_format(self) -> pads.CsvFileFormat:
        return pads.CsvFileFormat(
            read_options=pa.csv.ReadOptions(column_names=list(self.column_names)),
            parse_options=pa.csv.ParseOptions(
                delimiter=self.delimiter, quote_char='"' if self.delimiter == "," else False
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict(self.column_types), null_values=list(self.nulls), strings_can_be_null=True
            ),
        )

    def parts(self) -> list["TableFiles"]:
        """Returns each of the files by itself, in order."""
        return [dataclasses.replace(self, only=i) for i in range(len(self.dataset().files))]

    def count_rows(self) -> int:
        """Returns the number of rows.

        Raises:
          DataError: A file cannot be read.
        """
        return sum(_count_rows(fragment, self.file_format) for fragment in self._fragments(self.dataset()))

    def _fragments(self, dataset: pads.Dataset) -> list[pads.Fragment]:
        fragments = list(dataset.get_fragments())
        return fragments if self.only is None else [fragments[self.only]]

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[SourceBatch]:
        """Yields the rows of the files, `columns` of them or all."""
        dataset = self.dataset()
        for fragment in self._fragments(dataset):
            first_row = 0
            try:
                _require_columns(fragment, columns or ())
                for rows in fragment.to_batches(schema=dataset.schema, columns=columns, batch_size=BATCH_ROWS):
                    yield SourceBatch(fragment.path, first_row, rows)
                    first_row += rows.num_rows
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(
                    f"{fragment.path}: expected {self.file_format} rows after row {first_row}, got: {error}; "
                    "mend or remove the file"
                ) from error


def _count_rows(fragment: pads.Fragment, file_format: str) -> int:
    try:
        return fragment.count_rows()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{fragment.path}: expected {file_format} rows, got: {error}; mend or remove the file"
        ) from error


def _require_columns(fragment: pads.Fragment, columns: Sequence[str]) -> None:
    """Checks that a file has the columns, which Arrow would fill with nulls."""
    known = fragment.physical_schema.names
    for name in columns:
        if name not in known:
            raise DataError(
                f"{fragment.path}: expected the column {name!r} of the schema, found none; {did_you_mean(name, known)}"
            )


class FileSource(Source, Protocol):
    """A raw log in files that can be read each by itself."""

    def parts(self) -> Sequence["FileSource"]:
        """Returns the log of each file, in order; they have the schema of the whole."""
        ...

    def count_rows(self) -> int:
        """Returns the number of rows that `batches` yields."""
        ...


@dataclasses.dataclass(frozen=True)
class TableSource:
    """A log in Parquet or CSV files.

    Attributes:
      files: The files.
      schema: Its columns and levels.
      inferred: Names of the columns whose number of hash buckets is to be set from the data.
    """

    files: TableFiles
    schema: Schema
    inferred: frozenset[str] = frozenset()

    def batches(self) -> Iterator[SourceBatch]:
        """Yields the rows in order.

        Raises:
          DataError: A column of the schema is not in the files, or a file cannot be read.
        """
        return self.files.batches([column.name for column in self.schema.columns])

    def parts(self) -> list["TableSource"]:
        """Returns the log of each file, in order."""
        return [dataclasses.replace(self, files=files) for files in self.files.parts()]

    def count_rows(self) -> int:
        """Returns the number of rows.

        Raises:
          DataError: A file cannot be read.
        """
        return self.files.count_rows()


def parse_behaviors(text: str) -> tuple[Level, ...]:
    """Returns the levels of `--behaviors`.

    >>> [level.any_of for level in parse_behaviors("click,d_ma=cart|wish,purchase")]
    [('click',), ('cart', 'wish'), ('purchase',)]

    Args:
      text: Such as `click,cart,purchase`, or with merged columns `click,d_ma=cart|wish,purchase`; in order, the first a gate.

    Returns:
      The levels.

    Raises:
      UsageError: A name is empty.
    """
    levels: list[Level] = []
    for item in text.split(","):
        name, _, columns = item.strip().partition("=")
        names = tuple(column.strip() for column in (columns or name).split("|"))
        if not name or not all(names):
            raise UsageError(f"--behaviors: expected name or name=column|column between commas, got {text!r}")
        levels.append(Level(name, names, gate=not levels))
    return tuple(levels)


def infer_schema(
    arrow: pa.Schema, levels: tuple[Level, ...], groups: Sequence[str], ignored: Sequence[str]
) -> tuple[Schema, frozenset[str]]:
    """Returns the schema of a table whose behaviors are named: all other columns are features.

    Args:
      arrow: The table's columns and types.
      levels: The behavior levels.
      groups: Columns of role `group`; they are inputs too.
      ignored: Columns that are kept and not read.

    Returns:
      (schema, names of the columns whose number of buckets is a placeholder).

    Raises:
      UsageError: A named column is not in the table.
    """
    behaviors = {name for level in levels for name in level.any_of}
    for name in [*sorted(behaviors), *groups, *ignored]:
        if name not in arrow.names:
            raise UsageError(
                f"--behaviors, --groups, --ignore: expected a column of the log, got {name!r}; "
                f"{did_you_mean(name, arrow.names)}"
            )
    columns, inferred = [], set()
    for field in arrow:
        if field.name in groups and _is_float(field.type):
            raise UsageError(f"--groups: expected a column of ids or text, got {field.name!r} of type {field.type}")
        if not _is_carried(field.type):
            if field.name in ignored:
                continue  # cannot be written, and nobody reads it
            raise UsageError(
                f"column {field.name!r}: expected numbers, text, dates, or lists of numbers or text, got {field.type}; add it "
                "to --ignore"
            )
        role = "behavior" if field.name in behaviors else "group" if field.name in groups else "feature"
        column = _infer_column(field, "ignored" if field.name in ignored else role)
        columns.append(column)
        if column.hashing is not None:
            inferred.add(column.name)
    return Schema(tuple(columns), levels), frozenset(inferred)


def _is_list(arrow: pa.DataType) -> bool:
    return any(test(arrow) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _is_carried(arrow: pa.DataType) -> bool:
    """Whether a column of a type can be written as int64, float or string."""
    value = arrow.value_type if _is_list(arrow) else arrow
    return not (pa.types.is_nested(value) and not pa.types.is_dictionary(value))


def _is_float(arrow: pa.DataType) -> bool:
    return pa.types.is_floating(arrow) or pa.types.is_decimal(arrow)


def _infer_column(field: pa.Field, role: str) -> Column:
    is_list = _is_list(field.type)
    value = field.type.value_type if is_list else field.type
    if pa.types.is_integer(value) or pa.types.is_boolean(value):
        dtype = "int64"
    elif _is_float(value):
        dtype = "float"
    else:
        dtype = "string"
        role = "ignored" if pa.types.is_temporal(value) else role
    if is_list and dtype == "float":
        role = "ignored"
    hashing = Hashing(buckets=2) if role in ("feature", "group") and dtype != "float" else None
    max_length = _DEFAULT_MAX_LENGTH if is_list and hashing else None
    return Column(field.name, dtype, role, VARIABLE if is_list else (), max_length, hashing)
