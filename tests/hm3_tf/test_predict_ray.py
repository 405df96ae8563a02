"""Prediction on Ray: the files and the errors of one process, also where a process of Ray is killed."""

import os
import pathlib
import shutil
import signal

import pytest

from data_pipeline import storage
from data_pipeline.folder import DataFolder
from hm3_tf import predict_ray
from hm3_tf.errors import DataError, LostWorkerError
from hm3_tf.predict import predict_run
from hm3_tf.predict_ray import Worker, predict_on_ray
from hm3_tf.ray_session import connected
from tests.data_pipeline.conftest import flip_byte

SHARDS = ("a", "b", "c")


@pytest.fixture(scope="module", autouse=True)
def ray():
    """One Ray for all tests of the file."""
    with connected(None, 2) as ray:
        yield ray


@pytest.fixture
def index(data, trained_run, tmp_path):
    """A split of three shards, each of which has the rows of the test split."""
    for name in SHARDS:
        storage.make_folder(f"{tmp_path}/test")
        shutil.copy(data.split("test").files[0], tmp_path / "test" / f"{name}.tfrecord")
    return DataFolder(str(tmp_path), trained_run.schema).split("test")


def killed_once(folder):
    """Returns a worker that is killed when it has half of the file b.parquet, the first time."""

    class Killed(Worker):
        def write(self, part):
            if pathlib.Path(part.output).stem == "b" and not (folder / "killed").exists():
                (folder / "killed").touch()
                with storage.staged_file(part.output) as temporary:
                    pathlib.Path(temporary).write_text("half")
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().write(part)

    return Killed


def test_the_files_are_those_of_one_process_where_a_worker_is_killed_once(trained_run, index, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_ray, "Worker", killed_once(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert predict_on_ray(trained_run, index, "ray") == predict_run(trained_run, index, "local") == 3 * 857
    assert (tmp_path / "killed").exists()
    found, expected = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("ray", "local")
    )
    assert found == expected and set(found) == {"_lock", *(f"{name}.parquet" for name in SHARDS)}


def test_a_part_that_is_lost_too_often_ends_the_command(ray, monkeypatch):
    class Lost:
        def __init__(self, job):
            pass

        def write(self, part):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(predict_ray, "Worker", Lost)
    monkeypatch.setattr(predict_ray, "_TRIES_AGAIN", 1)
    with pytest.raises(LostWorkerError, match="within 1 tries more, lost a process .*; the same command goes on"):
        list(predict_ray._write(ray, ("run", "checkpoint", "index"), ["part"]))


def test_what_is_wrong_in_a_shard_is_said_as_by_one_process(trained_run, index, tmp_path):
    flip_byte(index.files[1], 1_000)
    with pytest.raises(DataError) as local:
        predict_run(trained_run, index, f"{tmp_path}/local.parquet")
    with pytest.raises(DataError) as on_ray:
        predict_on_ray(trained_run, index, f"{tmp_path}/ray.parquet")
    assert str(on_ray.value) == str(local.value)
