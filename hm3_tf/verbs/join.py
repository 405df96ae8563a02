"""`hm3 join`: impressions labelled by a table of events."""

from collections.abc import Sequence

from absl import flags

from hm3_tf.verbs.shared import choice, define_ray_address, explain_extra, refuse_idle_address, string
from hm3_tf.verbs.verb import Verb


def _define(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    files = "a file, a folder or a glob pattern of Parquet files, or of CSV files if it ends in .csv."
    string(values, "impressions", None, f"Impressions: {files}")
    string(values, "events", None, f"Behavior events: {files}")
    string(values, "output", None, "Folder of Parquet files to write.")
    string(values, "window", None, "Labels, and how long after an impression each counts: click:30m,purchase:7d.")
    string(values, "history", "", "Lists of the user's latest items before the impression, and their length: click:50.")
    string(values, "user_column", "user_id", "Column of users in both tables.")
    string(values, "item_column", "item_id", "Column of items in both tables.")
    string(values, "time_column", "time", "Column of times in both tables.")
    string(values, "behavior_column", "behavior", "Column of the events' behaviors.")
    flags.DEFINE_enum(
        "time_unit", None, ("s", "ms", "us", "ns"), "Unit of times that are integers.", flag_values=values
    )
    string(values, "memory_limit", "2GiB", "What DuckDB may hold in memory; the rest is on disk beside --output.")
    choice(
        values,
        "engine",
        "local",
        ("local", "ray"),
        "local: this process; ray: a Ray cluster, a share of the users a task.",
    )
    define_ray_address(values)


def _run(values: flags.FlagValues) -> None:
    try:
        from data_pipeline.event_join import EventJoin, join_events, join_table, parse_histories, parse_windows
    except ModuleNotFoundError as error:
        explain_extra("join", ("duckdb",), error)
        raise
    from data_pipeline import storage
    from data_pipeline.event_tables import EventColumns, EventTable
    from data_pipeline.sources.base import TableFiles

    refuse_idle_address(values)
    columns = EventColumns(
        values.user_column, values.item_column, values.time_column, values.behavior_column, values.time_unit
    )
    impressions, events = (
        TableFiles(storage.absolute(path), "csv" if path.endswith(".csv") else "parquet")
        for path in (values.impressions, values.events)
    )
    join = EventJoin(
        EventTable(impressions, columns, has_behavior=False),
        EventTable(events, columns, has_behavior=True),
        parse_windows(values.window),
        parse_histories(values.history),
    )
    if values.engine == "ray":
        from data_pipeline.ray_join import join_on_ray

        report = join_on_ray(join, values.output, values.memory_limit, values.ray_address)
    else:
        report = join_events(join, values.output, values.memory_limit)
    print(f"wrote {values.output}: {report.impressions:,} impressions\n{join_table(report)}")


VERB = Verb(
    "label impressions by a table of events",
    _define,
    _run,
    ("impressions", "events", "output", "window"),
)
