"""Flags that several verbs have, and what they do with them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from data_pipeline.bad_records import MAX_BAD_RECORDS, ON_ERROR
from hm3_tf.errors import Hm3Error, UsageError

if TYPE_CHECKING:
    from data_pipeline.processes import Run


def string(values: flags.FlagValues, name: str, default: str | None, text: str) -> None:
    """Defines a flag that is text."""
    flags.DEFINE_string(name, default, text, flag_values=values)


def choice(values: flags.FlagValues, name: str, default: str, choices: tuple[str, ...], text: str) -> None:
    """Defines a flag that is one of some words."""
    flags.DEFINE_enum(name, default, choices, text, flag_values=values)


def define_bad_records(
    values: flags.FlagValues, on_error: str | None = "fail", most: int | None = MAX_BAD_RECORDS
) -> None:
    """Defines the flags of bad records."""
    flags.DEFINE_enum("on_error", on_error, ON_ERROR, "What a bad record does: fail, or skip.", flag_values=values)
    text = "With --on_error=skip: bad records after which it is an error all the same."
    flags.DEFINE_integer("max_bad_records", most, text, lower_bound=0, flag_values=values)


def define_processes(values: flags.FlagValues) -> None:
    """Defines the flag of `processes`."""
    flags.DEFINE_integer(
        "processes", None, "Processes that write at a time; default one a core.", lower_bound=1, flag_values=values
    )


@contextlib.contextmanager
def processes(values: flags.FlagValues) -> Iterator["Run"]:
    """Yields what runs the parts of a log."""
    from data_pipeline.processes import cores, process_pool, run_here

    count = values.processes or cores()
    if count == 1:
        yield run_here
        return
    with process_pool(count) as run:
        yield run


def define_split(values: flags.FlagValues) -> None:
    """Defines the flags of `open_split`."""
    string(values, "workdir", None, "Directory of the run.")
    string(values, "data_dir", None, "Data folder; default the one it was trained on.")
    string(values, "split", "test", "Split to evaluate.")
    string(values, "output", None, "File for the figures; default WORKDIR/evaluation/SPLIT.json.")
    define_bad_records(values, None, None)
    values["on_error"].help += " Default as the run's config says."


def open_split(run, values: flags.FlagValues):
    """Returns the split that the flags name, with the schema of the run."""
    from data_pipeline.folder import DataFolder

    flagged = values.flag_values_dict()
    given = {name: flagged[name] for name in ("on_error", "max_bad_records") if flagged.get(name) is not None}
    most = dataclasses.replace(run.config.data, **given).most_bad_records
    data = DataFolder.open(values.data_dir or run.data_dir, most)
    return dataclasses.replace(data, schema=run.schema).split(values.split)


def print_splits(output_dir: str, splits: dict) -> None:
    """Prints what was written of a data folder."""
    print(f"wrote {output_dir}")
    for name, split in splits.items():
        rates = "  ".join(f"{level} {rate:.4%}" for level, rate in (split.rates() if split.rows else {}).items())
        print(f"  {name:<10} {split.rows:>12,} rows  {rates}")
        broken = {kind: rows for kind, rows in split.violations.items() if rows}
        if broken:
            print(f"  {'':<10} labels against the hierarchy: {broken}")


def define_ray_address(values: flags.FlagValues) -> None:
    """Defines the flag of the cluster that `--engine=ray` uses."""
    string(values, "ray_address", None, "With --engine=ray: host:port or auto; default a Ray of this machine.")


def refuse_idle_address(values: flags.FlagValues) -> None:
    """Refuses the address of a cluster that would not be used."""
    if values.ray_address is not None and values.engine != "ray":
        raise UsageError(f"--ray_address: expected --engine=ray beside it, got --engine={values.engine}")


def explain_extra(extra: str, packages: Sequence[str], error: ModuleNotFoundError) -> None:
    """Raises what to do about a missing package, if it is one of an extra."""
    package = (error.name or "").partition(".")[0]
    if package in packages:
        raise Hm3Error(
            f"hm3 {extra}: expected the packages of the extra {extra!r}, but {package} is not installed; "
            f"pip install 'hm3-tf[{extra}]'"
        ) from error
