"""A cell of an experiment: one log of one seed, and the runs on it, in a process of its own.

All runs of a cell see the same batches in the same order, which are read once. A pass over the log is measured where the
volumes of the plan are reached, so that the model of a volume is that of one pass over its rows.
"""

import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from data_pipeline import storage
from data_pipeline.convert import convert
from data_pipeline.folder import SCHEMA_FILE, DataFolder
from data_pipeline.index import SplitIndex
from data_pipeline.processes import end_with_parent
from data_pipeline.read import Reader
from data_pipeline.schema import Schema
from data_pipeline.simulate import POSITIONS, SimulatedLog
from data_pipeline.sources.simulated import SimulatedSource
from data_pipeline.split_rules import ThresholdRule
from hm3_tf.behavior_graph import IMPRESSION
from hm3_tf.config import Config, to_json
from hm3_tf.evaluate import group_column
from hm3_tf.experiment.measures import EDGE_TRUTHS, SLATES, TRUTHS, Scored, joined, measure
from hm3_tf.features import Feature
from hm3_tf.model import ConversionModel, build_model, model_features

_NEVER = 2**62  # a slate that no log has
_TEST_BATCH = 8192
_STEPS_TOGETHER = 64  # without a return to Python between them


@dataclasses.dataclass(frozen=True)
class Cell:
    """A log of one seed and the runs on it.

    Attributes:
      source: The log, see `plan.Log`.
      volumes: {name: rows of training after which a run is measured}, ascending.
      seed: Of the log and of the weights.
      held_out_rows: Rows that are measured on, of a simulated log.
      split: Name of the split that is measured on.
      runs: {name: config}.
      folder: Where results go, one file a run: `<name>.json`.
      data_dir: Where a simulated log is written; it is removed in the end.
    """

    source: SimulatedLog | str
    volumes: Mapping[str, int]
    seed: int
    held_out_rows: int
    split: str
    runs: Mapping[str, Config]
    folder: str
    data_dir: str

    @property
    def log(self) -> dict[str, Any]:
        """What the runs are measured on, as their results say."""
        source = dataclasses.asdict(self.source) if isinstance(self.source, SimulatedLog) else {"data_dir": self.source}
        if isinstance(self.source, SimulatedLog):
            world, profile = self.source.world_settings, self.source.profile_settings
            source |= {"world": dataclasses.asdict(world), "profile": dataclasses.asdict(profile), "seed": self.seed}
        log = {**source, "volumes": dict(self.volumes), "held_out_rows": self.held_out_rows, "split": self.split}
        return json.loads(json.dumps(log))  # tuples as they are read

    @property
    def position_effect(self) -> float | None:
        """That of the world, or None where probabilities at another position do not follow from it."""
        if not isinstance(self.source, SimulatedLog) or any(self.source.world_settings.intent):
            return None
        return self.source.world_settings.position_effect

    def result_file(self, run: str) -> str:
        """Returns the path of a run's result."""
        return os.path.join(self.folder, f"{run}.json")

    def missing(self) -> list[str]:
        """Returns the runs without a result."""
        return [run for run in self.runs if not os.path.exists(self.result_file(run))]

    def config(self, run: str) -> Config:
        """Returns the config of a run, with the cell's seed."""
        config = self.runs[run]
        return dataclasses.replace(config, training=dataclasses.replace(config.training, seed=self.seed))


def run_cell(cell: Cell) -> None:
    """Trains and measures the runs of a cell that have no result yet.

    Args:
      cell: The cell.

    Raises:
      Hm3Error: The log and a config do not fit, or a file cannot be written.
    """
    threading.Thread(target=end_with_parent, daemon=True).start()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    data = _open_log(cell)
    batches = Batches(data, cell)
    for run in cell.missing():
        start, config = time.monotonic(), cell.config(run)
        keras.backend.clear_session()
        keras.utils.set_random_seed(cell.seed)
        model = build_model(config, data.schema, batches.statistics)
        scorer = Scorer(model, config, batches)
        measures = {volume: measure(scorer(), cell.position_effect) for volume in train(model, config, batches)}
        result = {
            "log": cell.log,
            "seconds": time.monotonic() - start,
            "config": json.loads(to_json(config)),
            "measures": measures,
        }
        storage.write_text(cell.result_file(run), json.dumps(result, indent=1))
    if isinstance(cell.source, SimulatedLog):
        shutil.rmtree(cell.data_dir)


def _open_log(cell: Cell) -> DataFolder:
    """Returns the cell's log; a simulated one is written unless that was done before the process was stopped."""
    if not isinstance(cell.source, SimulatedLog):
        return DataFolder.open(cell.source)
    if not os.path.exists(os.path.join(cell.data_dir, SCHEMA_FILE)):
        rows = cell.source.rows + cell.held_out_rows
        log = dataclasses.replace(cell.source, rows=rows, seed=cell.seed)
        first = cell.source.rows // POSITIONS
        rule = ThresholdRule("slate", first, _NEVER if cell.split == "validation" else first)
        convert(SimulatedSource(log), cell.data_dir, rule)
    return DataFolder.open(cell.data_dir)


class Batches:
    """The batches of a cell's runs, each read once.

    Args:
      data: The log.
      cell: The cell; labels are those that any of its runs needs.

    Attributes:
      schema: The log's schema.
      statistics: Of the training split.
      volumes: {name: rows}, see `Cell`.
    """

    def __init__(self, data: DataFolder, cell: Cell) -> None:
        methods = [config.method for config in cell.runs.values()]
        self.schema: Schema = data.schema
        self.statistics = data.statistics()["train"]
        self.volumes = cell.volumes
        self._splits = {"train": data.split("train"), "test": data.split(cell.split)}
        self._merged = {level: parts for method in methods for level, parts in method.merged_levels.items()}
        self._split = tuple(dict.fromkeys(level for method in methods for level in method.split_levels))
        self._cached: dict[tuple, Any] = {}

    def features(self, config: Config) -> tuple[Feature, ...]:
        """Returns the features of a config."""
        return model_features(config, self.schema, self.statistics)

    def _reader(self, index: SplitIndex, config: Config, **options: Any) -> Reader:
        return Reader(
            index,
            self.schema,
            self.features(config),
            self._merged,
            split_levels=self._split,
            nesting=config.data.nesting,
            **options,
        )

    def epoch(self, config: Config, epoch: int) -> Iterator[tuple[str, tf.data.Dataset]]:
        """Yields, for each volume, the batches from the volume before it on, rows of an epoch of a run."""
        features, training = self.features(config), config.training
        for (volume, stop), start in zip(self.volumes.items(), (0, *self.volumes.values())):
            key = (features, training.global_batch_size, dataclasses.astuple(config.data), epoch, volume)
            if key not in self._cached:
                index = self._splits["train"].part(start, stop)
                reader = self._reader(index, config)
                window = config.data.shuffle_rows
                dataset = reader.training_dataset(
                    training.global_batch_size, seed=training.seed, epoch=epoch, window_rows=window
                )
                self._cached[key] = _in_memory(dataset)
            yield volume, self._cached[key]

    def test(self, config: Config) -> tuple[Sequence[dict[str, tf.Tensor]], np.ndarray, dict, dict]:
        """Returns what a run is measured on.

        Returns:
          Features of each batch; which of their rows are rows of the log, bool; labels {level: float32 [rows]}; columns of the
          log {name: [rows]}.
        """
        features = self.features(config)
        key = (features, config.data.nesting)
        if key not in self._cached:
            wanted = (*TRUTHS, *SLATES, *(f"truth_{name}" for name in EDGE_TRUTHS.values()), group_column(self.schema))
            carry = tuple(column.name for column in self.schema.columns if column.name in wanted)
            reader = self._reader(self._splits["test"], config, sample_weights=False, carry=carry)
            batches = list(reader.ordered_dataset(_TEST_BATCH))
            real = np.concatenate([weights for _, _, weights, _ in batches]) > 0
            rows = joined({"labels": labels, "columns": columns} for _, labels, _, columns in batches)
            kept = tf.nest.map_structure(lambda values: values[real], rows)
            self._cached[key] = [inputs for inputs, *_ in batches], real, kept["labels"], kept["columns"]
        return self._cached[key]


def _in_memory(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the same batches, read now."""
    cached = dataset.cache()
    count = sum(1 for _ in cached)
    return cached.apply(tf.data.experimental.assert_cardinality(count))


def train(model: ConversionModel, config: Config, batches: Batches) -> Iterator[str]:
    """Trains a model on the steps of `hm3 train`, without checkpoints and validation.

    Args:
      model: The model.
      config: Its config.
      batches: Of the cell.

    Yields:
      The name of each volume when the last epoch has reached it.
    """
    model.compile(optimizer=model.optimizer, weighted_metrics=[], steps_per_execution=_STEPS_TOGETHER)
    for epoch in range(config.training.epochs):
        if epoch and config.training.reset_embeddings:
            model.reset_embeddings(epoch)
        for volume, dataset in batches.epoch(config, epoch):
            model.fit(dataset, verbose=0)
            if epoch == config.training.epochs - 1:
                yield volume


class Scorer:
    """Scores the rows that a run is measured on, with the weights the model has when it is called.

    Args:
      model: The model.
      config: Its config.
      batches: Of the cell.
    """

    def __init__(self, model: ConversionModel, config: Config, batches: Batches) -> None:
        click, purchase = config.method.levels[0], config.method.levels[-1]
        self._inputs, self._real, labels, self._columns = batches.test(config)
        self._click, self._purchase = labels[click] > 0, labels[purchase] > 0
        group = group_column(batches.schema)
        self._groups = np.unique(self._columns[group], return_inverse=True)[1].astype(np.int64) if group else None

        @tf.function
        @tf.autograph.experimental.do_not_convert
        def predict(features: dict[str, tf.Tensor]) -> dict[str, dict[str, tf.Tensor]]:
            outputs = model.network(features, training=False)
            log_probs = outputs["log_probs"]
            pairs = {
                "pctr": log_probs[IMPRESSION][click],
                "pctcvr": log_probs[IMPRESSION][purchase],
                "pcvr": log_probs[click][purchase],
            }
            return {
                "log_odds": {name: pair[:, 0] - pair[:, 1] for name, pair in pairs.items()},
                "edges": outputs["edge_logits"],
            }

        self._predict = predict

    def __call__(self) -> Scored:
        """Returns the rows with the model's predictions."""
        parts = (tf.nest.map_structure(lambda values: values.numpy(), self._predict(batch)) for batch in self._inputs)
        scores = tf.nest.map_structure(lambda values: values[self._real], joined(parts))
        return Scored(scores["log_odds"], scores["edges"], self._click, self._purchase, self._groups, self._columns)
