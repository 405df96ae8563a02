"""Requests that TensorFlow Serving answers before it lets a version answer others, so that no user waits for the first one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipeline import storage
from hm3_tf.errors import Hm3Error
from hm3_tf.signatures import LoggedRows, Signature, read_signatures

WARM_UP_FILE = "tf_serving_warmup_requests"
SIZES = (1, 100, 500)


def write_warm_up(folder: str, rows: LoggedRows, sizes: Sequence[int]) -> None:
    """Writes warm-up requests where TensorFlow Serving looks for them: `assets.extra/tf_serving_warmup_requests`.

    Args:
      folder: The SavedModel; each of its signatures gets a request of each size.
      rows: Rows of the log; where they are fewer than a size they are repeated.
      sizes: Rows of the requests.

    Raises:
      Hm3Error: tensorflow-serving-api is not installed, or the file cannot be written.
    """
    records = [record.SerializeToString() for record in _records(read_signatures(folder), rows, sizes)]
    path = storage.join(folder, "assets.extra", WARM_UP_FILE)
    with storage.staged_file(path) as temporary, tf.io.TFRecordWriter(temporary) as writer:
        for record in records:
            writer.write(record)


def _records(signatures: Mapping[str, Signature], rows: LoggedRows, sizes: Sequence[int]) -> Iterator[Any]:
    try:
        from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2
    except ModuleNotFoundError as error:
        raise Hm3Error(
            "warm-up: expected the packages of the extra 'serving', but tensorflow-serving-api is not installed; "
            "pip install 'hm3-tf[serving]'"
        ) from error
    for name, signature in signatures.items():
        for size in sizes:
            inputs = rows.take(np.arange(size) % len(rows)).request(signature)
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(signature_name=name),
                inputs={
                    column: tf.make_tensor_proto(values, signature.inputs[column].dtype)
                    for column, values in inputs.items()
                },
            )
            yield prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
