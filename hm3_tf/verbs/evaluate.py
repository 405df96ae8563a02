"""`hm3 evaluate`: the figures of a trained model."""

from collections.abc import Sequence

from absl import flags

from hm3_tf.tables import metrics_table
from hm3_tf.verbs.shared import define_split, open_split, string
from hm3_tf.verbs.verb import Verb


def _define(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    define_split(values)
    string(values, "compare", None, "Directory of another run; prints the differences on the same rows.")
    string(values, "slice", "", "Columns whose values get figures of their own: tab,user_active_degree.")


def _run(values: flags.FlagValues) -> None:
    from data_pipeline import storage
    from hm3_tf import evaluate
    from hm3_tf.workdir import open_workdir

    run = open_workdir(values.workdir)
    other = open_workdir(values.compare) if values.compare else None
    slices = [name for name in values.slice.split(",") if name]
    metrics = evaluate.evaluate_run(run, open_split(run, values), values.split, other, slices)
    storage.write_text(values.output or run.file("evaluation", f"{values.split}.json"), evaluate.to_json(metrics))
    print(metrics_table(metrics))


VERB = Verb("print and write the figures of a trained model", _define, _run, ("workdir",))
