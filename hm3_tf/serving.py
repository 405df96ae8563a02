"""The functions of a served model: raw columns to probabilities, with the operations of TensorFlow Serving alone."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from data_pipeline.hashing import network_inputs
from data_pipeline.records import MISSING, TF_DTYPES, parse_rows
from data_pipeline.schema import ENTITIES, SCALAR, VARIABLE, Column, Schema
from hm3_tf.compact_tables import CompactTable
from hm3_tf.errors import ConfigError
from hm3_tf.features import Feature
from hm3_tf.layers import HashedEmbeddings, NumericInputs
from hm3_tf.model import ConversionModel, model_features, probabilities
from hm3_tf.network import split_network
from hm3_tf.one_user import OneUserRows
from hm3_tf.workdir import Workdir

Tensors = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class RankingScore:
    """What items are ranked by: pctcvr * price^exponent, and 0 where the price is missing, infinite or not positive.

    Attributes:
      price: Name of a numeric column of the log, one number a row; the model need not read it.
      exponent: Weight of the logarithm of the price against that of the probability; 1 ranks by expected turnover.
    """

    price: str
    exponent: float = 1.0

    def column(self, schema: Schema) -> Column:
        """Returns the column of the price.

        Raises:
          ConfigError: There is none of that name, or it is no number that is known before the outcome.
        """
        column = schema.column(self.price, where="the ranking score")
        if column.dtype == "string" or column.shape != SCALAR or column.role not in ("feature", "ignored"):
            raise ConfigError(
                f"the ranking score: expected a number a row of role 'feature' or 'ignored' as the price, got "
                f"{self.price!r} of dtype {column.dtype!r}, shape {list(column.shape)} and role {column.role!r}"
            )
        return column

    def __call__(self, pctcvr: tf.Tensor, price: tf.Tensor) -> tf.Tensor:
        """Returns the scores: float32 [rows], >= 0, for float32 [rows] and int64 or float32 [rows] or [1]."""
        price = tf.cast(price, tf.float32)
        known = tf.math.is_finite(price) & (price > 0)  # a missing int64 is the smallest one
        return tf.where(known, pctcvr * tf.minimum(tf.where(known, price, 1.0) ** self.exponent, tf.float32.max), 0.0)


def raw_specs(columns: Iterable[Column], of_user: Collection[str] = ()) -> dict[str, tf.TensorSpec]:
    """Returns the spec of each column as a client sends it, a batch of one for those of the user."""

    def spec(column: Column) -> tf.TensorSpec:
        tail = [] if column.shape == SCALAR else [None if column.shape == VARIABLE else column.length]
        batch = 1 if column.name in of_user else None
        return tf.TensorSpec([batch, *tail], TF_DTYPES[column.dtype], name=column.name)

    return {column.name: spec(column) for column in columns}


def _fit_length(values: tf.Tensor, column: Column) -> tf.Tensor:
    """Cuts and pads a variable-length column [batch, any length] to the length the network reads."""
    if column.shape != VARIABLE:
        return values
    missing = tf.fill([tf.shape(values)[0], column.length], tf.constant(MISSING[column.dtype], values.dtype))
    return tf.ensure_shape(tf.concat([values, missing], axis=1)[:, : column.length], [None, column.length])


def _with_constants(function: Callable[[Any], Any], argument: Any) -> Any:
    """Returns function(argument), with the variables that it reads as constants of the graph.

    What a kernel is put through before it is multiplied (cut, joined, cast) is then done when the model is loaded.
    """
    with tf.init_scope():
        spec = tf.nest.map_structure(tf.type_spec_from_value, argument)
        concrete = tf.function(function, autograph=False).get_concrete_function(spec)
        frozen = convert_variables_to_constants_v2(concrete)
    results = frozen(*tf.nest.flatten(argument, expand_composites=True))
    return tf.nest.pack_sequence_as(concrete.structured_outputs, results)


class _ServedNetwork:
    """A network from raw columns on, its tables compact and its other weights constants.

    Args:
      model: Its model.
      features: What it reads.
      columns: The columns of the features.
      levels: Of its method.
      storage: Of the tables.

    Attributes:
      tables: {reader of the network: its tables}.
    """

    def __init__(
        self,
        model: ConversionModel,
        features: Sequence[Feature],
        columns: Sequence[Column],
        levels: Sequence[str],
        storage: str,
    ) -> None:
        self._features, self._columns, self._levels = features, columns, levels
        self._readers, self._head = split_network(model.network)
        self.tables = {
            reader.name: [CompactTable(variable, storage) for variable, _ in reader.parts]
            for reader in self._readers
            if isinstance(reader, HashedEmbeddings)
        }

    def predict(self, raw: Tensors, of_user: Collection[str] = ()) -> Tensors:
        """Returns {"pctr", ...: float32 [batch]}, see `model.probabilities`.

        Args:
          raw: {column: [batch] or [batch, length]}.
          of_user: Names of the columns whose batch is 1, and which hold for the whole batch of the others.
        """
        inputs = network_inputs({c.name: _fit_length(raw[c.name], c) for c in self._columns}, self._features)
        parts = [self._read(reader, inputs, of_user) for reader in self._readers]
        return _with_constants(lambda parts: probabilities(self._head(parts, training=False), self._levels), parts)

    def _read(
        self, reader: HashedEmbeddings | NumericInputs, inputs: Tensors, of_user: Collection[str]
    ) -> tf.Tensor | OneUserRows:
        if not of_user:
            return self._look_up(reader, reader.features, inputs)
        items = {name: values for name, values in inputs.items() if name not in of_user}
        user = {name: values for name, values in inputs.items() if name in of_user}
        sides = [self._look_up(reader, [f for f in reader.features if f.name in side], side) for side in (user, items)]
        places = [tuple(i for i, name in enumerate(reader.columns) if name in side) for side in (user, items)]
        return OneUserRows(*sides, *places)

    def _look_up(self, reader: HashedEmbeddings | NumericInputs, features: Sequence[Any], inputs: Tensors) -> tf.Tensor:
        """Returns the output of a reader for some of its features: float32 [batch, sum of their widths]."""
        if not features:
            return tf.zeros([tf.shape(next(iter(inputs.values())))[0], 0])
        if isinstance(reader, HashedEmbeddings):
            return reader.embed(features, inputs, [table.gather for table in self.tables[reader.name]])
        return NumericInputs(features)(inputs)


class ServingModule(tf.Module):
    """The signatures of a served model.

    `serving_default` takes a tensor a raw column, `serving_examples` serialized tf.Examples. `rank` takes the columns of one
    user (and of the request) as a batch of one, and those of the items as a batch; it is there if the model reads columns of
    both entities. All return the probabilities of `model.probabilities`, and `score` if there is one.

    Args:
      run: The run whose model it is.
      model: The model.
      tables: How embedding tables are held, of `compact_tables.STORAGES`.
      score: What to rank by.

    Attributes:
      signatures_to_save: {name: tf.function}.

    Raises:
      ConfigError: The tables or the price are not as expected.
    """

    def __init__(
        self, run: Workdir, model: ConversionModel, tables: str = "float32", score: RankingScore | None = None
    ) -> None:
        super().__init__()
        features = model_features(run.config, run.schema, run.train)
        inputs = [run.schema.column(feature.name) for feature in features]
        network = _ServedNetwork(model, features, inputs, run.config.method.levels, tables)
        self._tables = network.tables
        columns = list(dict.fromkeys([*inputs, *([score.column(run.schema)] if score else [])]))
        of_user = {column.name for column in columns if column.entity == "user"}

        def predict(raw: Tensors, of_user: Collection[str] = ()) -> Tensors:
            results = network.predict(raw, of_user)
            return {**results, "score": score(results["pctcvr"], raw[score.price])} if score else results

        @tf.function(input_signature=[raw_specs(columns)], autograph=False)
        def serve(inputs: Tensors) -> Tensors:
            return predict(inputs)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")], autograph=False)
        def serve_examples(examples: tf.Tensor) -> Tensors:
            return serve(parse_rows(examples, columns))

        @tf.function(input_signature=[raw_specs(columns, of_user)], autograph=False)
        def rank(inputs: Tensors) -> Tensors:
            return predict(inputs, of_user)

        self.signatures_to_save = {"serving_default": serve, "serving_examples": serve_examples}
        if {column.entity for column in inputs} == set(ENTITIES):
            self.signatures_to_save["rank"] = rank


def round_tables(model: ConversionModel, storage: str) -> None:
    """Gives the embedding tables of a model the numbers that they have where they are held otherwise.

    Args:
      model: The model, which is changed.
      storage: How its tables are held, of `compact_tables.STORAGES`.
    """
    if storage == "float32":
        return
    for reader in split_network(model.network)[0]:
        for variable, _ in reader.parts if isinstance(reader, HashedEmbeddings) else ():
            variable.assign(CompactTable(variable, storage).gather(tf.range(tf.shape(variable)[0])))
