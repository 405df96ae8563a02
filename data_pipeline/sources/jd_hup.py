r"""JD micro behaviors (Gu et al., WSDM 2020, "HUP"; research only): sessions of JD.com as sequences of behaviors.

A session a line, tokens `sku+behavior+category+interval+dwell` between spaces. There are no impressions and no dates:
each product of a session is a row, and clicked. Comments, specification and the bottom of the page are micro, the cart
is macro, an order the conversion. What is known at the click are the product, its category, where the user came from
(behaviors 1 to 5) and the products seen before in the session; intervals and dwell times are outcomes. A product that
begins with another behavior is left out: its click came before the session, and that it is missing would tell the label.
"""

import glob
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import storage
from data_pipeline.records import list_lengths
from data_pipeline.schema import VARIABLE, Column, Level, Schema
from data_pipeline.sources.base import SourceBatch, TableFiles
from data_pipeline.sources.public import KEPT, Maker, PublicLog, from_data, row_names, windows

_CODES = {"detail_comments": 6, "detail_specification": 7, "detail_bottom": 8, "cart": 9, "order": 10}
_LAST_ENTRY = 5
_MOST_HISTORY = 20
_TOKEN = r"^(?P<sku>[0-9]+)\+(?P<behavior>[0-9]+)\+(?P<category>-?[0-9]+)\+"
_LEVELS = (
    Level("click", ("click",), gate=True),
    Level("d_mi", ("detail_comments", "detail_specification", "detail_bottom")),
    Level("d_ma", ("cart",)),
    Level("purchase", ("order",)),
)


def _schema() -> Schema:
    columns = (
        Column("session", "string", "group"),
        Column("entry", "int64", hashing=from_data()),
        Column("history", "int64", "feature", VARIABLE, _MOST_HISTORY, from_data(table="sku"), entity="user"),
        *(Column(name, "int64", hashing=from_data()) for name in ("sku", "category")),
    )
    return Schema((*columns, *(Column(name, "int64", "behavior") for name in ("click", *_CODES))), _LEVELS)


def _make(batch: SourceBatch) -> Mapping[str, Any]:
    sessions = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(batch.rows.column("tokens")))
    tokens, lengths = sessions.flatten(), list_lengths(sessions)
    parsed = pc.extract_regex(tokens, _TOKEN)
    if parsed.null_count:
        bad = tokens[pc.index(pc.is_null(parsed), True).as_py()].as_py()
        raise pa.ArrowInvalid(f"a token {bad!r}, not sku+behavior+category+interval+dwell")
    sku, behavior, category = (pc.cast(parsed.field(i), pa.int64()) for i in range(3))
    clicks = _first_of_each(np.repeat(np.arange(len(lengths)), lengths), sku, behavior, category)
    session, first = clicks.column("session").to_numpy(), clicks.column("place_min").to_numpy()
    seen = np.minimum(first - (np.cumsum(lengths) - lengths)[session], _MOST_HISTORY)
    entry = clicks.column("behavior_first")
    return {
        "session": row_names(batch).take(pa.array(session)),
        "entry": entry,
        "history": windows(sku, first - seen, seen),
        "sku": clicks.column("sku"),
        "category": clicks.column("category_first"),
        "click": np.ones(len(session), np.int64),
        **{name: clicks.column(f"{name}_max") for name in _CODES},
        KEPT: pc.less_equal(entry, _LAST_ENTRY),
    }


def _first_of_each(session: np.ndarray, sku: pa.Array, behavior: pa.Array, category: pa.Array) -> pa.Table:
    """Returns a row for each product of a session, by its first token: where that is, and which behaviors any had."""
    columns = {"session": session, "sku": sku, "behavior": behavior, "category": category}
    columns |= {"place": np.arange(len(session))}
    columns |= {name: pc.cast(pc.equal(behavior, code), pa.int64()) for name, code in _CODES.items()}
    found = [("place", "min"), ("behavior", "first"), ("category", "first"), *((name, "max") for name in _CODES)]
    return pa.table(columns).group_by(["session", "sku"], use_threads=False).aggregate(found)


def _open_maker() -> Maker:
    return _make


def open_source(path: str) -> PublicLog:
    """Returns the products of all sessions.

    Args:
      path: A file of sessions, or a folder of such files that are named `JD_...`, in it or below.

    Returns:
      The source.
    """
    pattern = glob.escape(path) if storage.is_file(path) else os.path.join(glob.escape(path), "**", "JD_*")
    files = TableFiles(pattern, "csv", (("tokens", pa.string()),), ("tokens",), delimiter="\x01")
    left_out = "products of a session without the click that led to them"
    return PublicLog("JD micro behaviors", files, _schema(), _open_maker, ("tokens",), expands=True, left_out=left_out)
