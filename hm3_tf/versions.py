"""A folder of numbered versions, as TensorFlow Serving watches it."""

import contextlib
import re
import uuid
from collections.abc import Iterator

import tensorflow as tf

from data_pipeline import storage
from hm3_tf.errors import ConfigError

DONE_FILE = "DONE"
_LEFT_BEHIND = re.compile(r"\d+\.tmp-[0-9a-f]+")


def version_numbers(folder: str) -> list[int]:
    """Returns the numbers of the versions in a folder, ascending; none where it does not exist."""
    return sorted(int(name) for name in storage.names_in(folder) if name.isdigit())


def whole_versions(folder: str) -> list[int]:
    """Returns the numbers of the versions that are complete, ascending: on a remote file system those with the file `DONE`."""
    numbers = version_numbers(folder)
    if not storage.is_remote(folder):
        return numbers  # they came by a rename
    return [number for number in numbers if tf.io.gfile.exists(storage.join(folder, str(number), DONE_FILE))]


@contextlib.contextmanager
def new_version(folder: str, keep: int | None = None) -> Iterator[tuple[str, str]]:
    """Yields a temporary folder, which becomes the next version when the block ends well and is removed when it does not.

    The temporary name is no number, so nobody who watches the folder takes it for a version. One process at a time makes
    versions in a folder, and it first removes what a killed one left behind; a remote folder has no locks, so there nothing is
    removed. The file `DONE` is the last that is written into the version; on a remote file system, where a rename is a copy of
    one file after the other, it comes after that.

    Args:
      folder: Folder of versions; made if need be.
      keep: Versions to keep, the new one among them, at least 2; older ones are removed once it is there. None keeps all.

    Yields:
      The folder to write into, and the path of the version to be.

    Raises:
      Hm3Error: Another process makes a version in the folder, or it cannot be written.
      ConfigError: `keep` is below 2.
    """
    if keep is not None and keep < 2:
        raise ConfigError(
            f"keep: expected at least 2 versions, the one that is served until the new one is loaded, got {keep}"
        )
    with storage.lock(folder, "--export_dir"):
        if not storage.is_remote(folder):
            _clear(folder)
        version = storage.join(folder, str(max(version_numbers(folder), default=0) + 1))
        with storage.staged_folder(version) as staged:
            yield staged, version
            if not storage.is_remote(folder):
                _write_done(staged)
        if storage.is_remote(folder):
            _write_done(version)
        for number in whole_versions(folder)[:-keep] if keep else ():
            _remove(storage.join(folder, str(number)))


def _write_done(version: str) -> None:
    storage.write_text(storage.join(version, DONE_FILE), "done\n")


def _clear(folder: str) -> None:
    for name in filter(_LEFT_BEHIND.fullmatch, storage.names_in(folder)):
        tf.io.gfile.rmtree(storage.join(folder, name))


def _remove(version: str) -> None:
    """Removes a version; where renaming is one step, nobody sees a part of it under its number."""
    with storage.explained(version):
        doomed = version
        if not storage.is_remote(version):
            doomed = f"{version}.tmp-{uuid.uuid4().hex[:8]}"
            tf.io.gfile.rename(version, doomed)
        tf.io.gfile.rmtree(doomed)
