"""The checkpoints of a training: its weights, the state of its optimizer, where in the log it is, and its best epoch."""

import logging
import math
from collections.abc import Mapping

import tensorflow as tf

from data_pipeline import storage
from hm3_tf.errors import Hm3Error
from hm3_tf.model import ConversionModel
from hm3_tf.workdir import Workdir

_LOGGER = logging.getLogger(__name__)


def _integers(values: Mapping[str, int]) -> dict[str, tf.Variable]:
    return {name: tf.Variable(value, dtype=tf.int64, name=name) for name, value in values.items()}


class Checkpoints:
    """What a run resumes from. Made in every process of a run, within the strategy's scope or not; the chief alone saves.

    Args:
      run: The run's directory, which holds the checkpoints.
      model: The model, whose optimizer is built.
      order: {`log`: fingerprint of the training split, `lanes`: lanes it is read in}: what a step reads depends on them and
        the seed.
    """

    def __init__(self, run: Workdir, model: ConversionModel, order: Mapping[str, int]) -> None:
        self._run = run
        self._position = _integers({"step": 0, "epoch": 0, "epoch_step": 0})
        self._order = _integers(order)
        self._best = {"value": tf.Variable(-math.inf, dtype=tf.float64), "epoch": tf.Variable(0, dtype=tf.int64)}
        self._epoch_sums = tf.Variable(tf.zeros_like(model.loss_meter.sums))
        self._whole = tf.train.Checkpoint(
            network=model.network,
            optimizer=model.optimizer,
            position=self._position,
            order=self._order,
            best=self._best,
            epoch_sums=self._epoch_sums,
        )
        weights = tf.train.Checkpoint(network=model.network)
        for each in (self._whole, weights):
            _ = each.save_counter  # made by all: within a step the chief alone would make a variable of all workers
        folder = run.file("checkpoints")
        self._latest = tf.train.CheckpointManager(self._whole, folder, run.config.training.keep_checkpoints)
        self._best_weights = tf.train.CheckpointManager(weights, storage.join(folder, "best"), 1)

    @property
    def step(self) -> int:
        """Steps taken."""
        return int(self._position["step"].numpy())

    @property
    def epoch(self) -> int:
        """Epochs ended."""
        return int(self._position["epoch"].numpy())

    @property
    def epoch_step(self) -> int:
        """Steps taken of the epoch that has begun; 0 between epochs."""
        return int(self._position["epoch_step"].numpy())

    @property
    def latest(self) -> str | None:
        """Path of the latest checkpoint, None without one."""
        return self._latest.latest_checkpoint

    @property
    def epoch_sums(self) -> tf.Tensor:
        """Sums of the losses over the epoch's steps before the latest checkpoint, see `LossMeter.sums`."""
        return self._epoch_sums.read_value()

    @property
    def epochs_since_best(self) -> int:
        """Epochs ended since the best one."""
        return self.epoch - int(self._best["epoch"].numpy())

    def advance(self, steps: int) -> None:
        """Goes on by steps that were taken."""
        for name in ("step", "epoch_step"):
            self._position[name].assign_add(steps)

    def end_epoch(self) -> None:
        """Goes on to the start of the next epoch."""
        self._position["epoch"].assign_add(1)
        self._position["epoch_step"].assign(0)

    def restore(self) -> bool:
        """Restores the latest checkpoint.

        Returns:
          Whether there is one.

        Raises:
          Hm3Error: It is of another log, or within an epoch whose other steps would read other rows.
        """
        if not self.latest:
            return False
        order = {name: int(variable.numpy()) for name, variable in self._order.items()}
        self._whole.restore(self.latest).assert_existing_objects_matched()
        self._refuse_other_order(order)
        _LOGGER.info("resuming at step %d from %s", self.step, self.latest)
        return True

    def _refuse_other_order(self, order: dict[str, int]) -> None:
        saved = {name: int(variable.numpy()) for name, variable in self._order.items()}
        if saved["log"] != order["log"]:
            raise Hm3Error(
                f"{self._run.path}: expected the log of the run it holds, but the training shards in {self._run.data_dir} "
                "are of other sizes; use another --workdir, or the same log"
            )
        if saved["lanes"] != order["lanes"] and self.epoch_step:
            raise Hm3Error(
                f"{self._run.path}: expected to resume epoch {self.epoch + 1} with a number of workers that reads "
                f"{saved['lanes']} lanes, got one that reads {order['lanes']}; resume with the former number of workers"
            )
        for name, variable in self._order.items():
            variable.assign(order[name])

    def note_sums(self, epoch_sums: tf.Tensor) -> None:
        """Takes note of the sums of the losses over the epoch's steps, for the next checkpoint; called in every process."""
        self._epoch_sums.assign(epoch_sums)

    def save(self) -> None:
        """Writes a checkpoint; called in the chief.

        Raises:
          Hm3Error: It cannot be written.
        """
        with storage.explained(self._run.file("checkpoints")):
            self._latest.save(self.step)

    def note_figure(self, value: float | None) -> bool:
        """Takes note of a figure of validation, for which more is better; called in every process.

        Args:
          value: The figure, or None where it does not exist.

        Returns:
          Whether the weights are the best so far; the latest are, as long as there was no figure.
        """
        best = float(self._best["value"].numpy())
        if value is not None and value > best:
            self._best["value"].assign(value)
            self._best["epoch"].assign(self.epoch)
            return True
        return math.isinf(best)

    def save_best(self) -> None:
        """Writes the weights as the best ones, unless that was done at this step; called in the chief.

        Raises:
          Hm3Error: They cannot be written.
        """
        if not (self._best_weights.latest_checkpoint or "").endswith(f"-{self.step}"):
            with storage.explained(self._run.file("checkpoints")):
                self._best_weights.save(self.step)
