"""Config files on the command line: `--config=configs/hm3.py:argument`, and a flag for each field of a config."""

import dataclasses
import inspect
import os
import re
import runpy
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from hm3_tf import config as configs
from hm3_tf.errors import Hm3Error, UsageError, did_you_mean


def define_config(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Defines `--config`, and `--config.section.field` for the fields that the arguments set.

    Args:
      values: Gets the flags.
      arguments: Of the command line.

    Raises:
      UsageError: `--config` does not name a file whose `get_config` returns a config.
    """
    given = _given(arguments)
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, as configs/hm3.py or file.py:argument; its fields are flags too:\n"
        + _describe(load_config(given)),
        flag_values=values,
        sys_argv=["hm3", *arguments],
    )


def _given(arguments: Sequence[str]) -> str | None:
    for argument, after in zip(arguments, [*arguments[1:], None]):
        flag, equals, value = argument.lstrip("-").partition("=")
        if flag == "config":
            return value if equals else after
    return None


def load_config(text: str | None) -> configs.Config:
    """Returns the config of a file, as its author wrote it.

    Args:
      text: `file.py` or `file.py:argument`; None for the default config.

    Returns:
      What the file's `get_config()` or `get_config(argument)` returns.

    Raises:
      UsageError: There is no such file, or it does not return a config.
    """
    if text is None:
        return configs.Config()
    path, *argument = text.split(":", 1)
    if not os.path.isfile(path):
        raise UsageError(f"--config: expected a config file such as configs/hm3.py, got {path!r}, which is no file")
    try:
        config = runpy.run_path(path)["get_config"](*argument)
    except Hm3Error:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"--config={text}: expected a Python file whose get_config({'argument' if argument else ''}) returns a "
            f"hm3_tf.config.Config, got {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, configs.Config):
        raise UsageError(f"--config={text}: expected get_config to return a hm3_tf.config.Config, got {type(config)}")
    return config


def _describe(config: configs.Config) -> str:
    """Returns a line for each field of a config: its flag, what it is and its value, from the docstrings."""
    lines = []
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        described = dict(re.findall(r"^  (\w+): (.+(?:\n    .+)*)", inspect.getdoc(type(values)) or "", re.MULTILINE))
        for field in dataclasses.fields(values):
            text = " ".join(described[field.name].split())
            lines.append(f"--config.{section.name}.{field.name}: {text} (default: {getattr(values, field.name)!r})")
    return "\n".join(lines)


def explain_unknown_field(message: str) -> str:
    """Returns what ml_collections says of an unknown section or field, with the closest one there is."""
    field = re.search(r"Field (\w+) not found on dataclass <class 'hm3_tf\.config\.(\w+)'>", message)
    section = re.search(r"Attribute <class 'hm3_tf\.config\.(\w+)'>\.(\w+) does not exist", message)
    if field:
        name, owner = field.groups()
    elif section:
        owner, name = section.groups()
    else:
        return message
    known = [field.name for field in dataclasses.fields(getattr(configs, owner))]
    return f"unknown config field {name!r}; {did_you_mean(name, known)}"
