"""`hm3 report`: figures and plots of runs as one HTML file."""

from collections.abc import Sequence

from absl import flags

from hm3_tf.verbs.shared import explain_extra, open_split, string
from hm3_tf.verbs.verb import Verb


def _define(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    flags.DEFINE_multi_string(
        "workdir", None, "Directory of a run; again for others, which the first is compared with.", flag_values=values
    )
    string(values, "data_dir", None, "Data folder; default the one that the runs were trained on.")
    string(values, "split", "test", "Split to report on.")
    string(values, "slice", "", "Columns whose values get figures of their own: tab,user_active_degree.")
    string(values, "output", None, "HTML file to write.")


def _run(values: flags.FlagValues) -> None:
    try:
        from hm3_tf.report.gather import check_runs
        from hm3_tf.report.page import write_report
    except ModuleNotFoundError as error:
        explain_extra("report", ("matplotlib", "jinja2"), error)
        raise
    from hm3_tf.workdir import open_workdir

    runs = [open_workdir(path) for path in values.workdir]
    check_runs(runs, same_log=values.data_dir is None)
    slices = [name for name in values.slice.split(",") if name]
    write_report(runs, open_split(runs[0], values), values.split, slices, values.output)
    print(f"wrote {values.output}")


VERB = Verb("write figures and plots of runs as one HTML file", _define, _run, ("workdir", "output"))
