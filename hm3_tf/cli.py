"""The command `hm3 VERB --flags`. TensorFlow is imported only by verbs that need it, and only once flags are right."""

import contextlib
import dataclasses
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from data_pipeline.bad_records import BAD_RECORDS_FILE, MAX_BAD_RECORDS, ON_ERROR, BadRecords
from data_pipeline.labels import NESTING_POLICIES
from hm3_tf import __version__
from hm3_tf.config_files import define_config, explain_unknown_field
from hm3_tf.errors import Hm3Error, UsageError, did_you_mean
from hm3_tf.preemption import Termination
from hm3_tf.tables import metrics_table

if TYPE_CHECKING:
    from data_pipeline.processes import Run
    from data_pipeline.sources.base import Source

SPLIT_HELP = "date:FIRST_VALIDATION_DAY,FIRST_TEST_DAY or fraction:TRAIN,VALIDATION,TEST"


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


def _string(values: flags.FlagValues, name: str, default: str | None, text: str) -> None:
    flags.DEFINE_string(name, default, text, flag_values=values)


def _choice(values: flags.FlagValues, name: str, default: str, choices: tuple[str, ...], text: str) -> None:
    flags.DEFINE_enum(name, default, choices, text, flag_values=values)


def _define_bad_records(
    values: flags.FlagValues, on_error: str | None = "fail", most: int | None = MAX_BAD_RECORDS
) -> None:
    flags.DEFINE_enum("on_error", on_error, ON_ERROR, "What a bad record does: fail, or skip.", flag_values=values)
    text = "With --on_error=skip: bad records after which it is an error all the same."
    flags.DEFINE_integer("max_bad_records", most, text, lower_bound=0, flag_values=values)


def _define_simulate(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    _string(values, "output_dir", None, "Data folder to write.")
    from data_pipeline.simulate import PROFILES, WORLDS

    _choice(values, "world", "graph_true", tuple(WORLDS), "World to simulate.")
    _choice(values, "profile", "dense", tuple(PROFILES), "Rates: dense (CTR 10 %) or paper (2.98 %).")
    flags.DEFINE_integer("rows", 200_000, "Impressions.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of the log.", lower_bound=0, flag_values=values)
    flags.DEFINE_bool("shard_by_day", False, "Whether each day has shards of its own.", flag_values=values)
    _choice(values, "record_format", "packed", ("packed", "row"), "packed: 1,024 impressions a record; or row.")
    _define_processes(values)


def _define_processes(values: flags.FlagValues) -> None:
    flags.DEFINE_integer(
        "processes", None, "Processes that write at a time; default one a core.", lower_bound=1, flag_values=values
    )


def _simulate(values: flags.FlagValues) -> None:
    from data_pipeline.convert import convert
    from data_pipeline.simulate import SimulatedLog
    from data_pipeline.sources.simulated import DatedDays, SimulatedSource, day_split

    log = SimulatedLog(world=values.world, profile=values.profile, rows=values.rows, seed=values.seed)
    days = DatedDays() if values.shard_by_day else None
    source = SimulatedSource(log)
    with _processes(values, source) as run:
        options = {"record_format": values.record_format, "days": days, "run": run}
        splits = convert(source, values.output_dir, day_split(), **options)
    _print_splits(values.output_dir, splits)


@contextlib.contextmanager
def _processes(values: flags.FlagValues, source: "Source") -> Iterator["Run"]:
    """Yields what runs the parts of a log: this process where one is enough."""
    from data_pipeline.processes import process_pool

    processes = min(values.processes or len(os.sched_getaffinity(0)), len(source.parts()))
    if processes <= 1:
        yield map
        return
    with process_pool(processes) as run:
        yield run


def _define_join(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    files = "a file, a folder or a glob pattern of Parquet files, or of CSV files if it ends in .csv."
    _string(values, "impressions", None, f"Impressions: {files}")
    _string(values, "events", None, f"Behavior events: {files}")
    _string(values, "output", None, "Folder of Parquet files to write.")
    _string(values, "window", None, "Labels, and how long after an impression each counts: click:30m,purchase:7d.")
    _string(
        values, "history", "", "Lists of the user's latest items before the impression, and their length: click:50."
    )
    _string(values, "user_column", "user_id", "Column of users in both tables.")
    _string(values, "item_column", "item_id", "Column of items in both tables.")
    _string(values, "time_column", "time", "Column of times in both tables.")
    _string(values, "behavior_column", "behavior", "Column of the events' behaviors.")
    flags.DEFINE_enum(
        "time_unit", None, ("s", "ms", "us", "ns"), "Unit of times that are integers.", flag_values=values
    )
    _string(values, "memory_limit", "2GiB", "What DuckDB may hold in memory; the rest is on disk beside --output.")
    _choice(
        values,
        "engine",
        "local",
        ("local", "ray"),
        "local: this process; ray: a Ray cluster, a share of the users a task.",
    )
    _define_ray_address(values)


def _join(values: flags.FlagValues) -> None:
    try:
        from data_pipeline.event_join import EventJoin, join_events, join_table, parse_histories, parse_windows
    except ModuleNotFoundError as error:
        _explain_extra("join", ("duckdb",), error)
        raise
    from data_pipeline import storage
    from data_pipeline.event_tables import EventColumns, EventTable
    from data_pipeline.sources.base import TableFiles

    _refuse_idle_address(values)
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


def _define_convert(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    from data_pipeline.sources import SOURCES

    _string(values, "source", None, f"Layout of the raw log: {', '.join(SOURCES)}.")
    _string(values, "input", None, "Raw log: a file, a folder or a glob pattern.")
    _string(values, "output_dir", None, "Data folder to write.")
    _string(values, "schema", None, "schema.json of the raw columns.")
    _string(values, "behaviors", "", "Without a schema: levels in order, click,d_ma=cart|wish,purchase.")
    _string(values, "groups", "", "Without a schema: columns that metrics are grouped by; they are features too.")
    _string(values, "ignore", "", "Without a schema: columns that are no features.")
    _choice(values, "nesting", "coerce", NESTING_POLICIES, "Labels that break the hierarchy.")
    _choice(values, "record_format", "packed", ("packed", "row"), "packed: 1,024 impressions a record; or row.")
    _string(values, "split", "fraction:0.8,0.1,0.1", SPLIT_HELP + ".")
    _string(values, "split_column", "date", "Column of dates, for --split=date:... and --shard_by_day.")
    flags.DEFINE_bool("shard_by_day", False, "Whether each day has shards of its own.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of a split by fractions.", lower_bound=0, flag_values=values)
    _define_processes(values)
    _choice(values, "engine", "local", ("local", "ray"), "local: this machine; ray: a Ray cluster, a task a part.")
    _define_bad_records(values)
    _define_ray_address(values)


def _convert(values: flags.FlagValues) -> None:
    from data_pipeline import schema as schemas
    from data_pipeline import storage
    from data_pipeline.convert import convert
    from data_pipeline.sources import open_source
    from data_pipeline.split_rules import DateColumn, parse_split

    schema = None
    if values.schema:
        schema = schemas.from_json(storage.read_text(values.schema, "check --schema"), values.schema)
    _refuse_idle_address(values)
    rule = parse_split(values.split, values.split_column, values.seed)
    ignored = values.ignore
    if schema is None and values.behaviors and (values.shard_by_day or values.split.startswith("date:")):
        # A day to come is one that training never saw.
        ignored = f"{ignored},{values.split_column}"
    source = open_source(
        values.source, storage.absolute(values.input), schema, values.behaviors, values.groups, ignored
    )
    bad = BadRecords(values.max_bad_records) if values.on_error == "skip" else None
    with _engine(values, source) as run:
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
        print(f"{bad.summary()}, see {BAD_RECORDS_FILE}")
    _print_splits(values.output_dir, splits)
    for role, columns in source.schema.roles().items():
        print(f"  {role:<10} {', '.join(f'{column.name} ({column.dtype})' for column in columns)}")


def _engine(values: flags.FlagValues, source: "Source") -> contextlib.AbstractContextManager["Run"]:
    if values.engine == "local":
        return _processes(values, source)
    from data_pipeline.ray_tasks import ray_tasks

    return ray_tasks(values.ray_address)


def _print_splits(output_dir: str, splits: dict) -> None:
    print(f"wrote {output_dir}")
    for name, split in splits.items():
        rates = "  ".join(f"{level} {rate:.4%}" for level, rate in (split.rates() if split.rows else {}).items())
        print(f"  {name:<10} {split.rows:>12,} rows  {rates}")
        broken = {kind: rows for kind, rows in split.violations.items() if rows}
        if broken:
            print(f"  {'':<10} labels against the hierarchy: {broken}")


def _define_validate(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    _string(values, "data_dir", None, "Data folder.")
    _string(values, "output", None, "Report to write: its name ends in .html or .json.")
    _string(
        values, "time_column", None, "Column that says when each row was; default one named date, day, timestamp, ..."
    )
    _define_bad_records(values)


def _validate(values: flags.FlagValues) -> None:
    output = values.output or ""
    if output and not output.endswith((".html", ".json")):
        raise UsageError(f"--output: expected a name that ends in .html or .json, got {output!r}")
    if output.endswith(".html"):
        try:
            from hm3_tf.report.validation import render_validation
        except ModuleNotFoundError as error:
            _explain_extra("report", ("jinja2",), error)
            raise
    from data_pipeline import storage
    from data_pipeline.folder import DataFolder
    from data_pipeline.validate import validate

    most = values.max_bad_records if values.on_error == "skip" else None
    validation = validate(DataFolder.open(values.data_dir, most), values.time_column)
    if output:
        storage.write_text(output, render_validation(validation) if output.endswith(".html") else validation.to_json())
    print(validation.as_text())
    validation.refuse_errors()


def _define_train(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    define_config(values, arguments)
    _string(values, "data_dir", None, "Data folder.")
    _string(values, "workdir", None, "Directory of the run; the same config resumes it.")
    _string(values, "warm_start_from", None, "Directory of an earlier run whose latest model a new run starts from.")
    _choice(values, "warm_start_optimizer", "keep", ("keep", "reset"), "State of that run's optimizer.")


def _train(values: flags.FlagValues) -> None:
    termination = Termination()
    with termination.watched(), termination.ends_at_once("told to end (SIGTERM) before or after the steps of training"):
        from hm3_tf.train import train_and_evaluate
        from hm3_tf.warm_start import WarmStart

        earlier = values.warm_start_from
        warm_start = WarmStart(earlier, values.warm_start_optimizer) if earlier else None
        figures = train_and_evaluate(values.config, values.data_dir, values.workdir, warm_start)
    if figures is None:
        return
    print(f"trained {values.workdir}")
    if figures:
        print(metrics_table({"split": "validation", **figures}))


def _define_split(values: flags.FlagValues) -> None:
    _string(values, "workdir", None, "Directory of the run.")
    _string(values, "data_dir", None, "Data folder; default the one it was trained on.")
    _string(values, "split", "test", "Split to evaluate.")
    _string(values, "output", None, "File for the figures; default WORKDIR/evaluation/SPLIT.json.")
    _define_bad_records(values, None, None)
    values["on_error"].help += " Default as the run's config says."


def _define_evaluate(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    _define_split(values)
    _string(values, "compare", None, "Directory of another run; prints the differences on the same rows.")
    _string(values, "slice", "", "Columns whose values get figures of their own: tab,user_active_degree.")


def _evaluate(values: flags.FlagValues) -> None:
    from data_pipeline import storage
    from hm3_tf import evaluate
    from hm3_tf.workdir import open_workdir

    run = open_workdir(values.workdir)
    other = open_workdir(values.compare) if values.compare else None
    slices = [name for name in values.slice.split(",") if name]
    metrics = evaluate.evaluate_run(run, _open_split(run, values), values.split, other, slices)
    storage.write_text(values.output or run.file("evaluation", f"{values.split}.json"), evaluate.to_json(metrics))
    print(metrics_table(metrics))


def _open_split(run, values: flags.FlagValues):
    from data_pipeline.folder import DataFolder

    flagged = values.flag_values_dict()
    given = {name: flagged[name] for name in ("on_error", "max_bad_records") if flagged.get(name) is not None}
    most = dataclasses.replace(run.config.data, **given).most_bad_records
    data = DataFolder.open(values.data_dir or run.data_dir, most)
    return dataclasses.replace(data, schema=run.schema).split(values.split)


def _define_predict(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    _define_split(values)
    values["split"].help = "Split to predict."
    values["output"].help = "Parquet file to write, if its name ends in .parquet; else a folder for a file a shard."
    _choice(values, "engine", "local", ("local", "ray"), "local: this process; ray: a Ray cluster, shard by shard.")
    _define_ray_address(values)


def _predict(values: flags.FlagValues) -> None:
    from hm3_tf.workdir import open_workdir

    _refuse_idle_address(values)
    run = open_workdir(values.workdir)
    index = _open_split(run, values)
    if values.engine == "ray":
        from hm3_tf.predict_ray import predict_on_ray

        rows = predict_on_ray(run, index, values.output, values.ray_address)
    else:
        from hm3_tf.predict import predict_run

        rows = predict_run(run, index, values.output)
    print(f"wrote {values.output}: {rows:,} rows")


def _define_export(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    _string(values, "workdir", None, "Directory of the run.")
    _string(values, "export_dir", None, "Folder of numbered versions, as TensorFlow Serving watches it.")
    _string(values, "data_dir", None, "Data folder; default the one it was trained on.")
    choices = ("best", "latest", "final")
    _choice(values, "weights", "best", choices, "best: best on validation; latest; final: after the last step.")
    _choice(values, "tables", "float32", ("float32", "bfloat16", "int8"), "How embedding tables are held.")
    _string(
        values, "score_price", None, "Column of prices: each signature also returns score = pctcvr * price^exponent."
    )
    flags.DEFINE_float("score_exponent", 1.0, "With --score_price: the exponent of the price.", flag_values=values)
    flags.DEFINE_integer(
        "keep",
        None,
        "Versions that remain, the new one among them; default all. The one before it may be in use: 2 are kept at least.",
        lower_bound=2,
        flag_values=values,
    )
    flags.DEFINE_list(
        "warm_up",
        None,
        "Rows of the requests that a server warms up with, none where empty; default 1,100,500 if they can be made.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "check",
        0,
        "Logged rows of which the SavedModel, in a process of its own, has to serve the model's predictions.",
        lower_bound=0,
        flag_values=values,
    )
    _string(values, "gate", None, "Folder of versions; one that is worse than the newest of them is not exported.")
    flags.DEFINE_bool(
        "force", False, "With --gate: export a version that is worse; its metadata says so.", flag_values=values
    )


def _export(values: flags.FlagValues) -> None:
    if values.force and not values.gate:
        raise UsageError("--force: expected --gate beside it")
    if values["score_exponent"].present and not values.score_price:
        raise UsageError("--score_exponent: expected --score_price beside it")
    warm_up = None if values.warm_up is None else [_rows("--warm_up", size) for size in values.warm_up]
    from hm3_tf.export import export_run
    from hm3_tf.serving import RankingScore
    from hm3_tf.workdir import open_workdir

    run = open_workdir(values.workdir)
    version = export_run(
        dataclasses.replace(run, data_dir=values.data_dir or run.data_dir),
        values.export_dir,
        weights=values.weights,
        tables=values.tables,
        score=RankingScore(values.score_price, values.score_exponent) if values.score_price else None,
        keep=values.keep,
        warm_up=warm_up,
        check=values.check,
        gate=values.gate,
        force=values.force,
    )
    print(f"wrote {version}")


def _rows(flag: str, text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UsageError(f"{flag}: expected numbers of rows with commas between, got {text!r}")
    return int(text)


def _define_report(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    flags.DEFINE_multi_string(
        "workdir", None, "Directory of a run; again for others, which the first is compared with.", flag_values=values
    )
    _string(values, "data_dir", None, "Data folder; default the one that the runs were trained on.")
    _string(values, "split", "test", "Split to report on.")
    _string(values, "slice", "", "Columns whose values get figures of their own: tab,user_active_degree.")
    _string(values, "output", None, "HTML file to write.")


def _report(values: flags.FlagValues) -> None:
    try:
        from hm3_tf.report.gather import check_runs
        from hm3_tf.report.page import write_report
    except ModuleNotFoundError as error:
        _explain_extra("report", ("matplotlib", "jinja2"), error)
        raise
    from hm3_tf.workdir import open_workdir

    runs = [open_workdir(path) for path in values.workdir]
    check_runs(runs, same_log=values.data_dir is None)
    slices = [name for name in values.slice.split(",") if name]
    write_report(runs, _open_split(runs[0], values), values.split, slices, values.output)
    print(f"wrote {values.output}")


def _define_experiment(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    _string(values, "plan", None, "Plan file, as configs/experiments/simulated.py:paper.")
    _string(values, "workdir", None, "Folder for the results; the same plan goes on where it stopped.")
    flags.DEFINE_integer(
        "processes", 2, "Logs at a time, each in a process on one thread.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_multi_string("part", None, "Table or plot of the plan to show; default all.", flag_values=values)
    _string(
        values, "output", None, "Markdown document whose blocks of these names are to be written; plots go to images/."
    )


def _experiment(values: flags.FlagValues) -> None:
    try:
        from hm3_tf.experiment.document import check_blocks, write_document
        from hm3_tf.experiment.plan import load_plan
        from hm3_tf.experiment.runner import run_plan
    except ModuleNotFoundError as error:
        _explain_extra("experiment", ("scipy", "matplotlib"), error)
        raise
    plan = load_plan(values.plan)
    known = {**plan.tables, **plan.plots}
    parts = values.part or list(known)
    for name in parts:
        if name not in known:
            raise UsageError(f"--part: expected a table or plot of the plan, got {name!r}; {did_you_mean(name, known)}")
    if values.output:
        check_blocks(values.output, parts)
    results = run_plan(plan.for_parts(parts), values.workdir, values.processes)
    tables = {name: plan.tables[name].markdown(results) for name in parts if name in plan.tables}
    plots = {name: plan.plots[name].plot(name, results) for name in parts if name in plan.plots}
    if values.output:
        write_document(values.output, tables, plots)
    print("\n".join([*tables.values(), *(f"{plot.title}. {plot.words}" for plot in plots.values())]))


def _explain_extra(extra: str, packages: Sequence[str], error: ModuleNotFoundError) -> None:
    """Raises what to do about a missing package, if it is one of an extra."""
    package = (error.name or "").partition(".")[0]
    if package in packages:
        raise Hm3Error(
            f"hm3 {extra}: expected the packages of the extra {extra!r}, but {package} is not installed; "
            f"pip install 'hm3-tf[{extra}]'"
        ) from error


def _define_ray_address(values: flags.FlagValues) -> None:
    _string(values, "ray_address", None, "With --engine=ray: host:port or auto; default a Ray of this machine.")


def _refuse_idle_address(values: flags.FlagValues) -> None:
    if values.ray_address is not None and values.engine != "ray":
        raise UsageError(f"--ray_address: expected --engine=ray beside it, got --engine={values.engine}")


def _define_launch(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    flags.DEFINE_integer("workers", None, "Processes that train.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "servers", 0, "Processes that hold the tables (parameter servers).", lower_bound=0, flag_values=values
    )
    _choice(
        values, "engine", "local", ("local", "ray"), "local: processes of this machine; ray: workers of a Ray cluster."
    )
    _define_ray_address(values)
    flags.DEFINE_integer(
        "max_restarts",
        3,
        "Times that workers are started again when one is lost: all of them, or with servers that one alone.",
        lower_bound=0,
        flag_values=values,
    )


def _launch(values: flags.FlagValues, command: Sequence[str]) -> None:
    if not command or command[0] != "train":
        raise UsageError(f"hm3 launch: expected `-- train --flags` after its own flags, got {list(command)}")
    _refuse_idle_address(values)
    train = _parse("train", command[1:])  # what is wrong with them is said here, once
    if values.engine == "ray" and values.servers:
        raise UsageError("--servers: expected --engine=local beside it, got --engine=ray")
    if values.engine == "ray":
        from hm3_tf.launch_ray import launch_on_ray

        launch_on_ray(command, values.workers, values.max_restarts, train.workdir, values.ray_address)
    else:
        from hm3_tf.launch import launch

        launch(command, values.workers, values.max_restarts, values.servers)


VERBS = {
    "simulate": Verb("write a log whose true probabilities are known", _define_simulate, _simulate, ("output_dir",)),
    "join": Verb(
        "label impressions by a table of events",
        _define_join,
        _join,
        ("impressions", "events", "output", "window"),
    ),
    "convert": Verb("turn a raw log into a data folder", _define_convert, _convert, ("source", "input", "output_dir")),
    "validate": Verb("say what is wrong with a data folder", _define_validate, _validate, ("data_dir",)),
    "train": Verb("train a model, or resume", _define_train, _train, ("config", "data_dir", "workdir")),
    "evaluate": Verb("print and write the figures of a trained model", _define_evaluate, _evaluate, ("workdir",)),
    "predict": Verb("write predictions as Parquet", _define_predict, _predict, ("workdir", "output")),
    "export": Verb("write a SavedModel for TF Serving", _define_export, _export, ("workdir", "export_dir")),
    "experiment": Verb("run a plan of methods, logs and seeds", _define_experiment, _experiment, ("plan", "workdir")),
    "launch": Verb("train with several workers", _define_launch, _launch, ("workers",), takes_command=True),
    "report": Verb("write figures and plots of runs as one HTML file", _define_report, _report, ("workdir", "output")),
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


def _parse(name: str, arguments: Sequence[str]) -> flags.FlagValues:
    verb = VERBS[name]
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
    values = _parse(name, own)
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
