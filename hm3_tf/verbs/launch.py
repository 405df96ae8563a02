"""`hm3 launch`: training with several workers."""

from collections.abc import Sequence

from absl import flags

from hm3_tf.errors import UsageError
from hm3_tf.verbs import train
from hm3_tf.verbs.shared import choice, define_ray_address, refuse_idle_address
from hm3_tf.verbs.verb import Verb, parse


def _define(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    flags.DEFINE_integer("workers", None, "Processes that train.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "servers", 0, "Processes that hold the tables (parameter servers).", lower_bound=0, flag_values=values
    )
    choice(
        values, "engine", "local", ("local", "ray"), "local: processes of this machine; ray: workers of a Ray cluster."
    )
    define_ray_address(values)
    flags.DEFINE_integer(
        "max_restarts",
        3,
        "Times that workers are started again when one is lost: all of them, or with servers that one alone.",
        lower_bound=0,
        flag_values=values,
    )


def _run(values: flags.FlagValues, command: Sequence[str]) -> None:
    if not command or command[0] != "train":
        raise UsageError(f"hm3 launch: expected `-- train --flags` after its own flags, got {list(command)}")
    refuse_idle_address(values)
    run = parse("train", train.VERB, command[1:])  # what is wrong with them is said here, once
    if values.engine == "ray" and values.servers:
        raise UsageError("--servers: expected --engine=local beside it, got --engine=ray")
    if values.engine == "ray":
        from hm3_tf.launch_ray import launch_on_ray

        launch_on_ray(command, values.workers, values.max_restarts, run.workdir, values.ray_address)
    else:
        from hm3_tf.launch import launch

        launch(command, values.workers, values.max_restarts, values.servers)


VERB = Verb("train with several workers", _define, _run, ("workers",), takes_command=True)
