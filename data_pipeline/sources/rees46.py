"""REES46 events of online shops (REES46 Marketing Platform, on Kaggle, with its name and link): views, carts, purchases.

A CSV file a month, of the multi-category store or of another shop. Carts are macro, there are no micro behaviors; items taken
out of a cart are counted only. Brands and codes of categories are often missing. Times are UTC.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.schema import Column
from data_pipeline.sources.base import SourceBatch, TableFiles
from data_pipeline.sources.event_log import EventLog
from data_pipeline.sources.public import from_data

_TYPES = {"event_time": pa.string(), "event_type": pa.string(), "product_id": pa.int64(), "category_id": pa.int64()}
_TYPES |= {"category_code": pa.string(), "brand": pa.string(), "price": pa.float64(), "user_id": pa.int64()}
_BEHAVIORS = {name: name for name in ("view", "cart", "remove_from_cart", "purchase")}
_FEATURES = (
    Column("category_id", "int64", hashing=from_data()),
    Column("category_code", "string", hashing=from_data()),
    Column("brand", "string", hashing=from_data()),
    Column("price", "float"),
)


def _make(batch: SourceBatch) -> Mapping[str, Any]:
    columns = {name: batch.rows.column(name) for name in batch.rows.schema.names}
    time = pc.strptime(columns["event_time"], "%Y-%m-%d %H:%M:%S UTC", "s")
    return columns | {
        "item_id": columns["product_id"],
        "behavior": columns["event_type"],
        "time": pc.multiply_checked(pc.cast(time, pa.int64()), 10**9),
    }


def open_source(path: str) -> EventLog:
    """Returns the visits of all months.

    Args:
      path: A file, a folder of CSV files or a glob pattern; compressed files end in `.csv.gz`.

    Returns:
      The source.
    """
    files = TableFiles(path, "csv", tuple(_TYPES.items()))
    return EventLog("REES46", files, _BEHAVIORS, lambda: _make, tuple(_TYPES), _FEATURES)
