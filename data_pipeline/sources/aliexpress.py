"""AliExpress search log (Li et al., 2020; terms of Tianchi data set 74690): impressions, clicks and purchases.

A pair of CSV files without a header a country and part, `nl_user_train.csv` and `nl_item_train.csv`: a row of the first
is a result page, of the second an item on it; both begin with the page's id, which is of the country. Columns have no
names: `user_2` is the second of the user file. There are no micro or macro behaviors and no dates, but a train and a test
part. An item whose page is missing is left out.
"""

import functools
import glob
import os
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.schema import Column, Level, Schema
from data_pipeline.sources.base import SourceBatch, TableFiles
from data_pipeline.sources.public import KEPT, Maker, PublicLog, SideTable, from_data

_USER = tuple(f"user_{i}" for i in range(2, 34))
_ITEM = tuple(f"item_{i}" for i in range(2, 49))
_CATEGORIES = {
    *(f"user_{i}" for i in (*range(2, 9), 32, 33)),
    *(f"item_{i}" for i in (19, 34, 35, 36, 40, 41, 42)),
}
_KEY, _LABEL = "search_id", "label"
_LEVELS = (Level("click", (_LABEL,), values=(1, 2), gate=True), Level("purchase", (_LABEL,), values=(2,)))


def _schema() -> Schema:
    columns = [Column(_KEY, "string", "group"), Column("country", "string", hashing=from_data(), entity="user")]
    for name in (*_USER, *_ITEM):
        entity = "user" if name in _USER else "item"
        if name in _CATEGORIES:
            columns.append(Column(name, "string", hashing=from_data(), entity=entity))
        else:
            columns.append(Column(name, "float", entity=entity))
    return Schema((*columns, Column("part", "string", "ignored"), Column(_LABEL, "int64", "behavior")), _LEVELS)


def _files(path: str, names: tuple[str, ...]) -> TableFiles:
    types = {name: pa.float64() for name in names} | {_KEY: pa.string(), _LABEL: pa.int64()}
    types |= {name: pa.string() for name in _CATEGORIES}
    return TableFiles(path, "csv", tuple((name, types[name]) for name in names), names)


def _open_maker() -> Maker:
    return functools.partial(_join, functools.lru_cache(maxsize=1)(_read_users))


def _read_users(path: str) -> SideTable:
    names = (_KEY, *_USER)
    return SideTable.read(_files(glob.escape(path), names), _KEY, names)


def _join(read_users: Callable[[str], SideTable], batch: SourceBatch) -> Mapping[str, Any]:
    folder, name = os.path.split(batch.file)
    country, _, part = name.partition("_item_")
    page = batch.rows.column(_KEY)
    users = read_users(os.path.join(folder, f"{country}_user_{part}")).look_up(page)
    columns: dict[str, Any] = {name: batch.rows.column(name) for name in (*_ITEM, _LABEL)}
    columns |= {name: users.column(name) for name in _USER}
    columns |= {"country": pa.repeat(country, len(page)), "part": pa.repeat(part.removesuffix(".csv"), len(page))}
    return columns | {_KEY: pc.binary_join_element_wise(country, page, ":"), KEPT: users.column(_KEY).is_valid()}


def open_source(path: str) -> PublicLog:
    """Returns the log of all countries and parts in a folder.

    Args:
      path: The folder of the unpacked files, or one above it.

    Returns:
      The source.
    """
    names = (_KEY, *_ITEM, _LABEL)
    files = _files(os.path.join(glob.escape(path), "**", "*_item_*.csv"), names)
    return PublicLog("AliExpress", files, _schema(), _open_maker, names, left_out="items without their page")
