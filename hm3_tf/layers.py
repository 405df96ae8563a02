"""Layers of the network: shared embeddings, numeric inputs, parallel towers and the behavior graph."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf
import tf_keras as keras

from hm3_tf.behavior_graph import IMPRESSION, BehaviorGraph
from hm3_tf.errors import ConfigError
from hm3_tf.features import MISSING_BUCKET, HashedFeature, NumericFeature, Table, embedding_tables
from hm3_tf.probability import given_gate, log_probs

_INT32_ROWS = 2**31 - 1
_INITIAL_RANGE = 1e-3  # near zero: the row of an id that training never saw says nothing, instead of something random


def gather_rows(variable: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
    """Returns rows of a variable.

    TensorFlow reads all of a variable that is mirrored over replicas before it gathers from it, and so each update of rows
    copies it (2.17 and 2.21: only plain variables have a sparse read). The replica's own part of it is a plain one.

    Args:
      variable: [rows of it, ...]; may be split over servers.
      rows: int32, any shape.

    Returns:
      [*shape of `rows`, ...].
    """
    own = variable._get() if hasattr(variable, "_get") else variable
    return tf.nn.embedding_lookup(own, rows)


class HashedEmbeddings(keras.layers.Layer):
    """Embeds hashed features; every table of one width is a range of rows of one variable.

    One gather a width serves all its columns; within a width the columns of one value a row come first. Several values
    of a row are pooled; missing ones do not count, and a row without values is a zero vector.

    Args:
      features: The hashed features.
      seed: Seeds the tables.
      **kwargs: Of `keras.layers.Layer`.

    Raises:
      ConfigError: The tables of one width have more rows together than an int32 can number.
    """

    def __init__(self, features: Sequence[HashedFeature], seed: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self._features = tuple(features)
        self._seed = seed
        self._widths = tuple(dict.fromkeys(table.dim for table in embedding_tables(self._features)))
        for dim in self._widths:
            rows = sum(table.rows for table in self._tables(dim))
            if rows > _INT32_ROWS:
                raise ConfigError(
                    f"the embedding tables of width {dim} have {rows:,} rows together, expected at most "
                    f"{_INT32_ROWS:,}; lower model.hash_buckets"
                )

    def _tables(self, dim: int) -> list[Table]:
        return [table for table in embedding_tables(self._features) if table.dim == dim]

    @property
    def features(self) -> tuple[HashedFeature, ...]:
        """The hashed features."""
        return self._features

    @property
    def columns(self) -> list[str]:
        """Names of the features, one a column of the output."""
        ordered = sorted(self._features, key=lambda f: (self._widths.index(f.dim), f.length is not None))
        return [feature.name for feature in ordered for _ in range(feature.dim)]

    @property
    def parts(self) -> list[tuple[tf.Variable, list[Table]]]:
        """The variables, each with its tables in the order of their ranges of rows; once built."""
        return [(variable, self._tables(dim)) for dim, variable in zip(self._widths, self._variables)]

    def build(self, input_shape) -> None:
        """Creates one variable a width: float32 [rows of all its tables, width]."""
        self._variables = [
            self.add_weight(
                f"embeddings_{dim}",
                (sum(table.rows for table in self._tables(dim)), dim),
                initializer=self._initializer(0),
            )
            for dim in self._widths
        ]
        super().build(input_shape)

    def _initializer(self, draw: int) -> keras.initializers.Initializer:
        return keras.initializers.RandomUniform(-_INITIAL_RANGE, _INITIAL_RANGE, self._seed + draw)

    def reset(self, draw: int) -> None:
        """Starts all tables anew.

        Args:
          draw: Which of the draws of the layer's seed; 0 is what `build` starts with.
        """
        for variable in self._variables:
            variable.assign(self._initializer(draw)(variable.shape, variable.dtype))

    def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Embeds a batch.

        Args:
          inputs: {feature: int32 [batch] or [batch, length]} rows of its table.

        Returns:
          float32 [batch, sum of widths over the features], grouped by width.
        """
        return self.embed(self._features, inputs, [functools.partial(gather_rows, v) for v in self._variables])

    def embed(
        self,
        features: Sequence[HashedFeature],
        inputs: Mapping[str, tf.Tensor],
        gathers: Sequence[Callable[[tf.Tensor], tf.Tensor]],
    ) -> tf.Tensor:
        """Embeds some of the features, from variables as in `parts` or from what stands for them.

        Args:
          features: Those to embed, at least one.
          inputs: As in `call`, of these features.
          gathers: For each of `parts`: rows int32 [...] to embeddings float32 [..., width].

        Returns:
          float32 [batch, sum of widths over `features`], in the order of `call`.
        """
        grouped = [[feature for feature in features if feature.dim == dim] for dim in self._widths]
        return tf.concat([self._embed(*pair, inputs) for pair in zip(grouped, gathers) if pair[0]], axis=-1)

    def _embed(
        self,
        features: Sequence[HashedFeature],
        gather: Callable[[tf.Tensor], tf.Tensor],
        inputs: Mapping[str, tf.Tensor],
    ) -> tf.Tensor:
        """Embeds features of one width."""
        dim = features[0].dim
        tables = self._tables(dim)
        starts = dict(zip((t.name for t in tables), itertools.accumulate((t.rows for t in tables), initial=0)))
        singles = [feature for feature in features if feature.length is None]
        several = [feature for feature in features if feature.length is not None]
        ids = [inputs[feature.name] for feature in several]
        widths = [feature.length for feature in several]
        if singles:
            ids.insert(0, tf.transpose(tf.stack([inputs[feature.name] for feature in singles])))
            widths.insert(0, len(singles))
        offsets = [starts[f.table] for f in (*singles, *several) for _ in range(f.length or 1)]
        rows = gather(tf.concat(ids, axis=1) + tf.constant(offsets, tf.int32))
        pieces = tf.split(rows, widths, axis=1)
        parts = [tf.reshape(pieces.pop(0), [-1, len(singles) * dim])] if singles else []
        parts += [_pool(*feature) for feature in zip(several, ids[-len(several) :], pieces)]
        return tf.concat(parts, axis=-1)


def _pool(feature: HashedFeature, ids: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Combines the embeddings [batch, length, dim] of the values that are present into [batch, dim]."""
    present = tf.cast(tf.not_equal(ids, MISSING_BUCKET), rows.dtype)
    total = tf.einsum("bl,bld->bd", present, rows)
    if feature.combiner == "sum":
        return total
    return tf.math.divide_no_nan(total, tf.reduce_sum(present, axis=1, keepdims=True))


class NumericInputs(keras.layers.Layer):
    """Feeds numbers as tanh((x - mean) / std) (ESM2, Section 4.3.3); a missing number (NaN) or a constant one as 0.

    Args:
      features: The numeric features.
      **kwargs: Of `keras.layers.Layer`.
    """

    def __init__(self, features: Sequence[NumericFeature], **kwargs) -> None:
        super().__init__(**kwargs)
        self._features = tuple(features)

    @property
    def features(self) -> tuple[NumericFeature, ...]:
        """The numeric features."""
        return self._features

    @property
    def columns(self) -> list[str]:
        """Names of the features, one a column of the output."""
        return [feature.name for feature in self._features for _ in feature.mean]

    def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Standardizes a batch.

        Args:
          inputs: {feature: float32 [batch] or [batch, length]}.

        Returns:
          float32 [batch, sum of lengths].
        """
        values = tf.concat([tf.reshape(inputs[f.name], [-1, len(f.mean)]) for f in self._features], axis=-1)
        mean = tf.constant([m for f in self._features for m in f.mean], tf.float32)
        scale = tf.constant([1 / s if s > 0 else 0.0 for f in self._features for s in f.std], tf.float32)
        return tf.where(tf.math.is_nan(values), 0.0, tf.tanh((values - mean) * scale))


class EachTower(keras.initializers.Initializer):
    """Initializes each slice [in, out] of a stacked kernel by itself, so that its fans are not those of the stack.

    Args:
      seed: Seeds the first slice; each later one has the next number.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, shape, dtype=None, **kwargs) -> tf.Tensor:
        """Returns a kernel [towers, in, out]."""
        slices = [keras.initializers.GlorotUniform(self._seed + tower) for tower in range(shape[0])]
        return tf.stack([initialize(shape[1:], dtype) for initialize in slices])


class ParallelTowers(keras.layers.Layer):
    """One multi-layer perceptron an edge on shared inputs.

    In training the first layer of all towers is one product, as they read the same inputs. The later layers are a product a
    tower: on a processor that is faster than one batched product of all. Where nothing is differentiated that holds of the
    first layer too, whose output then need not be cut.

    Args:
      base_rates: {edge: rate in (0, 1)} at which its logit starts.
      units: Widths of the ReLU layers; one logit follows.
      dropout: Share of the units of each ReLU layer that is dropped in training.
      seed: Seeds the kernels.
      **kwargs: Of `keras.layers.Layer`; `dtype="mixed_bfloat16"` multiplies in bfloat16.
    """

    def __init__(
        self, base_rates: Mapping[str, float], units: Sequence[int], dropout: float, seed: int, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self._base_rates = dict(base_rates)
        self._units = tuple(units)
        self._dropout = dropout
        # Part of a checkpoint, unlike that of Keras' Dropout: a resumed run goes on with the numbers of one that never stopped.
        self._generator = tf.random.Generator.from_seed(seed)
        self._seed = seed

    def build(self, input_shape) -> None:
        """Creates a kernel [towers, in, out] and a bias [towers, out] a layer, that of the logits [towers]."""
        widths = [int(input_shape[-1]), *self._units, 1]
        towers = len(self._base_rates)
        logits = [math.log(rate / (1 - rate)) for rate in self._base_rates.values()]
        self._kernels, self._biases = [], []
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            kernel = EachTower(self._seed + i * towers)
            self._kernels.append(self.add_weight(f"kernel_{i}", (towers, fan_in, fan_out), initializer=kernel))
            if i < len(self._units):
                self._biases.append(self.add_weight(f"bias_{i}", (towers, fan_out), initializer="zeros"))
        start = keras.initializers.Constant(logits)
        # Kept in float32 under every precision: bfloat16 would round a rate of 0.1 % by 0.1 %.
        self._start = self.add_weight("bias_logit", (towers,), initializer=start, experimental_autocast=False)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        """Runs the towers.

        Args:
          inputs: float [batch, width].
          training: Whether dropout is on.

        Returns:
          {edge: float32 logit [batch]}.
        """
        return self.logits(self.hidden_states(inputs, training))

    def hidden_states(self, inputs: tf.Tensor, training: bool | None = None) -> list[tf.Tensor]:
        """Returns the last ReLU layer of each tower, from the arguments of `call`: [batch, last of `units`] each."""
        states = [tf.cast(inputs, self.compute_dtype)] * len(self._base_rates)
        hidden = [(tf.unstack(kernel), tf.unstack(bias)) for kernel, bias in zip(self._kernels, self._biases)]
        if hidden and training:
            (kernels, biases), *hidden = hidden
            beside = self._hidden(states[0], tf.concat(kernels, axis=1), tf.concat(biases, axis=0), training)
            states = tf.split(beside, len(states), axis=1)
        for kernels, biases in hidden:
            states = [self._hidden(*tower, training) for tower in zip(states, kernels, biases)]
        return states

    def logits(self, states: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns {edge: float32 logit [batch]} from the state of each tower, as `hidden_states` has them."""
        logits = [tf.matmul(state, kernel)[:, 0] for state, kernel in zip(states, tf.unstack(self._kernels[-1]))]
        starts = tf.unstack(self._start)
        return {e: tf.cast(logit, tf.float32) + start for e, logit, start in zip(self._base_rates, logits, starts)}

    def _hidden(self, state: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, training: bool | None) -> tf.Tensor:
        state = tf.nn.relu(tf.nn.bias_add(tf.matmul(state, kernel), bias))
        return drop(state, self._dropout, self._generator) if training else state


def drop(state: tf.Tensor, share: float, generator: tf.random.Generator) -> tf.Tensor:
    """Returns a layer's output with a share of its units set to 0 and the others scaled up, by numbers of a generator."""
    return tf.nn.experimental.stateless_dropout(state, share, generator.make_seeds()[:, 0]) if share else state


class ProbabilityGraph(keras.layers.Layer):
    """Composes the towers of a method's chains into the probabilities of its levels (HM3, Eq. 1-4).

    Args:
      graphs: The chains; each later one starts at the last level of the one before.
      **kwargs: Of `keras.layers.Layer`.
    """

    def __init__(self, graphs: Sequence[BehaviorGraph], **kwargs) -> None:
        super().__init__(**kwargs)
        self._graphs = tuple(graphs)

    def call(self, edge_logits: Mapping[str, tf.Tensor]) -> dict[str, dict[str, tf.Tensor]]:
        """Composes a batch.

        Args:
          edge_logits: {edge: float32 [batch]}.

        Returns:
          {sample space: {level: float32 [batch, 2]}}, natural-log (P, 1 - P) of each level given that the row is in the
          space: `impression` (all rows), the click level, and the root of every chain.
        """
        click = self._graphs[0].levels[0]
        spaces = dict.fromkeys([IMPRESSION, click, *(graph.root for graph in self._graphs)])
        return {space: self._given(space, edge_logits) for space in spaces}

    def _given(self, space: str, edge_logits: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        result: dict[str, tf.Tensor] = {}
        for graph in self._graphs:
            if space == graph.root or space in graph.levels[:-1]:
                result |= log_probs(graph, edge_logits, given=space)
            elif graph.root in result:
                gate = result[graph.root]
                chain = log_probs(graph, edge_logits)
                result |= {level: given_gate(gate, pair) for level, pair in chain.items()}
        return result
