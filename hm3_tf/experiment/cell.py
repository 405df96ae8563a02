"""A cell of an experiment: one log of one seed, and the runs on it, in a process of its own."""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras

from data_pipeline import storage
from data_pipeline.convert import convert, threshold_rule
from data_pipeline.folder import SCHEMA_FILE, DataFolder
from data_pipeline.read import Reader
from data_pipeline.simulate import POSITIONS, SimulatedLog
from data_pipeline.sources.simulated import SimulatedSource
from hm3_tf.behavior_graph import IMPRESSION
from hm3_tf.config import Config, to_json
from hm3_tf.evaluate import BATCH_ROWS, group_column
from hm3_tf.experiment.measures import EDGE_TRUTHS, SLATES, TRUTHS, Scored, joined, measure
from hm3_tf.model import ConversionModel, build_model, model_features

_NEVER = 2**62  # a slate that no log has


@dataclasses.dataclass(frozen=True)
class Cell:
    """A log of one seed and the runs on it.

    Attributes:
      source: The log, see `plan.Log`.
      seed: Of the log and of the weights.
      held_out_rows: Rows that are measured on, of a simulated log.
      split: Name of the split that is measured on.
      runs: {name: config}.
      folder: Where results go, one file a run: `<name>.json`.
      data_dir: Where a simulated log is written; it is removed in the end.
    """

    source: SimulatedLog | str
    seed: int
    held_out_rows: int
    split: str
    runs: Mapping[str, Config]
    folder: str
    data_dir: str

    def result_file(self, run: str) -> str:
        """Returns the path of a run's result."""
        return os.path.join(self.folder, f"{run}.json")

    def missing(self) -> list[str]:
        """Returns the runs without a result."""
        return [run for run in self.runs if not os.path.exists(self.result_file(run))]


def run_cell(cell: Cell) -> None:
    """Trains and measures the runs of a cell that have no result yet.

    Args:
      cell: The cell.

    Raises:
      Hm3Error: The log and a config do not fit, or a file cannot be written.
    """
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    data = _open_log(cell)
    for run in cell.missing():
        start = time.monotonic()
        config = cell.runs[run]
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=cell.seed))
        keras.backend.clear_session()
        keras.utils.set_random_seed(cell.seed)
        scored = score(train(config, data), config, data, cell.split)
        effect = cell.source.world_settings.position_effect if isinstance(cell.source, SimulatedLog) else 0.0
        result = {
            "run": run,
            "seed": cell.seed,
            "seconds": time.monotonic() - start,
            "config": json.loads(to_json(config)),
            "measures": measure(scored, effect),
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
        rule = threshold_rule("slate", first, _NEVER if cell.split == "validation" else first)
        convert(SimulatedSource(log), cell.data_dir, rule, total_rows=rows)
    return DataFolder.open(cell.data_dir)


def train(config: Config, data: DataFolder) -> ConversionModel:
    """Returns the model of a config, trained on a log for its epochs, as `hm3 train` does without checkpoints and validation.

    Args:
      config: The config.
      data: The log.

    Raises:
      ConfigError: Config and log do not fit.
    """
    statistics = data.statistics()["train"]
    model = build_model(config, data.schema, statistics)
    reader = Reader(
        data.split("train"),
        data.schema,
        model_features(config, data.schema, statistics),
        config.method.merged_levels,
        nesting=config.data.nesting,
        split_levels=config.method.split_levels,
    )
    for epoch in range(config.training.epochs):
        if epoch and config.training.reset_embeddings:
            model.reset_embeddings(epoch)
        batches = reader.training_dataset(
            config.training.global_batch_size,
            seed=config.training.seed,
            epoch=epoch,
            window_rows=config.data.shuffle_rows,
        )
        model.fit(batches, verbose=0)
    return model


def score(model: ConversionModel, config: Config, data: DataFolder, split: str) -> Scored:
    """Returns a split as a model predicts it.

    Args:
      model: The model.
      config: Its config.
      data: The log.
      split: Name of the split.
    """
    schema, levels = data.schema, config.method.levels
    wanted = (*TRUTHS, *SLATES, *(f"truth_{name}" for name in EDGE_TRUTHS.values()))
    columns = tuple(column.name for column in schema.columns if column.name in wanted)
    group = group_column(schema)
    reader = Reader(
        data.split(split),
        schema,
        model_features(config, schema, data.statistics()["train"]),
        config.method.merged_levels,
        nesting=config.data.nesting,
        sample_weights=False,
        carry=tuple(dict.fromkeys((*columns, *([group] if group else [])))),
    )

    @tf.function
    @tf.autograph.experimental.do_not_convert
    def predict(features: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        outputs = model.network(features, training=False)
        log_probs = outputs["log_probs"]
        pairs = {
            "pctr": log_probs[IMPRESSION][levels[0]],
            "pctcvr": log_probs[IMPRESSION][levels[-1]],
            "pcvr": log_probs[levels[0]][levels[-1]],
        }
        return {name: pair[:, 0] - pair[:, 1] for name, pair in pairs.items()}, outputs["edge_logits"]

    def batches():
        for features, labels, weights, carried in reader.ordered_dataset(BATCH_ROWS):
            real = weights.numpy() > 0
            part = (*predict(features), labels, carried)
            yield tf.nest.map_structure(lambda values: values.numpy()[real], dict(enumerate(part)))

    odds, edges, labels, carried = joined(batches()).values()
    groups = np.unique(carried[group], return_inverse=True)[1].astype(np.int64) if group else None
    click, purchase = (labels[level] > 0 for level in (levels[0], levels[-1]))
    return Scored(odds, edges, click, purchase, groups, {name: carried[name] for name in columns})
