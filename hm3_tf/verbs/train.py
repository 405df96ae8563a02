"""`hm3 train`: a model, or what is left of its training."""

from collections.abc import Sequence

from absl import flags

from hm3_tf.config_files import define_config
from hm3_tf.preemption import Termination
from hm3_tf.tables import metrics_table
from hm3_tf.verbs.shared import choice, string
from hm3_tf.verbs.verb import Verb


def _define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    define_config(values, arguments)
    string(values, "data_dir", None, "Data folder.")
    string(values, "workdir", None, "Directory of the run; the same config resumes it.")
    string(values, "warm_start_from", None, "Directory of an earlier run whose latest model a new run starts from.")
    choice(values, "warm_start_optimizer", "keep", ("keep", "reset"), "State of that run's optimizer.")


def _run(values: flags.FlagValues) -> None:
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


VERB = Verb("train a model, or resume", _define, _run, ("config", "data_dir", "workdir"))
