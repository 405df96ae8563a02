"""The signatures of a SavedModel, and requests to them made of rows of a log."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from data_pipeline import storage
from data_pipeline.folder import explained_read_errors
from data_pipeline.index import SplitIndex
from data_pipeline.records import arrow_type, encode_rows
from data_pipeline.schema import Column
from hm3_tf.evaluate import BATCH_ROWS, split_reader
from hm3_tf.workdir import Workdir

_EXAMPLES = "examples"
_INITIALIZER = "__saved_model_init_op"


@dataclasses.dataclass(frozen=True)
class Signature:
    """A signature of a SavedModel, as a server sees it.

    Attributes:
      inputs: {name: dtype and shape}.
      outputs: {name: dtype and shape}.
    """

    inputs: Mapping[str, tf.TensorSpec]
    outputs: Mapping[str, tf.TensorSpec]

    def is_shared(self, column: str) -> bool:
        """Whether all rows of a request have one value of a column, given once: [1, ...]."""
        return column in self.inputs and self.inputs[column].shape[0] == 1

    @property
    def is_split(self) -> bool:
        """Whether it takes some columns once for all rows of a request."""
        return any(map(self.is_shared, self.inputs))


def read_signatures(folder: str) -> dict[str, Signature]:
    """Returns the signatures of a SavedModel by name; no weights are read.

    Args:
      folder: The SavedModel.

    Raises:
      tf.errors.NotFoundError: There is none.
    """
    with tf.io.gfile.GFile(storage.join(folder, "saved_model.pb"), "rb") as file:
        saved = saved_model_pb2.SavedModel.FromString(file.read())
    definitions = saved.meta_graphs[0].signature_def
    return {
        name: Signature(_specs(definition.inputs), _specs(definition.outputs))
        for name, definition in sorted(definitions.items())
        if name != _INITIALIZER
    }


def _specs(tensors: Mapping) -> dict[str, tf.TensorSpec]:
    return {
        name: tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.as_dtype(info.dtype), name)
        for name, info in sorted(tensors.items())
    }


def input_columns(signatures: Mapping[str, Signature], columns: Sequence[Column]) -> tuple[Column, ...]:
    """Returns the columns of a log that signatures take."""
    names = {name for signature in signatures.values() for name in signature.inputs}
    return tuple(column for column in columns if column.name in names)


@dataclasses.dataclass(frozen=True)
class LoggedRows:
    """Rows of a log, as they are logged and as the network reads them.

    Attributes:
      numbers: int64 [rows], their places in the split.
      columns: The columns of `raw`.
      raw: {column: its values [rows] or [rows, length]}.
      features: {feature: the network's inputs [rows] or [rows, length]}, of the columns of the same names.
    """

    numbers: np.ndarray
    columns: tuple[Column, ...]
    raw: dict[str, np.ndarray]
    features: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: np.ndarray) -> "LoggedRows":
        """Returns some of the rows, by their indices int [rows]."""
        raw, features = ({name: values[rows] for name, values in part.items()} for part in (self.raw, self.features))
        return LoggedRows(self.numbers[rows], self.columns, raw, features)

    def request(self, signature: Signature) -> dict[str, np.ndarray]:
        """Returns the inputs of a signature for these rows; of a shared column it has the value of the first row."""
        if list(signature.inputs) == [_EXAMPLES]:
            return {_EXAMPLES: self._examples()}
        return {name: self.raw[name][:1] if signature.is_shared(name) else self.raw[name] for name in signature.inputs}

    def seen_by(self, signature: Signature) -> dict[str, np.ndarray]:
        """Returns the features as `request` has them: those of a shared column are the first row's in all rows."""
        return {
            name: np.repeat(values[:1], len(self), axis=0) if signature.is_shared(name) else values
            for name, values in self.features.items()
        }

    def _examples(self) -> np.ndarray:
        arrays = {column.name: pa.array(list(self.raw[column.name]), arrow_type(column)) for column in self.columns}
        return np.array(encode_rows(pa.RecordBatch.from_pydict(arrays), self.columns), object)


def read_rows(run: Workdir, index: SplitIndex, columns: Sequence[Column], count: int) -> LoggedRows:
    """Returns rows of a split: those of blocks drawn from all over it, the same ones each time.

    Args:
      run: The run whose features are read.
      index: The split.
      columns: Columns to read as they are.
      count: Most rows to return; a smaller split is read whole.

    Raises:
      DataError: The split cannot be read.
    """
    first_rows = np.cumsum(index.blocks[:, 3]) - index.blocks[:, 3]
    order = np.random.default_rng(0).permutation(len(index.blocks))
    taken = np.searchsorted(np.cumsum(index.blocks[order, 3]), count) + 1
    drawn = np.sort(order[:taken])
    part = dataclasses.replace(index, blocks=index.blocks[drawn])
    numbers = np.concatenate([np.arange(first_rows[i], first_rows[i] + index.blocks[i, 3]) for i in drawn])
    names = tuple(column.name for column in columns)
    reader = split_reader(run, part, labels=False, sample_weights=False, carry=names)
    with explained_read_errors(part):
        batches = list(reader.ordered_dataset(BATCH_ROWS).as_numpy_iterator())
    features, raw = (
        {name: np.concatenate([batch[i][name] for batch in batches])[: len(numbers)] for name in batches[0][i]}
        for i in (0, 3)
    )
    return LoggedRows(numbers, tuple(columns), raw, features).take(np.arange(min(count, len(numbers))))
