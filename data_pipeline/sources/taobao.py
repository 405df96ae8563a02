"""Taobao UserBehavior (Zhu et al., KDD 2018; terms of Tianchi data set 649): views, carts, favorites and purchases.

`UserBehavior.csv`, without a header. Carts and favorites are macro, there are no micro behaviors. Dates and hours are those of
Beijing. Events outside the nine days that the log is of have a clock that was wrong, and are left out.
"""

import glob
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import storage
from data_pipeline.schema import Column
from data_pipeline.sources.base import SourceBatch, TableFiles
from data_pipeline.sources.event_log import EventLog
from data_pipeline.sources.public import from_data

_TYPES = {"user_id": pa.int64(), "item_id": pa.int64(), "category_id": pa.int64(), "behavior": pa.string()}
_TYPES |= {"timestamp": pa.int64()}
_BEHAVIORS = {"pv": "view", "cart": "cart", "fav": "favorite", "buy": "purchase"}
_BEIJING = 8
_FIRST, _END = 1_511_539_200, 1_512_316_800  # seconds: 2017-11-25 and 2017-12-04, both 0:00 in Beijing


def _make(batch: SourceBatch) -> Mapping[str, Any]:
    seconds = batch.rows.column("timestamp")
    inside = pc.and_(pc.greater_equal(seconds, _FIRST), pc.less(seconds, _END))
    rows = batch.rows.filter(pc.fill_null(inside, True))  # without a time: refused, not left out
    columns = {name: rows.column(name) for name in rows.schema.names}
    return columns | {"time": pc.multiply_checked(rows.column("timestamp"), 10**9)}


def open_source(path: str) -> EventLog:
    """Returns the visits of all users.

    Args:
      path: `UserBehavior.csv` or its folder.

    Returns:
      The source.
    """
    file = path if storage.is_file(path) else storage.join(path, "UserBehavior.csv")
    files = TableFiles(glob.escape(file), "csv", tuple(_TYPES.items()), tuple(_TYPES))
    features = (Column("category_id", "int64", hashing=from_data()),)
    return EventLog("Taobao UserBehavior", files, _BEHAVIORS, lambda: _make, tuple(_TYPES), features, _BEIJING)
