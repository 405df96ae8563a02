"""A run that goes on from the model of an earlier one, on other days."""

import dataclasses
from typing import Any

import tensorflow as tf

from data_pipeline import storage
from data_pipeline.schema import Schema
from data_pipeline.statistics import no_statistics
from hm3_tf.config import Config
from hm3_tf.errors import ConfigError, DataError
from hm3_tf.model import ConversionModel, model_features

OPTIMIZERS = ("keep", "reset")
_SEEN_IN_FEATURES = ("features", "embedding_dim", "embedding_dims", "hash_buckets")


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Where the first weights of a run come from.

    Attributes:
      workdir: Directory of the earlier run.
      optimizer: `keep` the state of its optimizer (the moments and the count of the steps) or `reset` it.
      step: Steps after which that run had them: those of its latest checkpoint when this run started; None before that.

    Raises:
      ConfigError: `optimizer` is neither.
    """

    workdir: str
    optimizer: str = "keep"
    step: int | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"--warm_start_optimizer: expected one of {OPTIMIZERS}, got {self.optimizer!r}")

    def load(self, model: ConversionModel) -> None:
        """Gives a model the weights, and the state of the optimizer if that is kept; the learning rate stays the model's.

        Args:
          model: A new model whose optimizer is built.

        Raises:
          DataError: The checkpoint is gone.
        """
        checkpoint = storage.join(self.workdir, "checkpoints", f"ckpt-{self.step}")
        rate = float(model.optimizer.learning_rate.numpy())
        parts = {"network": model.network}
        if self.optimizer == "keep":
            parts["optimizer"] = model.optimizer
        try:
            restored = tf.train.Checkpoint(**parts).restore(checkpoint)
        except tf.errors.NotFoundError as error:
            raise DataError(
                f"{checkpoint}: expected the checkpoint that the run starts from, found none; start anew in another --workdir"
            ) from error
        restored.assert_existing_objects_matched().expect_partial()
        model.optimizer.learning_rate = rate


def check_same_network(
    config: Config, schema: Schema, earlier_config: Config, earlier_schema: Schema, workdir: str
) -> None:
    """Checks that weights of an earlier run mean the same in a new one.

    Args:
      config: Config of the new run.
      schema: Schema of its log.
      earlier_config: Config of the earlier run.
      earlier_schema: Schema of its log.
      workdir: Directory of the earlier run, for the error.

    Raises:
      ConfigError: They do not; what differs is named.
    """
    new, earlier = _meaning(config, schema), _meaning(earlier_config, earlier_schema)
    for name in {**earlier, **new}:
        if new.get(name) != earlier.get(name):
            raise ConfigError(
                f"--warm_start_from: expected {name} as in {workdir} ({earlier.get(name)!r}), got {new.get(name)!r}; train "
                f"with that, on days converted with --schema={workdir}/schema.json"
            )


def _meaning(config: Config, schema: Schema) -> dict[str, Any]:
    """Returns {name: value} of all that decides what each weight of a network means, but for statistics."""
    features = model_features(config, schema, no_statistics(schema))
    model = {name: value for name, value in dataclasses.asdict(config.model).items() if name not in _SEEN_IN_FEATURES}
    return {
        **{f"model.{name}": value for name, value in model.items()},
        "data.negative_keep_rate": config.data.negative_keep_rate,
        "training.calibrate": config.training.calibrate,
        "the levels": schema.levels,
        "the features": tuple(feature.name for feature in features),
        **{f"{name} of {f.name!r}": value for f in features for name, value in dataclasses.asdict(f).items()},
    }
