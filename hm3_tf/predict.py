"""Predictions of a trained run on a split, as Parquet: one file, or a folder with a file a shard that resumes."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from data_pipeline import storage
from data_pipeline.arrow_files import ArrowFile
from data_pipeline.folder import explained_read_errors
from data_pipeline.index import SplitIndex
from data_pipeline.read import PartReader
from data_pipeline.records import ARROW_TYPES
from hm3_tf import evaluate
from hm3_tf.errors import Hm3Error
from hm3_tf.model import prediction_function, probability_names
from hm3_tf.prefetch import prefetch
from hm3_tf.progress import Progress
from hm3_tf.workdir import Workdir, reading_checkpoint

_LOGGER = logging.getLogger(__name__)
_SUFFIX = ".parquet"
_LOCK_FILE = "_lock"  # readers of folders of Parquet files pass over such a name
_ORIGIN_KEY = b"hm3"
_GROUP_BATCHES = 64  # of a row group: what is kept of each until the file ends is a kilobyte


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of a split whose predictions are one file.

    Attributes:
      index: The rows, or none.
      output: The file, as an absolute path.
      origin: What the file says it holds: predictions of other weights or of other rows say something else.
    """

    index: SplitIndex
    output: str
    origin: dict[str, Any]


def predict_run(run: Workdir, index: SplitIndex, output: str) -> int:
    """Writes the predictions of a trained run on a split as Parquet, a row an impression, in the log's order.

    Only the model's inputs and the groups are read: the log needs no labels. Memory does not grow with the rows.

    Args:
      run: The run.
      index: The split.
      output: A file, if the name ends in `.parquet`: the group columns of the log, then `pctr`, `pcvr`, `pctcvr` and
        `p_<level>` as float. Else a folder of such files, one a shard and named like it; those that are there already, of
        the same checkpoint and shard, are left as they are.

    Returns:
      Number of rows of the output.

    Raises:
      Hm3Error: The run has no checkpoint, the output cannot be written, or the folder holds something else.
      DataError: The split cannot be read.
    """
    checkpoint = run.checkpoint()
    with missing_parts(checkpoint, index, output) as parts, parts_progress(parts, index) as progress:
        if parts:
            predictor = Predictor(run, checkpoint, index)
            for part in parts:
                predictor.write(part, progress.advance)
    return index.rows


class Predictor:
    """A trained model that is loaded and traced once, and predicts part after part.

    Args:
      run: The run.
      checkpoint: Path of its weights.
      index: The split.

    Raises:
      Hm3Error: The checkpoint is gone.
      DataError: The split's records do not hold what the schema says of the columns to read.
    """

    def __init__(self, run: Workdir, checkpoint: str, index: SplitIndex) -> None:
        levels = run.config.method.levels
        groups = [(column.name, ARROW_TYPES[column.dtype]) for column in run.schema.with_role("group")]
        self._schema = pa.schema([*groups, *((name, pa.float32()) for name in probability_names(levels))])
        carry = tuple(name for name, _ in groups)
        reader = evaluate.split_reader(run, index, labels=False, sample_weights=False, carry=carry)
        self._read = PartReader(reader, evaluate.BATCH_ROWS)
        self._predict = prediction_function(run.trained_model(checkpoint), levels)

    def write(self, part: Part, on_rows: Callable[[int], object] = lambda rows: None) -> None:
        """Writes a part's file, which appears under its name only when complete.

        Args:
          part: The part.
          on_rows: Called with the number of rows that were written since.

        Raises:
          Hm3Error: The file cannot be written.
          DataError: The rows cannot be read.
        """
        schema = self._schema.with_metadata({_ORIGIN_KEY: json.dumps(part.origin)})
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(ArrowFile(stack.enter_context(storage.staged_file(part.output)), "wb"))
            stack.enter_context(explained_read_errors(part.index))
            writer = stack.enter_context(pq.ParquetWriter(pa.PythonFile(file, "w"), schema))
            for group in prefetch(self._row_groups(part.index)):
                writer.write_table(group)
                on_rows(group.num_rows)

    def _row_groups(self, index: SplitIndex) -> Iterator[pa.Table]:
        read = prefetch(self._read(index)) if index.rows else iter(())
        batches = itertools.starmap(self._predicted, read)
        while group := list(itertools.islice(batches, _GROUP_BATCHES)):
            yield pa.Table.from_batches(group)

    def _predicted(
        self, features: dict[str, tf.Tensor], _: dict, weights: tf.Tensor, carried: dict[str, tf.Tensor] | None = None
    ) -> pa.RecordBatch:
        columns = {**(carried or {}), **self._predict(features)}
        real = weights.numpy() > 0
        arrays = [pa.array(columns[field.name].numpy()[real], field.type) for field in self._schema]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)


@contextlib.contextmanager
def missing_parts(checkpoint: str, index: SplitIndex, output: str) -> Iterator[list[Part]]:
    """Yields the parts of a split that are to be predicted; a folder is this process's alone within the block.

    Args:
      checkpoint: Path of the weights.
      index: The split.
      output: File or folder, see `predict_run`.

    Yields:
      The split as one part for a file; for a folder, each shard whose file is not there.

    Raises:
      Hm3Error: The folder holds predictions of another model or of other rows, or another process writes into it.
    """
    weights = _weights(checkpoint)
    if output.endswith(_SUFFIX):
        yield [_part(weights, index, index.folder, output)]
        return
    parts = [_part(weights, shard, shard.files[0], _file_of(shard, output)) for shard in index.shards()]
    storage.open_file_system(output)
    with storage.lock(output, "--output", _LOCK_FILE):
        storage.make_folder(output)
        missing = _without_files(parts, output)
        if len(missing) < len(parts):
            _LOGGER.info("%s: %d of %d shards are predicted", output, len(parts) - len(missing), len(parts))
        try:
            yield missing
        finally:
            if not storage.is_remote(output):  # where no lock keeps others out
                storage.remove_staged_files(output, _SUFFIX)  # of killed processes: of an earlier run, or of Ray


def parts_progress(missing: Sequence[Part], index: SplitIndex) -> Progress:
    """Returns the progress of predicting a split of which some parts are missing."""
    return Progress("predict", index.rows, done=index.rows - sum(part.index.rows for part in missing))


def _file_of(shard: SplitIndex, folder: str) -> str:
    return storage.join(folder, os.path.basename(shard.files[0]).removesuffix(".tfrecord") + _SUFFIX)


def _weights(checkpoint: str) -> str:
    """Tells the weights of one checkpoint from those of another: its index has a checksum of each tensor."""
    with reading_checkpoint(checkpoint), tf.io.gfile.GFile(f"{checkpoint}.index", "rb") as file:
        digest = hashlib.blake2b(file.read(), digest_size=8).hexdigest()
    return f"{os.path.basename(checkpoint)} {digest}"


def _part(weights: str, index: SplitIndex, source: str, output: str) -> Part:
    """Returns a part whose rows are those of `source`, a shard or a split."""
    source = os.path.basename(source)
    origin = {"weights": weights, "source": source, "rows": index.rows, "records": index.fingerprint}
    return Part(index, storage.absolute(output), origin)


def _without_files(parts: Sequence[Part], folder: str) -> list[Part]:
    """Returns the parts that have no file in the folder; those that have one, and no other files, are the folder's.

    Raises:
      Hm3Error: There is a file of something else.
    """
    found = {name for name in storage.names_in(folder) if name.endswith(_SUFFIX)}
    wanted = {os.path.basename(part.output): part for part in parts}
    for name in sorted(found):
        path, remedy = storage.join(folder, name), "name another --output, or remove this folder to predict anew"
        if name not in wanted:
            raise Hm3Error(f"{path}: expected files of the shards of this split alone, found one of none; {remedy}")
        origin = _read_origin(path)
        for key, value in wanted[name].origin.items():
            if origin.get(key) != value:
                raise Hm3Error(
                    f"{path}: expected predictions by this model of this shard ({key}: {value}), found {origin.get(key)}; "
                    f"{remedy}"
                )
    return [part for name, part in wanted.items() if name not in found]


def _read_origin(path: str) -> dict[str, Any]:
    """Returns what a Parquet file says it holds; nothing where it is not of `hm3 predict`."""
    with contextlib.suppress(pa.ArrowInvalid), ArrowFile(path, "rb") as file:
        metadata = pq.read_metadata(pa.PythonFile(file, "r")).metadata or {}
        return json.loads(metadata.get(_ORIGIN_KEY, b"{}"))
    return {}
