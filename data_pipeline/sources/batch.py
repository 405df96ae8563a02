"""Rows of a raw log as Arrow batches, with the place of each for error messages."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from hm3_tf.errors import DataError

BATCH_ROWS = 65_536
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)  # with which Arrow refuses a file, or values of it


def damage(file: str, error: Exception) -> str:
    """Returns what is wrong with a file that was refused, in a line.

    Raises:
      DataError: Not the file is damaged, but the machine or the network failed: only of these an error has a number.
    """
    reason = str(error).partition("\n")[0]
    if getattr(error, "errno", None) is not None:
        raise DataError(
            f"{file}: expected a file that can be read, got: {reason}; check its permissions and its disk or server, and "
            "try again"
        ) from error
    return reason


@dataclasses.dataclass(frozen=True)
class SourceBatch:
    """Rows of a raw log.

    Attributes:
      file: The file they are from.
      first_row: Number of the first row in that file, from 0.
      rows: The raw columns; nulls are missing values.
      numbers: Numbers of the rows in that file, int [rows], where bad ones between them are left out; else None.
      left_out: {why: how many} rows the source leaves out that stood between these.
    """

    file: str
    first_row: int
    rows: pa.RecordBatch
    numbers: np.ndarray | None = None
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def row_numbers(self) -> np.ndarray:
        """Numbers of the rows in the file, int64 [rows]."""
        return np.arange(self.rows.num_rows) + self.first_row if self.numbers is None else self.numbers

    def number(self, row: int) -> int:
        """Returns the number in the file of a row of the batch."""
        return self.first_row + row if self.numbers is None else int(self.numbers[row])

    def part(self, start: int, stop: int) -> "SourceBatch":
        """Returns the rows from `start` to `stop` - 1."""
        numbers = None if self.numbers is None else self.numbers[start:stop]
        return SourceBatch(self.file, self.first_row + start, self.rows.slice(start, stop - start), numbers)

    def filter(self, kept: np.ndarray) -> "SourceBatch":
        """Returns the rows that are kept, bool [rows]."""
        return SourceBatch(self.file, self.first_row, self.rows.filter(pa.array(kept)), self.row_numbers[kept])
