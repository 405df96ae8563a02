"""What TensorBoard shows of a run: scalars, precision-recall curves, and its config under HParams."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.summary import experiment_pb, session_end_pb, session_start_pb
from tensorboard.plugins.pr_curve.summary import raw_data_pb

from hm3_tf.config import TARGETS, Config
from hm3_tf.curves import operating_points

_METRICS = ("auc", "log_loss", "pcoc")  # columns of the HParams table, for each target on validation
_THRESHOLDS = (
    "Thresholds are shares of the positives that score below, as those of rare events are all near a probability of 0."
)


class Board:
    """Writes the events of a run.

    Args:
      folder: Where the events go.
    """

    def __init__(self, folder: str) -> None:
        self._writer = tf.summary.create_file_writer(folder)

    def write_config(self, config: Config, trial: str) -> None:
        """Writes the settings, as the start of a trial, and which figures stand beside them.

        Args:
          config: The run's config.
          trial: Name of the trial.
        """
        values = settings(config)
        fields = [api_pb2.HParamInfo(name=name, type=_type_of(value)) for name, value in values.items()]
        tags = [f"validation/{target}/{name}" for target in TARGETS for name in _METRICS]
        metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in tags]
        self._write(experiment_pb(fields, metrics), step=0)
        self._write(session_start_pb(values, group_name=trial), step=0)

    def write_end(self, step: int) -> None:
        """Says that the trial ended well."""
        self._write(session_end_pb(api_pb2.STATUS_SUCCESS), step)

    def write_scalars(self, figures: Mapping[str, Any], step: int) -> None:
        """Writes the numbers among figures; names of nested ones are joined by a slash."""
        with self._writer.as_default(step=step):
            for name, value in _flat("", figures, "/"):
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    tf.summary.scalar(name, value)
        self._writer.flush()

    def write_pr_curves(self, counts: Mapping[str, np.ndarray], step: int) -> None:
        """Writes precision-recall curves; targets without a positive have none.

        Args:
          counts: {name: int [2, bins]}, rows by label and bin of the score.
          step: Steps taken.
        """
        for name, target in counts.items():
            if target[1].any():
                self._write(_pr_curve(name, target), step)

    def _write(self, summary: Any, step: int) -> None:
        with self._writer.as_default(step=step):
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step)
        self._writer.flush()


def _type_of(value: bool | int | float | str) -> int:
    if isinstance(value, bool):
        return api_pb2.DATA_TYPE_BOOL
    return api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64


def _pr_curve(name: str, counts: np.ndarray) -> Any:
    false_positives, true_positives = above = operating_points(counts, 1)
    true_negatives, false_negatives = counts.sum(axis=1, keepdims=True) - above
    precision, recall = true_positives / above.sum(axis=0), true_positives / counts[1].sum()
    cells = (true_positives, false_positives, true_negatives, false_negatives)
    return raw_data_pb(name, *cells, precision, recall, num_thresholds=above.shape[1], description=_THRESHOLDS)


def settings(config: Config) -> dict[str, Any]:
    """Returns the fields of a config by their full names, `training.learning_rate`; all but numbers as text."""
    fields = _flat("", dataclasses.asdict(config), ".")
    return {name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in fields}


def _flat(prefix: str, values: Mapping[str, Any], separator: str) -> list[tuple[str, Any]]:
    result = []
    for name, value in values.items():
        inner = _flat(f"{prefix}{name}{separator}", value, separator) if isinstance(value, dict) else None
        result += [(prefix + name, value)] if inner is None else inner
    return result
