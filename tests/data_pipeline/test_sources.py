"""Raw logs as batches: tables with a schema or without, KuaiRand's official layout, simulated logs."""

import csv
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf

from data_pipeline import labels as label_rules
from data_pipeline.convert import convert
from data_pipeline.folder import DataFolder
from data_pipeline.hashing import hash_to_bucket
from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema
from data_pipeline.simulate import SimulatedLog
from data_pipeline.sources import base, open_source
from data_pipeline.sources.named_behaviors import parse_behaviors
from data_pipeline.sources.simulated import SimulatedSource, day_split
from data_pipeline.split_rules import parse_split
from hm3_tf.errors import DataError, UsageError
from tests.data_pipeline.conftest import read_stored

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "kuairand-pure-sample"
FORMATS = ("parquet", "csv")
LEVELS = (Level("click", ("click",), gate=True), Level("purchase", ("pay",)))
SCHEMA = Schema(
    (
        Column("user", "int64", "group", hashing=Hashing(100)),
        Column("brand", "string", hashing=Hashing(100)),
        Column("price", "float"),
        Column("click", "int64", "behavior"),
        Column("pay", "int64", "behavior"),
    ),
    LEVELS,
)
ROWS = {
    "user": [2**53 + 1, None, 3],
    "brand": ["ä, b", "c", None],
    "price": [0.5, None, 2.0],
    "click": [1, 0, 1],
    "pay": [0, 0, 1],
    "other": ["x", "y", "z"],
}


def write_table(path, rows):
    """Writes {column: list or array} as Parquet or CSV, by the ending of the path, and returns the path as text."""
    os.makedirs(path.parent, exist_ok=True)
    table = pa.table(rows)
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, path)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(table.column_names)
            writer.writerows(zip(*(column.to_pylist() for column in table.columns)))
    return str(path)


def convert_source(source, output, split="fraction:1,0,0"):
    return convert(source, str(output), parse_split(split, "date", 0))


def error_of(name, path, output, schema=SCHEMA, **options):
    with pytest.raises((DataError, UsageError)) as caught:
        convert_source(open_source(name, str(path), schema, **options), output)
    assert not output.exists()
    return str(caught.value)


# Tables


@pytest.mark.parametrize("name", FORMATS)
def test_a_table_with_a_schema_is_stored_as_the_schema_says(tmp_path, name):
    path = write_table(tmp_path / f"log.{name}", ROWS)
    statistics = convert_source(open_source(name, path, SCHEMA), tmp_path / "out")
    stored = read_stored(tmp_path / "out" / "train", SCHEMA.columns)
    assert stored["user"].tolist() == [2**53 + 1, -(2**63), 3]
    assert stored["brand"].tolist() == ["ä, b".encode(), b"c", b""]
    np.testing.assert_array_equal(stored["price"], np.float32([0.5, np.nan, 2.0]))
    assert statistics["train"].label_patterns == {"00": 1, "10": 1, "11": 1}
    assert DataFolder.open(str(tmp_path / "out")).schema == SCHEMA


@pytest.mark.parametrize("name", FORMATS)
def test_a_table_without_a_schema_has_features_beside_its_behaviors(tmp_path, name):
    rows = {"user": [1, 2, 2**53 + 1], "brand": ["a", None, "b"], "price": [0.5, None, 2.5], "date": [20220501] * 3}
    rows |= {"click": [1, 0, 1], "cart": [0, 0, 1], "wish": [1, 0, 0], "pay": [0, 0, 1]}
    path = write_table(tmp_path / f"log.{name}", rows)
    source = open_source(name, path, behaviors="click, d_ma=cart|wish, pay", groups="user", ignored="date")
    assert source.schema.levels == (
        Level("click", ("click",), gate=True),
        Level("d_ma", ("cart", "wish")),
        Level("pay", ("pay",)),
    )
    assert {(c.name, c.dtype, c.role) for c in source.schema.columns} == {
        ("user", "int64", "group"),
        ("brand", "string", "feature"),
        ("price", "float", "feature"),
        ("date", "int64", "ignored"),
        *((name, "int64", "behavior") for name in ("click", "cart", "wish", "pay")),
    }
    assert source.inferred == {"user", "brand"}
    statistics = convert_source(source, tmp_path / "out")
    assert statistics["train"].rates() == {"click": 2 / 3, "d_ma": 2 / 3, "pay": 1 / 3}
    folder = DataFolder.open(str(tmp_path / "out"))
    assert [folder.schema.column(name).hashing.buckets for name in ("user", "brand")] == [1_001, 1_001]
    assert read_stored(tmp_path / "out" / "train", folder.schema.columns)["user"].tolist() == [1, 2, 2**53 + 1]


def test_types_of_a_table_become_dtypes_and_shapes(tmp_path):
    days = pa.array(np.array(["2022-05-01"] * 2, "datetime64[s]"))
    rows = {
        "flag": pa.array([True, None]),
        "small": pa.array([1, 2], pa.uint8()),
        "decimal": pa.array([1, 2]).cast(pa.decimal128(21, 2)),
        "half": pa.array([0.5, 1.5], pa.float32()),
        "text": pa.array(["a", "b"], pa.large_string()),
        "code": pa.array(["a", "b"]).dictionary_encode(),
        "ids": pa.array([[1, 2], None]),
        "words": pa.array([["a"], []], pa.large_list(pa.string())),
        "numbers": pa.array([[0.5], []]),
        "time": days,
        "click": pa.array([1, 0]),
    }
    source = open_source("parquet", write_table(tmp_path / "log.parquet", rows), behaviors="click")
    found = {c.name: (c.dtype, c.role, c.shape, c.max_length) for c in source.schema.columns}
    assert found == {
        "flag": ("int64", "feature", (), None),
        "small": ("int64", "feature", (), None),
        "decimal": ("float", "feature", (), None),
        "half": ("float", "feature", (), None),
        "text": ("string", "feature", (), None),
        "code": ("string", "feature", (), None),
        "ids": ("int64", "feature", VARIABLE, 50),
        "words": ("string", "feature", VARIABLE, 50),
        "numbers": ("float", "ignored", VARIABLE, None),
        "time": ("string", "ignored", (), None),
        "click": ("int64", "behavior", (), None),
    }
    convert_source(source, tmp_path / "out")
    stored = read_stored(tmp_path / "out" / "train", DataFolder.open(str(tmp_path / "out")).schema.inputs)
    assert stored["flag"].tolist() == [1, -(2**63)]
    assert stored["decimal"].tolist() == [1.0, 2.0]
    assert stored["code"].tolist() == [b"a", b"b"]
    assert stored["words"][:, :2].tolist() == [[b"a", b""], [b"", b""]]


UNCARRIED = {
    "struct": pa.array([{"a": 1}, None]),
    "list of lists": pa.array([[[1]], [[2]]]),
    "list of structs": pa.array([[{"a": 1}], []]),
    "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
}


@pytest.mark.parametrize("kind", UNCARRIED)
def test_a_column_that_cannot_be_carried_is_left_out_when_ignored_and_else_refused(tmp_path, kind):
    path = write_table(tmp_path / "log.parquet", {"meta": UNCARRIED[kind], "tab": [1, 2], "click": [1, 0]})
    with pytest.raises(UsageError, match=r"column 'meta': expected numbers, text, .* got .*; add it to --ignore"):
        open_source("parquet", path, behaviors="click")
    source = open_source("parquet", path, behaviors="click", ignored="meta")
    assert [column.name for column in source.schema.columns] == ["tab", "click"]
    assert convert_source(source, tmp_path / "out")["train"].rows == 2


def test_bytes_and_unsigned_ids_keep_all_their_bits(tmp_path):
    rows = {
        "raw": pa.array([b"\xff\x00", b"b"], pa.large_binary()),
        "fixed": pa.array([b"\xff\x01", b"bb"], pa.binary(2)),
        "id": pa.array([2**64 - 1, 2**63 + 5], pa.uint64()),
        "click": pa.array([1, 0]),
    }
    source = open_source("parquet", write_table(tmp_path / "log.parquet", rows), behaviors="click")
    convert_source(source, tmp_path / "out")
    stored = read_stored(tmp_path / "out" / "train", DataFolder.open(str(tmp_path / "out")).schema.inputs)
    assert stored["raw"].tolist() == [b"\xff\x00", b"b"] and stored["fixed"].tolist() == [b"\xff\x01", b"bb"]
    assert stored["id"].tolist() == [-1, -(2**63) + 5]


def test_a_list_of_fixed_length_is_no_string(tmp_path):
    rows = {"vector": pa.array([[0.5, 1.0]], pa.list_(pa.float32(), 2)), "click": [1]}
    source = open_source("parquet", write_table(tmp_path / "log.parquet", rows), behaviors="click")
    assert source.schema.column("vector") == Column("vector", "float", "ignored", VARIABLE)
    assert convert_source(source, tmp_path / "out")["train"].rows == 1


@pytest.mark.parametrize("name", FORMATS)
def test_files_of_a_folder_are_read_in_the_order_of_their_names(tmp_path, name):
    for file, first in (("b/1", 4), ("a/2", 2), ("a/1", 0)):
        write_table(tmp_path / "log" / f"{file}.{name}", {"id": [first, first + 1], "click": [1, 0]})
    (tmp_path / "log" / "README.txt").write_text("not of the log")
    for path in (tmp_path / "log", tmp_path / "log" / "*" / f"*.{name}"):
        batches = list(open_source(name, str(path), behaviors="click").batches())
        assert [value for batch in batches for value in batch.rows.column("id").to_pylist()] == list(range(6))
        assert [os.path.relpath(batch.file, tmp_path / "log") for batch in batches] == [
            f"{f}.{name}" for f in ("a/1", "a/2", "b/1")
        ]
        assert [batch.first_row for batch in batches] == [0, 0, 0]


def test_batches_of_a_file_are_numbered_on(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "BATCH_ROWS", 10)
    path = write_table(tmp_path / "log.parquet", {"id": list(range(25)), "click": [1] * 25})
    batches = list(open_source("parquet", path, behaviors="click").batches())
    assert [(batch.first_row, batch.rows.num_rows) for batch in batches] == [(0, 10), (10, 10), (20, 5)]


@pytest.mark.parametrize("name", FORMATS)
def test_a_number_that_is_not_finite_is_named_by_its_file_and_row(tmp_path, name):
    for file, price in (("1", 2.0), ("2", float("inf"))):
        write_table(tmp_path / "log" / f"{file}.{name}", ROWS | {"price": [0.5, 1.0, price]})
    message = error_of(name, tmp_path / "log", tmp_path / "out")
    assert message.startswith(
        f"{tmp_path}/log/2.{name}: row 2: column 'price': expected a finite number, or null for a missing one, got inf"
    )


@pytest.mark.parametrize("name", FORMATS)
def test_labels_against_the_hierarchy_are_named_by_their_file_and_row(tmp_path, name):
    path = write_table(tmp_path / f"log.{name}", ROWS | {"pay": [0, 1, 1]})
    with pytest.raises(
        DataError,
        match=re.escape(f"{path}: row 1: expected labels that keep the hierarchy, got purchase without click"),
    ):
        convert(
            open_source(name, path, SCHEMA),
            str(tmp_path / "out"),
            parse_split("fraction:1,0,0", "", 0),
            nesting="error",
        )


@pytest.mark.parametrize("name", FORMATS)
def test_a_column_that_the_table_does_not_have_is_named_with_a_hint(tmp_path, name):
    rows = dict(ROWS)
    rows["prise"] = rows.pop("price")
    path = write_table(tmp_path / f"log.{name}", rows)
    message = error_of(name, path, tmp_path / "out")
    assert message.startswith(f"{path}: expected the column 'price' of the schema, found none; did you mean 'prise'?")
    assert "\n" not in message


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("column", ["user", "pay"])
def test_a_column_that_a_later_file_does_not_have_is_named(tmp_path, name, column):
    write_table(tmp_path / "log" / f"1.{name}", ROWS)
    second = write_table(tmp_path / "log" / f"2.{name}", {key: values for key, values in ROWS.items() if key != column})
    message = error_of(name, tmp_path / "log", tmp_path / "out")
    assert message.startswith(f"{second}: expected the column {column!r} of the schema, found none")


@pytest.mark.parametrize("name", FORMATS)
def test_columns_of_a_later_file_may_stand_in_another_order(tmp_path, name):
    write_table(tmp_path / "log" / f"1.{name}", ROWS)
    write_table(tmp_path / "log" / f"2.{name}", dict(reversed(ROWS.items())))
    convert_source(open_source(name, str(tmp_path / "log"), SCHEMA), tmp_path / "out")
    stored = read_stored(tmp_path / "out" / "train", SCHEMA.columns)
    assert stored["brand"].tolist() == ["ä, b".encode(), b"c", b""] * 2
    assert stored["click"].tolist() == [1, 0, 1] * 2


@pytest.mark.parametrize("name", FORMATS)
def test_a_column_of_another_dtype_is_named_by_its_file(tmp_path, name):
    path = write_table(tmp_path / f"log.{name}", ROWS | {"user": ["7", "abc", "9"]})
    message = error_of(name, path, tmp_path / "out")
    assert message.startswith(f"{path}: ")
    assert "int64" in message and "abc" in message
    assert "\n" not in message


def test_ids_in_a_csv_file_keep_their_digits_where_the_schema_says_string(tmp_path):
    columns = (Column("user", "string", hashing=Hashing(10)), *SCHEMA.columns[3:])
    path = write_table(tmp_path / "log.csv", ROWS | {"user": ["007", "7", None]})
    convert_source(open_source("csv", path, Schema(columns, LEVELS)), tmp_path / "out")
    assert read_stored(tmp_path / "out" / "train", columns)["user"].tolist() == [b"007", b"7", b""]


@pytest.mark.parametrize("dtype", ["int64", "string"])
@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_ids_that_a_float_cannot_tell_apart_stay_distinct(tmp_path, name, dtype):
    ids = [power + i for power in (2**24, 2**53, 2**62) for i in range(64)]
    written = ids if dtype == "int64" else [f"u{value}" for value in ids]
    path = write_table(tmp_path / name, {"user": written, "click": [1] * len(ids), "pay": [0] * len(ids)})
    source = open_source(name.partition(".")[2], path, behaviors="click,pay", groups="user")
    statistics = convert_source(source, tmp_path / "out", "fraction:1,0,0")["train"]
    column = DataFolder.open(str(tmp_path / "out")).schema.column("user")
    stored = read_stored(tmp_path / "out" / "train", [column])["user"]
    assert column.dtype == dtype
    assert stored.tolist() == (ids if dtype == "int64" else [value.encode() for value in written])
    assert statistics.columns["user"]["cardinality"] == len(ids)
    buckets = hash_to_bucket(tf.constant(stored), 2**31 - 1, "user").numpy()
    assert len(set(buckets.tolist())) == len(ids)


def test_words_in_a_csv_file_that_look_like_null_are_strings(tmp_path):
    brands = ["NA", "null", "nan"]
    path = write_table(tmp_path / "log.csv", ROWS | {"brand": brands})
    convert_source(open_source("csv", path, SCHEMA), tmp_path / "out")
    assert read_stored(tmp_path / "out" / "train", SCHEMA.columns)["brand"].tolist() == [b"NA", b"null", b"nan"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_log_that_is_not_there_is_named(tmp_path, name):
    message = error_of(name, tmp_path / "nothing", tmp_path / "out")
    assert message == f"{tmp_path}/nothing: expected {name} files, found none; check the path"


@pytest.mark.parametrize("name, text", [("parquet", "no table"), ("csv", ""), ("csv", "user,click\n1,0\n1\n")])
def test_a_file_that_is_no_table_is_named(tmp_path, name, text):
    (tmp_path / f"log.{name}").write_text(text)
    assert error_of(name, tmp_path / f"log.{name}", tmp_path / "out").startswith(
        f"{tmp_path}/log.{name}: expected {name} "
    )


def test_a_file_that_breaks_off_is_named(tmp_path):
    path = write_table(tmp_path / "log.csv", {"user": list(range(200_000)), "click": [1] * 200_000})
    with open(path, "a") as file:
        file.write("1,2,3\n")
    schema = Schema((Column("click", "int64", "behavior"),), LEVELS[:1])
    message = error_of("csv", path, tmp_path / "out", schema)
    assert message.startswith(f"{path}: expected csv rows after row ")
    assert "Expected 2 columns, got 3" in message


# Naming what is wanted


@pytest.mark.parametrize(
    "name, hint", [("parkuet", "did you mean 'parquet'?"), ("kuai_rand", "did you mean 'kuairand'?")]
)
def test_an_unknown_source_is_refused_with_a_hint(name, hint):
    with pytest.raises(UsageError, match=rf"--source: expected one of .*got {name!r}; {re.escape(hint)}"):
        open_source(name, "nowhere")


@pytest.mark.parametrize("name", FORMATS)
def test_a_table_needs_a_schema_or_behaviors(name):
    with pytest.raises(UsageError, match=f"--source={name}: expected --schema=.* or --behaviors=.*, got neither"):
        open_source(name, "nowhere")


@pytest.mark.parametrize("name", ["parquet", "csv"])
@pytest.mark.parametrize(
    "options, flag",
    [({"behaviors": "click"}, "--behaviors"), ({"groups": "user"}, "--groups"), ({"ignored": "tab"}, "--ignore")],
)
def test_a_schema_says_all_roles(name, options, flag):
    with pytest.raises(UsageError, match=f"expected --schema alone, got {flag} beside it"):
        open_source(name, "log", schema=SCHEMA, **options)


def test_a_number_with_a_fraction_is_no_group(tmp_path):
    path = write_table(tmp_path / "log.parquet", {"score": [0.5, 1.5], "click": [0, 1]})
    with pytest.raises(UsageError, match="--groups: expected a column of ids or text, got 'score' of type double"):
        open_source("parquet", path, behaviors="click", groups="score")


def test_behaviors_are_levels_of_which_the_first_is_a_gate():
    assert parse_behaviors("click, cart ,d_ma= wish | fav") == (
        Level("click", ("click",), gate=True),
        Level("cart", ("cart",)),
        Level("d_ma", ("wish", "fav")),
    )


@pytest.mark.parametrize("text", [",", "click,,pay", "click,=a", "click,a=b|", "click,"])
def test_behaviors_with_an_empty_name_are_refused(text):
    with pytest.raises(UsageError, match=re.escape(f"got {text!r}")):
        parse_behaviors(text)


@pytest.mark.parametrize(
    "options", [{"behaviors": "clik"}, {"behaviors": "click,d_ma=click|clik"}, {"behaviors": "click", "groups": "clik"}]
)
def test_a_behavior_or_group_that_the_table_does_not_have_is_refused_with_a_hint(tmp_path, options):
    path = write_table(tmp_path / "log.csv", {"user": [1], "click": [0]})
    with pytest.raises(UsageError, match="expected a column of the log, got 'clik'; did you mean 'click'"):
        open_source("csv", path, **options)


def test_an_ignored_column_that_the_table_does_not_have_is_refused_with_a_hint(tmp_path):
    path = write_table(tmp_path / "log.csv", {"user": [1], "click": [0]})
    with pytest.raises(UsageError, match="got 'usr'; did you mean 'user'"):
        open_source("csv", path, behaviors="click", ignored="usr")


# KuaiRand

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,play_time_ms,"
    "duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
USER_HEADER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,follow_user_num_range,"
    "fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,register_days_range,"
    + ",".join(f"onehot_feat{i}" for i in range(18))
)
VIDEO_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,music_id,"
    "music_type,tag"
)
TINY = {
    "log_standard_4_22_to_5_08_pure.csv": f"""{LOG_HEADER}
7,11,20220503,2359,1651600000000,0,1,0,0,0,0,0,100,7001,0,0,0,0,4
99,10,20220504,1200,1651700000000,1,0,0,0,0,0,0,0,600001,0,3500,0,0,1
7,77,20220504,5,1651700000001,1,0,0,0,0,0,1,0,0,0,0,1,0,1
""",
    "log_standard_4_08_to_4_21_pure.csv": f"""{LOG_HEADER}
0,12,20220408,900,1649400000000,1,1,1,0,0,0,1,61802,49866,12,0,0,0,1
7,10,20220409,1000,1649400000001,0,0,0,0,0,0,0,1184,7000,0,0,0,0,0
""",
    "log_random_4_22_to_5_08_pure.csv": f"{LOG_HEADER}\n0,10,20220422,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1\n",
    "user_features_pure.csv": f"""{USER_HEADER}
7,middle_active,0,0,1,5,"(0,10]",0,0,0,0,300,181-365,0,6,,1,,0,0,3,2,,1,0,,,,,,
0,full_active,0,-124,1,514,500+,150,"[100,1k)",34,"[30,60)",799,730+,1,1,29,949,1.0,0,0,14,135,6,3,0,0.0,1.0,0.0,0.0,0.0,0.0
""",
    "video_features_basic_pure.csv": f"""{VIDEO_HEADER}
12,2103883,NORMAL,2022-04-10,Kmovie,0.0,218066.0,720.0,1280.0,9155697141,9.0,
10,7349781,AD,2022-04-10,LongImport,0.0,87433.0,720.0,1280.0,,,39
11,5,NORMAL,2022-04-10,,0.0,,720.0,1280.0,8,4.0,"12,5"
""",
}
GONE = -(2**63)


@pytest.fixture(scope="module")
def tiny_kuairand(tmp_path_factory):
    """(folder of a release of five impressions, what was stored of it, {split: statistics}, schema)."""
    folder = tmp_path_factory.mktemp("release")
    data = folder / "KuaiRand-Pure" / "data"
    data.mkdir(parents=True)
    for name, text in TINY.items():
        (data / name).write_text(text)
    source = open_source("kuairand", str(folder))
    output = tmp_path_factory.mktemp("kuairand") / "out"
    statistics = convert_source(source, output, "date:2022-05-03,2022-05-04")
    schema = DataFolder.open(str(output)).schema
    parts = [read_stored(output / split, schema.columns) for split in ("train", "validation", "test")]
    return (
        folder,
        {name: np.concatenate([part[name] for part in parts]).tolist() for name in parts[0]},
        statistics,
        schema,
    )


@pytest.mark.parametrize(
    "column, values",
    [
        ("user_id", [0, 7, 7, 99, 7]),
        ("video_id", [12, 10, 11, 10, 77]),
        ("date", [20220408, 20220409, 20220503, 20220504, 20220504]),
        ("time_ms", [1649400000000, 1649400000001, 1651600000000, 1651700000000, 1651700000001]),
        ("tab", [1, 0, 4, 1, 1]),
        ("hour", [9, 10, 23, 12, 0]),
        ("duration_bin", [7, 1, 2, 13, 0]),
        ("author_id", [2103883, 7349781, 5, 7349781, GONE]),
        ("music_id", [9155697141, GONE, 8, GONE, GONE]),
        ("music_type", [9, GONE, 4, GONE, GONE]),
        ("video_type", [b"NORMAL", b"AD", b"NORMAL", b"AD", b""]),
        ("upload_type", [b"Kmovie", b"LongImport", b"", b"LongImport", b""]),
        ("tag", [GONE, 39, 12, 39, GONE]),
        ("tags", [[GONE] * 4, [39] + [GONE] * 3, [12, 5] + [GONE] * 2, [39] + [GONE] * 3, [GONE] * 4]),
        ("user_active_degree", [b"full_active", b"middle_active", b"middle_active", b"", b"middle_active"]),
        ("is_live_streamer", [-124, 0, 0, GONE, 0]),
        ("follow_user_num_range", [b"500+", b"(0,10]", b"(0,10]", b"", b"(0,10]"]),
        ("fans_user_num_range", [b"[100,1k)", b"0", b"0", b"", b"0"]),
        ("register_days_range", [b"730+", b"181-365", b"181-365", b"", b"181-365"]),
        ("onehot_feat2", [29, GONE, GONE, GONE, GONE]),
        ("onehot_feat4", [1, GONE, GONE, GONE, GONE]),
        ("onehot_feat13", [1, GONE, GONE, GONE, GONE]),
        ("is_click", [1, 0, 0, 1, 1]),
        ("is_like", [1, 0, 1, 0, 0]),
        ("long_view", [1, 0, 0, 0, 1]),
        ("profile_stay_time", [12, 0, 0, 0, 0]),
        ("comment_stay_time", [0, 0, 0, 3500, 0]),
        ("is_profile_enter", [0, 0, 0, 0, 1]),
        ("is_follow", [1, 0, 0, 0, 0]),
    ],
)
def test_an_impression_of_kuairand_is_joined_with_its_user_and_video(tiny_kuairand, column, values):
    assert tiny_kuairand[1][column] == values


@pytest.mark.parametrize(
    "column, numbers",
    [
        ("log_follow_user_num", [514, 5, 5, None, 5]),
        ("log_fans_user_num", [150, 0, 0, None, 0]),
        ("log_register_days", [799, 300, 300, None, 300]),
        ("log_duration_ms", [49866, 7000, 7001, 600001, 0]),
    ],
)
def test_counts_and_durations_of_kuairand_are_logarithms(tiny_kuairand, column, numbers):
    expected = [np.nan if number is None else np.log(1 + number) for number in numbers]
    np.testing.assert_allclose(tiny_kuairand[1][column], expected, rtol=1e-6)


def test_levels_of_kuairand_are_click_comments_or_profile_long_view_and_like(tiny_kuairand):
    statistics = tiny_kuairand[2]
    assert statistics["train"].label_patterns == {"0000": 1, "1111": 1}
    assert statistics["validation"].label_patterns == {"0000": 1}
    assert statistics["validation"].violations["purchase without click"] == 1
    assert statistics["test"].label_patterns == {"1100": 1, "1110": 1}


def test_outcomes_of_kuairand_are_no_inputs(tiny_kuairand):
    schema = tiny_kuairand[3]
    inputs = {column.name for column in schema.inputs}
    assert {"user_id", "video_id", "author_id", "tag", "hour", "duration_bin", "onehot_feat17"} <= inputs
    outcomes = {
        "play_time_ms",
        "long_view",
        "comment_stay_time",
        "profile_stay_time",
        "is_profile_enter",
        "is_hate",
        "date",
        "time_ms",
    }
    assert not inputs & (outcomes | {name for level in schema.levels for name in level.any_of})
    assert [column.name for column in schema.with_role("group")] == ["user_id"]


@pytest.mark.parametrize("inside", ["", "KuaiRand-Pure", "KuaiRand-Pure/data"])
def test_kuairand_is_found_at_each_depth_of_its_release(tiny_kuairand, inside):
    (first, *_) = open_source("kuairand", str(tiny_kuairand[0] / inside)).batches()
    assert first.file.endswith("log_standard_4_08_to_4_21_pure.csv")
    assert first.rows.num_rows == 2


def test_files_of_kuairand_by_themselves_have_the_rows_of_all(tiny_kuairand, monkeypatch):
    monkeypatch.setattr(base, "_PART_BYTES", 1)
    source = open_source("kuairand", str(tiny_kuairand[0]))
    parts = source.parts()
    assert len(parts) > 1
    assert [part.count_rows() for part in parts] == [sum(b.rows.num_rows for b in part.batches()) for part in parts]
    of_parts, of_all = ([batch.rows for each in sources for batch in each.batches()] for sources in (parts, [source]))
    assert pa.Table.from_batches(of_parts) == pa.Table.from_batches(of_all)


def test_a_folder_that_is_not_kuairand_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=rf"^{re.escape(str(tmp_path))}: expected KuaiRand-Pure/data with log_standard_"
    ):
        open_source("kuairand", str(tmp_path))


@pytest.mark.parametrize(
    "options", [{"schema": SCHEMA}, {"behaviors": "click"}, {"groups": "user"}, {"ignored": "tab"}]
)
def test_kuairand_has_a_schema_of_its_own(tmp_path, options):
    with pytest.raises(UsageError, match="--source=kuairand: expected no --schema"):
        open_source("kuairand", str(tmp_path), **options)


def test_inputs_of_kuairand_are_of_the_user_and_request_or_of_the_video(tmp_path):
    inputs = open_source("kuairand", kuairand_folder(tmp_path)).schema.inputs
    of_video = {column.name for column in inputs if column.entity == "item"}
    ids, categories = {"video_id", "author_id", "music_id"}, {"video_type", "upload_type", "music_type", "tag", "tags"}
    assert of_video == ids | categories | {"duration_bin", "log_duration_ms"}


def kuairand_folder(folder, **changes):
    """Returns a release whose files are changed: {file: (old text, new text)}, or None for one that is left out."""
    for name, text in TINY.items():
        change = changes.get(name.split("_")[0], ("", ""))
        if change is not None:
            (folder / name).write_text(text.replace(*change))
    return str(folder)


def test_kuairand_without_a_log_is_refused(tmp_path):
    source = open_source("kuairand", kuairand_folder(tmp_path, log=None))
    with pytest.raises(DataError, match=r"log_standard_\*\.csv: expected csv files, found none"):
        list(source.batches())


def test_kuairand_without_its_videos_is_refused(tmp_path):
    source = open_source("kuairand", kuairand_folder(tmp_path, video=None))
    with pytest.raises(
        DataError, match=r"video_features_basic_pure.csv: expected a table of the KuaiRand-Pure layout, got: "
    ):
        list(source.batches())


@pytest.mark.parametrize(
    "change", [("7,11,", ",11,"), ("7,11,", "7,,"), (",tab\n", ",tub\n"), (",100,7001,", ",100,,")], ids=str
)
def test_a_log_of_kuairand_with_a_gap_is_named_by_its_file(tmp_path, change):
    source = open_source("kuairand", kuairand_folder(tmp_path, log=change))
    with pytest.raises(DataError, match="log_standard_"):
        list(source.batches())


@pytest.fixture(scope="module")
def sample():
    """({column of the log: list of texts}, {column as the source gives it: array}) of the sample of KuaiRand-Pure."""
    if not SAMPLE.exists():
        pytest.skip(f"{SAMPLE} is not on this machine")
    (log,) = (SAMPLE / "KuaiRand-Pure" / "data").glob("log_standard_*.csv")
    with open(log, newline="") as file:
        header, *rows = csv.reader(file)
    batches = [batch.rows for batch in open_source("kuairand", str(SAMPLE)).batches()]
    return dict(zip(header, map(list, zip(*rows)))), pa.Table.from_batches(batches)


def flags_by_hand(log):
    """{level: bool [rows]} of the README's table, from the texts of the log."""
    micro = zip(log["comment_stay_time"], log["profile_stay_time"], log["is_profile_enter"])
    return {
        "click": np.array(log["is_click"]) == "1",
        "d_mi": np.array([any(float(value) > 0 for value in values) for values in micro]),
        "d_ma": np.array(log["long_view"]) == "1",
        "purchase": np.array(log["is_like"]) == "1",
    }


def test_the_sample_of_kuairand_has_the_counts_of_its_readme(sample):
    _, table = sample
    counts = {name: int(np.sum(table.column(name).to_numpy())) for name in ("is_click", "long_view", "is_like")}
    assert table.num_rows == 171_671
    assert counts == {"is_click": 76_099, "long_view": 53_544, "is_like": 2_996}


def test_the_sample_of_kuairand_has_the_levels_and_violations_counted_by_hand(sample):
    log, table = sample
    expected = flags_by_hand(log)
    levels = open_source("kuairand", str(SAMPLE)).schema.levels
    flags = label_rules.raw_flags(
        levels, {name: table.column(name).to_numpy() for name in table.column_names if "i" in name}
    )
    labels, violations = label_rules.nest(levels, flags)
    for name, flag in expected.items():
        np.testing.assert_array_equal(flags[name], flag)
        np.testing.assert_array_equal(labels[name], flag & expected["click"])
    by_hand = {
        f"{name} without click": int(np.sum(flag & ~expected["click"])) for name, flag in list(expected.items())[1:]
    }
    assert {kind: int(where.sum()) for kind, where in violations.items()} == by_hand
    assert by_hand["purchase without click"] / 2_996 == pytest.approx(
        0.18, abs=0.005
    )  # the README's share of the likes
    assert by_hand["d_mi without click"] / expected["d_mi"].sum() == pytest.approx(0.045, abs=0.003)
    assert labels["d_mi"].sum() / labels["click"].sum() == pytest.approx(0.127, abs=0.0005)


def test_rows_of_the_sample_of_kuairand_have_the_user_and_video_of_its_tables(sample):
    log, table = sample
    tables = {}
    for name, key in (("user_features_pure", "user_id"), ("video_features_basic_pure", "video_id")):
        with open(SAMPLE / "KuaiRand-Pure" / "data" / f"{name}.csv", newline="") as file:
            tables[key] = {row[key]: row for row in csv.DictReader(file)}
    places = np.random.default_rng(0).choice(table.num_rows, 500, replace=False)
    rows = table.take(places).to_pylist()
    for place, row in zip(places, rows):
        user, video = (tables[key].get(log[key][place], {}) for key in ("user_id", "video_id"))
        assert str(row["user_id"]) == log["user_id"][place]
        assert row["hour"] == int(log["hourmin"][place]) // 100
        for name, value in (("onehot_feat4", user.get("onehot_feat4")), ("author_id", video.get("author_id"))):
            assert row[name] == (float(value) if value else None), (name, row)
        assert row["user_active_degree"] == user.get("user_active_degree")
        assert row["tag"] == (int(video["tag"].split(",")[0]) if video.get("tag") else None)


# Simulated logs


@pytest.fixture(scope="module")
def simulated():
    """(columns of a simulated log, the batches of its source as a table)."""
    log = SimulatedLog(rows=3_500, seed=1)
    (columns,) = log.batches()
    return columns, pa.Table.from_batches([batch.rows for batch in SimulatedSource(log).batches()])


def test_a_simulated_log_as_a_source_has_its_columns_and_nulls_where_one_is_missing(simulated):
    columns, table = simulated
    assert table.num_rows == 3_500
    ids, lengths = columns["history"]
    assert table.column("history").to_pylist() == [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
    np.testing.assert_array_equal(table.column("user_id").to_numpy(), columns["user_id"])
    np.testing.assert_array_equal(table.column("price").to_numpy(), columns["price"])
    brands = [brand or b"" for brand in table.column("brand").to_pylist()]
    assert brands == columns["brand"].tolist()
    assert 0 < table.column("brand").null_count < 3_500


def test_the_last_two_days_of_a_simulated_log_are_validation_and_test(simulated):
    days = simulated[0]["day"]
    (batch,) = simulated[1].combine_chunks().to_batches()
    np.testing.assert_array_equal(
        day_split()(batch), np.where(days == days.max(), 2, np.where(days == days.max() - 1, 1, 0))
    )
