"""`hm3 export`: a SavedModel for TensorFlow Serving."""

import dataclasses
from collections.abc import Sequence

from absl import flags

from hm3_tf.errors import UsageError
from hm3_tf.verbs.shared import choice, string
from hm3_tf.verbs.verb import Verb


def _define(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    string(values, "workdir", None, "Directory of the run.")
    string(values, "export_dir", None, "Folder of numbered versions, as TensorFlow Serving watches it.")
    string(values, "data_dir", None, "Data folder; default the one it was trained on.")
    choices = ("best", "latest", "final")
    choice(values, "weights", "best", choices, "best: best on validation; latest; final: after the last step.")
    choice(values, "tables", "float32", ("float32", "bfloat16", "int8"), "How embedding tables are held.")
    string(
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
    string(values, "gate", None, "Folder of versions; one that is worse than the newest of them is not exported.")
    flags.DEFINE_bool(
        "force", False, "With --gate: export a version that is worse; its metadata says so.", flag_values=values
    )


def _run(values: flags.FlagValues) -> None:
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


VERB = Verb("write a SavedModel for TF Serving", _define, _run, ("workdir", "export_dir"))
