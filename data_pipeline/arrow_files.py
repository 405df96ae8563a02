"""Files of TensorFlow's file systems as Arrow reads and writes them: raw logs and Parquet on `s3://` and other remote ones."""

import contextlib
import errno
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.fs as pafs
import tensorflow as tf

from data_pipeline import storage


class ArrowFile(tf.io.gfile.GFile):
    """A file of any file system that Arrow can read and write; it raises OSError where it cannot be read."""

    closed = False

    def read(self, n: int = -1) -> bytes:
        """Returns `n` bytes, or all that follow."""
        with _os_error(self.name):
            return super().read(n)

    def seek(self, offset: int, whence: int = 0) -> None:
        """Goes to a place from the start (`whence` 0), from here (1) or from the end (2)."""
        with _os_error(self.name):
            super().seek(offset, whence)

    def tell(self) -> int:
        """Returns the place."""
        with _os_error(self.name):
            return super().tell()

    def close(self) -> None:
        """Closes the file."""
        super().close()
        self.closed = True


@contextlib.contextmanager
def _os_error(path: str) -> Iterator[None]:
    """Turns an error of TensorFlow's file systems within the block into the one that Python has for it."""
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, error.message.partition("\n")[0], path) from error


def file_system(path: str) -> pafs.FileSystem:
    """Returns the file system of a path, for Arrow to read from; it takes whole paths, URLs among them.

    Raises:
      Hm3Error: The path is remote, and tensorflow-io does not load.
    """
    storage.open_file_system(path)
    return pafs.PyFileSystem(_Handler()) if storage.is_remote(path) else pafs.LocalFileSystem()


class _Handler(pafs.FileSystemHandler):
    """What Arrow asks of a file system that it reads files of, answered by TensorFlow."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handler)

    def __hash__(self) -> int:
        return hash(_Handler)

    def get_type_name(self) -> str:
        return "tensorflow"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[pafs.FileInfo]:
        return [_info(path) for path in paths]

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(ArrowFile(path, "rb"), "r")

    open_input_stream = open_input_file

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError("only files that are named are read")

    get_file_info_selector = create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _refuse
    delete_file = move = copy_file = open_output_stream = open_append_stream = _refuse


def _info(path: str) -> pafs.FileInfo:
    with _os_error(path):
        try:
            found = tf.io.gfile.stat(path)
        except tf.errors.NotFoundError:
            return pafs.FileInfo(path, pafs.FileType.NotFound)
    kind = pafs.FileType.Directory if found.is_directory else pafs.FileType.File
    return pafs.FileInfo(path, kind, size=found.length, mtime_ns=found.mtime_nsec)
