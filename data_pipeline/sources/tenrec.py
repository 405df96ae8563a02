r"""Tenrec (Yuan et al., NeurIPS 2022; CC BY-NC 4.0, research only): impressions of Tencent's video feeds.

Each CSV file is a log of its own: `QK-video.csv`, `QB-video.csv`, or `ctr_data_1M.csv` with the ten items before. A click
is a gate, a like is macro, and the conversion is that a user follows or shares (our choice: nothing is bought). There
are no micro behaviors and no dates. `watching_times` is an outcome and never read. `\N` is a missing value.
"""

import functools
import glob
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import storage
from data_pipeline.schema import VARIABLE, Column, Level, Schema
from data_pipeline.sources.base import SourceBatch, TableFiles
from data_pipeline.sources.public import Maker, PublicLog, from_data, windows
from hm3_tf.errors import DataError

_NAMES = ("QK-video.csv", "QB-video.csv", "ctr_data_1M.csv")
_OF_USER = ("user_id", "gender", "age")
_BEHAVIORS = ("click", "like", "follow", "share")
_PLAIN = (*_OF_USER, "item_id", "video_category", *_BEHAVIORS)
_HISTORY = tuple(f"hist_{i}" for i in range(1, 11))
_LEVELS = (Level("click", ("click",), gate=True), Level("d_ma", ("like",)), Level("purchase", ("follow", "share")))


def _schema(has_history: bool) -> Schema:
    columns = [Column("user_id", "int64", "group", hashing=from_data(), entity="user")]
    columns += [Column(name, "int64", hashing=from_data(), entity="user") for name in ("gender", "age")]
    columns += [Column(name, "int64", hashing=from_data()) for name in ("item_id", "video_category")]
    if has_history:
        hashing = from_data(table="item_id")
        columns.append(Column("history", "int64", "feature", VARIABLE, len(_HISTORY), hashing, entity="user"))
    columns += [Column(name, "int64", "behavior") for name in _BEHAVIORS]
    return Schema(tuple(columns), _LEVELS)


def _open_maker(has_history: bool) -> Maker:
    return functools.partial(_make, has_history)


def _make(has_history: bool, batch: SourceBatch) -> Mapping[str, Any]:
    columns = {name: batch.rows.column(name) for name in _PLAIN}
    return columns | ({"history": _history(batch.rows)} if has_history else {})


def _history(rows: pa.RecordBatch) -> pa.ListArray:
    """Returns the items of the history columns that are not 0, which fills them up."""
    items = np.stack([pc.fill_null(rows.column(name), 0).to_numpy() for name in _HISTORY], axis=1)
    lengths = np.count_nonzero(items, axis=1)
    return windows(pa.array(items[items != 0]), np.cumsum(lengths) - lengths, lengths)


def open_source(path: str) -> PublicLog:
    """Returns the log of one file.

    Args:
      path: The file, or a folder with one of them.

    Returns:
      The source.

    Raises:
      DataError: There is no file of the layout in the folder, or more than one; or the file is no table.
    """
    found = [path]
    if not storage.is_file(path):
        found = [f for name in _NAMES for f in storage.find_files(storage.join(glob.escape(path), "**", name))]
    if len(found) != 1:
        raise DataError(f"{path}: expected one of {', '.join(_NAMES)}, found {found or 'none'}; give --input one file")
    path = glob.escape(found[0])
    has_history = _HISTORY[0] in TableFiles(path, "csv").dataset().schema.names
    names = _PLAIN + (_HISTORY if has_history else ())
    files = TableFiles(path, "csv", tuple((name, pa.int64()) for name in names), nulls=("", r"\N"))
    return PublicLog("Tenrec", files, _schema(has_history), functools.partial(_open_maker, has_history), names)
