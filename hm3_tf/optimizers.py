"""Adam whose cost does not depend on the size of the embedding tables."""

from collections.abc import Iterable

import tensorflow as tf
import tf_keras as keras

from hm3_tf.errors import ConfigError, did_you_mean
from hm3_tf.exchange import Gradient, TableExchange
from hm3_tf.layers import gather_rows


class LazyAdam(keras.optimizers.Adam):
    """Adam (Kingma and Ba, ICLR 2015) that touches only the rows of the batch in embedding tables.

    Dense weights get exactly Keras' Adam. Of a table only rows with a gradient move, and only their moments decay, so
    a step costs the same for a table of ten million rows as for a small one. Keras' Adam also moves the other rows, by
    their old momentum; `training.optimizer=adam` selects it.

    Args:
      learning_rate: Step size.
      **kwargs: Of `keras.optimizers.Adam`.

    Raises:
      ValueError: `amsgrad` is asked for.
    """

    def __init__(self, learning_rate: float = 0.001, **kwargs) -> None:
        kwargs.setdefault("jit_compile", False)
        super().__init__(learning_rate=learning_rate, **kwargs)
        if self.amsgrad:
            raise ValueError("LazyAdam: expected amsgrad=False, which it does not have for rows of tables, got True")
        self.exchange: TableExchange | None = None

    def aggregate_gradients(
        self, grads_and_vars: Iterable[tuple[Gradient, tf.Variable]]
    ) -> list[tuple[Gradient, tf.Variable]]:
        """Sums (gradient, variable) pairs over the replicas: by `exchange`, or as Keras does where it is None."""
        if self.exchange is None:
            return super().aggregate_gradients(grads_and_vars)
        return self.exchange.aggregate(grads_and_vars, super().aggregate_gradients)

    def update_step(self, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable) -> None:
        """Updates one variable.

        Args:
          gradient: Dense, or slices with distinct indices (Keras sums duplicates before).
          variable: The variable.
        """
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
            return
        index = self._index_dict[self._var_key(variable)]
        first, second = self._momentums[index], self._velocities[index]
        step = tf.cast(self.iterations + 1, variable.dtype)
        correction = tf.sqrt(1 - tf.pow(self.beta_2, step)) / (1 - tf.pow(self.beta_1, step))
        rate = tf.cast(self.learning_rate, variable.dtype) * correction

        rows, values = gradient.indices, gradient.values
        mean = self.beta_1 * gather_rows(first, rows) + (1 - self.beta_1) * values
        square = self.beta_2 * gather_rows(second, rows) + (1 - self.beta_2) * tf.square(values)
        first.scatter_update(tf.IndexedSlices(mean, rows))
        second.scatter_update(tf.IndexedSlices(square, rows))
        variable.scatter_sub(tf.IndexedSlices(rate * mean / (tf.sqrt(square) + self.epsilon), rows))


def reset_moments(optimizer: keras.optimizers.Adam, variables: Iterable[tf.Variable]) -> None:
    """Sets both moments of variables to zero.

    Args:
      optimizer: The optimizer, built.
      variables: Some of its variables.
    """
    for variable in variables:
        index = optimizer._index_dict[optimizer._var_key(variable)]
        for moments in (optimizer._momentums[index], optimizer._velocities[index]):
            moments.assign(tf.zeros_like(moments))


def make_optimizer(name: str, learning_rate: float) -> keras.optimizers.Optimizer:
    """Returns an optimizer.

    Args:
      name: `lazy_adam` or `adam`.
      learning_rate: Step size.

    Returns:
      The optimizer.

    Raises:
      ConfigError: The name is neither.
    """
    classes = {"lazy_adam": LazyAdam, "adam": keras.optimizers.Adam}
    if name not in classes:
        raise ConfigError(
            f"training.optimizer: expected one of {tuple(classes)}, got {name!r}; {did_you_mean(name, classes)}"
        )
    return classes[name](learning_rate=learning_rate)
