"""Epochs that read a share of the unclicked impressions: how many rows of each block, and which.

The number is planned, so that steps are known before anything is read: of the unclicked rows in the epoch's order every
1/share-th counts, which leaves all epochs and workers the same total. Which rows of a block these are depends on (seed, epoch)
and the row's place in the log alone: workers and windows that read the same block agree, and another epoch has others.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from data_pipeline import labels as label_rules
from data_pipeline.hashing import fingerprint
from data_pipeline.schema import Level

_FILE_BYTES = 1 << 44  # more than a shard has, so that file and place are one number


@dataclasses.dataclass(frozen=True)
class NegativeSampling:
    """Which rows an epoch reads.

    Attributes:
      keep_rate: Share of the unclicked rows, in (0, 1).
      click: Level whose absence makes a row an unclicked one.
      clicked_rows: int64 [blocks], clicked rows of each block of the split's index.
    """

    keep_rate: float
    click: str
    clicked_rows: np.ndarray

    def kept_rows(self, blocks: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Returns the rows that an epoch reads of each block.

        Args:
          blocks: int64 [blocks, 4] of the split's index, in its order.
          order: int64 [blocks], the blocks in the order of the epoch.

        Returns:
          int64 [blocks], in the order of the epoch: all clicked rows and a share of the others.
        """
        clicked = self.clicked_rows[order]
        kept = np.floor(np.cumsum(blocks[order, 3] - clicked) * self.keep_rate + 0.5).astype(np.int64)
        return clicked + np.diff(kept, prepend=0)

    def choose(
        self,
        blocks: tf.Tensor,
        kept: tf.Tensor,
        levels: Sequence[Level],
        columns: Mapping[str, tf.Tensor],
        seed: tuple[int, int],
    ) -> tf.Tensor:
        """Returns the places of the rows to keep among decoded rows: int64 [sum of kept + 1], the last one only a filler.

        Args:
          blocks: int64 [blocks, 4], the decoded blocks of the index.
          kept: int64 [blocks], rows to keep of each.
          levels: Levels of the log.
          columns: {column: [rows, ...]}, the decoded rows, with the label columns.
          seed: (seed, epoch).
        """
        labels, _ = label_rules.nest(levels, label_rules.raw_flags(levels, columns))
        block = tf.repeat(tf.range(tf.shape(blocks)[0]), blocks[:, 3])
        first = tf.cumsum(blocks[:, 3], exclusive=True)
        place = tf.range(tf.reduce_sum(blocks[:, 3])) - tf.gather(first, block)
        place += tf.gather(blocks[:, 0] * _FILE_BYTES + blocks[:, 1], block)  # each row takes a byte at least
        bits = tf.bitwise.right_shift(fingerprint(place, salt=f"negatives {seed}"), tf.constant(11, tf.uint64))
        draw = tf.where(labels[self.click], tf.cast(0, tf.float64), 1 + tf.cast(bits, tf.float64) / 2**53)
        order = tf.argsort(
            tf.cast(block, tf.float64) * 4 + draw
        )  # of each block its clicked rows, then the others as drawn
        chosen = tf.gather(order, tf.ragged.range(first, first + kept).flat_values)
        return tf.concat([chosen, [0]], axis=0)


def count_clicked_rows(
    blocks: np.ndarray, batches: tf.data.Dataset, click: str, on_rows: Callable[[int], object] = lambda rows: None
) -> np.ndarray:
    """Returns the clicked rows of each block, int64 [blocks].

    Args:
      blocks: int64 [blocks, 4] of a split's index.
      batches: The split in its own order, as `Reader.ordered_dataset` gives it.
      click: Name of the click level.
      on_rows: Called with the number of rows of each batch once they are counted.
    """
    ends, start = np.cumsum(blocks[:, 3]), 0
    counts = np.zeros(len(blocks), np.int64)
    for _, labels, weights, *_ in batches:
        real = weights.numpy() > 0
        clicked = np.flatnonzero((labels[click].numpy() > 0) & real)
        counts += np.bincount(np.searchsorted(ends, start + clicked, side="right"), minlength=len(blocks))
        rows = int(np.count_nonzero(real))
        start += rows
        on_rows(rows)
    return counts
