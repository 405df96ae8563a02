"""What a verb is, and how its flags are parsed."""

import dataclasses
from collections.abc import Callable, Sequence

from absl import flags

from hm3_tf.config_files import explain_unknown_field
from hm3_tf.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb of the command.

    Attributes:
      summary: What it does, in a line.
      define: Defines its flags; some depend on the arguments, as those of a config file's fields.
      run: Runs it with the parsed flags, and with the command after `--` if it takes one.
      required: Flags that must be given.
      takes_command: Whether `-- VERB --flags` follows its flags.
    """

    summary: str
    define: Callable[[flags.FlagValues, Sequence[str]], None]
    run: Callable[..., None]
    required: tuple[str, ...] = ()
    takes_command: bool = False


def parse(name: str, verb: Verb, arguments: Sequence[str]) -> flags.FlagValues:
    """Returns the flags of a verb; prints them and ends the process where the arguments ask for help.

    Args:
      name: The verb's name.
      verb: The verb.
      arguments: What follows its name.

    Returns:
      The flags.

    Raises:
      UsageError: They cannot be understood.
    """
    values = flags.FlagValues()
    verb.define(values, arguments)
    flags.DEFINE_bool("traceback", False, "Show the traceback of an error.", flag_values=values)
    if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(arguments):
        print(f"hm3 {name}: {verb.summary}\n{values.get_help()}")
        raise SystemExit(0)
    try:
        rest = values([f"hm3 {name}", *arguments])[1:]
    except (flags.Error, KeyError, AttributeError) as error:
        raise UsageError(f"hm3 {name}: {explain_unknown_field(str(error.args[0] if error.args else error))}") from error
    if rest:
        raise UsageError(f"hm3 {name}: expected flags only, got {rest}")
    missing = [f"--{flag}" for flag in verb.required if values[flag].value is None]
    if missing:
        raise UsageError(f"hm3 {name}: expected {', '.join(missing)}; see hm3 {name} --help")
    return values
