r"""JDsearch (Liu et al., SIGIR 2023; CC BY-NC-SA 4.0): products that JD.com showed for a search, and what users did.

`user_behavior_data.txt`, a search a line, joined with `product_meta_data.txt`: tabs, a header, lists joined by `_`, the
terms of a text by \x18. Each candidate is an impression, labeled with its deepest behavior: a click, a cart (macro) or a
purchase, which therefore counts as a cart too. There are no micro behaviors and no dates. Candidates that were clicked
stand first in their list, so the place in it is no feature. The history is the user's latest 50 products before.
"""

import functools
import glob
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.records import list_lengths
from data_pipeline.schema import VARIABLE, Column, Level, Schema
from data_pipeline.sources.base import SourceBatch, TableFiles
from data_pipeline.sources.public import (
    Maker,
    PublicLog,
    SideTable,
    from_data,
    last_values,
    row_names,
    split_numbers,
    whole_numbers,
)

_SEARCH = ("query", "candidate_wid_list", "candidate_label_list", "history_wid_list")
_PRODUCT = ("brand_id", "cate_id_1", "cate_id_2", "cate_id_3", "cate_id_4", "shop_id")
_MOST_TERMS, _MOST_HISTORY = 16, 50
_LEVELS = (
    Level("click", ("label",), values=(1, 2, 3), gate=True),
    Level("d_ma", ("label",), values=(2, 3)),
    Level("purchase", ("label",), values=(3,)),
)


def _schema() -> Schema:
    columns = [
        Column("search", "string", "group"),
        Column("terms", "int64", "feature", VARIABLE, _MOST_TERMS, from_data(), entity="user"),
        Column("history", "int64", "feature", VARIABLE, _MOST_HISTORY, from_data(table="wid"), entity="user"),
    ]
    columns += [Column(name, "int64", hashing=from_data()) for name in ("wid", *_PRODUCT)]
    return Schema((*columns, Column("label", "int64", "behavior")), _LEVELS)


def _open_maker(folder: str) -> Maker:
    types = tuple((name, pa.int64()) for name in ("wid", *_PRODUCT))
    files = TableFiles(os.path.join(glob.escape(folder), "product_meta_data*.txt"), "csv", types, delimiter="\t")
    return functools.partial(_join, SideTable.read(files, "wid", ("wid", *_PRODUCT)))


def _join(products: SideTable, batch: SourceBatch) -> Mapping[str, Any]:
    query, candidates, labels, history = (batch.rows.column(name) for name in _SEARCH)
    candidates, labels = split_numbers(candidates, "_"), pc.split_pattern(labels, "_")
    lengths = list_lengths(candidates)
    if not np.array_equal(lengths, list_lengths(labels)):
        raise pa.ArrowInvalid("another number of candidate_label_list than of candidate_wid_list")
    searches = pa.array(np.repeat(np.arange(len(lengths)), lengths))
    product = products.look_up(candidates.flatten())
    return {
        "search": row_names(batch).take(searches),
        "terms": split_numbers(query, "\x18").take(searches),
        "history": last_values(split_numbers(history, "_"), _MOST_HISTORY).take(searches),
        "wid": candidates.flatten(),
        "label": whole_numbers(labels.flatten()),
        **{name: product.column(name) for name in _PRODUCT},
    }


def open_source(path: str) -> PublicLog:
    """Returns the candidates of all searches joined with their products.

    Args:
      path: The folder of the two files.

    Returns:
      The source.
    """
    types = tuple((name, pa.string()) for name in _SEARCH)
    files = TableFiles(os.path.join(glob.escape(path), "user_behavior_data*.txt"), "csv", types, delimiter="\t")
    maker = functools.partial(_open_maker, path)
    return PublicLog("JDsearch", files, _schema(), maker, _SEARCH, expands=True)
