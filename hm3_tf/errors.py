"""Errors that a user can act on, and the wording they share.

Every message says what was expected, what came, where, and what to do; the command prints it as one line.
"""

import difflib
from collections.abc import Iterable


class Hm3Error(Exception):
    """An expected failure: bad data, a bad file, an unusable directory. The command exits with `status`."""

    status = 1


class ConfigError(Hm3Error, ValueError):
    """A configuration, schema or behavior graph that cannot be used."""


class DataError(Hm3Error, ValueError):
    """A record, file or column that does not hold what its schema says."""


class UsageError(Hm3Error, ValueError):
    """A command line that cannot be understood."""

    status = 2


class LostWorkerError(Hm3Error):
    """Another worker of the run is gone: the same command on all workers goes on from the latest checkpoint."""

    status = 69  # EX_UNAVAILABLE of sysexits.h


class PreemptionError(Hm3Error):
    """The run was told to end (SIGTERM) and has written a checkpoint: the same command goes on from it."""

    status = 75  # EX_TEMPFAIL of sysexits.h


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a hint for an unknown name.

    Args:
      name: The name that is not known.
      known: The names that are.

    Returns:
      "did you mean 'x'?" where one name is close, else the list of the known names.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
