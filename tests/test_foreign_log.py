"""A log that another system wrote, one tf.train.Example an impression, trains in place from a hand-written schema."""

import json

import numpy as np
import pytest
import tensorflow as tf

from hm3_tf.cli import _status
from hm3_tf.evaluate import evaluate_run
from hm3_tf.workdir import open_workdir
from tests.conftest import DataFolder

ROWS = {"train": 3000, "validation": 600, "test": 900}
SCHEMA = {
    "version": 1,
    "columns": [
        {"name": "uid", "dtype": "int64", "role": "group", "hashing": {"buckets": 500}},
        {"name": "recent", "dtype": "int64", "shape": [None], "max_length": 4, "hashing": {"buckets": 500}},
        {"name": "image", "dtype": "float", "shape": [3]},
        {"name": "label", "dtype": "int64", "role": "behavior"},
    ],
    "levels": [
        {"name": "click", "any_of": ["label"], "values": [1, 2, 3, 4, 5], "gate": True},
        {"name": "d_ma", "any_of": ["label"], "values": [3, 4, 5]},
        {"name": "purchase", "any_of": ["label"], "values": [4, 5]},
    ],
}


def impression(rng) -> bytes:
    """Returns a record: the first element of the image says how likely each step is; some histories are left out."""
    image = rng.normal(size=3)
    steps = rng.random(3) < 1 / (1 + np.exp(-2 * image[0]))
    label = 0 if not steps[0] else 1 if not steps[1] else 3 if not steps[2] else int(rng.integers(4, 6))
    features = {
        "uid": tf.train.Feature(int64_list=tf.train.Int64List(value=[2**60 + int(rng.integers(40))])),
        "image": tf.train.Feature(float_list=tf.train.FloatList(value=image)),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        "unknown to the schema": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x"])),
    }
    if rng.random() < 0.9:
        history = rng.integers(0, 40, rng.integers(0, 7))
        features["recent"] = tf.train.Feature(int64_list=tf.train.Int64List(value=history))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """The shards and the schema; no index, no statistics."""
    folder = tmp_path_factory.mktemp("foreign")
    rng = np.random.default_rng(0)
    for split, rows in ROWS.items():
        (folder / split).mkdir()
        for shard in range(2):
            with tf.io.TFRecordWriter(f"{folder}/{split}/2022-05-0{shard}.tfrecord") as writer:
                for _ in range(rows // 2):
                    writer.write(impression(rng))
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    return folder


def test_it_trains_and_learns_in_place(log, tmp_path):
    before = sorted(path.name for path in log.rglob("*"))
    flags = [
        "--config.model.tower_units=(16,)",
        "--config.model.dropout=0.0",
        "--config.training.global_batch_size=256",
    ]
    more = ["--config.training.learning_rate=0.01", "--config.training.epochs=3"]
    arguments = ["train", "--config=configs/esm2.py", f"--data_dir={log}", f"--workdir={tmp_path}/run"]
    assert _status([*arguments, *flags, *more]) == 0
    assert sorted(path.name for path in log.rglob("*")) == before, "the log is left as it was"
    figures = evaluate_run(open_workdir(f"{tmp_path}/run"), DataFolder.open(str(log)).split("test"), "test")
    assert figures["rows"] == ROWS["test"]
    assert figures["pctr"]["auc"] > 0.8 and figures["pctcvr"]["auc"] > 0.8
    assert figures["levels"]["d_ma"]["pcoc"] == pytest.approx(1, abs=0.25)
    served = ["export", f"--workdir={tmp_path}/run", f"--export_dir={tmp_path}/export"]
    assert _status(served) == 0
    signature = tf.saved_model.load(f"{tmp_path}/export/1").signatures["serving_examples"]
    record = next(iter(tf.data.TFRecordDataset(f"{log}/test/2022-05-00.tfrecord").batch(8)))
    assert signature(examples=record)["pctcvr"].shape == (8,)
