"""What the writers of public logs in their official layouts share."""

import dataclasses

import pyarrow as pa
import pyarrow.parquet

GONE = -(2**63)
BIG = 2**53 + 1  # the first whole number that a float64 does not have


@dataclasses.dataclass
class Written:
    """A log in its official layout, and what is to come of it.

    Attributes:
      files: {name: text, or columns of a Parquet file}.
      rows: Rows in order: {column: value as it is stored}.
      levels: {level: the rows on which it happened, as the log says}, in the order of the hierarchy.
      of_item: Names of the inputs that are the item's, not the user's or the request's.
      split: `--split` that keeps the order of the rows.
    """

    files: dict
    rows: list
    levels: dict
    of_item: set
    split: str = "fraction:1,0,0"

    def write(self, folder, **changes):
        """Writes the files, but for some: {file: (text, what stands instead of it)}, or None to leave it out."""
        for file, content in self.files.items():
            change = changes.get(file.split(".")[0], ("", ""))
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, dict):
                pa.parquet.write_table(pa.table(content), folder / file)
            elif change is not None:
                (folder / file).write_bytes(content.replace(*change).encode())
        return str(folder)


def lines(rows, separator=","):
    return "".join(separator.join(str(value) for value in row) + "\n" for row in rows)


def filled(values, length):
    """Returns a list of ids as it is stored: cut off or filled up to a length."""
    return [*values, *[GONE] * length][:length]
