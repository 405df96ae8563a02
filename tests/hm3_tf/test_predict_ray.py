"""Prediction on Ray: the files of one process, also where a process of Ray is killed."""

import os
import pathlib
import signal

import pyarrow.parquet as pq
import pytest

from hm3_tf import predict_ray
from hm3_tf.errors import DataError, LostWorkerError
from hm3_tf.predict import predict_run
from hm3_tf.predict_ray import Worker, predict_on_ray
from hm3_tf.ray_session import connected
from tests.data_pipeline.conftest import flip_byte
from tests.hm3_tf.test_predict import NAMES, contents, index, log, rows, whole  # noqa: F401 (fixtures)


@pytest.fixture(scope="module", autouse=True)
def ray():
    """One Ray for all tests of the file."""
    with connected(None, 2) as ray:
        yield ray


class Killed(Worker):
    """Is killed with each part as many times as a file says, when its file is half-written."""

    def write(self, part):
        lives = pathlib.Path(part.output).parent.with_suffix(".lives")
        ...


def test_both(trained_run, index, whole, tmp_path):
    assert predict_on_ray(trained_run, index, f"{tmp_path}/p") == 857
    assert contents(tmp_path / "p") == contents(whole)
