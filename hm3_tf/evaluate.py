"""Predictions of a model over a split, and their figures."""

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from data_pipeline import storage
from data_pipeline.folder import explained_read_errors
from data_pipeline.index import SplitIndex
from data_pipeline.read import Reader
from data_pipeline.records import ARROW_TYPES
from hm3_tf.behavior_graph import IMPRESSION
from hm3_tf.config import Config
from hm3_tf.distribute import gather, input_context
from hm3_tf.metrics import auc, binary_metrics
from hm3_tf.model import ConversionModel, model_features, probabilities
from hm3_tf.progress import Progress
from hm3_tf.workdir import Workdir

BATCH_ROWS = 2048  # the activations of all towers stay in a processor's cache
_TRUTH = ("truth_pctr", "truth_pcvr", "truth_pctcvr")


def split_reader(run: Workdir, index: SplitIndex, **options: Any) -> Reader:
    """Returns the reader of a split for a run's model; `options` are those of `Reader`."""
    features = model_features(run.config, run.schema, run.train)
    merged = run.config.method.merged_levels
    return Reader(index, run.schema, features, merged, **options)


def evaluation_reader(run: Workdir, index: SplitIndex) -> Reader:
    """Returns the reader that an `Evaluator` takes.

    Without sample weights, as figures are per row; with the truth if the log is a simulated one.
    """
    known = {column.name for column in run.schema.with_role("truth")}
    truth = _TRUTH if known.issuperset(_TRUTH) else ()
    return split_reader(run, index, nesting=run.config.data.nesting, sample_weights=False, carry=truth)


def _target_pairs(predictions: dict[str, Any], levels: Sequence[str]) -> tf.Tensor:
    """Returns the log pairs of all levels over impressions, then of the conversion given a click: [batch, levels + 1, 2]."""
    log_probs = predictions["log_probs"]
    pairs = [log_probs[IMPRESSION][level] for level in levels]
    return tf.stack([*pairs, log_probs[levels[0]][levels[-1]]], axis=1)


class Evaluator:
    """Evaluates a model on a split, again and again; workers share the rows and each has the figures of all.

    Args:
      model: The model.
      config: Its config.
      reader: Reader of the split from `evaluation_reader`.
      strategy: The run's strategy.
    """

    def __init__(
        self,
        model: ConversionModel,
        config: Config,
        reader: Reader,
        strategy: tf.distribute.Strategy | None = None,
    ) -> None:
        self._levels = config.method.levels
        self._reader = reader
        self._strategy = strategy or tf.distribute.get_strategy()
        levels = self._levels

        @tf.function(reduce_retracing=True)
        @tf.autograph.experimental.do_not_convert
        def predict(features: dict[str, tf.Tensor]) -> tf.Tensor:
            return _target_pairs(model.network(features, training=False), levels)

        self._predict = predict

    def __call__(self) -> dict[str, Any]:
        """Returns the figures of `metrics.json` less its split: `rows`, `pctr`, `pcvr`, `pctcvr`, `levels`.

        On a simulated log each of the three targets has `bayes_auc` too, the AUC of the true probabilities.

        Raises:
          DataError: A shard is corrupt, or its records do not hold what the schema says.
        """
        pairs, labels, truth = self._collect()
        clicked = labels[:, 0]
        figures = [binary_metrics(labels[:, i], pairs[:, i]) for i in range(len(self._levels))]
        targets = {
            "pctr": dict(figures[0]),
            "pcvr": binary_metrics(labels[clicked, -1], pairs[clicked, -1]),
            "pctcvr": dict(figures[-1]),
        }
        if truth.shape[1]:
            targets["pctr"]["bayes_auc"] = auc(clicked, truth[:, 0])
            targets["pcvr"]["bayes_auc"] = auc(labels[clicked, -1], truth[clicked, 1])
            targets["pctcvr"]["bayes_auc"] = auc(labels[:, -1], truth[:, 2])
        return {"rows": len(labels), **targets, "levels": dict(zip(self._levels, figures))}

    def _collect(self) -> tuple[np.ndarray, ...]:
        """Returns log pairs [rows, levels + 1, 2], labels bool [rows, levels] and the truth float [rows, 3 or 0]."""
        parts = []
        with explained_read_errors(self._reader.index):
            for features, levels, weights, *carried in self._dataset:
                real = weights.numpy() > 0
                labels = np.stack([levels[level].numpy() > 0 for level in self._levels], axis=1)
                columns = [carried[0][name].numpy() for name in self._reader.carry] if carried else []
                truth = np.stack(columns, axis=1) if columns else np.empty((len(real), 0), np.float32)
                parts.append([array[real] for array in (self._predict(features).numpy(), labels, truth)])
        return tuple(gather(self._strategy, np.concatenate(part)) for part in zip(*parts))

    @functools.cached_property
    def _dataset(self) -> tf.data.Dataset:
        context = input_context(self._strategy)
        return self._reader.ordered_dataset(BATCH_ROWS * context.num_input_pipelines, input_context=context)


def evaluate_run(run: Workdir, index: SplitIndex, split: str) -> dict[str, Any]:
    """Returns `metrics.json` of a trained run on a split.

    Args:
      run: The run.
      index: The split.
      split: Its name.

    Returns:
      The figures, see `Evaluator`.

    Raises:
      Hm3Error: The run has no checkpoint.
      DataError: The split cannot be read.
    """
    return {"split": split, **Evaluator(run.trained_model(), run.config, evaluation_reader(run, index))()}


def to_json(metrics: dict[str, Any]) -> str:
    """Returns the text of `metrics.json`."""
    return json.dumps(metrics, indent=1)


class _ParquetFile(tf.io.gfile.GFile):
    """A file of any file system that Arrow can write to."""

    closed = False

    def close(self) -> None:
        super().close()
        self.closed = True


def predict_run(run: Workdir, index: SplitIndex, output: str) -> int:
    """Writes the predictions of a trained run on a split as Parquet, a row an impression, in the log's order.

    Args:
      run: The run.
      index: The split.
      output: The file: the group columns of the log, then `pctr`, `pcvr`, `pctcvr` and `p_<level>` as float.

    Returns:
      Number of rows.

    Raises:
      Hm3Error: The run has no checkpoint, or the file cannot be written.
      DataError: The split cannot be read.
    """
    groups = run.schema.with_role("group")
    reader = split_reader(run, index, sample_weights=False, carry=tuple(column.name for column in groups))
    model, levels = run.trained_model(), run.config.method.levels

    @tf.function(reduce_retracing=True)
    @tf.autograph.experimental.do_not_convert
    def predict(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return probabilities(model.network(features, training=False), levels)

    def batches() -> Iterator[pa.RecordBatch]:
        for features, _, weights, *carried in reader.ordered_dataset(BATCH_ROWS):
            real = weights.numpy() > 0
            arrays = {
                c.name: pa.array(carried[0][c.name].numpy()[real], ARROW_TYPES[c.dtype]) for c in groups if carried
            }
            arrays |= {name: pa.array(p.numpy()[real]) for name, p in predict(features).items()}
            yield pa.RecordBatch.from_pydict(arrays)

    rows = 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_ParquetFile(stack.enter_context(storage.staged_file(output)), "wb"))
        stack.enter_context(explained_read_errors(index))
        progress = stack.enter_context(Progress("predict", index.rows))
        writer = None
        for batch in batches():
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(pa.PythonFile(file, "w"), batch.schema))
            writer.write_batch(batch)
            rows += batch.num_rows
            progress.advance(batch.num_rows)
    return rows
