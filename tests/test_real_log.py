"""From the raw files of KuaiRand-Pure to a SavedModel in a process without hm3-tf."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.folder import DataFolder
from data_pipeline.read import Reader
from data_pipeline.records import arrow_type, encode_rows
from hm3_tf.cli import _status
from hm3_tf.workdir import open_workdir

SAMPLE = pathlib.Path(__file__).parent.parent.parent / "shared" / "data" / "kuairand-pure-sample"
ROWS = 10_000
SERVE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hm3_tf", "data_pipeline"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
import numpy as np
import tensorflow as tf

folder, requests, answers = sys.argv[1:]
columns = dict(np.load(requests, allow_pickle=True))
examples = columns.pop("examples")
model = tf.saved_model.load(folder)
by_column = model.signatures["serving_default"](**{name: tf.constant(values) for name, values in columns.items()})
by_example = model.signatures["serving_examples"](examples=tf.constant(examples))
arrays = {f"column_{name}": value.numpy() for name, value in by_column.items()}
arrays |= {f"example_{name}": value.numpy() for name, value in by_example.items()}
assert not {"hm3_tf", "data_pipeline"} & set(sys.modules)
np.savez(answers, **arrays)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The real log converted, and a short run on it, all by the command."""
    if not SAMPLE.exists():
        pytest.skip(f"the sample of KuaiRand-Pure is not at {SAMPLE}")
    folder = tmp_path_factory.mktemp("kuairand")
    convert = ["--source=kuairand", f"--input={SAMPLE}", f"--output_dir={folder}/data"]
    assert _status(["convert", *convert, "--split=date:2022-05-02,2022-05-03"]) == 0
    train = ["--config=configs/kuairand.py:hm3", f"--data_dir={folder}/data", f"--workdir={folder}/run"]
    small = ["--config.model.tower_units=(16,)", "--config.model.embedding_dim=4", "--config.training.epochs=1"]
    assert _status(["train", *train, *small, "--config.training.global_batch_size=1024"]) == 0
    return open_workdir(f"{folder}/run")


def test_the_split_is_that_of_the_dates(run):
    statistics = json.loads(pathlib.Path(run.data_dir, "statistics.json").read_text())
    assert {name: split["rows"] for name, split in statistics.items()} == {
        "train": 115_574,
        "validation": 19_554,
        "test": 36_543,
    }
    assert sum(sum(split["violations"].values()) for split in statistics.values()) > 0


def test_a_short_run_learns_and_is_calibrated(run):
    assert _status(["evaluate", f"--workdir={run.path}"]) == 0
    figures = json.loads(pathlib.Path(run.file("evaluation", "test.json")).read_text())
    assert figures["pctr"]["auc"] > 0.65 and figures["pctcvr"]["auc"] > 0.6
    assert all(0.7 < figures[target]["pcoc"] < 1.4 for target in ("pctr", "pcvr", "pctcvr"))


def test_both_signatures_give_the_predictions_of_hm3_predict_without_hm3_tf(run, tmp_path):
    assert (
        _status(["predict", f"--workdir={run.path}", f"--data_dir={run.data_dir}", f"--output={tmp_path}/p.parquet"])
        == 0
    )
    assert _status(["export", f"--workdir={run.path}", f"--export_dir={tmp_path}/export"]) == 0
    write_requests(run, tmp_path / "requests.npz")
    arguments = [f"{tmp_path}/export/1", f"{tmp_path}/requests.npz", f"{tmp_path}/answers.npz"]
    done = subprocess.run(
        [sys.executable, "-c", SERVE, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers, predictions = np.load(tmp_path / "answers.npz"), pq.read_table(tmp_path / "p.parquet")
    outputs = {"pctr", "pcvr", "pctcvr", "p_d_mi", "p_d_ma"}
    assert {name.partition("_")[2] for name in answers.files} == outputs
    for name in outputs:
        expected = predictions[name].to_numpy()[:ROWS]
        assert len(expected) == ROWS
        np.testing.assert_allclose(answers[f"column_{name}"], expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(answers[f"example_{name}"], expected, rtol=0, atol=1e-6)


def write_requests(run, path) -> None:
    """Writes the first raw rows of the test split as columns and as serialized Examples."""
    columns = run.schema.inputs
    index = DataFolder.open(run.data_dir).split("test")
    names = tuple(column.name for column in columns)
    batch = next(iter(Reader(index, run.schema, (), carry=names).ordered_dataset(ROWS)))
    arrays = {name: values.numpy() for name, values in batch[3].items()}
    rows = pa.RecordBatch.from_pydict({c.name: pa.array(list(arrays[c.name]), arrow_type(c)) for c in columns})
    np.savez(path, **arrays, examples=np.array(encode_rows(rows, columns), object))
