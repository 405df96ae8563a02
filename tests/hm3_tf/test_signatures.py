"""Signatures as a server sees them, and requests made of logged rows."""

import numpy as np
import pytest
import tensorflow as tf

from data_pipeline.convert import convert
from data_pipeline.folder import DataFolder
from data_pipeline.sources.simulated import SimulatedSource, day_split
from hm3_tf.signatures import Signature, input_columns, read_rows, read_signatures
from tests.conftest import LOG, read_split
from tests.truth_model import TRUTH, save_truth

OWN = Signature({"user_id": tf.TensorSpec([None], tf.int64), "history": tf.TensorSpec([None, None], tf.int64)}, {})
SHARED = Signature(
    {"user_id": tf.TensorSpec([1], tf.int64), "history": tf.TensorSpec([1, None], tf.int64)}
    | {"item_id": tf.TensorSpec([None], tf.int64)},
    {},
)
EXAMPLES = Signature({"examples": tf.TensorSpec([None], tf.string)}, {})


@pytest.fixture(scope="module")
def rows(trained_run, data):
    columns = input_columns({"own": OWN, "shared": SHARED}, data.schema.columns)
    return read_rows(trained_run, data.split("test"), columns, 20)


def test_signatures_are_read_without_their_weights(tmp_path):
    folder = save_truth(str(tmp_path / "model"))
    for path in (tmp_path / "model" / "variables").iterdir():
        path.unlink()
    signatures = read_signatures(folder)
    assert list(signatures) == ["rank", "serving_default", "serving_examples"]
    rank = signatures["rank"]
    assert {name: (spec.dtype, spec.shape.as_list()) for name, spec in rank.inputs.items()} == {
        "user_id": (tf.int64, [1]),
        **{name: (tf.float32, [None]) for name in TRUTH.values()},
    }
    assert set(rank.outputs) == {"pctr", "pcvr", "pctcvr", "p_d_mi", "p_d_ma", "user"}
    assert rank.is_shared("user_id") and not rank.is_shared("truth_pctr") and not rank.is_shared("examples")


def test_a_request_has_the_values_of_the_log(rows, trained_run, data):
    _, _, carried = read_split(trained_run.config, data, "test", carry=("user_id", "history"))
    request = rows.request(OWN)
    assert set(request) == {"user_id", "history"}
    for name, values in request.items():
        np.testing.assert_array_equal(values, carried[name][rows.numbers])


def test_a_shared_column_is_given_once_and_is_that_of_the_first_row_in_all(rows):
    request = rows.request(SHARED)
    assert {name: len(values) for name, values in request.items()} == {"user_id": 1, "history": 1, "item_id": 20}
    assert request["user_id"][0] == rows.raw["user_id"][0] != rows.raw["user_id"][1]
    seen = rows.seen_by(SHARED)
    for name, values in rows.features.items():
        expected = np.repeat(values[:1], 20, axis=0) if name in ("user_id", "history") else values
        np.testing.assert_array_equal(seen[name], expected)


def test_examples_hold_the_same_values(rows):
    examples = rows.request(EXAMPLES)["examples"]
    parsed = [tf.train.Example.FromString(example).features.feature for example in examples]
    assert [feature["user_id"].int64_list.value[:] for feature in parsed] == rows.raw["user_id"][:, None].tolist()
    assert [feature["history"].int64_list.value[:] for feature in parsed] == rows.raw["history"].tolist()


def test_rows_come_from_all_over_a_split_of_row_records_with_their_places(trained_run, tmp_path):
    convert(SimulatedSource(LOG), str(tmp_path / "log"), day_split(), record_format="row")
    data = DataFolder.open(str(tmp_path / "log"))
    column = data.schema.column("user_id")
    index = data.split("train")
    features, _, carried = read_split(trained_run.config, data, "train", carry=("user_id",))
    rows = read_rows(trained_run, index, [column], 1500)
    assert len(rows) == len(set(rows.numbers.tolist())) == 1500
    np.testing.assert_array_equal(rows.raw["user_id"], carried["user_id"][rows.numbers])
    np.testing.assert_array_equal(rows.features["item_id"], features["item_id"][rows.numbers])
    assert set((rows.numbers // 1024).tolist()) != {0, 1}, "not the first rows alone"


def test_a_smaller_split_is_read_whole(trained_run, data):
    rows = read_rows(trained_run, data.split("test"), [data.schema.column("user_id")], 9999)
    assert rows.numbers.tolist() == list(range(857))
