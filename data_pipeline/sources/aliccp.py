r"""Ali-CCP (Ma et al., SIGIR 2018; terms of Tianchi data set 408): impressions, clicks and purchases of Taobao.

`sample_skeleton_train.csv` and `_test.csv`, each joined with its `common_features_*.csv`, all without a header. Features
are one text, `field\x02id\x03value` between \x01: ids are kept, values are not. Of a field with one value the first is
kept, of a history the first 50. There are no micro or macro behaviors and no dates, but a train and a test part.
Purchases without a click are left out, as in the literature.
"""

import functools
import glob
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.schema import VARIABLE, Column, Level, Schema
from data_pipeline.sources.base import SourceBatch, TableFiles
from data_pipeline.sources.public import KEPT, Maker, PublicLog, SideTable, from_data, windows

_USER_ID = "101"
_USER = (_USER_ID, "121", "122", "124", "125", "126", "127", "128", "129")
_HISTORIES = ("109_14", "110_14", "127_14", "150_14")
_IMPRESSION = ("205", "206", "207", "210", "216", "508", "509", "702", "853", "301")
_CONTEXT = "301"
_MOST_HISTORY = 50
_SKELETON = {"sample_id": pa.string(), "click": pa.int64(), "buy": pa.int64(), "common_key": pa.string()}
_SKELETON |= {"n_features": pa.int64(), "features": pa.string()}
_COMMON = {"common_key": pa.string(), "n_features": pa.int64(), "features": pa.string()}
_LEVELS = (Level("click", ("click",), gate=True), Level("purchase", ("buy",)))
_ENTRY = r"^(?P<field>[^\x02]+)\x02(?P<id>[0-9]+)\x03"


def _name(field: str) -> str:
    return f"field_{field}"


def _schema() -> Schema:
    columns = []
    for field in (*_USER, *_IMPRESSION):
        role = "group" if field == _USER_ID else "feature"
        entity = "user" if field in (*_USER, _CONTEXT) else "item"
        columns.append(Column(_name(field), "int64", role, hashing=from_data(), entity=entity))
    for field in _HISTORIES:
        columns.append(Column(_name(field), "int64", "feature", VARIABLE, _MOST_HISTORY, from_data(), entity="user"))
    columns.append(Column("part", "string", "ignored"))
    return Schema((*columns, *(Column(name, "int64", "behavior") for name in ("click", "buy"))), _LEVELS)


def _parse(texts: pa.Array, fields: Sequence[str]) -> dict[str, pa.Array]:
    """Returns {column: ids} of the fields that feature texts hold: int64, lists of it for histories.

    Raises:
      ArrowInvalid: An entry is not as it should be.
    """
    entries = pc.split_pattern(texts, "\x01")
    rows, flat = pc.list_parent_indices(entries).to_numpy(), entries.flatten()
    parsed = pc.extract_regex(flat, _ENTRY)
    bad = pc.and_(pc.is_null(parsed), pc.not_equal(flat, ""))
    if pc.any(bad).as_py():
        raise pa.ArrowInvalid(f"a feature {flat[pc.index(bad, True).as_py()].as_py()!r}, not field\\x02id\\x03value")
    ids = pc.cast(pc.struct_field(parsed, "id"), pa.int64())
    codes = pc.index_in(pc.struct_field(parsed, "field"), value_set=pa.array(fields))
    codes = pc.fill_null(codes, -1).to_numpy()
    return {_name(field): _of_field(field, codes == code, rows, ids, len(texts)) for code, field in enumerate(fields)}


def _of_field(field: str, mine: np.ndarray, rows: np.ndarray, ids: pa.Array, count: int) -> pa.Array:
    """Returns the ids of a field by row, from those of all entries: `mine` and `rows` say whose each is."""
    places = np.flatnonzero(mine)
    lengths = np.bincount(rows[places], minlength=count)
    starts = np.cumsum(lengths) - lengths
    values = ids.take(pa.array(places))
    if field in _HISTORIES:
        return windows(values, starts, np.minimum(lengths, _MOST_HISTORY))
    return values.take(pa.array(starts, mask=lengths == 0))


def _files(path: str, types: Mapping[str, pa.DataType]) -> TableFiles:
    return TableFiles(path, "csv", tuple(types.items()), tuple(types))


def _open_maker() -> Maker:
    return functools.partial(_join, functools.lru_cache(maxsize=1)(_read_users))


def _read_users(path: str) -> SideTable:
    """Returns the common features of a file, parsed batch by batch: the texts are several times as large."""

    def parsed(rows: pa.RecordBatch) -> pa.RecordBatch:
        features = _parse(rows.column("features"), (*_USER, *_HISTORIES))
        return pa.RecordBatch.from_pydict({"common_key": rows.column("common_key"), **features})

    files = _files(glob.escape(path), _COMMON)
    return SideTable.gather(path, "common_key", (parsed(batch.rows) for batch in files.batches(list(_COMMON))))


def _join(read_users: Callable[[str], SideTable], batch: SourceBatch) -> Mapping[str, Any]:
    folder, name = os.path.split(batch.file)
    users = read_users(os.path.join(folder, name.replace("sample_skeleton", "common_features")))
    user = users.look_up(batch.rows.column("common_key"))
    click, buy = batch.rows.column("click"), batch.rows.column("buy")
    unclicked = pc.and_(pc.equal(click, 0), pc.equal(buy, 1))
    part = name.removeprefix("sample_skeleton_").removesuffix(".csv")
    columns = {"click": click, "buy": buy, KEPT: pc.invert(pc.fill_null(unclicked, False))}
    columns |= {"part": pa.repeat(part, len(click)), **_parse(batch.rows.column("features"), _IMPRESSION)}
    return columns | {_name(field): user.column(_name(field)) for field in (*_USER, *_HISTORIES)}


def open_source(path: str) -> PublicLog:
    """Returns the impressions of both parts, or of the one that is there, joined with their users.

    Args:
      path: The folder of the unpacked files, or one above it.

    Returns:
      The source.
    """
    files = _files(os.path.join(glob.escape(path), "**", "sample_skeleton_*.csv"), _SKELETON)
    left_out = "purchases without a click"
    return PublicLog("Ali-CCP", files, _schema(), _open_maker, tuple(_SKELETON), left_out=left_out)
