"""Trendyol search sessions (hackathon of 2025, Kaggle's rules for it): impressions, clicks, carts, favorites, orders.

`train_sessions.parquet`, a row an item that was shown for a search; the other tables of the competition are not read.
Carts and favorites are macro, there are no micro behaviors. Rows have the date and the hour of `ts_hour`.
"""

import glob
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.schema import VARIABLE, Column, Level, Schema
from data_pipeline.sources.base import SourceBatch, TableFiles
from data_pipeline.sources.public import Maker, PublicLog, from_data

_IDS = {"user_id": "user_id_hashed", "search_term": "search_term_normalized", "content_id": "content_id_hashed"}
_BEHAVIORS = ("clicked", "added_to_cart", "added_to_fav", "ordered")
_MOST_WORDS = 8
_LEVELS = (
    Level("click", ("clicked",), gate=True),
    Level("d_ma", ("added_to_cart", "added_to_fav")),
    Level("purchase", ("ordered",)),
)


def _schema() -> Schema:
    columns = (
        Column("date", "string", "ignored"),
        Column("user_id", "string", "group", hashing=from_data(), entity="user"),
        Column("search_term", "string", hashing=from_data(), entity="user"),
        Column("search_words", "string", "feature", VARIABLE, _MOST_WORDS, from_data(), entity="user"),
        Column("hour", "int64", hashing=from_data(), entity="user"),
        Column("content_id", "string", hashing=from_data()),
    )
    return Schema((*columns, *(Column(name, "int64", "behavior") for name in _BEHAVIORS)), _LEVELS)


def _make(batch: SourceBatch) -> Mapping[str, Any]:
    columns = {name: batch.rows.column(name) for name in _BEHAVIORS}
    columns |= {name: pc.cast(batch.rows.column(raw), pa.string()) for name, raw in _IDS.items()}
    columns["search_words"] = pc.utf8_split_whitespace(columns["search_term"])
    time = pc.cast(batch.rows.column("ts_hour"), pa.string())  # 2025-06-01 13:00:00
    columns["date"] = pc.utf8_slice_codeunits(time, 0, 10)
    columns["hour"] = pc.cast(pc.utf8_slice_codeunits(time, 11, 13), pa.int64())
    return columns


def _open_maker() -> Maker:
    return _make


def open_source(path: str) -> PublicLog:
    """Returns the log of the training sessions.

    Args:
      path: The folder of the competition's files, or one above it.

    Returns:
      The source.
    """
    files = TableFiles(os.path.join(glob.escape(path), "**", "train_sessions.parquet"), "parquet")
    return PublicLog("Trendyol", files, _schema(), _open_maker, ("ts_hour", *_IDS.values(), *_BEHAVIORS))
