"""WeChat Big Data Challenge 2021 (the competition's terms): impressions of a short-video feed, official CSV layout.

`user_action.csv`, joined with `feed_info.csv`. Videos play by themselves and nothing is bought, so the levels are our
choice: a click is a play, comments read and avatars clicked are micro, likes and favorites macro, and the conversion is
that a user comments, forwards or follows. Play and stay times are outcomes and never inputs. Days are numbered from 1:
day n has the date 2021-01-n, so that `--split=date:2021-01-13,2021-01-14` validates on the thirteenth.
"""

import functools
import glob
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.schema import VARIABLE, Column, Level, Schema
from data_pipeline.sources.base import SourceBatch, TableFiles
from data_pipeline.sources.public import Maker, PublicLog, SideTable, from_data, split_numbers, whole_numbers

_BEHAVIORS = ("play", "read_comment", "click_avatar", "like", "favorite", "comment", "forward", "follow")
_ACTION = ("userid", "feedid", "date_", "device", *_BEHAVIORS)
_FEED_IDS = ("authorid", "bgm_song_id", "bgm_singer_id")
_LISTS = {f"{origin}_{table}_list": table for table in ("tag", "keyword") for origin in ("manual", "machine")}
_FEED = ("feedid", *_FEED_IDS, "videoplayseconds", *_LISTS)
_MOST_TAGS = 10
_DAY_0 = 20210100
_LEVELS = (
    Level("click", ("play",), gate=True),
    Level("d_mi", ("read_comment", "click_avatar")),
    Level("d_ma", ("like", "favorite")),
    Level("purchase", ("comment", "forward", "follow")),
)


def _schema() -> Schema:
    columns = [
        Column("date", "int64", "ignored"),
        Column("userid", "int64", "group", hashing=from_data(), entity="user"),
        Column("device", "int64", hashing=from_data(), entity="user"),
        Column("log_videoplayseconds", "float"),
    ]
    columns += [Column(name, "int64", hashing=from_data()) for name in ("feedid", *_FEED_IDS)]
    columns += [
        Column(name, "int64", "feature", VARIABLE, _MOST_TAGS, from_data(table)) for name, table in _LISTS.items()
    ]
    return Schema((*columns, *(Column(name, "int64", "behavior") for name in _BEHAVIORS)), _LEVELS)


def _open_maker(folder: str) -> Maker:
    texts = tuple((name, pa.string()) for name in (*_FEED_IDS, *_LISTS))
    types = (("feedid", pa.int64()), ("videoplayseconds", pa.float64()), *texts)
    path = os.path.join(glob.escape(folder), "feed_info.csv")
    return functools.partial(_join, SideTable.read(TableFiles(path, "csv", types), "feedid", _FEED))


def _join(feeds: SideTable, batch: SourceBatch) -> Mapping[str, Any]:
    columns: dict[str, Any] = {name: batch.rows.column(name) for name in ("userid", "feedid", "device", *_BEHAVIORS)}
    columns["date"] = pc.add(batch.rows.column("date_"), _DAY_0)
    feed = feeds.look_up(batch.rows.column("feedid"))
    columns["log_videoplayseconds"] = pc.log1p(feed.column("videoplayseconds"))
    columns |= {name: whole_numbers(feed.column(name)) for name in _FEED_IDS}
    columns |= {name: split_numbers(_without_scores(feed.column(name)), ";") for name in _LISTS}
    return columns


def _without_scores(tags: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns `12;7` for the `12 0.9;7 0.3` of tags that a machine gave."""
    return pc.replace_substring_regex(tags, " [^;]*", "")


def open_source(path: str) -> PublicLog:
    """Returns the actions joined with their videos.

    Args:
      path: The folder of `user_action.csv` and `feed_info.csv`.

    Returns:
      The source.
    """
    types = tuple((name, pa.int64()) for name in _ACTION)
    files = TableFiles(os.path.join(glob.escape(path), "user_action.csv"), "csv", types)
    return PublicLog("WeChat 2021", files, _schema(), functools.partial(_open_maker, path), _ACTION)
