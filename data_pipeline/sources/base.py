"""What a source of raw logs is: Arrow batches, the place of each for error messages, and a schema."""

import dataclasses
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import tensorflow as tf

from data_pipeline import storage
from data_pipeline.arrow_files import file_system
from data_pipeline.bad_records import BadRecord, BadRecords
from data_pipeline.schema import Schema
from data_pipeline.sources.batch import BATCH_ROWS, UNREADABLE, SourceBatch, damage
from data_pipeline.sources.damaged import csv_batches, json_batches, parquet_batches
from hm3_tf.errors import DataError, did_you_mean

PART_ROWS = 2**20  # of a part of a log, about: one process writes it
_PART_BYTES = 2**28  # of a part, where rows are not known before they are read
_FIRST_BYTES = 2**20  # of a CSV file, from which its types are inferred, as Arrow does
_PARQUET = pads.ParquetFileFormat(
    default_fragment_scan_options=pads.ParquetFragmentScanOptions(
        pre_buffer=False,  # with buffers ahead Arrow 21 keeps some 15 MB of each file for good
        page_checksum_verification=True,  # of files that have them
    )
)


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

    @property
    def origin(self) -> str:
        """Says what the rows are: it is another one when a file of them has changed."""
        ...

    def parts(self) -> Sequence["Source"]:
        """Returns the log in stretches that can be read each by itself, in order; they have the schema of the whole."""
        ...

    def count_rows(self, bad: BadRecords | None = None) -> int:
        """Returns the number of rows that `batches` yields."""
        ...

    def batches(self, bad: BadRecords | None = None) -> Iterator[SourceBatch]:
        """Yields the rows in order; `bad` takes what cannot be read, without it that is an error."""
        ...


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows of a file.

    Attributes:
      file: The file.
      size, mtime_ns: Its size and its time when it was found: what is read of it later has to be the same file.
      row_groups: Numbers of its row groups; None: all rows.
      first_row: Number of the first of the rows in the file.
    """

    file: str
    size: int
    mtime_ns: int
    row_groups: tuple[int, ...] | None = None
    first_row: int = 0


@dataclasses.dataclass(frozen=True)
class TableFiles:
    """Rows of Parquet, CSV or JSON files, in the order of their names.

    Attributes:
      path: A file, a folder of them, or a glob pattern; local or a URL.
      file_format: `parquet`, `csv` or `json`, an object a line.
      column_types: Types of columns that must not be inferred; of JSON files those of all.
      column_names: Names of the columns of CSV files that have no header.
      delimiter: What stands between the columns of CSV files; but for a comma, quotes are text.
      nulls: What stands for a missing value in CSV files.
      pieces: What is read; None: all of the files that `path` names.
      schema: The columns of the files together, where `pieces` are some of them.
    """

    path: str
    file_format: str
    column_types: tuple[tuple[str, pa.DataType], ...] = ()
    column_names: tuple[str, ...] = ()
    delimiter: str = ","
    nulls: tuple[str, ...] = ("",)
    pieces: tuple[Piece, ...] | None = None
    schema: pa.Schema | None = None

    def dataset(self) -> pads.Dataset:
        """Returns the Arrow data set of the files.

        Raises:
          DataError: There is no such file, or one is not in the format.
        """
        arrow, files = file_system(self.path), self._files()
        try:
            schema = self.schema or self._first_schema(files, arrow)
            return pads.dataset(files, schema, format=self._format(), filesystem=arrow)
        except UNREADABLE as error:
            raise DataError(f"{self.path}: expected {self.file_format} files, got: {error}") from error

    def _files(self) -> list[str]:
        if self.pieces is not None:
            return list(dict.fromkeys(piece.file for piece in self.pieces))
        patterns = [self.path]
        if tf.io.gfile.isdir(self.path):
            endings = ("csv", "csv.gz") if self.file_format == "csv" else (self.file_format,)
            patterns = [storage.join(self.path, f"**/*.{ending}") for ending in endings]
        files = sorted(file for pattern in patterns for file in storage.find_files(pattern))
        if not files:
            raise DataError(f"{self.path}: expected {self.file_format} files, found none; check the path")
        return files

    def _first_schema(self, files: Sequence[str], arrow: pafs.FileSystem) -> pa.Schema | None:
        """Returns the columns of the first file that can be read, None where none can; what is bad is told when it is read."""
        if self.file_format == "json":
            return pa.schema(self.column_types)
        for file in files:
            try:
                if self.file_format == "csv":
                    return self._csv_schema(_first_lines(arrow, file))
                return pads.dataset(file, format=self._format(), filesystem=arrow).schema
            except UNREADABLE as error:
                damage(file, error)  # raises where it is another fault
        return None

    def _csv_schema(self, lines: bytes) -> pa.Schema:
        """Returns the columns of the first lines of a file; rows of another number of fields say nothing of them."""
        options = self._parse_options()
        options.invalid_row_handler = lambda row: "skip"
        convert = pa.csv.ConvertOptions(null_values=list(self.nulls), strings_can_be_null=True)
        schema = pa.csv.open_csv(io.BytesIO(lines), self._read_options(), options, convert).schema
        types = dict(self.column_types)
        return pa.schema([field.with_type(types.get(field.name, field.type)) for field in schema])

    def _format(self) -> pads.FileFormat:
        if self.file_format == "parquet":
            return _PARQUET
        if self.file_format == "json":
            return pads.JsonFileFormat()
        return pads.CsvFileFormat(
            read_options=self._read_options(),
            parse_options=self._parse_options(),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict(self.column_types), null_values=list(self.nulls), strings_can_be_null=True
            ),
        )

    def _read_options(self) -> pa.csv.ReadOptions:
        return pa.csv.ReadOptions(column_names=list(self.column_names))

    def _parse_options(self) -> pa.csv.ParseOptions:
        return pa.csv.ParseOptions(delimiter=self.delimiter, quote_char='"' if self.delimiter == "," else False)

    @property
    def origin(self) -> str:
        """Says what the rows are: files with their sizes and times, and how they are read."""
        return repr((self, self._whole_files(self.dataset())))

    def _whole_files(self, dataset: pads.Dataset) -> list[Piece]:
        found = dataset.filesystem.get_file_info(dataset.files)
        return [Piece(file, info.size, info.mtime_ns) for file, info in zip(dataset.files, found)]

    def parts(self) -> list["TableFiles"]:
        """Returns the rows in stretches of about `PART_ROWS`, in order: several files, one, or row groups of a Parquet file."""
        dataset = self.dataset()
        units = itertools.chain.from_iterable(_units(piece, fragment) for piece, fragment in self._fragments(dataset))
        parts: list[list[Piece]] = []
        filled = 1.0
        for piece, share in units:
            if filled >= 1:
                parts.append([])
                filled = 0.0
            filled += share
            parts[-1].append(piece)
        return [dataclasses.replace(self, pieces=tuple(pieces), schema=dataset.schema) for pieces in parts]

    def each(self) -> list["TableFiles"]:
        """Returns each of the files by itself, in order."""
        dataset = self.dataset()
        files = self._whole_files(dataset)
        return [dataclasses.replace(self, pieces=(file,), schema=dataset.schema) for file in files]

    def count_rows(self) -> int:
        """Returns the number of rows.

        Raises:
          DataError: A file cannot be read.
        """
        return sum(_count_rows(fragment, self.file_format) for _, fragment in self._fragments(self.dataset()))

    def _fragments(self, dataset: pads.Dataset) -> list[tuple[Piece, pads.Fragment]]:
        fragments = dict(zip(dataset.files, dataset.get_fragments()))
        pieces = self._whole_files(dataset) if self.pieces is None else self.pieces
        return [
            (piece, fragment if piece.row_groups is None else fragment.subset(row_group_ids=piece.row_groups))
            for piece in pieces
            for fragment in [fragments[piece.file]]
        ]

    def batches(self, columns: Sequence[str] | None = None, bad: BadRecords | None = None) -> Iterator[SourceBatch]:
        """Yields the rows of the files, `columns` of them or all.

        Args:
          columns: Names of the columns.
          bad: Takes what cannot be read; None where that is an error. Columns of Parquet files then have the types of each.

        Raises:
          DataError: A file cannot be read, and `bad` does not take it.
        """
        dataset = self.dataset()
        for piece, fragment in self._fragments(dataset):
            if bad is not None:
                yield from self._sound_batches(piece, fragment, dataset.schema, columns or dataset.schema.names, bad)
            else:
                yield from self._all_batches(piece, fragment, dataset.schema, columns)
            _refuse_changed(piece, fragment.filesystem)

    def _all_batches(
        self, piece: Piece, fragment: pads.Fragment, schema: pa.Schema, columns: Sequence[str] | None
    ) -> Iterator[SourceBatch]:
        row = piece.first_row
        try:
            _require_columns(fragment, columns or ())
            for rows in fragment.to_batches(schema=schema, columns=columns, batch_size=BATCH_ROWS):
                yield SourceBatch(fragment.path, row, rows)
                row += rows.num_rows
        except UNREADABLE as error:
            raise DataError(
                f"{fragment.path}: expected {self.file_format} rows after row {row}, got: {error}; "
                "mend or remove the file"
            ) from error

    def _sound_batches(
        self, piece: Piece, fragment: pads.Fragment, schema: pa.Schema, columns: Sequence[str], bad: BadRecords
    ) -> Iterator[SourceBatch]:
        if self.file_format == "csv":
            types = pa.schema([schema.field(name) for name in columns])
            yield from csv_batches(fragment, types, self._read_options(), self._parse_options(), self.nulls, bad)
            return
        if self.file_format == "json":
            yield from json_batches(fragment, schema, bad)
            return
        path, first_row, rows = fragment.path, piece.first_row, None
        try:
            rows = _count_groups(fragment)
            _require_columns(fragment, columns)
        except DataError as error:
            bad.add(BadRecord(path, "row", first_row, f"all rows: {error}", rows, rows))
        except UNREADABLE as error:
            bad.add(BadRecord(path, "row", first_row, f"the whole file: {damage(path, error)}", None, None))
        else:
            yield from parquet_batches(fragment, first_row, columns, bad)


def _first_lines(arrow: pafs.FileSystem, file: str) -> bytes:
    """Returns the lines at the start of a file, decompressed; of one that is cut off what comes before the cut."""
    chunks: list[bytes] = []
    try:
        with arrow.open_input_stream(file) as stream:
            while sum(map(len, chunks)) < _FIRST_BYTES and (chunk := stream.read(_FIRST_BYTES // 16)):
                chunks.append(chunk)
    except UNREADABLE as error:
        damage(file, error)
    text = b"".join(chunks)
    return text[: text.rfind(b"\n") + 1] or text


def _refuse_changed(piece: Piece, arrow: pafs.FileSystem) -> None:
    info = arrow.get_file_info(piece.file)
    if (info.size, info.mtime_ns) != (piece.size, piece.mtime_ns):
        raise DataError(
            f"{piece.file}: expected the file that was found at the start, of {piece.size} bytes, found one of {info.size} or "
            "of another time; read the log when nothing writes to it any more"
        )


def _units(piece: Piece, fragment: pads.Fragment) -> Iterator[tuple[Piece, float]]:
    """Yields the least stretches that can be read by themselves, and which share of a part each is."""
    if not isinstance(fragment, pads.ParquetFileFragment):
        yield piece, piece.size / _PART_BYTES
        return
    try:
        groups = fragment.row_groups
    except UNREADABLE:  # is said when it is read
        yield piece, 1.0
        return
    first_row = piece.first_row
    for group in groups:
        group_rows = dataclasses.replace(piece, row_groups=(group.id,), first_row=first_row)
        yield group_rows, group.num_rows / PART_ROWS
        first_row += group.num_rows


def _count_rows(fragment: pads.Fragment, file_format: str) -> int:
    try:
        if isinstance(fragment, pads.ParquetFileFragment):
            return _count_groups(fragment)
        return fragment.count_rows()
    except UNREADABLE as error:
        raise DataError(
            f"{fragment.path}: expected {file_format} rows, got: {error}; mend or remove the file"
        ) from error


def _count_groups(fragment: pads.ParquetFileFragment) -> int:
    return sum(group.num_rows for group in fragment.row_groups)  # its own count is that of the whole file


def _require_columns(fragment: pads.Fragment, columns: Sequence[str]) -> None:
    """Checks that a file has the columns, which Arrow would fill with nulls."""
    known = fragment.physical_schema.names
    for name in columns:
        if name not in known:
            raise DataError(
                f"{fragment.path}: expected the column {name!r} of the schema, found none; {did_you_mean(name, known)}"
            )


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

    @property
    def origin(self) -> str:
        """Says what the rows are, see `TableFiles`."""
        return self.files.origin

    def batches(self, bad: BadRecords | None = None) -> Iterator[SourceBatch]:
        """Yields the rows in order; `bad` takes what cannot be read.

        Raises:
          DataError: A column of the schema is not in the files, or a file cannot be read.
        """
        return self.files.batches([column.name for column in self.schema.columns], bad)

    def parts(self) -> list["TableSource"]:
        """Returns the log in stretches, see `TableFiles`."""
        return [dataclasses.replace(self, files=files) for files in self.files.parts()]

    def count_rows(self, bad: BadRecords | None = None) -> int:
        """Returns the number of rows that `batches` yields.

        Raises:
          DataError: A file cannot be read.
        """
        if bad is not None:
            return sum(batch.rows.num_rows for batch in self.batches(bad))
        return self.files.count_rows()
