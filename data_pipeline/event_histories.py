"""The latest items of a user before each impression, from impressions and events in the order of users and times."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class HistoryBuilder:
    """Makes the lists of a history, a batch at a time; it holds the latest items of one user.

    Args:
      place: The behavior's, as `EventEngine` numbers them.
      length: Most items of a list.
      item: Type of an item.
    """

    def __init__(self, place: int, length: int, item: pa.DataType) -> None:
        self._place, self._length = place, length
        self._latest = pa.array([], item)

    def lists(self, rows: pa.RecordBatch, is_new_user: np.ndarray) -> pa.ListArray:
        """Returns the histories of the impressions among the next rows.

        Args:
          rows: `behavior`: int32 places, null for impressions; `item` of events. In the order of users and times, an
            impression before the events of its time.
          is_new_user: bool [rows], whether a row is of another user than the row before it.

        Returns:
          Items of the user's events before each impression, the latest first.
        """
        behavior = rows.column("behavior")
        is_event = pc.fill_null(pc.equal(behavior, self._place), False).to_numpy(zero_copy_only=False)
        items = pa.concat_arrays([self._latest, rows.column("item").filter(pa.array(is_event))])
        # Of each row: the number of items before it, and the number of those before its user.
        before = np.concatenate([[0], np.cumsum(is_event)]) + len(self._latest)
        of_others = np.maximum.accumulate(np.concatenate([[0], np.where(is_new_user, before[:-1], 0)]))
        self._latest = items.slice(max(before[-1] - self._length, of_others[-1]))
        is_shown = behavior.is_null().to_numpy(zero_copy_only=False)
        ends = before[:-1][is_shown]
        lengths = ends - np.maximum(ends - self._length, of_others[1:][is_shown])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(ends - 1 + offsets[:-1], lengths) - np.arange(offsets[-1])
        return pa.ListArray.from_arrays(offsets.astype(np.int32), items.take(pa.array(places)))
