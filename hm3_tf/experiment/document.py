"""Blocks of a Markdown document that an experiment writes; the text around them is a person's."""

import re
from collections.abc import Mapping

from data_pipeline import storage
from hm3_tf.errors import DataError


def write_blocks(path: str, blocks: Mapping[str, str]) -> None:
    """Replaces the blocks of a document: what stands between `<!-- name -->` and `<!-- /name -->`.

    Args:
      path: The document.
      blocks: {name: Markdown}.

    Raises:
      DataError: The document is missing, or has not just one such block; nothing is written.
    """
    text = storage.read_text(path, "name the document whose blocks are to be written")
    for name, block in blocks.items():
        pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)"
        text, count = re.subn(pattern, lambda found, block=block: f"{found[1]}{block}{found[2]}", text, flags=re.DOTALL)
        if count != 1:
            raise DataError(
                f"{path}: expected one block between <!-- {name} --> and <!-- /{name} -->, found {count}; write the two lines "
                "where the table belongs"
            )
    storage.write_text(path, text)
