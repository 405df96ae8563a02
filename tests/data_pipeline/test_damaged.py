"""Damaged Parquet and CSV files: what can be read is converted, what cannot is named with its row and counted."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.bad_records import BadRecords
from data_pipeline.convert import convert
from data_pipeline.schema import Column, Hashing, Level, Schema
from data_pipeline.sources import open_source
from data_pipeline.sources.base import TableFiles, TableSource
from data_pipeline.split_rules import parse_split
from hm3_tf.errors import DataError
from tests.data_pipeline.conftest import flip_byte, read_stored

SCHEMA = Schema(
    (
        Column("id", "int64", hashing=Hashing(10)),
        Column("brand", "string", hashing=Hashing(10)),
        Column("click", "int64", "behavior"),
    ),
    (Level("click", ("click",), gate=True),),
)
LINES = [f"{i},b{i},{i % 2}" for i in range(50_000)]  # several blocks of a reader


def csv(lines):
    return ("\n".join(["id,brand,click", *lines]) + "\n").encode()


def table(ids):
    return pa.table({"id": ids, "brand": [f"b{i}" for i in ids], "click": [i % 2 for i in ids]})


def write_parquet(path, ids=range(1_000), **options):
    pq.write_table(table(list(ids)), path, row_group_size=100, compression="none", **options)


def converted(tmp_path, kind, path, *, most=1_000):
    """Returns (ids that were written, bad records) of a log, and checks that what is written is right."""
    output, bad = tmp_path / "data", BadRecords(most)
    convert(open_source(kind, str(path), SCHEMA), str(output), parse_split("fraction:1,0,0", "date", 0), bad=bad)
    stored = read_stored(output / "train", SCHEMA.columns)
    ids = stored["id"].tolist()
    assert stored["brand"].tolist() == [f"b{i}".encode() for i in ids]
    assert stored["click"].tolist() == [i % 2 for i in ids]
    return ids, bad


def places(bad):
    return [(each.file.rsplit("/", 1)[-1], each.place, each.rows) for each in bad.records]


def test_lines_of_json_that_are_none_are_named_and_the_others_are_read(tmp_path):
    event = '{{"aid": {0}, "ts": 1659304800025, "type": "clicks"}}'
    lines = [f'{{"session": {i}, "events": [{event.format(i)}]}}' for i in range(500)]
    lines[7] = lines[7][:-2]
    lines[300] = lines[300].replace('"session": 300', '"session": "x"')
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    source, bad = open_source("otto", str(tmp_path)), BadRecords(2)
    convert(source, str(tmp_path / "data"), parse_split("fraction:1,0,0", "date", 0), bad=bad)
    stored = read_stored(tmp_path / "data" / "train", source.schema.columns)
    assert stored["user_id"].tolist() == stored["item_id"].tolist() == [i for i in range(500) if i not in (7, 300)]
    assert places(bad) == [("log.jsonl", 7, 1), ("log.jsonl", 300, 1)]
    with pytest.raises(DataError, match="log.jsonl: expected at most 1 bad record"):
        convert(source, str(tmp_path / "other"), parse_split("fraction:1,0,0", "date", 0), bad=BadRecords(1))


def test_blank_lines_of_json_are_no_rows(tmp_path):
    lines = ['{"id": 0}', "{", "", "  ", "{", '{"id": 3}', "", '{"id": "x"}']
    (tmp_path / "log.json").write_text("\n".join(["", *lines, ""]))
    files, bad = TableFiles(str(tmp_path), "json", (("id", pa.int64()),)), BadRecords()
    batches = list(files.batches(bad=bad))
    assert [(batch.number(0), batch.rows.to_pylist()) for batch in batches] == [(0, [{"id": 0}]), (3, [{"id": 3}])]
    assert places(bad) == [("log.json", row, 1) for row in (1, 2, 4)]


def test_a_sound_log_is_converted_as_without_skipping(tmp_path):
    (tmp_path / "a.csv").write_bytes(csv(LINES))
    ids, bad = converted(tmp_path, "csv", tmp_path / "a.csv")
    assert ids == list(range(50_000)) and not len(bad)
    source, rule = open_source("csv", str(tmp_path / "a.csv"), SCHEMA), parse_split("fraction:1,0,0", "date", 0)
    convert(source, str(tmp_path / "plain"), rule)
    files = [file.relative_to(tmp_path / "plain") for file in (tmp_path / "plain").rglob("*") if file.is_file()]
    assert files
    assert all((tmp_path / "plain" / file).read_bytes() == (tmp_path / "data" / file).read_bytes() for file in files)


def test_rows_of_a_csv_file_that_are_no_rows_are_named_by_their_number(tmp_path):
    lines = [*LINES]
    lines[7] = "7,b7"
    lines[20_000] = "20000,b,20000,0"
    lines[20_001] = "many,b20001,1"
    lines[40_000] = "40000,b40000,no"
    data = csv(lines).replace(b"30000,b30000,", b"30000,\xff\xfe,")
    (tmp_path / "a.csv").write_bytes(data)
    ids, bad = converted(tmp_path, "csv", tmp_path / "a.csv")
    wrong = [7, 20_000, 20_001, 30_000, 40_000]
    assert ids == sorted(set(range(50_000)) - set(wrong))
    assert sorted(places(bad)) == [("a.csv", row, 1) for row in wrong]
    reasons = {each.place: each.reason for each in bad.records}
    assert reasons[7] == "expected 3 fields, got 2"
    assert reasons[20_001] == "column 'id': expected int64, got b'many'"
    lines = [json.loads(line) for line in (tmp_path / "data" / "bad_records.jsonl").read_text().splitlines()]
    assert sorted(line["row"] for line in lines) == wrong


@pytest.fixture
def two_threads():
    """Has Arrow use two threads, as on a machine of two cores."""
    threads = pa.cpu_count()
    pa.set_cpu_count(2)
    yield
    pa.set_cpu_count(threads)


def test_rows_are_numbered_on_several_threads_too_without_blank_lines(two_threads, tmp_path):
    lines = [*LINES]
    lines[7] = "7,b7"
    lines[20_000] = "\n20000,b,20000,0"
    lines[3] = "\n" + lines[3]
    (tmp_path / "a.csv").write_bytes(csv(lines))
    ids, bad = converted(tmp_path, "csv", tmp_path / "a.csv")
    assert ids == sorted(set(range(50_000)) - {7, 20_000})
    assert places(bad) == [("a.csv", 7, 1), ("a.csv", 20_000, 1)]


def test_columns_of_all_types_that_arrow_finds_in_csv_files_are_read_as_without_skipping(tmp_path):
    """Of empty columns and of times of day Arrow casts no text; bytes that are not UTF-8 are read as such."""
    day = b"2022-05-01"
    names = b"none,time,date,when,zoned,bytes,flag,price,click\n"
    row = b",12:%02d," + day + b"," + day + b" 01:02:03.5," + day + b" 01:02:03Z,\xff,true, 0.5 ,1\n"
    (tmp_path / "a.csv").write_bytes(names + b"".join(row % i for i in range(60)))
    source = open_source("csv", str(tmp_path / "a.csv"), behaviors="click")
    rule, bad = parse_split("fraction:1,0,0", "date", 0), BadRecords()
    convert(source, str(tmp_path / "plain"), rule)
    convert(source, str(tmp_path / "data"), rule, bad=bad)
    assert not bad.records
    assert [batch.rows for batch in source.batches(bad)] == [batch.rows for batch in source.batches()]
    columns = source.schema.columns
    read, plain = (read_stored(tmp_path / name / "train", columns) for name in ("data", "plain"))
    assert [values.tolist() for values in read.values()] == [values.tolist() for values in plain.values()]
    assert read["time"][5] == b"12:05:00"


def test_a_file_of_bad_rows_ends_at_the_bound(tmp_path):
    (tmp_path / "a.csv").write_bytes(csv(["1,b1"] * 50_000))
    with pytest.raises(DataError, match=r"a.csv: expected at most 10 bad records in all, got 11, .* 3 fields, got 2"):
        converted(tmp_path, "csv", tmp_path / "a.csv", most=10)
    assert not (tmp_path / "data").exists()


def test_a_compressed_file_is_read_in_a_folder(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "b.csv").write_bytes(csv(LINES[10:20]))
    (tmp_path / "log" / "a.csv.gz").write_bytes(gzip.compress(csv(LINES[:10])))
    source = open_source("csv", str(tmp_path / "log"), SCHEMA)
    ids = [i for batch in source.batches() for i in batch.rows.column("id").to_pylist()]
    assert ids == list(range(20))


def test_a_compressed_file_that_is_cut_off_gives_what_is_before_the_cut(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{i},b{i},{i % 2}" for i in rng.permutation(200_000)]
    data = gzip.compress(csv(lines))
    (tmp_path / "a.csv.gz").write_bytes(data[: -len(data) // 4])
    ids, bad = converted(tmp_path, "csv", tmp_path / "a.csv.gz")
    assert len(ids) > 50_000
    assert ids == [int(line.partition(",")[0]) for line in lines[: len(ids)]]
    assert places(bad) == [("a.csv.gz", len(ids), None)]
    assert bad.records[0].reason.startswith("the rest of the file: ")


@pytest.mark.parametrize("place", [5_000, -6])
def test_of_a_compressed_file_with_changed_bytes_nothing_is_believed(tmp_path, place):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "b.csv").write_bytes(csv(LINES[:10]))
    (tmp_path / "log" / "a.csv.gz").write_bytes(gzip.compress(csv(LINES)))
    flip_byte(tmp_path / "log" / "a.csv.gz", place % (tmp_path / "log" / "a.csv.gz").stat().st_size)
    ids, bad = converted(tmp_path, "csv", tmp_path / "log")
    assert ids == list(range(10))
    assert places(bad) == [("a.csv.gz", 0, None)]


def test_a_damaged_page_of_a_parquet_file_loses_its_row_group(tmp_path):
    write_parquet(tmp_path / "a.parquet", write_page_checksum=True)
    column = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(4).column(1)
    flip_byte(tmp_path / "a.parquet", column.dictionary_page_offset + column.total_compressed_size // 2)
    ids, bad = converted(tmp_path, "parquet", tmp_path / "a.parquet")
    assert ids == [*range(400), *range(500, 1_000)]
    assert places(bad) == [("a.parquet", 400, 100)]
    with pytest.raises(DataError, match="a.parquet: .*CRC"):
        list(open_source("parquet", str(tmp_path / "a.parquet"), SCHEMA).batches())


@pytest.mark.parametrize("first", [True, False])
def test_files_that_are_no_parquet_files_are_skipped(tmp_path, first):
    (tmp_path / "log").mkdir()
    names = ("b", "a") if first else ("a", "b")
    write_parquet(tmp_path / "log" / f"{names[0]}.parquet")
    whole = (tmp_path / "log" / f"{names[0]}.parquet").read_bytes()
    (tmp_path / "log" / f"{names[1]}.parquet").write_bytes(whole[:-100])
    (tmp_path / "log" / "c.parquet").write_bytes(b"")
    ids, bad = converted(tmp_path, "parquet", tmp_path / "log")
    assert ids == list(range(1_000))
    assert places(bad) == [(f"{names[1]}.parquet", 0, None), ("c.parquet", 0, None)]
    with pytest.raises(DataError, match=rf"{names[1]}.parquet: expected parquet rows"):
        list(open_source("parquet", str(tmp_path / "log"), SCHEMA).batches())


def test_a_file_whose_column_is_of_another_type_loses_the_rows_that_are_not_of_the_schema(tmp_path):
    (tmp_path / "log").mkdir()
    write_parquet(tmp_path / "log" / "a.parquet", range(10))
    other = table([10, 11, 12]).set_column(0, "id", pa.array(["10", "eleven", "12"]))
    pq.write_table(other, tmp_path / "log" / "b.parquet")
    ids, bad = converted(tmp_path, "parquet", tmp_path / "log")
    assert ids == [*range(10), 10, 12]
    assert places(bad) == [("b.parquet", 1, 1)]


def test_a_file_without_a_column_of_the_schema_is_skipped(tmp_path):
    (tmp_path / "log").mkdir()
    write_parquet(tmp_path / "log" / "a.parquet", range(10))
    pq.write_table(table([1, 2]).drop(["brand"]), tmp_path / "log" / "b.parquet")
    ids, bad = converted(tmp_path, "parquet", tmp_path / "log")
    assert ids == list(range(10))
    assert places(bad) == [("b.parquet", 0, 2)]
    assert "expected the column 'brand'" in bad.records[0].reason
    with pytest.raises(DataError, match="expected at most 1 bad records in all, got 2"):
        list(open_source("parquet", str(tmp_path / "log"), SCHEMA).batches(BadRecords(1)))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_whose_columns_have_names_that_are_no_text_is_skipped(tmp_path, kind):
    (tmp_path / "log").mkdir()
    write_parquet(tmp_path / "log" / "b.parquet", range(10))
    (tmp_path / "log" / "b.csv").write_bytes(csv(LINES[:10]))
    data = (tmp_path / "log" / f"b.{kind}").read_bytes()
    (tmp_path / "log" / f"a.{kind}").write_bytes(data.replace(b"brand", b"br\xffnd"))
    ids, bad = converted(tmp_path, kind, tmp_path / "log")
    assert ids == list(range(10))
    assert places(bad) == [(f"a.{kind}", 0, None)]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_are_counted_by_the_columns_of_the_schema_alone(tmp_path, kind):
    """Columns beside them are numbers in one file and text in another, or not there."""
    (tmp_path / "log").mkdir()
    if kind == "csv":
        (tmp_path / "log" / "a.csv").write_text("id,brand,click,beside\n0,b0,0,7\n1,b1,1\n")
        (tmp_path / "log" / "b.csv").write_text("id,brand,click,beside\n2,b2,0,x\n3,b3,1,y\n")
    else:
        beside = table(range(100)).append_column("beside", pa.array(range(100)))
        pq.write_table(beside, tmp_path / "log" / "a.parquet")
        pq.write_table(table(range(7)), tmp_path / "log" / "b.parquet")
    parts = [TableSource(files, SCHEMA) for files in open_source(kind, str(tmp_path / "log"), SCHEMA).files.each()]
    counts = [part.count_rows(BadRecords()) for part in parts]
    assert counts == [sum(batch.rows.num_rows for batch in part.batches(BadRecords())) for part in parts]
    assert counts == ([1, 2] if kind == "csv" else [100, 7])


def test_rows_without_a_date_are_skipped_where_dates_split(tmp_path):
    columns = (*SCHEMA.columns, Column("date", "string", "ignored"))
    days = ["2022-05-01", None, "2022-05-02", "never", "2022-05-01"]
    pq.write_table(table(range(5)).append_column("date", pa.array(days)), tmp_path / "a.parquet")
    source = open_source("parquet", str(tmp_path / "a.parquet"), Schema(columns, SCHEMA.levels))
    bad, rule = BadRecords(9), parse_split("date:2022-05-02,2022-05-03", "date", 0)
    splits = convert(source, str(tmp_path / "data"), rule, bad=bad)
    assert [splits[name].rows for name in ("train", "validation")] == [2, 1]
    assert places(bad) == [("a.parquet", 1, 1), ("a.parquet", 3, 1)]


def test_rows_of_a_public_log_that_are_not_of_its_layout_are_skipped(tmp_path):
    tokens = [f"{i}+1+5+0+10 {i}+9+5+0+10" for i in range(40)]
    tokens[13] = "13+1"
    (tmp_path / "JD_small").write_text("\n".join(tokens) + "\n")
    source, bad = open_source("jd_hup", str(tmp_path)), BadRecords(9)
    batches = list(source.batches(bad))
    sessions = [session for batch in batches for session in batch.rows.column("session").to_pylist()]
    assert sorted(sessions) == sorted(f"JD_small:{i}" for i in range(40) if i != 13)
    assert places(bad) == [("JD_small", 13, 1)]
    assert source.count_rows(BadRecords(9)) == 39
    with pytest.raises(DataError, match="expected the JD micro behaviors layout"):
        list(source.batches())
