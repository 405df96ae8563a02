"""A data folder in the making: each part of the log leaves a record once it is written, so that a killed conversion goes on."""

import contextlib
import dataclasses
import hashlib
import pickle
import zlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from data_pipeline import storage
from hm3_tf.errors import ConfigError, DataError, UsageError


@dataclasses.dataclass(frozen=True)
class Staging:
    """A data folder that is not complete.

    Attributes:
      folder: Where its files are written.
      records: Where the records of the parts are.
    """

    folder: str
    records: str

    def _record(self, part: int) -> str:
        return storage.join(self.records, f"{part:05d}.pickle")

    def write(self, part: int, result: Any) -> None:
        """Says that a part is written, and what became of it.

        Raises:
          Hm3Error: The folder cannot be written.
        """
        with storage.staged_file(self._record(part)) as temporary, tf.io.gfile.GFile(temporary, "wb") as file:
            file.write(zlib.compress(pickle.dumps(result), level=1))  # mostly sketches, which are mostly empty

    def read(self, part: int) -> Any:
        """Returns what `write` was given, None where it was not, or not to the end."""
        try:
            with tf.io.gfile.GFile(self._record(part), "rb") as file:
                return pickle.loads(zlib.decompress(file.read()))
        except (tf.errors.NotFoundError, zlib.error):
            return None


@contextlib.contextmanager
def staged_data_folder(path: str, origin: str) -> Iterator[Staging]:
    """Yields a data folder to write, which is whole under its name when the block ends well.

    What the block wrote stays when the process is killed, or fails for another reason than wrong data or flags: the next one
    of the same origin finds it. On this machine it lies beside the folder and is renamed in the end. On a remote file
    system, where a rename is a copy, files are written in their place, and the schema, without which nobody opens the folder,
    comes last.

    Args:
      path: The folder; it must not exist, or be empty.
      origin: Says what is converted, and how.

    Raises:
      Hm3Error: The folder has something in it, another process writes it, or it cannot be written.
    """
    path = path.rstrip("/")
    storage.open_file_system(path)
    mark = hashlib.sha256(origin.encode()).hexdigest()[:12]
    folder = path if storage.is_remote(path) else f"{path}.tmp-{mark}"
    records = storage.join(folder, f"_parts-{mark}")
    if folder != path or not tf.io.gfile.isdir(records):
        storage.refuse_full(path)
    try:
        with storage.explained(path), storage.lock(records, "--output_dir"):
            storage.write_text(
                storage.join(records, "started"), f"{mark}\n"
            )  # a folder is not there before a file in it
            yield Staging(folder, records)
            tf.io.gfile.rmtree(records)
            if folder != path:
                storage.refuse_full(path)
                storage.replace_folder(folder, path)
    except (DataError, ConfigError, UsageError):
        if tf.io.gfile.isdir(folder):  # a remote one is there with its first file
            tf.io.gfile.rmtree(folder)
        raise
