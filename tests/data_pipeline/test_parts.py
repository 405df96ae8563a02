"""Conversion by several processes, on Ray, or killed and gone on with: byte for byte the folder of one process."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from data_pipeline.bad_records import BadRecords
from data_pipeline.convert import convert
from data_pipeline.processes import process_pool, run_here
from data_pipeline.ray_tasks import ray_tasks
from data_pipeline.simulate import SimulatedLog
from data_pipeline.sources import base, open_source
from data_pipeline.sources.base import TableFiles, TableSource
from data_pipeline.sources.simulated import SimulatedSource, day_split
from data_pipeline.split_rules import SPLITS, FractionRule, parse_split
from hm3_tf.errors import DataError, Hm3Error
from hm3_tf.ray_session import connected
from tests.data_pipeline.conftest import COLUMNS, SCHEMA, make_rows, read_stored, to_batch

RULE = FractionRule((0.6, 0.2, 0.2), 3)


@pytest.fixture(scope="module")
def ray():
    """Runs parts on one Ray for all tests of the file."""
    with connected(None, 2), ray_tasks() as run:
        yield run


@pytest.fixture(scope="module")
def pool():
    """Runs parts on two processes."""
    with process_pool(2) as run:
        yield run


@pytest.fixture(scope="module", params=["pool", "ray"])
def run(request):
    """Runs parts elsewhere."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four Parquet files of 2,500 rows, one of them empty and one of three row groups, with labels against the hierarchy."""
    path = tmp_path_factory.mktemp("log")
    batch = to_batch(make_rows(2_500))
    for i, (start, stop) in enumerate([(0, 1_100), (1_100, 1_101), (1_101, 1_101), (1_101, 2_500)]):
        table = pa.Table.from_batches([batch.slice(start, stop - start)])
        pa.parquet.write_table(table, path / f"{i}.parquet", row_group_size=500 if i == 3 else None)
    return path


@pytest.fixture
def log(folder, monkeypatch):
    """The log, in parts of about 500 rows."""
    monkeypatch.setattr(base, "PART_ROWS", 500)
    return TableSource(TableFiles(str(folder), "parquet"), SCHEMA)


@pytest.fixture
def damaged(tmp_path, monkeypatch):
    """A log of four CSV files, a part each, with 3 bad rows, none, 2, and cut off in its first block."""
    monkeypatch.setattr(base, "_PART_BYTES", 100)
    rows = [[f"{i},{i / 2},{i % 2}" for i in range(1_000 * part, 1_000 * part + 1_000)] for part in range(4)]
    rows[0][7] = "7,1"
    rows[0][500:502] = ["500,nan,0", "501,inf,1"]
    rows[2][0] = "2000,0.5,yes"
    rows[2][999] = "2999,0.5,1,1"
    (tmp_path / "log").mkdir()
    for part, lines in enumerate(rows):
        data = "\n".join(["item,price,click", *lines, ""]).encode()
        (tmp_path / "log" / f"{part}.csv").write_bytes(data)
    data = gzip.compress((tmp_path / "log" / "3.csv").read_bytes())
    (tmp_path / "log" / "3.csv").unlink()
    (tmp_path / "log" / "3.csv.gz").write_bytes(data[: len(data) * 2 // 3])
    return open_source("csv", str(tmp_path / "log"), behaviors="click")


def contents(folder):
    """Returns {path in a folder: bytes}."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_log_is_cut_at_files_and_row_groups_and_no_row_is_lost(log):
    parts = log.parts()
    assert [part.count_rows() for part in parts] == [1_100, 501, 500, 399]
    batches = [batch for part in parts for batch in part.batches()]
    assert pa.Table.from_batches([b.rows for b in batches]) == pa.Table.from_batches([b.rows for b in log.batches()])
    assert [(os.path.basename(b.file), b.first_row) for b in batches if b.rows.num_rows] == [
        ("0.parquet", 0),
        ("1.parquet", 0),
        ("3.parquet", 0),
        ("3.parquet", 500),
        ("3.parquet", 1_000),
    ]


@pytest.mark.parametrize("nesting, record_format", [("coerce", "packed"), ("drop", "row")])
def test_a_folder_is_the_same_byte_for_byte_whatever_wrote_it(log, run, tmp_path, nesting, record_format):
    options = {"nesting": nesting, "record_format": record_format}
    convert(log, str(tmp_path / "here"), RULE, **options)
    convert(log, str(tmp_path / "there"), RULE, **options, run=run)
    written = contents(tmp_path / "here")
    assert contents(tmp_path / "there") == written
    assert {name[:16] for name in written if name.startswith("train/part")} == {f"train/part-0000{i}" for i in range(4)}
    violations = json.loads(written["statistics.json"])["train"]["violations"]
    assert violations["purchase without click"] > 0


def test_rows_fall_into_the_same_splits_in_the_same_order_in_how_many_parts_ever(log, tmp_path, monkeypatch):
    convert(log, str(tmp_path / "parts"), RULE)
    monkeypatch.setattr(base, "PART_ROWS", 10**6)
    assert len(log.parts()) == 1
    convert(log, str(tmp_path / "one"), RULE)
    for split in SPLITS:
        parts, one = (read_stored(tmp_path / name / split, COLUMNS) for name in ("parts", "one"))
        for column, values in one.items():
            np.testing.assert_array_equal(parts[column], values, err_msg=f"{split} {column}")
    parts, one = (json.loads((tmp_path / name / "statistics.json").read_text()) for name in ("parts", "one"))
    for split in SPLITS:
        moments = one[split]["columns"].pop("price"), parts[split]["columns"].pop("price")
        assert moments[0] == {name: pytest.approx(value, rel=1e-9) for name, value in moments[1].items()}
        assert parts[split]["label_patterns"] == one[split]["label_patterns"]
        assert parts[split]["columns"]["user"] == one[split]["columns"]["user"]


def test_columns_of_csv_files_have_the_types_of_the_whole_log_and_dates_split_it(tmp_path, run, monkeypatch):
    monkeypatch.setattr(base, "_PART_BYTES", 10)
    days = ["2022-05-01", "2022-05-02", "2022-05-03"] * 5
    for name, ids in (("a", [f"{i}x" for i in range(15)]), ("b", list(range(15)))):  # text in a, so text in b
        table = pa.table({"item": ids, "price": range(15), "date": days, "click": [1, 0, 0] * 5})
        pa.csv.write_csv(table, tmp_path / f"{name}.csv")
    source = open_source("csv", str(tmp_path), behaviors="click", ignored="date")
    assert len(source.parts()) == 2
    rule = parse_split("date:2022-05-02,2022-05-03", "date", 0)
    convert(source, str(tmp_path / "here"), rule)
    convert(source, str(tmp_path / "there"), rule, run=run)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_simulated_log_is_written_in_parts_too(tmp_path, pool, monkeypatch):
    monkeypatch.setattr("data_pipeline.sources.simulated.PART_ROWS", 65_536)
    source = SimulatedSource(SimulatedLog(rows=70_000))
    assert [part.count_rows() for part in source.parts()] == [65_536, 4_464]
    convert(source, str(tmp_path / "here"), day_split())
    convert(source, str(tmp_path / "there"), day_split(), run=pool)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.fixture(params=["pool", "ray"])
def run_once(request):
    """Runs parts elsewhere, and ends with an error."""
    if request.param == "ray":
        yield request.getfixturevalue("ray")
    else:
        with process_pool(2) as run:
            yield run


def test_what_is_wrong_in_a_file_is_said_as_by_one_process_and_nothing_is_left(log, run_once, tmp_path, capfd):
    with pytest.raises(DataError) as here:
        convert(log, str(tmp_path / "here"), FractionRule((1, 0, 0), 0), nesting="error")
    with pytest.raises(DataError) as there:
        convert(log, str(tmp_path / "there"), FractionRule((1, 0, 0), 0), nesting="error", run=run_once)
    assert str(there.value) == str(here.value)
    assert not os.listdir(tmp_path)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("where", ["pool", "ray"])
def test_what_is_skipped_is_the_same_whatever_wrote_it(damaged, where, request, tmp_path):
    run, bad, there = request.getfixturevalue(where), BadRecords(6), BadRecords(6)
    counts = [part.count_rows(BadRecords(6)) for part in damaged.parts()]
    assert counts == [999, 1_000, 998, 0]
    convert(damaged, str(tmp_path / "here"), RULE, bad=bad)
    convert(damaged, str(tmp_path / "there"), RULE, bad=there, run=run)
    written = contents(tmp_path / "here")
    assert contents(tmp_path / "there") == written
    lines = [json.loads(line) for line in written["bad_records.jsonl"].splitlines()]
    assert [(os.path.basename(line["file"]), line["row"]) for line in lines] == [
        ("0.csv", 7),
        ("0.csv", 500),
        ("0.csv", 501),
        ("2.csv", 999),
        ("2.csv", 0),
        ("3.csv.gz", 0),
    ]
    assert there.records == bad.records


@pytest.mark.parametrize("where", ["here", "pool", "ray"])
def test_bad_records_are_bounded_over_all_parts_together(damaged, where, request, tmp_path):
    run = run_here if where == "here" else request.getfixturevalue(where)
    with pytest.raises(
        DataError, match=r"3.csv.gz: expected at most 5 bad records in all, got 6, the last one at row 0"
    ):
        convert(damaged, str(tmp_path / "data"), RULE, bad=BadRecords(5), run=run)
    assert os.listdir(tmp_path) == ["log"]


# Killed

PROGRAM = """
import os, signal, sys
from data_pipeline import convert, staging
from data_pipeline.sources import base
from hm3_tf import cli

base.PART_ROWS, base._PART_BYTES = 500, 100
write = staging.Staging.write

def die_or_write(self, part, result):
    if part == {part}:
        {then}
    write(self, part, result)

staging.Staging.write = die_or_write
sys.argv[0] = "hm3"
cli.main()
"""


@pytest.fixture(scope="module")
def flags(folder, tmp_path_factory):
    """Flags of the command for the log."""
    from data_pipeline.schema import to_json

    schema = tmp_path_factory.mktemp("schema") / "schema.json"
    schema.write_text(to_json(SCHEMA))
    return ["--source=parquet", f"--input={folder}", f"--schema={schema}", "--split=fraction:.6,.2,.2", "--seed=3"]


def command(program, flags, output):
    return [sys.executable, "-c", program, "convert", *flags, f"--output_dir={output}", "--processes=1"]


@pytest.fixture
def killed(flags, tmp_path):
    """The folder of a conversion that ended by kill -9 after two of its four parts, before the record of the third."""
    output = tmp_path / "data"
    program = PROGRAM.format(part=2, then="os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run(command(program, flags, output), capture_output=True).returncode == -signal.SIGKILL
    assert not output.exists()
    return output


def test_the_same_conversion_goes_on_from_the_parts_that_a_killed_one_wrote(log, killed, tmp_path, monkeypatch):
    read = []
    batches = TableSource.batches
    monkeypatch.setattr(TableSource, "batches", lambda self, bad: read.append(self) or batches(self, bad))
    convert(log, str(killed), RULE)
    assert len(read) == 2
    assert os.listdir(tmp_path) == ["data"]
    convert(log, str(tmp_path / "whole"), RULE)
    assert contents(killed) == contents(tmp_path / "whole")


def test_a_killed_conversion_that_skips_goes_on_with_the_bad_records_that_it_found(damaged, tmp_path, monkeypatch):
    flags = [
        "--source=csv",
        f"--input={tmp_path / 'log'}",
        "--behaviors=click",
        "--split=fraction:.6,.2,.2",
        "--seed=3",
    ]
    program = PROGRAM.format(part=2, then="os.kill(os.getpid(), signal.SIGKILL)")
    dead = subprocess.run(command(program, [*flags, "--on_error=skip"], tmp_path / "data"), capture_output=True)
    assert dead.returncode == -signal.SIGKILL
    convert(damaged, str(tmp_path / "whole"), RULE, bad=BadRecords())
    read, batches = [], TableSource.batches
    monkeypatch.setattr(TableSource, "batches", lambda self, bad: read.append(self) or batches(self, bad))
    convert(damaged, str(tmp_path / "data"), RULE, bad=BadRecords())
    assert len(read) == len(damaged.parts()) + 2  # counted again, and the last two written
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


def test_another_conversion_does_not_take_the_parts_of_a_killed_one(log, killed, folder, tmp_path):
    convert(log, str(killed), FractionRule((0.6, 0.2, 0.2), 4))
    convert(log, str(tmp_path / "whole"), FractionRule((0.6, 0.2, 0.2), 4))
    assert contents(killed) == contents(tmp_path / "whole")


def test_a_part_whose_record_or_shard_is_not_whole_is_written_again(log, killed, tmp_path):
    (staging,) = tmp_path.glob("data.tmp-*")
    (record,) = staging.glob("_parts-*/00000.pickle")
    record.write_bytes(b"")
    shard = staging / "train" / "part-00001-00000.tfrecord"
    os.truncate(shard, shard.stat().st_size - 1)
    convert(log, str(killed), RULE)
    convert(log, str(tmp_path / "whole"), RULE)
    assert contents(killed) == contents(tmp_path / "whole")


def test_a_file_that_comes_while_a_log_is_read_is_not_read_and_one_that_changes_is_an_error(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(base, "PART_ROWS", 500)
    raw = shutil.copytree(folder, tmp_path / "raw")
    files = TableFiles(str(raw), "parquet")
    parts = files.parts()
    shutil.copy(raw / "3.parquet", raw / "00.parquet")
    assert sum(batch.rows.num_rows for part in parts for batch in part.batches()) == 2_500
    os.utime(raw / "1.parquet", ns=(1, 1))
    with pytest.raises(DataError, match="1.parquet: expected the file that was found at the start"):
        list(parts[1].batches())


def test_a_log_that_has_changed_is_another_one(log, folder):
    before = log.origin
    os.utime(folder / "1.parquet")
    assert log.origin != before


def test_two_processes_do_not_write_one_folder(log, flags, tmp_path):
    output = tmp_path / "data"
    program = PROGRAM.format(part=1, then="print('here', flush=True); sys.stdin.read()")
    writer = subprocess.Popen(command(program, flags, output), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout.readline() == "here\n"
        with pytest.raises(Hm3Error, match="expected no other work here"):
            convert(log, str(output), RULE)
    finally:
        writer.communicate("")
    assert writer.returncode == 0 and (output / "schema.json").exists()


# The pool


def end_with_signal(number):
    os.kill(os.getpid(), number)


def sleep_beside(path):
    """Writes the number of its process, and waits."""
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


def test_a_process_that_is_killed_ends_the_work_with_what_to_do():
    message = "one was killed, perhaps for the memory it took; .* fewer --processes goes on"
    with pytest.raises(Hm3Error, match=message), process_pool(2) as run:
        list(run(end_with_signal, [signal.SIGKILL]))


def test_the_pool_ends_with_the_process_that_has_it(tmp_path):
    program = (
        "from data_pipeline.processes import process_pool\n"
        "from tests.data_pipeline.test_parts import sleep_beside\n"
        f"with process_pool(1) as run: list(run(sleep_beside, [{str(tmp_path / 'child')!r}]))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        assert parent.poll() is None
        time.sleep(0.1)
    child = int((tmp_path / "child").read_text())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{child}")
