"""Paths, local and remote: opening file systems, and outputs that appear only when complete."""

import contextlib
import ctypes
import fcntl
import fnmatch
import functools
import glob
import hashlib
import os
import re
import sys
import uuid
from collections.abc import Iterator, Sequence

import tensorflow as tf

from hm3_tf.errors import DataError, Hm3Error

LOCK_FILE = "lock"
_CHUNK_BYTES = 2**22
_STAGED = ".tmp-"  # in the names of outputs that are not complete


def is_remote(path: str) -> bool:
    """Whether a path names a file system other than this machine's."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def open_file_system(path: str) -> None:
    """Makes the file system of a path usable by TensorFlow: a remote one is loaded from tensorflow-io.

    Args:
      path: Local path or URL such as `s3://bucket/key`.

    Raises:
      Hm3Error: The path is remote, and tensorflow-io is not installed or does not load beside this TensorFlow.
    """
    if not is_remote(path):
        return
    try:
        import tensorflow_io  # noqa: F401  (registers its file systems)
    except Exception as error:  # its shared object fails to load with several exception types
        reason = str(error).partition("\n")[0]
        raise Hm3Error(
            f"{path}: expected tensorflow-io for a remote path, but it does not load beside TensorFlow "
            f"{tf.__version__} ({reason}); use tensorflow 2.16-2.17 with tensorflow-io 0.37.1, or a local path"
        ) from error
    _end_with_own_status()


@functools.cache
def _end_with_own_status() -> None:
    """Has this process end with its own status although it has loaded tensorflow-io.

    The destructors of that S3 file system abort a process that has used it. What C runs at the end of a process it runs in
    reverse order: what is added now, after the destructors, comes first, and ends the process with the status that it was to
    have. Python has flushed its files by then.
    """
    if sys.platform == "linux":
        c = ctypes.CDLL(None)
        c.on_exit(c._exit, None)


def absolute(path: str) -> str:
    """Returns a path that means the same in every directory, and on every machine that shares it."""
    return path.rstrip("/") if is_remote(path) else os.path.abspath(path)


def join(folder: str, *names: str) -> str:
    """Returns the path of something in a folder."""
    return "/".join([folder.rstrip("/"), *names])


def names_in(folder: str) -> list[str]:
    """Returns the names of what is in a folder, none where there is none: a remote one is there with its first file."""
    return [name.rstrip("/") for name in tf.io.gfile.listdir(folder)] if tf.io.gfile.isdir(folder) else []


def is_file(path: str) -> bool:
    """Whether there is a file of this path."""
    open_file_system(path)
    return tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path)


def find_files(pattern: str) -> list[str]:
    """Returns the files that match a glob pattern, sorted; `**` stands for any number of folders.

    Raises:
      Hm3Error: The pattern is remote, and tensorflow-io does not load.
    """
    if not is_remote(pattern):
        return sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
    open_file_system(pattern)
    if not glob.has_magic(pattern):
        return [pattern] if is_file(pattern) else []
    folder, below = re.findall(r"^([^*?[]*/)(.*)$", pattern)[0]
    found = [join(at, name) for at, _, names in tf.io.gfile.walk(folder) for name in names]
    return sorted(file for file in found if _matches(file[len(folder) :].split("/"), below.split("/")))


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the names of a path match the patterns, one each, or any number of folders a `**`."""
    if not (names and patterns):
        return not (names or patterns)
    if patterns[0] == "**" and (_matches(names, patterns[1:]) or _matches(names[1:], patterns)):
        return True
    return fnmatch.fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def read_text(path: str, remedy: str) -> str:
    """Returns the text of a file.

    Args:
      path: Its path.
      remedy: What to do where there is none, for the error.

    Returns:
      Its text.

    Raises:
      DataError: There is no such file, or it is not text.
    """
    open_file_system(path)
    try:
        with tf.io.gfile.GFile(path) as file:
            return file.read()
    except tf.errors.NotFoundError as error:
        hint = ", and check that its server can be reached and lets it be read" if is_remote(path) else ""
        raise DataError(f"{path}: expected a file, found none; {remedy}{hint}") from error
    except (UnicodeDecodeError, tf.errors.OpError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: expected a text file, got: {reason}; {remedy}") from error


def size_and_checksum(path: str) -> tuple[int, str]:
    """Returns the size and the SHA-256, in hexadecimal, of a file, which is read for them."""
    size, digest = 0, hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            size += len(chunk)
            digest.update(chunk)
    return size, digest.hexdigest()


def write_text(path: str, text: str) -> None:
    """Writes a file that appears under its name only when complete.

    Args:
      path: Its path; the folder is made if need be.
      text: Its text.

    Raises:
      Hm3Error: The folder cannot be written.
    """
    with staged_file(path) as temporary, tf.io.gfile.GFile(temporary, "w") as file:
        file.write(text)


@contextlib.contextmanager
def staged_file(path: str) -> Iterator[str]:
    """Yields a temporary name beside `path`, renamed to it when the block ends well and removed when it does not.

    Args:
      path: The file to write.

    Yields:
      The name to write to.

    Raises:
      Hm3Error: The folder cannot be written.
    """
    open_file_system(path)
    if tf.io.gfile.isdir(path):
        raise Hm3Error(f"{path}: expected the name of a file to write, got a folder; name a file in it")
    make_folder(os.path.dirname(path) or ".")
    temporary = _temporary(path)
    try:
        with explained(path):
            yield temporary
            _rename_file(temporary, path)
    finally:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.remove(temporary)


def _rename_file(source: str, target: str) -> None:
    if is_remote(source) and not tf.io.gfile.stat(source).length:  # S3 of tensorflow-io does not copy an empty file
        with tf.io.gfile.GFile(target, "w") as file:
            file.write("")
    else:
        tf.io.gfile.rename(source, target, overwrite=True)


def remove_staged_files(folder: str, suffix: str) -> None:
    """Removes what killed processes left of their `staged_file`s in a folder into which no other process writes such files.

    Args:
      folder: The folder; it exists.
      suffix: What the names of the files end in.

    Raises:
      Hm3Error: The folder cannot be written.
    """
    with explained(folder):
        for name in tf.io.gfile.listdir(folder):
            if f"{suffix}{_STAGED}" in name:
                tf.io.gfile.remove(join(folder, name))


@contextlib.contextmanager
def staged_folder(path: str) -> Iterator[str]:
    """Yields a temporary folder, renamed to `path` when the block ends well and removed when it does not.

    Args:
      path: The folder to make; it must not exist, or be empty.

    Yields:
      The folder to write into.

    Raises:
      Hm3Error: The folder exists with something in it, or cannot be written.
    """
    path = path.rstrip("/")
    open_file_system(path)
    refuse_full(path)
    temporary = _temporary(path)
    try:
        with explained(path):
            tf.io.gfile.makedirs(temporary)
            yield temporary
            refuse_full(path)
            replace_folder(temporary, path)
    finally:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.rmtree(temporary)


def _temporary(path: str) -> str:
    """Returns a name that no other process takes, on this machine or on another one."""
    return f"{path}{_STAGED}{uuid.uuid4().hex[:8]}"


def refuse_full(path: str) -> None:
    """Checks that a path is free for a new folder.

    Raises:
      Hm3Error: There is something.
    """
    if tf.io.gfile.exists(path) and not (tf.io.gfile.isdir(path) and not tf.io.gfile.listdir(path)):
        raise Hm3Error(f"{path}: expected a new or empty folder, found files; remove them or name another folder")


def replace_folder(source: str, target: str) -> None:
    """Gives a folder the name of another one, which need not be there and is removed."""
    if tf.io.gfile.exists(target):
        tf.io.gfile.rmtree(target)
    tf.io.gfile.rename(source, target)


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """Turns a failure of the file system within the block into one line about `path`.

    Args:
      path: What is being written.

    Raises:
      Hm3Error: It cannot be written.
    """
    try:
        yield
    except (
        OSError,
        tf.errors.PermissionDeniedError,
        tf.errors.FailedPreconditionError,
        tf.errors.NotFoundError,
        tf.errors.ResourceExhaustedError,
        tf.errors.UnavailableError,
    ) as error:
        reason = (getattr(error, "message", None) or str(error) or type(error).__name__).partition("\n")[0]
        raise Hm3Error(
            f"{path}: expected a place that can be written, got: {reason}; "
            "check the path, its permissions and the free space"
        ) from error


def make_folder(path: str) -> None:
    """Makes a folder and those above it.

    Args:
      path: Its path.

    Raises:
      Hm3Error: It cannot be made.
    """
    with explained(path):
        tf.io.gfile.makedirs(join(path, ""))  # a bucket is a path only with its slash


@contextlib.contextmanager
def lock(path: str, flag: str = "--workdir", name: str = LOCK_FILE) -> Iterator[None]:
    """Holds a directory for one process within the block; the lock ends with the process, however that ends.

    A remote directory has no locks.

    Args:
      path: The directory; made if need be.
      flag: The flag that names it, for the error.
      name: Of the file that is locked, which stays.

    Raises:
      Hm3Error: Another process works in the directory, or it cannot be written.
    """
    if is_remote(path):
        yield
        return
    make_folder(path)
    with contextlib.ExitStack() as stack:
        with explained(path):
            file = stack.enter_context(open(join(path, name), "w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Hm3Error(
                f"{path}: expected no other work here, but a process holds {name}; wait for it, or use another {flag}"
            ) from error
        yield
