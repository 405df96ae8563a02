"""RetailRocket (CC BY-NC-SA 4.0): views, carts and transactions of an online shop, with properties of its items.

`events.csv`, and `item_properties_part*.csv`, in which an item has a category and is available or not from a time on: a view
has those of its time, and none before the first. Other properties are hashed texts and not read. Carts are macro, there
are no micro behaviors. Times are taken as UTC.
"""

import dataclasses
import functools
import glob
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.schema import Column
from data_pipeline.sources.base import SourceBatch, TableFiles
from data_pipeline.sources.event_log import EventLog
from data_pipeline.sources.public import Maker, from_data
from hm3_tf.errors import DataError

_TYPES = {"timestamp": pa.int64(), "visitorid": pa.int64(), "event": pa.string(), "itemid": pa.int64()}
_PROPERTY_TYPES = {"timestamp": pa.int64(), "itemid": pa.int64(), "property": pa.string(), "value": pa.string()}
_BEHAVIORS = {"view": "view", "addtocart": "cart", "transaction": "purchase"}
_PROPERTIES = {"category_id": "categoryid", "available": "available"}
_FEATURES = tuple(Column(name, "int64", hashing=from_data()) for name in _PROPERTIES)


@dataclasses.dataclass(frozen=True)
class _Property:
    """What a property of items was over time.

    Attributes:
      keys: Items, and times from which on they have a value: (item int64, time int64) [values], in order.
      values: int64 [values].
    """

    keys: np.ndarray
    values: pa.Array

    @classmethod
    def of(cls, rows: pa.Table) -> "_Property":
        """Returns the property of a table of items, timestamps and values as text."""
        rows = rows.sort_by([("itemid", "ascending"), ("timestamp", "ascending")]).combine_chunks()
        values = pc.cast(rows.column("value"), pa.int64()).combine_chunks()
        return cls(_keys(rows.column("itemid"), rows.column("timestamp")), values)

    def at(self, items: pa.Array, times: pa.Array) -> pa.Array:
        """Returns the value of each item at a time, null where it has none yet."""
        if not len(self.keys):
            return pa.nulls(len(items), pa.int64())
        wanted = _keys(items, times)
        places = np.searchsorted(self.keys, wanted, side="right") - 1
        known = (places >= 0) & (self.keys["item"][places] == wanted["item"])
        return self.values.take(pa.array(places, mask=~known))


def _keys(items: Any, times: Any) -> np.ndarray:
    keys = np.empty(len(items), [("item", np.int64), ("time", np.int64)])
    keys["item"], keys["time"] = (pc.fill_null(column, -1).to_numpy() for column in (items, times))
    return keys


def _open_maker(folder: str) -> Maker:
    path = os.path.join(glob.escape(folder), "item_properties_part*.csv")
    files = TableFiles(path, "csv", tuple(_PROPERTY_TYPES.items()))
    wanted = pa.array(_PROPERTIES.values())
    found = [
        batch.rows.filter(pc.is_in(batch.rows.column("property"), value_set=wanted))
        for batch in files.batches(list(_PROPERTY_TYPES))
    ]
    table = pa.Table.from_batches(found, pa.schema(_PROPERTY_TYPES))
    try:
        properties = {
            name: _Property.of(table.filter(pc.equal(table.column("property"), raw)))
            for name, raw in _PROPERTIES.items()
        }
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}: expected whole numbers as values of {', '.join(_PROPERTIES.values())}, got: {error}; mend the file"
        ) from error
    return functools.partial(_make, properties)


def _make(properties: Mapping[str, _Property], batch: SourceBatch) -> Mapping[str, Any]:
    time, user, behavior, item = (batch.rows.column(name) for name in _TYPES)
    nanoseconds = pc.multiply_checked(time, 10**6)
    columns = {"user_id": user, "item_id": item, "behavior": behavior, "time": nanoseconds}
    return columns | {name: values.at(item, time) for name, values in properties.items()}


def open_source(path: str) -> EventLog:
    """Returns the visits of all visitors.

    Args:
      path: The folder of `events.csv` and `item_properties_part*.csv`.

    Returns:
      The source.
    """
    files = TableFiles(os.path.join(glob.escape(path), "events.csv"), "csv", tuple(_TYPES.items()))
    maker = functools.partial(_open_maker, path)
    return EventLog("RetailRocket", files, _BEHAVIORS, maker, tuple(_TYPES), _FEATURES)
