"""Warm-up requests parse as what TensorFlow Serving reads, and the signatures answer them."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from hm3_tf.errors import Hm3Error
from hm3_tf.signatures import input_columns, read_rows, read_signatures
from hm3_tf.warm_up import write_warm_up
from tests.truth_model import save_truth


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_truth(str(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def rows(folder, trained_run, data):
    columns = input_columns(read_signatures(folder), data.schema.columns)
    return read_rows(trained_run, data.split("validation"), columns, 30)


def test_each_signature_answers_a_real_request_of_each_size(folder, rows):
    prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    write_warm_up(folder, rows, [1, 7, 64])
    records = tf.data.TFRecordDataset(f"{folder}/assets.extra/tf_serving_warmup_requests").as_numpy_iterator()
    requests = [prediction_log_pb2.PredictionLog.FromString(record).predict_log.request for record in records]
    served = tf.saved_model.load(folder).signatures
    answered = []
    for request in requests:
        inputs = {name: tf.constant(tf.make_ndarray(proto)) for name, proto in request.inputs.items()}
        answer = served[request.model_spec.signature_name](**inputs)["pctr"].numpy()
        np.testing.assert_array_equal(answer, np.resize(rows.raw["truth_pctr"], len(answer)))
        answered.append((request.model_spec.signature_name, len(answer)))
    assert answered == [(name, size) for name in ("rank", "serving_default", "serving_examples") for size in (1, 7, 64)]


def test_without_the_package_it_says_what_to_install(folder, rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(Hm3Error, match=r"tensorflow-serving-api is not installed; pip install 'hm3-tf\[serving\]'"):
        write_warm_up(folder, rows, [1])
