"""Bad records: what cannot be read of a log is named by file and place, counted, and bounded."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from hm3_tf.errors import DataError

ON_ERROR = ("fail", "skip")
MAX_BAD_RECORDS = 1_000
BAD_RECORDS_FILE = "bad_records.jsonl"
_TOLD = 10  # records that are logged one by one

_LOGGER = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record, or a stretch of them, that cannot be read.

    Attributes:
      file: Its file.
      unit: What `place` counts: `row` (from 0) or `byte offset`.
      place: Where it begins.
      reason: What was found there.
      records: Records that are lost with it, None where nobody knows.
      rows: Rows (impressions) that are lost with it, None where nobody knows.
    """

    file: str
    unit: str
    place: int
    reason: str
    records: int | None = 1
    rows: int | None = 1

    def __str__(self) -> str:
        lost = "rows unknown" if self.rows is None else "1 row" if self.rows == 1 else f"{self.rows:,} rows"
        return f"{self.file}: {self.unit} {self.place}: {self.reason} ({lost})"


class BadRecords:
    """The bad records that were skipped; several processes have their own, which are merged.

    Args:
      most: How many are skipped before it is an error. A stretch of unknown length counts as one.
    """

    def __init__(self, most: int = MAX_BAD_RECORDS) -> None:
        self.most, self.records = most, list[BadRecord]()
        self._count = 0

    def __len__(self) -> int:
        """The bad records, a stretch of unknown length as one."""
        return self._count

    @property
    def rows(self) -> int:
        """Rows that are known to be lost."""
        return sum(record.rows or 0 for record in self.records)

    def add(self, record: BadRecord) -> None:
        """Adds a record.

        Raises:
          DataError: These are more than may be skipped.
        """
        self.records.append(record)
        self._count += 1 if record.records is None else record.records
        if self._count > self.most:
            raise DataError(
                f"{record.file}: expected at most {self.most:,} bad records in all, got {self._count:,}, the last one at "
                f"{record.unit} {record.place}: {record.reason}; mend the log, or raise max_bad_records"
            )

    def merge(self, other: "BadRecords") -> None:
        """Adds those of another process.

        Raises:
          DataError: These are more than may be skipped.
        """
        for record in other.records:
            self.add(record)

    def to_jsonl(self) -> str:
        """Returns `bad_records.jsonl`: a line a record, {"file", "row" or "byte_offset", "reason", "records", "rows"}."""
        lines = (
            {
                "file": r.file,
                r.unit.replace(" ", "_"): r.place,
                "reason": r.reason,
                "records": r.records,
                "rows": r.rows,
            }
            for r in self.records
        )
        return "".join(json.dumps(line) + "\n" for line in lines)

    def summary(self) -> str:
        """Returns how many there are, and what is lost with them, in a line."""
        unknown = sum(record.rows is None for record in self.records)
        beside = f", and those of {unknown:,} files or rests of files, which nobody knows" if unknown else ""
        return f"{len(self):,} bad records skipped; lost: {self.rows:,} rows{beside}"

    def tell(self) -> None:
        """Logs the first of them and how many there are; nothing where there are none."""
        for record in self.records[:_TOLD]:
            _LOGGER.warning("skipped %s", record)
        if self.records:
            _LOGGER.warning("%s", self.summary())


def by_halves(
    start: int, stop: int, attempt: Callable[[int, int], _Result], errors: Sequence[type[Exception]]
) -> Iterator[tuple[int, int, _Result | Exception]]:
    """Yields the results of `attempt` on the longest halves of a range that it takes, in order.

    Args:
      start: First of the range.
      stop: End of the range.
      attempt: Takes the start and the end of a part.
      errors: The exceptions with which it refuses a part.

    Yields:
      (start, end, result) of each part; the exception where a part of one is refused.
    """
    try:
        result: _Result | Exception = attempt(start, stop)
    except tuple(errors) as error:
        if stop - start > 1:
            middle = (start + stop) // 2
            yield from by_halves(start, middle, attempt, errors)
            yield from by_halves(middle, stop, attempt, errors)
            return
        result = error
    yield start, stop, result
