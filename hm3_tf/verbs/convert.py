"""`hm3 convert`: a raw log to a data folder."""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from data_pipeline.bad_records import BAD_RECORDS_FILE, BadRecords
from data_pipeline.labels import NESTING_POLICIES
from hm3_tf.errors import UsageError
from hm3_tf.verbs.shared import (
    choice,
    define_bad_records,
    define_processes,
    define_ray_address,
    print_splits,
    processes,
    refuse_idle_address,
    string,
)
from hm3_tf.verbs.verb import Verb

if TYPE_CHECKING:
    from data_pipeline.processes import Run


def _define(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    from data_pipeline.sources import SOURCES

    string(values, "source", None, f"Layout of the raw log: {', '.join(SOURCES)}.")
    string(values, "input", None, "Raw log: a file, a folder or a glob pattern.")
    string(values, "output_dir", None, "Data folder to write.")
    string(values, "schema", None, "schema.json of the raw columns.")
    string(values, "behaviors", "", "Without a schema: levels in order, click,d_ma=cart|wish,purchase.")
    string(values, "groups", "", "Without a schema: columns that metrics are grouped by; they are features too.")
    string(values, "ignore", "", "Without a schema: columns that are no features.")
    choice(values, "nesting", "coerce", NESTING_POLICIES, "Labels that break the hierarchy.")
    choice(values, "record_format", "packed", ("packed", "row"), "packed: 1,024 impressions a record; or row.")
    string(
        values,
        "split",
        "fraction:0.8,0.1,0.1",
        "date:FIRST_VALIDATION_DAY,FIRST_TEST_DAY[,FIRST_DAY_LEFT_OUT], fraction:TRAIN,VALIDATION,TEST, "
        "groups:TRAIN,VALIDATION,TEST (rows of one value of --split_column stay together), or column (--split_column names "
        "the split).",
    )
    string(
        values,
        "split_column",
        "date",
        "Column of dates, for --split=date:... and --shard_by_day; of groups; or of the splits' names.",
    )
    flags.DEFINE_bool("shard_by_day", False, "Whether each day has shards of its own.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of a split by fractions or groups.", lower_bound=0, flag_values=values)
    define_processes(values)
    choice(values, "engine", "local", ("local", "ray"), "local: this machine; ray: a Ray cluster, a task a part.")
    define_bad_records(values)
    define_ray_address(values)


def _run(values: flags.FlagValues) -> None:
    from data_pipeline import schema as schemas
    from data_pipeline import storage
    from data_pipeline.convert import convert
    from data_pipeline.sources import open_source
    from data_pipeline.split_rules import DateColumn, parse_split

    schema = None
    if values.schema:
        schema = schemas.from_json(storage.read_text(values.schema, "check --schema"), values.schema)
    refuse_idle_address(values)
    rule = parse_split(values.split, values.split_column, values.seed)
    if values.shard_by_day and not values.split.startswith(("date:", "fraction:")):
        raise UsageError(
            f"--shard_by_day: expected --split=date:... or fraction:..., got {values.split!r}, for which --split_column "
            "names no days; leave one of them out"
        )
    ignored = values.ignore
    if schema is None and values.behaviors and (values.shard_by_day or values.split.startswith(("date:", "column"))):
        # A day to come is one that training never saw, and the name of a split tells nothing of a row.
        ignored = f"{ignored},{values.split_column}"
    source = open_source(
        values.source, storage.absolute(values.input), schema, values.behaviors, values.groups, ignored
    )
    bad = BadRecords(values.max_bad_records) if values.on_error == "skip" else None
    with _engine(values) as run:
        splits = convert(
            source,
            storage.absolute(values.output_dir),
            rule,
            nesting=values.nesting,
            record_format=values.record_format,
            days=DateColumn(values.split_column) if values.shard_by_day else None,
            bad=bad,
            run=run,
        )
    if bad:
        print(f"bad records are listed in {storage.join(values.output_dir, BAD_RECORDS_FILE)}")
    print_splits(values.output_dir, splits)
    for role, columns in source.schema.roles().items():
        print(f"  {role:<10} {', '.join(f'{column.name} ({column.dtype})' for column in columns)}")


def _engine(values: flags.FlagValues) -> contextlib.AbstractContextManager["Run"]:
    if values.engine == "local":
        return processes(values)
    from data_pipeline.ray_tasks import ray_tasks

    return ray_tasks(values.ray_address)


VERB = Verb("turn a raw log into a data folder", _define, _run, ("source", "input", "output_dir"))
