"""`hm3 predict`: predictions as Parquet."""

from collections.abc import Sequence

from absl import flags

from hm3_tf.errors import UsageError
from hm3_tf.verbs.shared import choice, define_ray_address, define_split, open_split, refuse_idle_address
from hm3_tf.verbs.verb import Verb


def _define(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    define_split(values)
    values["split"].help = "Split to predict."
    values["output"].help = "Parquet file to write, if its name ends in .parquet; else a folder for a file a shard."
    choice(values, "engine", "local", ("local", "ray"), "local: this process; ray: a Ray cluster, shard by shard.")
    define_ray_address(values)


def _run(values: flags.FlagValues) -> None:
    from hm3_tf.workdir import open_workdir

    refuse_idle_address(values)
    if values.output.endswith((".csv", ".tsv", ".json", ".txt", ".gz")):
        raise UsageError(f"--output: expected a name that ends in .parquet, or that of a folder, got {values.output!r}")
    run = open_workdir(values.workdir)
    index = open_split(run, values)
    if values.engine == "ray":
        from hm3_tf.predict_ray import predict_on_ray

        rows = predict_on_ray(run, index, values.output, values.ray_address)
    else:
        from hm3_tf.predict import predict_run

        rows = predict_run(run, index, values.output)
    print(f"wrote {values.output}: {rows:,} rows")


VERB = Verb("write predictions as Parquet", _define, _run, ("workdir", "output"))
