"""Predictions of a trained run on a split, as Parquet."""

import contextlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from data_pipeline import storage
from data_pipeline.folder import explained_read_errors
from data_pipeline.index import SplitIndex
from data_pipeline.records import ARROW_TYPES
from hm3_tf import evaluate
from hm3_tf.model import probabilities
from hm3_tf.prefetch import prefetch
from hm3_tf.progress import Progress
from hm3_tf.workdir import Workdir


class _ParquetFile(tf.io.gfile.GFile):
    """A file of any file system that Arrow can write to."""

    closed = False

    def close(self) -> None:
        super().close()
        self.closed = True


def predict_run(run: Workdir, index: SplitIndex, output: str) -> int:
    """Writes the predictions of a trained run on a split as Parquet, a row an impression, in the log's order.

    Only the model's inputs and the groups are read: the log needs no labels.

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
    carry = tuple(column.name for column in groups)
    reader = evaluate.split_reader(run, index, labels=False, sample_weights=False, carry=carry)
    model, levels = run.trained_model(), run.config.method.levels

    @tf.function(reduce_retracing=True)
    @tf.autograph.experimental.do_not_convert
    def predict(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return probabilities(model.network(features, training=False), levels)

    def batches() -> Iterator[pa.RecordBatch]:
        for features, _, weights, *carried in reader.ordered_dataset(evaluate.BATCH_ROWS):
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
        for batch in prefetch(batches()):
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(pa.PythonFile(file, "w"), batch.schema))
            writer.write_batch(batch)
            rows += batch.num_rows
            progress.advance(batch.num_rows)
    return rows
