"""OTTO sessions (CC BY 4.0): clicks, carts and orders of anonymous visitors of a web shop, whose sessions are the users here.

A JSON object a line: `{"session": 0, "events": [{"aid": 1517085, "ts": 1659304800025, "type": "clicks"}, ...]}`. Carts are
macro, there are no micro behaviors; nothing is known of the items. Times are UTC.
"""

import glob
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import storage
from data_pipeline.sources.base import SourceBatch, TableFiles
from data_pipeline.sources.event_log import EventLog

_EVENT = pa.struct({"aid": pa.int64(), "ts": pa.int64(), "type": pa.string()})
_TYPES = {"session": pa.int64(), "events": pa.list_(_EVENT)}
_BEHAVIORS = {"clicks": "view", "carts": "cart", "orders": "purchase"}


def _make(batch: SourceBatch) -> Mapping[str, Any]:
    sessions, lists = (batch.rows.column(name) for name in _TYPES)
    item, time, behavior = (pc.struct_field(lists.flatten(), name) for name in ("aid", "ts", "type"))
    return {
        "user_id": sessions.take(pc.list_parent_indices(lists)),
        "item_id": item,
        "time": pc.multiply_checked(time, 10**6),
        "behavior": behavior,
    }


def open_source(path: str) -> EventLog:
    """Returns the visits of all sessions.

    Args:
      path: A file, a folder of `.jsonl` files or a glob pattern.

    Returns:
      The source.
    """
    pattern = path if storage.is_file(path) or glob.has_magic(path) else storage.join(path, "*.jsonl")
    files = TableFiles(pattern, "json", tuple(_TYPES.items()))
    return EventLog("OTTO", files, _BEHAVIORS, lambda: _make, tuple(_TYPES))
