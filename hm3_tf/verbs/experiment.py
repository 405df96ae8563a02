"""`hm3 experiment`: a plan of methods, logs and seeds."""

from collections.abc import Sequence

from absl import flags

from hm3_tf.errors import UsageError, did_you_mean
from hm3_tf.verbs.shared import explain_extra, string
from hm3_tf.verbs.verb import Verb


def _define(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    string(values, "plan", None, "Plan file, as configs/experiments/simulated.py:paper.")
    string(values, "workdir", None, "Folder for the results; the same plan goes on where it stopped.")
    flags.DEFINE_integer(
        "processes", 2, "Logs at a time, each in a process on one thread.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_multi_string("part", None, "Table or plot of the plan to show; default all.", flag_values=values)
    string(
        values, "output", None, "Markdown document whose blocks of these names are to be written; plots go to images/."
    )


def _run(values: flags.FlagValues) -> None:
    try:
        from hm3_tf.experiment.document import check_blocks, write_document
        from hm3_tf.experiment.plan import load_plan
        from hm3_tf.experiment.runner import run_plan
    except ModuleNotFoundError as error:
        explain_extra("experiment", ("scipy", "matplotlib"), error)
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


VERB = Verb("run a plan of methods, logs and seeds", _define, _run, ("plan", "workdir"))
