"""How gradients of embedding tables cross between replicas: each distinct row once, and small tables whole."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from hm3_tf.features import HashedFeature, Table
from hm3_tf.layers import HashedEmbeddings

_LOGGER = logging.getLogger(__name__)
Gradient: TypeAlias = "tf.Tensor | tf.IndexedSlices | None"


@dataclasses.dataclass(frozen=True)
class TableTraffic:
    """What the gradient of a table costs in a step: bytes that a replica sends, if all are in a ring.

    Attributes:
      table: The table.
      ids: Ids that a replica looks up in a step.
      distinct: Distinct rows among them.
      replicas: Number of replicas.
    """

    table: Table
    ids: int
    distinct: int
    replicas: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row: float32 values, and its int32 number or float32 count."""
        return 4 * (self.table.dim + 1)

    @property
    def naive_bytes(self) -> int:
        """All-gather of a row an id."""
        return (self.replicas - 1) * self.ids * self.row_bytes

    @property
    def gathered_bytes(self) -> int:
        """All-gather of the distinct rows."""
        return (self.replicas - 1) * self.distinct * self.row_bytes

    @property
    def dense_bytes(self) -> int:
        """All-reduce of the whole table."""
        return 2 * (self.replicas - 1) * self.table.rows * self.row_bytes // self.replicas

    @property
    def is_dense(self) -> bool:
        """Whether the all-reduce of the whole table moves fewer bytes."""
        return self.dense_bytes < self.gathered_bytes


def measure_traffic(
    table: Table, features: Iterable[HashedFeature], batch: Mapping[str, tf.Tensor], replicas: int
) -> TableTraffic:
    """Returns the traffic of a table.

    Args:
      table: The table.
      features: Hashed features, its own among them.
      batch: {feature: int32 [batch] or [batch, length]} rows of its table, of one replica.
      replicas: Number of replicas.
    """
    rows = np.concatenate([np.ravel(batch[feature.name]) for feature in features if feature.table == table.name])
    return TableTraffic(table, rows.size, np.unique(rows).size, replicas)


class RowExchange:
    """Splits the gradient of a variable of tables into what is reduced densely and what is gathered, and joins the sums.

    Args:
      tables: The variable's tables, in the order of their ranges of rows.
    """

    def __init__(self, tables: Sequence[TableTraffic]) -> None:
        self._dim, self._replicas, self._row_bytes = tables[0].table.dim, tables[0].replicas, tables[0].row_bytes
        rows = np.array([each.table.rows for each in tables])
        self._dense = np.array([each.is_dense for each in tables])
        self._starts = np.cumsum(rows) - rows
        self._shifts = np.cumsum(rows * self._dense) - rows * self._dense - self._starts  # to places among dense rows
        ranges = [np.arange(start, start + count) for start, count in zip(self._starts, rows * self._dense)]
        self._dense_rows = np.concatenate(ranges).astype(np.int32)

    def split(self, gradient: tf.IndexedSlices) -> list[tf.Tensor | tf.IndexedSlices]:
        """Returns what a replica sends.

        Args:
          gradient: int32 rows [ids], which may repeat, and values float32 [ids, width].

        Returns:
          Of the tables that are reduced densely, if there are any: float32 [rows, width + 1], the last column of which is 1
          where the replica has the row, so that rows without a gradient are known from rows of gradient 0. Of the others,
          if there are any: slices of distinct rows.
        """
        rows, segments = tf.unique(gradient.indices)
        values = tf.math.unsorted_segment_sum(gradient.values, segments, tf.size(rows))
        if not self._dense.any():
            return [tf.IndexedSlices(values, rows, gradient.dense_shape)]
        table = tf.searchsorted(tf.constant(self._starts, rows.dtype), rows, side="right") - 1
        dense = tf.gather(tf.constant(self._dense), table)
        places = tf.boolean_mask(rows + tf.gather(tf.constant(self._shifts, rows.dtype), table), dense)
        counted = tf.pad(tf.boolean_mask(values, dense), [[0, 0], [0, 1]], constant_values=1.0)
        whole = tf.scatter_nd(places[:, tf.newaxis], counted, (self._dense_rows.size, self._dim + 1))
        if self._dense.all():
            return [whole]
        others = [tf.boolean_mask(part, ~dense) for part in (values, rows)]
        return [whole, tf.IndexedSlices(*others, gradient.dense_shape)]

    def join(self, sums: Sequence[tf.Tensor | tf.IndexedSlices]) -> tf.IndexedSlices:
        """Returns the gradient of all replicas, from the sums of what `split` returns; gathered rows may repeat."""
        parts = [each for each in sums if isinstance(each, tf.IndexedSlices)]
        if self._dense.any():
            has_gradient = sums[0][:, -1] > 0
            values, rows = (tf.boolean_mask(each, has_gradient) for each in (sums[0][:, :-1], self._dense_rows))
            parts.append(tf.IndexedSlices(values, rows))
        values, rows = (tf.concat([getattr(part, name) for part in parts], 0) for name in ("values", "indices"))
        return tf.IndexedSlices(values, rows, parts[0].dense_shape)

    def sent_bytes(self, sums: Sequence[tf.Tensor | tf.IndexedSlices]) -> tf.Tensor:
        """Returns the bytes that a replica sent for sums, the mean over the replicas: int64 scalar.

        An all-gather pads all to the longest, which is not counted.
        """
        gathered = [tf.size(each.indices) for each in sums if isinstance(each, tf.IndexedSlices)]
        rows = tf.cast(sum(gathered) + 2 * self._dense_rows.size, tf.int64)
        return rows * (self._replicas - 1) * self._row_bytes // self._replicas


class TableExchange:
    """Sums gradients over replicas; of embedding tables, few bytes cross.

    Each table is either reduced densely or its distinct rows are gathered: what moves fewer bytes of a batch. Made in the scope
    of the strategy.

    Args:
      layers: The embeddings, built.
      batch: {feature: int32 [batch] or [batch, length]} of one replica, the same on all workers, as they have to choose alike.
      replicas: Number of replicas.
    """

    def __init__(self, layers: Iterable[HashedEmbeddings], batch: Mapping[str, tf.Tensor], replicas: int) -> None:
        self._exchanges = {}
        for layer in layers:
            for variable, tables in layer.parts:
                traffic = [measure_traffic(table, layer.features, batch, replicas) for table in tables]
                _LOGGER.info("%s", _explain(variable.name, traffic))
                self._exchanges[variable.name] = RowExchange(traffic)
        self._sent = tf.Variable(
            [0, 0],  # bytes, steps
            dtype=tf.int64,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        self._last_sent = np.zeros(2, np.int64)

    def aggregate(
        self, gradients: Iterable[tuple[Gradient, tf.Variable]], all_reduce: Callable[[list], list]
    ) -> list[tuple[Gradient, tf.Variable]]:
        """Returns the sums of gradients over the replicas.

        Args:
          gradients: (gradient, variable) of this replica.
          all_reduce: Sums such pairs over the replicas.

        Returns:
          (sum, variable); slices may have a row more than once.
        """
        pairs = list(gradients)
        exchanges = [self._exchanges.get(v.name) if isinstance(g, tf.IndexedSlices) else None for g, v in pairs]
        parts = [exchange.split(g) if exchange else [g] for exchange, (g, _) in zip(exchanges, pairs)]
        sums = iter(all_reduce([(part, v) for own, (_, v) in zip(parts, pairs) for part in own]))
        totals = [[next(sums)[0] for _ in own] for own in parts]
        sent = [exchange.sent_bytes(total) for exchange, total in zip(exchanges, totals) if exchange]
        self._sent.assign_add([sum(sent, tf.constant(0, tf.int64)), 1])
        joined = [exchange.join(total) if exchange else total[0] for exchange, total in zip(exchanges, totals)]
        return [(gradient, v) for gradient, (_, v) in zip(joined, pairs)]

    def mean_sent_bytes(self) -> float:
        """Returns the bytes of gradients of tables that a replica sent a step, since the last call; the mean over replicas."""
        now = self._sent.read_value().numpy()
        sent, steps = now - self._last_sent
        self._last_sent = now
        return float(sent / max(steps, 1))


def _explain(name: str, tables: Sequence[TableTraffic]) -> str:
    """Returns which tables of a variable are reduced densely and which are gathered, and why."""
    dense = [f"{t.table.name} {t.dense_bytes:,} ({t.gathered_bytes:,} gathered)" for t in tables if t.is_dense]
    others = [f"{t.table.name} {t.gathered_bytes:,} ({t.dense_bytes:,} dense)" for t in tables if not t.is_dense]
    total = sum(min(t.dense_bytes, t.gathered_bytes) for t in tables)
    naive = sum(t.naive_bytes for t in tables)
    return (
        f"gradients of {name} over {tables[0].replicas} replicas, bytes that each sends a step by the first batch: {total:,}; "
        f"{naive:,} if a row an id were gathered. Reduced densely: {', '.join(dense) or 'none'}. Distinct rows "
        f"gathered: {', '.join(others) or 'none'}."
    )
