"""Blocks of a Markdown document that an experiment writes; the text around them is a person's."""

import os
import re
from collections.abc import Mapping, Sequence

from data_pipeline import storage
from hm3_tf.errors import DataError
from hm3_tf.report.svg import Plot


def write_document(path: str, tables: Mapping[str, str], plots: Mapping[str, Plot]) -> None:
    """Writes tables, and plots as `images/<name>.svg` beside the document, into its blocks.

    Args:
      path: The document.
      tables: {name: Markdown}.
      plots: {name: plot}.

    Raises:
      DataError: As `write_blocks`.
    """
    images = {name: f"![{plot.title}. {plot.words}](images/{name}.svg)\n" for name, plot in plots.items()}
    write_blocks(path, {**tables, **images})
    for name, plot in plots.items():
        storage.write_text(os.path.join(os.path.dirname(path), "images", f"{name}.svg"), plot.svg)


def write_blocks(path: str, blocks: Mapping[str, str]) -> None:
    """Replaces the blocks of a document: what stands between `<!-- name -->` and `<!-- /name -->`.

    Args:
      path: The document.
      blocks: {name: Markdown}.

    Raises:
      DataError: The document is missing, or has not just one such block; nothing is written.
    """
    check_blocks(path, list(blocks))
    text = _read(path)
    for name, block in blocks.items():
        text = block.join(_around(text, name))
    storage.write_text(path, text)


def check_blocks(path: str, names: Sequence[str]) -> None:
    """Checks that a document has each block once.

    Args:
      path: The document.
      names: Names of blocks.

    Raises:
      DataError: The document is missing, or has not just one such block.
    """
    text = _read(path)
    for name in names:
        found = len(_around(text, name)) - 1
        if found != 1:
            raise DataError(
                f"{path}: expected one block between <!-- {name} --> and <!-- /{name} -->, found {found}; write the two lines "
                "where the table belongs"
            )


def _read(path: str) -> str:
    return storage.read_text(path, "name the document whose blocks are to be written")


def _around(text: str, name: str) -> list[str]:
    """Returns what stands around the blocks of a name."""
    return re.split(rf"(?<=<!-- {re.escape(name)} -->\n).*?(?=<!-- /{re.escape(name)} -->)", text, flags=re.DOTALL)
