"""KuaiRand-Pure (Gao et al., CIKM 2022; CC BY-SA 4.0): real impressions of a short-video feed, official CSV layout.

The conversion of this log is the like. Counts and durations are inputs twice: as the log's ranges, and as the logarithm
of the number. Play time, long view and stay times are outcomes and never inputs. Of the
standard log; the randomly exposed one has another click rate and is not mixed in.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from data_pipeline import storage
from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema
from data_pipeline.sources.base import SourceBatch, TableFiles
from data_pipeline.sources.public import Maker, PublicLog, SideTable, split_numbers
from hm3_tf.errors import DataError

_IDS = {"user_id": 200_001, "video_id": 100_001, "author_id": 100_001, "music_id": 100_001}
_USER_CATEGORIES = (
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{i}" for i in range(18)),
)
_VIDEO_CATEGORIES = ("video_type", "upload_type", "music_type")
_DERIVED_CATEGORIES = ("tag", "hour", "duration_bin")
_STRINGS = ("user_active_degree", "video_type", "upload_type", *(c for c in _USER_CATEGORIES if c.endswith("_range")))
_CATEGORY_BUCKETS = 10_001
_USER_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_OF_USER_OR_REQUEST = ("user_id", "tab", "hour", *_USER_CATEGORIES, *(f"log_{name}" for name in _USER_COUNTS))
_MOST_TAGS = 4
_BEHAVIORS = (
    *("is_click", "comment_stay_time", "profile_stay_time", "is_profile_enter", "long_view", "is_like"),
    *("is_follow", "is_comment", "is_forward"),
)
_LOG_COLUMNS = ("user_id", "video_id", "date", "hourmin", "time_ms", "duration_ms", "tab", *_BEHAVIORS)
_LEVELS = (
    Level("click", ("is_click",), gate=True),
    Level("d_mi", ("comment_stay_time", "profile_stay_time", "is_profile_enter")),
    Level("d_ma", ("long_view",)),
    Level("purchase", ("is_like",)),
)
_DURATION_EDGES_MS = np.array([0, 7, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600]) * 1000


def _schema() -> Schema:
    columns = [Column(name, "int64", "ignored") for name in ("date", "time_ms")]
    for name, buckets in _IDS.items():
        role = "group" if name == "user_id" else "feature"
        columns.append(Column(name, "int64", role, hashing=Hashing(buckets)))
    for name in ("tab", *_USER_CATEGORIES, *_VIDEO_CATEGORIES, *_DERIVED_CATEGORIES):
        dtype = "string" if name in _STRINGS else "int64"
        columns.append(Column(name, dtype, hashing=Hashing(_CATEGORY_BUCKETS)))
    columns.append(
        Column("tags", "int64", shape=VARIABLE, max_length=_MOST_TAGS, hashing=Hashing(_CATEGORY_BUCKETS, table="tag"))
    )
    columns += [Column(f"log_{name}", "float") for name in (*_USER_COUNTS, "duration_ms")]
    columns += [Column(name, "int64", "behavior") for name in _BEHAVIORS]
    marked = (dataclasses.replace(c, entity="user") if c.name in _OF_USER_OR_REQUEST else c for c in columns)
    return Schema(tuple(marked), _LEVELS)


SCHEMA = _schema()


def _read_table(path: str, key: str) -> SideTable:
    try:
        return SideTable.of(pyarrow.csv.read_csv(path), key)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: expected a table of the KuaiRand-Pure layout, got: {error}") from error


def _open_maker(folder: str) -> Maker:
    users = _read_table(os.path.join(folder, "user_features_pure.csv"), "user_id")
    videos = _read_table(os.path.join(folder, "video_features_basic_pure.csv"), "video_id")
    return functools.partial(_join, users, videos)


def _join(users: SideTable, videos: SideTable, batch: SourceBatch) -> Mapping[str, Any]:
    log = batch.rows
    user, video = users.look_up(_present(log.column("user_id"))), videos.look_up(_present(log.column("video_id")))
    columns: dict[str, Any] = {name: log.column(name) for name in log.schema.names}
    columns |= {name: user.column(name) for name in _USER_CATEGORIES}
    columns |= {name: video.column(name) for name in ("author_id", "music_id", *_VIDEO_CATEGORIES)}
    columns["tags"] = split_numbers(video.column("tag"), ",")
    columns["tag"] = pc.list_element(columns["tags"], 0)
    columns |= {f"log_{name}": _log1p(user.column(name)) for name in _USER_COUNTS}
    columns["log_duration_ms"] = _log1p(log.column("duration_ms"))
    columns["hour"] = pc.divide(log.column("hourmin"), 100)
    columns["duration_bin"] = np.searchsorted(_DURATION_EDGES_MS, log.column("duration_ms").to_numpy())
    return columns


def _present(ids: pa.Array) -> pa.Array:
    return pa.array(ids.to_numpy())  # which refuses nulls


def _log1p(numbers: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.log1p(pc.cast(numbers, pa.float64()))


def open_source(path: str) -> PublicLog:
    """Returns the KuaiRand-Pure log: the standard log joined with its users and videos.

    Args:
      path: The unpacked release: the folder that holds `KuaiRand-Pure`, that folder, or its `data`.

    Returns:
      The source.

    Raises:
      DataError: There is no log file of the layout.
    """
    for folder in (path, os.path.join(path, "data"), os.path.join(path, "KuaiRand-Pure", "data")):
        if storage.is_file(os.path.join(folder, "user_features_pure.csv")):
            files = TableFiles(os.path.join(folder, "log_standard_*.csv"), "csv")
            return PublicLog("KuaiRand-Pure", files, SCHEMA, functools.partial(_open_maker, folder), _LOG_COLUMNS)
    raise DataError(
        f"{path}: expected KuaiRand-Pure/data with log_standard_*.csv, user_features_pure.csv and "
        "video_features_basic_pure.csv, found no such folder; check --input"
    )
