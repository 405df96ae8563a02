"""Training of a run: epochs, checkpoints, logs, validation, early stopping."""

import contextlib
import dataclasses
import logging
import math
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from data_pipeline import storage
from data_pipeline.folder import DataFolder, explained_read_errors
from data_pipeline.index import SplitIndex
from data_pipeline.read import Reader, lane_count
from data_pipeline.sampling import NegativeSampling, count_clicked_rows
from data_pipeline.validate import validate_sample
from hm3_tf.checkpoints import Checkpoints
from hm3_tf.config import BEST_FIGURES, Config, checked, to_json
from hm3_tf.distribute import (
    SAVE,
    STOP,
    Agreement,
    check_same,
    check_shared,
    explained_losses,
    input_context,
    make_strategy,
)
from hm3_tf.errors import ConfigError, Hm3Error, PreemptionError
from hm3_tf.evaluate import Evaluator, evaluation_reader, split_reader
from hm3_tf.export import check_export
from hm3_tf.metrics_log import MetricsLog
from hm3_tf.parameter_server import Scheduler, serve_chief, serves_chief
from hm3_tf.preemption import Termination
from hm3_tf.progress import Progress
from hm3_tf.tables import metrics_table
from hm3_tf.warm_start import WarmStart
from hm3_tf.workdir import Workdir, claim_workdir

_LOGGER = logging.getLogger(__name__)
_COUNTED_TOGETHER = 16_384  # rows whose clicks are counted together


def training_reader(run: Workdir, index: SplitIndex) -> Reader:
    """Returns the reader of a run's training split; where not all rows are kept, label columns are read to count clicks.

    Raises:
      DataError: A shard is corrupt, or its records do not hold what the schema says.
    """
    reader = split_reader(run, index, nesting=run.config.data.nesting)
    keep_rate, click = run.config.data.negative_keep_rate, run.config.method.levels[0]
    if keep_rate == 1:
        return reader
    labels = Reader(index, run.schema, (), run.config.method.merged_levels, sample_weights=False)
    with explained_read_errors(index), Progress("count clicks", index.rows) as progress:
        clicked_rows = count_clicked_rows(
            index.blocks, labels.ordered_dataset(_COUNTED_TOGETHER), click, on_rows=progress.advance
        )
    return dataclasses.replace(reader, sampling=NegativeSampling(keep_rate, click, clicked_rows))


def _tell_findings(data: DataFolder, reader: Reader) -> None:
    """Logs what a look at the log finds wrong with it, and which labels it could not check; training goes on."""
    for finding in validate_sample(data, reader.index, {feature.name for feature in reader.features}):
        if finding.severity != "info":
            _LOGGER.warning("the log: %s", finding)
        elif finding.check == "label_leak":
            _LOGGER.info("the log: %s", finding)


class Trainer(keras.callbacks.Callback):
    """Trains a run, from its latest checkpoint if it has one.

    Args:
      run: The run.
      data: The log.
      strategy: The run's strategy.
      chief: Whether this process writes the run's files.

    Raises:
      ConfigError: The global batch cannot be shared out equally, or there is no validation split to stop by.
      DataError: A split cannot be read.
      Hm3Error: The latest checkpoint is of another log, or of an epoch begun with another number of workers.
    """

    def __init__(self, run: Workdir, data: DataFolder, strategy: tf.distribute.Strategy, chief: bool) -> None:
        super().__init__()
        self._run, self._strategy, self._chief = run, strategy, chief
        self._log: MetricsLog | None = None
        self._termination = Termination()
        self._saved_at = time.monotonic()  # the latest checkpoint
        self._timer = self._epoch_start = (0.0, 0)  # when and after how many steps the last interval and epoch ended
        self._config = run.config.training
        index = data.split("train")
        check_same(strategy, str(index.fingerprint), "log")
        parts = index.by_day() if self._config.schedule == "by_day" else {"": index}
        self._days = [*parts]
        self._readers = [training_reader(run, part) for part in parts.values()]
        of_servers = isinstance(strategy, tf.distribute.ParameterServerStrategy)
        if chief:
            _tell_findings(data, dataclasses.replace(self._readers[0], index=index))
        self._workers = input_context(strategy).num_input_pipelines
        with strategy.scope():
            self._model = run.build_model()
            self._model.optimizer.build(self._model.network.trainable_variables)
        self._model.agreement = self._agreement = Agreement(strategy)
        self._scheduler = Scheduler(self._model, strategy) if of_servers else None
        self._day_evaluator: Evaluator | None = None
        if self._config.schedule == "by_day":
            reader = evaluation_reader(run, self._readers[0].index)
            self._day_evaluator = Evaluator(self._model, run.config, reader, strategy)
        self._evaluator: Evaluator | None = None
        if data.has_split("validation"):
            reader = evaluation_reader(run, data.split("validation"))
            self._evaluator = Evaluator(self._model, run.config, reader, strategy)
        elif self._config.early_stopping_epochs or self._config.calibrate:
            field, purpose = (
                ("calibrate", "fit it on") if self._config.calibrate else ("early_stopping_epochs", "stop by")
            )
            raise ConfigError(f"training.{field}: expected a validation split to {purpose}, found none in {data.path}")
        lanes = lane_count(self._config.global_batch_size, self._workers)
        self._checkpoints = Checkpoints(run, self._model, {"log": index.fingerprint, "lanes": lanes})
        self._sums_before = tf.zeros_like(self._model.loss_meter.sums)  # of the epoch's steps that another process took
        if self._checkpoints.restore():
            self._timer = self._epoch_start = (time.monotonic(), self._checkpoints.step)
            self._sums_before = self._checkpoints.epoch_sums
        elif run.warm_start:
            run.warm_start.load(self._model)
            _LOGGER.info("starting from step %d of %s", run.warm_start.step, run.warm_start.workdir)
        check_same(strategy, str(self._checkpoints.step), "latest checkpoint")

    def train(self) -> dict[str, Any]:
        """Trains to the end of the epochs, of the steps, or of patience.

        Returns:
          Figures of the last validation, empty without a validation split.

        Raises:
          DataError: A shard is corrupt, or its records do not hold what the schema says.
          Hm3Error: The loss is not finite, another process trains in the workdir, or it cannot be written.
          LostWorkerError: Another worker is gone.
          PreemptionError: The process was told to end (SIGTERM), and a checkpoint is written.
        """
        with (
            storage.lock(self._run.path) if self._chief else contextlib.nullcontext(),
            self._termination.watched(),
            explained_losses(self._run.config.distribution.strategy, self._run.path),
        ):
            return self._train()

    def _train(self) -> dict[str, Any]:
        if self._chief:
            self._run.write()
        self._log = MetricsLog(self._run, self._checkpoints.step, self._checkpoints.epoch) if self._chief else None
        if self._strategy.num_replicas_in_sync > 1:
            self._plan_exchange()
        figures: dict[str, Any] = {}
        if self._checkpoints.step and (self._is_between_epochs or self._has_all_steps):
            figures = self._validate()  # again: what followed the checkpoint, which is written before, is lost
        while not self._is_finished():
            if self._day_evaluator and self._is_between_epochs:
                self._evaluate_day(self._day_evaluator.on(self._reader.index))
            self._train_epoch()
            self._save()
            figures = self._validate()
        if self._log:
            self._log.end(self._checkpoints.step)
            self._run.write_end(self._checkpoints.step)
        return figures

    @property
    def _is_between_epochs(self) -> bool:
        return not self._checkpoints.epoch_step

    @property
    def _has_all_steps(self) -> bool:
        return bool(self._config.max_steps) and self._checkpoints.step >= self._config.max_steps

    @property
    def _reader(self) -> Reader:
        """Of the rows of this epoch: all, or those of a day."""
        return self._readers[self._checkpoints.epoch % len(self._readers)]

    @property
    def _epoch_steps(self) -> int:
        return self._reader.steps(self._config.global_batch_size, self._workers)

    def _plan_exchange(self) -> None:
        """Chooses how gradients of tables cross, by the first batch of a replica of the first worker: all choose alike."""
        workers, replicas = self._workers, self._strategy.num_replicas_in_sync
        first = tf.distribute.InputContext(workers, 0, replicas)
        with explained_read_errors(self._readers[0].index), self._strategy.scope():
            features, *_ = next(iter(self._batches(self._readers[0], first, epoch=0, start=0)))
            self._model.plan_exchange(features)

    def _batches(
        self,
        reader: Reader,
        context: tf.distribute.InputContext,
        epoch: int,
        start: int | tf.Tensor,
        steps: tf.Tensor | None = None,
    ) -> tf.data.Dataset:
        return reader.training_dataset(
            self._config.global_batch_size,
            seed=self._config.seed,
            epoch=epoch,
            start_step=start,
            steps=steps,
            input_context=context,
            window_rows=self._run.config.data.shuffle_rows,
        )

    def _is_finished(self) -> bool:
        patience = self._config.early_stopping_epochs
        stale = bool(patience) and self._checkpoints.epochs_since_best >= patience
        return stale or self._has_all_steps or self._checkpoints.epoch >= self._config.epochs * len(self._readers)

    def _evaluate_day(self, evaluator: Evaluator) -> None:
        """Evaluates the day that comes next, before anything is trained on it."""
        day, step = self._days[self._checkpoints.epoch], self._checkpoints.step
        with self._termination.ends_at_once(self._preempted()):
            figures = evaluator()
        if self._log and not self._log.has("progressive", step):
            self._log.write({"step": step, "epoch": self._checkpoints.epoch, "day": day, "progressive": figures})
            _LOGGER.info("before training on it: %s", metrics_table({"split": day, **figures}))

    def _train_epoch(self) -> None:
        config, epoch, start = self._config, self._checkpoints.epoch, self._checkpoints.epoch_step
        count = self._epoch_steps - start
        if config.reset_embeddings and epoch and not start:
            self._model.reset_embeddings(epoch)
        if config.max_steps:
            count = min(count, config.max_steps - self._checkpoints.step)
        self._last_step = self._checkpoints.step + count
        self._fit(epoch, start, count)
        if start + count == self._epoch_steps:
            self._checkpoints.end_epoch()

    def _fit(self, epoch: int, start: int, count: int) -> None:
        """Takes `count` steps of an epoch from step `start` on.

        Raises:
          PreemptionError: A worker was told to end before the last of them; a checkpoint is written.
        """
        title = self._days[epoch] if self._day_evaluator else f"epoch {epoch + 1} of {self._config.epochs}"
        progress = Progress(title, self._epoch_steps, "steps", done=start)
        with progress as self._progress, explained_read_errors(self._reader.index):
            self._since = tf.zeros_like(self._sums_before)
            self._sums_before = self._checkpoints.epoch_sums if start else self._since
            self._timer = self._epoch_start = (time.monotonic(), self._checkpoints.step)
            if self._scheduler:
                self._schedule_steps(self._scheduler, epoch, start, start + count)
            else:
                dataset = self._strategy.distribute_datasets_from_function(
                    lambda context: self._batches(self._reader, context, epoch, start)
                )
                self._model.fit(dataset, steps_per_epoch=count, callbacks=[self], verbose=0)
        taken = self._checkpoints.step - self._epoch_start[1]
        if taken < count and self._agreement.heard()[STOP]:
            self._save()
            raise PreemptionError(self._preempted())
        if taken != count:
            raise Hm3Error(f"training: expected {count} steps of epoch {epoch + 1}, but the data ended after {taken}")

    def _schedule_steps(self, scheduler: Scheduler, epoch: int, start: int, end: int) -> None:
        """Has the workers take the steps of an epoch from `start` to `end`; none is under way when a checkpoint is written."""
        every = self._config.checkpoint_every_steps
        length = self._reader.window_steps(self._config.global_batch_size, self._run.config.data.shuffle_rows)
        alone = tf.distribute.InputContext()  # a step is one worker's: all of its rows
        reader = self._reader
        take_stretch = scheduler.stretch_of(lambda first, steps: self._batches(reader, alone, epoch, first, steps))
        self._model.reset_metrics()
        while start < end and not self._agreement.heard()[STOP]:
            next_save = start + every - self._checkpoints.step % every
            for steps in scheduler.take(take_stretch, start, min(end, next_save), length, self._is_asked):
                self._advance(steps)
            start = self._checkpoints.epoch_step
            if start < end and not self._agreement.heard()[STOP]:
                self._save()

    def _is_asked(self) -> bool:
        """Whether the steps are to pause: for a checkpoint by the clock, or for good."""
        self._ask()
        return any(self._agreement.heard())

    def _preempted(self) -> str:
        if not self._checkpoints.step:
            return (
                f"{self._run.path}: told to end (SIGTERM) before the first step; the same command starts the run again"
            )
        written = "is written" if self._chief else "is written by worker 0"
        return (
            f"{self._run.path}: told to end (SIGTERM) at step {self._checkpoints.step}, whose checkpoint {written}; the same "
            "command goes on from it"
        )

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Tells all workers when this one was told to end, or has a checkpoint to write."""
        self._ask()

    def _ask(self) -> None:
        if self._termination.asked:
            self._agreement.ask(STOP)
        minutes = self._config.checkpoint_every_minutes
        if self._chief and minutes and time.monotonic() - self._saved_at >= 60 * minutes:
            self._agreement.ask(SAVE)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Logs and saves at their intervals."""
        self._advance(1)
        step = self._checkpoints.step
        if step == self._last_step:  # saved when the position is that of the next epoch
            return
        heard = self._agreement.heard()
        if heard[STOP]:
            self._model.stop_training = True
        elif heard[SAVE] or step % self._config.checkpoint_every_steps == 0:
            self._save()

    def _advance(self, steps: int) -> None:
        """Goes on by steps that were taken; logs if an interval ended with one of them."""
        self._checkpoints.advance(steps)
        self._progress.advance(steps)
        if self._checkpoints.step % self._config.log_every_steps < steps:
            self._log_interval()

    def _interval_figures(self) -> dict[str, Any]:
        """Returns figures of the steps since the last call.

        Raises:
          Hm3Error: The loss of one of them was not finite.
        """
        losses = self._model.loss_meter.means(self._since)
        self._since = self._model.loss_meter.sums.read_value()
        now, step = time.monotonic(), self._checkpoints.step
        then, last_step = self._timer
        self._timer = (now, step)
        if not all(math.isfinite(loss) for loss in losses.values()):
            raise Hm3Error(
                f"training: expected a finite loss, got {losses} in steps {last_step + 1} to {step}; lower "
                "training.learning_rate, or look for extreme numbers or weights in the log; the last good checkpoint "
                f"is {self._checkpoints.latest}"
            )
        rows = (step - last_step) * self._config.global_batch_size
        loss = losses.pop("loss")
        return {
            "step": step,
            "epoch": self._checkpoints.epoch,
            "loss": loss,
            "examples_per_second": rows / max(now - then, 1e-9),
            "losses": losses,
            **({"bytes_exchanged": self._model.exchange.mean_sent_bytes()} if self._model.exchange else {}),
        }

    def _write(self, figures: dict[str, Any]) -> None:
        if self._log:
            self._log.write(figures)

    def _save(self) -> None:
        self._log_interval()
        self._checkpoints.note_sums(self._sums_before + self._model.loss_meter.sums)
        if self._chief:
            self._checkpoints.save()
        self._agreement.forget()
        self._saved_at = time.monotonic()

    def _log_interval(self) -> None:
        """Logs what is not logged yet, so that no checkpoint is written after a loss that is not finite."""
        if self._timer[1] == self._checkpoints.step:
            return
        if self._model.loss_meter.rows(self._since) > 0:  # else workers ahead put them into the line before
            self._write(self._interval_figures())

    def _validate(self) -> dict[str, Any]:
        """Logs the end of an epoch or of `max_steps`, evaluates, and keeps the best weights."""
        step, epoch, ended = self._checkpoints.step, self._checkpoints.epoch, self._is_between_epochs
        losses = self._model.loss_meter.means(-self._sums_before)
        line = {"step": step, "epoch": epoch - ended, "epoch_end": ended, "loss": losses.pop("loss"), "losses": losses}
        rows = (step - self._epoch_start[1]) * self._config.global_batch_size
        line["examples_per_second"] = rows / max(time.monotonic() - self._epoch_start[0], 1e-9)
        if self._evaluator is None:
            self._write_end(line)
            return {}
        start = time.monotonic()
        with self._termination.ends_at_once(self._preempted()):
            figures = self._evaluator()
        self._write_end({**line, "validation_seconds": time.monotonic() - start, "validation": figures})
        target, _, figure = self._config.best_metric.partition(".")
        value = figures.get(target, figures["levels"].get(target))[figure]
        if value is None:
            _LOGGER.warning("validation: %s.%s does not exist: one class has no row", target, figure)
        if self._checkpoints.note_figure(value if value is None else BEST_FIGURES[figure] * value):
            self._save_best(self._evaluator.counts)
        return figures

    def _write_end(self, line: dict[str, Any]) -> None:
        """Writes the line of an end, and its curves, unless the process that was here before did."""
        if self._log is None or self._log.has("epoch_end", line["step"]):
            return
        self._log.write(line)
        if self._evaluator:
            between = [f"levels/{level}" for level in self._evaluator.levels[1:-1]]
            names = [f"validation/{name}" for name in ("pctr", *between, "pctcvr", "pcvr")]
            self._log.write_curves(dict(zip(names, self._evaluator.counts)), line["step"])

    def _save_best(self, counts: list[np.ndarray]) -> None:
        """Saves the weights, with the calibration that fits them; training goes on without it."""
        layer = self._model.network.get_layer("hm3/calibration") if self._config.calibrate else None
        if layer:
            layer.fit(counts)
        if self._chief:
            self._checkpoints.save_best()
        if layer:
            layer.reset()


def open_trainer(
    config: Config,
    data_dir: str,
    workdir: str,
    warm_start: WarmStart | None = None,
) -> Trainer:
    """Returns the trainer of a run, ready to start or to resume.

    Args:
      config: The run's config.
      data_dir: The data folder.
      workdir: The run's directory; one that holds a run of the same config is resumed.
      warm_start: The earlier run from whose model the run starts, or None.

    Returns:
      The trainer.

    Raises:
      Hm3Error: Config, log, workdir or cluster cannot be used; the message says which and why.
    """
    config = checked(config)
    with explained_losses(config.distribution.strategy, workdir):
        strategy = make_strategy(config.distribution)
        chief = input_context(strategy).input_pipeline_id == 0
        keras.utils.set_random_seed(config.training.seed)
        data = DataFolder.open(data_dir, config.data.most_bad_records)
        run = claim_workdir(workdir, config, data, warm_start)
        check_shared(strategy, workdir)
        check_same(strategy, f"{to_json(config)} {run.warm_start}", "config")
        if chief:
            check_export(run)
        return Trainer(run, data, strategy, chief)


def train_and_evaluate(
    config: Config,
    data_dir: str,
    workdir: str,
    warm_start: WarmStart | None = None,
) -> dict[str, Any] | None:
    """Trains a run and evaluates it on validation after each epoch.

    Args:
      config: The run's config.
      data_dir: The data folder.
      workdir: The run's directory; one that holds a run of the same config is resumed.
      warm_start: The earlier run from whose model the run starts, or None.

    Returns:
      Figures of the last validation, see `Evaluator`; empty without a validation split. None in a worker or server that only
      did as the chief said.

    Raises:
      Hm3Error: As `open_trainer`, or the training went wrong.
    """
    if serves_chief(config.distribution):
        for path in (data_dir, workdir):  # which this process reads and writes for the chief
            storage.open_file_system(path)
        serve_chief(config.distribution)
        return None
    return open_trainer(config, data_dir, workdir, warm_start).train()
