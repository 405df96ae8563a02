"""From the raw files of KuaiRand-Pure to a SavedModel in a process without hm3-tf."""

import collections
import csv
import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.folder import DataFolder
from data_pipeline.read import Reader
from data_pipeline.records import arrow_type, encode_rows
from data_pipeline.validate import validate
from hm3_tf.cli import _status
from hm3_tf.workdir import open_workdir

SAMPLE = pathlib.Path(__file__).parent.parent.parent / "shared" / "data" / "kuairand-pure-sample"
ROWS = 10_000
SERVE = """
import json, pickle, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hm3_tf", "data_pipeline"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
import numpy as np
import tensorflow as tf

folder, requests, answers = sys.argv[1:]
signatures = tf.saved_model.load(folder).signatures

def from_json(text):
    body = json.loads(text)
    specs = signatures[body["signature_name"]].structured_input_signature[1]
    return {name: np.array([row[name] for row in body["instances"]], spec.dtype.as_numpy_dtype) for name, spec in specs.items()}

def answer(signature, inputs):
    inputs = from_json(inputs) if isinstance(inputs, str) else inputs
    outputs = signatures[signature](**{name: tf.constant(values) for name, values in inputs.items()})
    return {name: value.numpy() for name, value in outputs.items()}

with open(requests, "rb") as file:
    results = [answer(*request) for request in pickle.load(file)]
assert not {"hm3_tf", "data_pipeline"} & set(sys.modules)
with open(answers, "wb") as file:
    pickle.dump(results, file)
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


def test_validation_warns_of_likes_without_a_click_and_of_copies_only(run):
    with open(next(SAMPLE.glob("*/data/log_standard*.csv"))) as file:
        days = {"train": [], "validation": [], "test": []}
        for row in csv.DictReader(file):
            split = "train" if row["date"] < "20220502" else "validation" if row["date"] == "20220502" else "test"
            days[split].append(row)
    validation = validate(DataFolder.open(run.data_dir))
    severe = {f"{f.check} of {f.where}: {f.what}" for f in validation.findings if f.severity != "info"}
    expected = set()
    for split, rows in days.items():
        liked = [row for row in rows if int(row["is_like"])]
        unclicked = sum(not int(row["is_click"]) for row in liked)
        share = unclicked / len(liked)
        expected.add(
            f"hierarchy of {split}: {unclicked:,} rows with purchase without click, {share:.2%} of these labels"
        )
        kept = {tuple(value for name, value in row.items() if name != "play_time_ms") for row in rows}
        copies = 1 - len(kept) / len(rows)
        expected.add(
            f"duplicates of {split}: {copies:.2%} of its rows are copies, equal in all columns to a row before"
        )
    assert severe == expected


def test_the_conversion_has_the_counts_of_the_page_of_the_log(run):
    splits = DataFolder.open(run.data_dir).statistics().values()
    counts = collections.Counter()
    for split in splits:
        for pattern, rows in split.label_patterns.items():
            counts.update({level: rows for level, happened in zip(split.level_names, pattern) if happened == "1"})
        # Likes and long views without a click are on the page too; by the hierarchy they are none.
        counts.update({kind.partition(" ")[0]: rows for kind, rows in split.violations.items()})
    assert sum(split.rows for split in splits) == 171_671
    assert (counts["click"], counts["d_ma"], counts["purchase"]) == (76_099, 53_544, 2_996)


def test_a_short_run_learns_and_is_calibrated(run):
    assert _status(["evaluate", f"--workdir={run.path}"]) == 0
    figures = json.loads(pathlib.Path(run.file("evaluation", "test.json")).read_text())
    assert figures["pctr"]["auc"] > 0.65 and figures["pctcvr"]["auc"] > 0.6
    assert all(0.7 < figures[target]["pcoc"] < 1.4 for target in ("pctr", "pcvr", "pctcvr"))


def test_all_signatures_give_the_predictions_of_hm3_predict_without_hm3_tf(run, tmp_path):
    predicted = [f"--workdir={run.path}", f"--data_dir={run.data_dir}", f"--output={tmp_path}/p.parquet"]
    assert _status(["predict", *predicted]) == 0
    assert _status(["export", f"--workdir={run.path}", f"--export_dir={tmp_path}/export", f"--check={ROWS}"]) == 0
    metadata = json.loads((tmp_path / "export" / "1" / "assets.extra" / "metadata.json").read_text())
    assert metadata["skew"]["rows"] == ROWS and metadata["warm_up"] == [1, 100, 500]
    requests = list(requests_of(run, metadata["signatures"]))
    (tmp_path / "requests").write_bytes(pickle.dumps([(signature, inputs) for signature, _, inputs in requests]))
    arguments = [f"{tmp_path}/export/1", f"{tmp_path}/requests", f"{tmp_path}/answers"]
    done = subprocess.run(
        [sys.executable, "-c", SERVE, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers, predictions = pickle.loads((tmp_path / "answers").read_bytes()), pq.read_table(tmp_path / "p.parquet")
    expected = {name: predictions[name].to_numpy()[:ROWS] for name in ("pctr", "pcvr", "pctcvr", "p_d_mi", "p_d_ma")}
    scored = collections.Counter()
    for (signature, rows, inputs), answer in zip(requests, answers):
        assert set(answer) == set(expected)
        for name, p in expected.items():
            np.testing.assert_allclose(answer[name], p[rows], rtol=0, atol=1e-6, err_msg=f"{signature} {name}")
        scored[signature, type(inputs).__name__] += len(rows)
    assert scored == {("serving_default", "str"): ROWS, **{(name, "dict"): ROWS for name in metadata["signatures"]}}


def requests_of(run, signatures):
    """Yields (signature, rows, inputs) for the first rows of the test split, and the same rows as the text of a REST request.

    Of columns that a signature takes once a request, the rows of a request have one value.
    """
    columns = run.schema.inputs
    index = DataFolder.open(run.data_dir).split("test")
    names = tuple(column.name for column in columns)
    batch = next(iter(Reader(index, run.schema, (), carry=names).ordered_dataset(ROWS)))
    raw = {name: values.numpy() for name, values in batch[3].items()}
    arrow = pa.RecordBatch.from_pydict({c.name: pa.array(list(raw[c.name]), arrow_type(c)) for c in columns})
    everything = {**raw, "examples": np.array(encode_rows(arrow, columns), object)}
    for signature, description in signatures.items():
        shapes = {name: tensor["shape"] for name, tensor in description["inputs"].items()}
        shared = [name for name, shape in shapes.items() if shape[0] == 1]
        together = collections.defaultdict(list)
        for row in range(ROWS):
            together[repr([raw[name][row] for name in shared])].append(row)
        for rows in together.values():
            yield signature, rows, {name: everything[name][rows[:1] if name in shared else rows] for name in shapes}
    instances = [
        {name: v.decode() if isinstance(v, bytes) else np.asarray(v).tolist() for name, v in zip(raw, row)}
        for row in zip(*raw.values())
    ]
    yield (
        "serving_default",
        list(range(ROWS)),
        json.dumps({"signature_name": "serving_default", "instances": instances}),
    )
