"""`hm3 simulate`: a log whose true probabilities are known."""

from collections.abc import Sequence

from absl import flags

from hm3_tf.verbs.shared import choice, define_processes, print_splits, processes, string
from hm3_tf.verbs.verb import Verb


def _define(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    string(values, "output_dir", None, "Data folder to write.")
    from data_pipeline.simulate import PROFILES, WORLDS

    choice(values, "world", "graph_true", tuple(WORLDS), "World to simulate.")
    choice(values, "profile", "dense", tuple(PROFILES), "Rates: dense (CTR 10 %) or paper (2.98 %).")
    flags.DEFINE_integer("rows", 200_000, "Impressions.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of the log.", lower_bound=0, flag_values=values)
    flags.DEFINE_bool("shard_by_day", False, "Whether each day has shards of its own.", flag_values=values)
    choice(values, "record_format", "packed", ("packed", "row"), "packed: 1,024 impressions a record; or row.")
    define_processes(values)


def _run(values: flags.FlagValues) -> None:
    from data_pipeline.convert import convert
    from data_pipeline.simulate import SimulatedLog
    from data_pipeline.sources.simulated import DatedDays, SimulatedSource, day_split

    log = SimulatedLog(world=values.world, profile=values.profile, rows=values.rows, seed=values.seed)
    days = DatedDays() if values.shard_by_day else None
    source = SimulatedSource(log)
    with processes(values) as run:
        options = {"record_format": values.record_format, "days": days, "run": run}
        splits = convert(source, values.output_dir, day_split(), **options)
    print_splits(values.output_dir, splits)


VERB = Verb("write a log whose true probabilities are known", _define, _run, ("output_dir",))
