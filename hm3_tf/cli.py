"""The command `hm3 VERB --flags`."""

import logging
import os
import sys
import traceback
from collections.abc import Sequence

from hm3_tf import __version__
from hm3_tf.errors import Hm3Error, UsageError, did_you_mean
from hm3_tf.verbs import convert, evaluate, experiment, export, join, launch, predict, report, simulate, train, validate
from hm3_tf.verbs.verb import parse

VERBS = {
    "simulate": simulate.VERB,
    "join": join.VERB,
    "convert": convert.VERB,
    "validate": validate.VERB,
    "train": train.VERB,
    "evaluate": evaluate.VERB,
    "predict": predict.VERB,
    "export": export.VERB,
    "experiment": experiment.VERB,
    "launch": launch.VERB,
    "report": report.VERB,
}


def _usage() -> str:
    verbs = "\n".join(f"  {name:<10} {verb.summary}" for name, verb in VERBS.items())
    return f"hm3-tf {__version__}\n\nusage: hm3 VERB --flags    (hm3 VERB --help lists the flags)\n\n{verbs}"


def _split(name: str, arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Returns a verb's own arguments, and those of the command after `--` if it takes one."""
    if not VERBS[name].takes_command or "--" not in arguments:
        return arguments, ()
    end = arguments.index("--")
    return arguments[:end], arguments[end + 1 :]


def _run(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("--help", "-h", "help", "-help"):
        print(_usage())
        return
    if arguments[0] == "--version":
        print(__version__)
        return
    name, *rest = arguments
    if name not in VERBS:
        raise UsageError(f"expected a verb of {tuple(VERBS)}, got {name!r}; {did_you_mean(name, VERBS)}")
    own, command = _split(name, rest)
    values = parse(name, VERBS[name], own)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what goes wrong comes as an exception too
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for package in ("hm3_tf", "data_pipeline"):
        logging.getLogger(package).setLevel(logging.INFO)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    VERBS[name].run(values, *([command] if VERBS[name].takes_command else []))


def _status(arguments: Sequence[str]) -> int:
    try:
        _run(arguments)
    except Hm3Error as error:
        if "--traceback" in arguments:
            traceback.print_exc()
        print(f"hm3: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("hm3: error: interrupted", file=sys.stderr)
        return 130
    return 0


def main() -> None:
    """Runs the command and exits with its status: 0 well, else that of its error, see `hm3_tf.errors`."""
    try:
        status = _status(sys.argv[1:])
    except Exception:  # unexpected: shown in full, and still with a status of our own
        traceback.print_exc()
        status = 1
    sys.exit(status)
