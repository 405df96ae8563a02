"""Predictions of a split as a folder, a file a shard: complete whatever ends a run, and of one model and one log."""

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from data_pipeline import schema as schemas
from data_pipeline.folder import DataFolder
from data_pipeline.records import encode_packed
from data_pipeline.sources.simulated import SimulatedSource
from data_pipeline.storage import lock
from hm3_tf import evaluate
from hm3_tf.cli import _status
from hm3_tf.errors import DataError, Hm3Error
from hm3_tf.predict import Predictor, predict_run
from tests.conftest import LOG, save_best
from tests.data_pipeline.conftest import flip_byte, write_records

SHARD_ROWS = (300, 0, 1, 299, 257)
NAMES = [f"{'abcde'[i]}-0.parquet" for i in range(len(SHARD_ROWS))]


@pytest.fixture(scope="module")
def rows():
    """The rows of the test split as they were simulated."""
    (batch,) = SimulatedSource(LOG).batches()
    return batch.rows.filter(pa.array(batch.rows["day"].to_numpy() == 6))


@pytest.fixture(scope="module")
def log(rows, tmp_path_factory):
    """These rows as a data folder with a test split of five shards; not to be changed."""
    folder, first = tmp_path_factory.mktemp("sharded"), 0
    (folder / "schema.json").write_text(schemas.to_json(LOG.schema))
    for name, count in zip(NAMES, SHARD_ROWS):
        records = [encode_packed(rows.slice(first, count), LOG.schema.columns)] if count else []
        write_records(f"{folder}/test/{name.replace('parquet', 'tfrecord')}", records)
        first += count
    return folder


@pytest.fixture(scope="module")
def index(log):
    return DataFolder.open(str(log)).split("test")


@pytest.fixture(scope="module")
def whole(trained_run, index, tmp_path_factory):
    """The predictions of a run that nothing interrupts; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    assert predict_run(trained_run, index, str(folder)) == 857
    return folder


def contents(folder):
    """Returns {name: bytes} of the files that are not hidden from readers of Parquet folders."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] not in "._"}


def test_a_folder_has_a_file_a_shard_and_every_row_once_in_the_order_of_the_log(whole, rows, trained_run, index):
    assert sorted(contents(whole)) == NAMES
    assert [pq.read_metadata(whole / name).num_rows for name in NAMES] == list(SHARD_ROWS)
    table = pq.read_table(whole)
    ids = rows["user_id"].to_numpy()
    assert (ids.astype(np.float64).astype(np.int64) != ids).any()  # above 2^53
    np.testing.assert_array_equal(table["user_id"], ids)


def test_one_file_has_the_rows_of_all_shards(whole, trained_run, index, tmp_path):
    predict_run(trained_run, index, f"{tmp_path}/one.parquet")
    one, many = pq.read_table(tmp_path / "one.parquet"), pq.read_table(whole)
    assert one.column_names == many.column_names == ["user_id", "pctr", "pcvr", "pctcvr", "p_d_mi", "p_d_ma"]
    for name in one.column_names:
        np.testing.assert_allclose(one[name], many[name], rtol=1e-5, err_msg=name)


def test_a_name_that_ends_in_a_slash_is_a_folder(whole, trained_run, index, tmp_path):
    predict_run(trained_run, index, f"{tmp_path}/p.parquet/")
    assert contents(tmp_path / "p.parquet") == contents(whole)


def test_row_groups_are_of_many_batches(trained_run, index, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCH_ROWS", 8)
    predict_run(trained_run, index, f"{tmp_path}/one.parquet")
    metadata = pq.read_metadata(tmp_path / "one.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [512, 345]


KILLED = """
import os, signal, sys
import pyarrow.parquet as pq
from hm3_tf.cli import main

class Writer(pq.ParquetWriter):
    groups = 0

    def write_table(self, *arguments):
        super().write_table(*arguments)
        Writer.groups += 1
        if Writer.groups == 3:
            os.kill(os.getpid(), signal.SIGKILL)

pq.ParquetWriter = Writer
main()
"""


def test_a_run_that_is_killed_goes_on_where_it_was_and_ends_with_the_same_files(trained_run, log, whole, tmp_path):
    arguments = ["predict", f"--workdir={trained_run.path}", f"--data_dir={log}", f"--output={tmp_path}"]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=root, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = contents(tmp_path)
    (half,) = set(left) - set(NAMES)
    assert half.startswith(NAMES[3]) and set(left) == {*NAMES[:3], half}
    times = {name: os.stat(tmp_path / name).st_mtime_ns for name in NAMES[:3]}
    assert _status(arguments) == 0
    assert contents(tmp_path) == contents(whole)
    assert {name: os.stat(tmp_path / name).st_mtime_ns for name in NAMES[:3]} == times


def test_a_run_that_is_done_says_so_and_builds_no_model(trained_run, log, whole, monkeypatch, capsys):
    monkeypatch.setattr("hm3_tf.predict.Predictor", None)
    arguments = ["predict", f"--workdir={trained_run.path}", f"--data_dir={log}", f"--output={whole}"]
    assert _status(arguments) == 0
    assert capsys.readouterr().out == f"wrote {whole}: 857 rows\n"


def other_model(run, index, folder):
    run = dataclasses.replace(run, path=str(folder / "other"))
    model = run.build_model()
    model.network.set_weights([2 * w for w in model.network.get_weights()])
    save_best(run, model)
    return run, index


def other_rows(run, index, folder):
    shutil.copytree(index.folder, folder / "test")
    shutil.copy(folder / "test" / "e-0.tfrecord", folder / "test" / "a-0.tfrecord")
    return run, DataFolder(str(folder), run.schema).split("test")


def fewer_shards(run, index, folder):
    shutil.copytree(index.folder, folder / "test")
    os.remove(folder / "test" / "b-0.tfrecord")
    return run, DataFolder(str(folder), run.schema).split("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            other_model,
            r"a-0.parquet: expected predictions by this model of this shard \(weights: ckpt-1 \w+\), found ckpt-1",
        ),
        (other_rows, r"a-0.parquet: expected predictions by this model of this shard \(rows: 257\), found 300"),
        (fewer_shards, "b-0.parquet: expected files of the shards of this split alone, found one of none"),
    ],
)
def test_a_folder_with_predictions_of_something_else_is_refused(whole, trained_run, index, tmp_path, change, message):
    run, index = change(trained_run, index, tmp_path)
    before = contents(whole)
    with pytest.raises(Hm3Error, match=message + ".*; name another --output, or remove"):
        predict_run(run, index, str(whole))
    assert contents(whole) == before


@pytest.mark.parametrize(
    "write", [lambda path: path.write_bytes(b"x"), lambda path: pq.write_table(pa.table({}), path)]
)
def test_a_file_that_is_not_of_hm3_predict_is_refused(trained_run, index, tmp_path, write):
    write(tmp_path / "c-0.parquet")
    with pytest.raises(Hm3Error, match="c-0.parquet: expected predictions by this model .*, found None"):
        predict_run(trained_run, index, str(tmp_path))


def test_a_folder_that_another_process_writes_into_is_refused(trained_run, index, tmp_path):
    with (
        lock(str(tmp_path), "--output", "_lock"),
        pytest.raises(Hm3Error, match="a process holds _lock.*another --output"),
    ):
        predict_run(trained_run, index, str(tmp_path))


def test_a_shard_that_becomes_corrupt_is_named_and_those_before_it_are_kept(trained_run, index, tmp_path, monkeypatch):
    shutil.copytree(index.folder, tmp_path / "test")
    index = DataFolder(str(tmp_path), trained_run.schema).split("test")
    predictor = Predictor(trained_run, trained_run.checkpoint(), index)
    flip_byte(tmp_path / "test" / "d-0.tfrecord", 1_000)
    monkeypatch.setattr("hm3_tf.predict.Predictor", lambda *_: predictor)
    with pytest.raises(DataError, match="d-0.tfrecord: expected TFRecord data, found a corrupt .* at byte offset"):
        predict_run(trained_run, index, f"{tmp_path}/predictions")
    assert sorted(contents(tmp_path / "predictions")) == NAMES[:3]


def test_weights_that_are_gone_are_named(trained_run, index, tmp_path):
    shutil.copytree(trained_run.file("checkpoints"), tmp_path / "checkpoints")
    run = dataclasses.replace(trained_run, path=str(tmp_path))
    checkpoint = run.checkpoint()
    for path in tf.io.gfile.glob(f"{checkpoint}*"):
        os.remove(path)
    with pytest.raises(
        Hm3Error, match=f"{checkpoint}: expected the checkpoint that was there at the start, found none"
    ):
        run.trained_model(checkpoint)
