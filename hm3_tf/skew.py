"""Whether a SavedModel serves what the model predicts: logged rows through both, the former in a process without hm3-tf."""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hm3_tf import plain_scoring
from hm3_tf.errors import Hm3Error
from hm3_tf.model import ConversionModel, probabilities
from hm3_tf.signatures import LoggedRows, read_signatures
from hm3_tf.workdir import Workdir

TOLERANCE = 1e-6
_REQUEST_ROWS = 500


def check_skew(run: Workdir, model: ConversionModel, folder: str, rows: LoggedRows) -> dict[str, Any]:
    """Compares the answers of a SavedModel with the predictions of the model, through each of its signatures.

    Both compute on the CPU: a GPU rounds otherwise. Where a signature takes columns once a request, the model is given the
    same.

    Args:
      run: The run.
      model: Its model.
      folder: The SavedModel.
      rows: Rows of the log.

    Returns:
      The figures: `rows`, `largest_difference` and `tolerance`.

    Raises:
      Hm3Error: A prediction is more than 1e-6 apart, or the SavedModel cannot be served.
    """
    signatures = read_signatures(folder)
    starts = range(0, len(rows), _REQUEST_ROWS)
    parts = [rows.take(np.arange(start, min(start + _REQUEST_ROWS, len(rows)))) for start in starts]
    asked = [(name, part) for name in signatures for part in parts]
    answers = _answers(folder, [(name, part.request(signatures[name])) for name, part in asked])
    gaps: dict[str, list[np.ndarray]] = {name: [] for name in signatures}
    predict = _predictor(run, model)
    for (name, part), answer in zip(asked, answers):
        gaps[name].append(_gaps(predict(part.seen_by(signatures[name])), answer))
    largest = {name: _check(name, np.concatenate(found), rows) for name, found in gaps.items()}
    return {"rows": len(rows), "largest_difference": largest, "tolerance": TOLERANCE}


def _predictor(run: Workdir, model: ConversionModel) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    levels = run.config.method.levels

    @tf.function(reduce_retracing=True)
    @tf.autograph.experimental.do_not_convert
    def predict(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return probabilities(model.network(features, training=False), levels)

    def on_cpu(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with tf.device("CPU:0"):
            tensors = {name: tf.constant(values) for name, values in features.items()}
            return {name: p.numpy() for name, p in predict(tensors).items()}

    return on_cpu


def _answers(folder: str, requests: Sequence[tuple[str, dict[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    """Returns the answers of a SavedModel that another process, with TensorFlow alone, has loaded."""
    with tempfile.TemporaryDirectory() as place:
        asked, answered = os.path.join(place, "requests"), os.path.join(place, "answers")
        with open(asked, "wb") as file:
            pickle.dump(requests, file)
        command = [sys.executable, "-I", plain_scoring.__file__, folder, asked, answered]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
            raise Hm3Error(
                f"skew check: expected a SavedModel that TensorFlow serves in a process of its own, got: {reason}; run "
                f"python -I {plain_scoring.__file__} to see where"
            )
        with open(answered, "rb") as file:
            return pickle.load(file)


def _gaps(expected: dict[str, np.ndarray], answer: dict[str, np.ndarray]) -> np.ndarray:
    """Returns how far apart the probabilities of each row are at most, [rows]; infinitely where one is no number."""
    gaps = [np.abs(answer[name].astype(np.float64) - p) for name, p in expected.items()]
    return np.nan_to_num(np.max(gaps, axis=0), nan=np.inf)


def _check(signature: str, gaps: np.ndarray, rows: LoggedRows) -> float:
    """Returns the largest of the gaps.

    Raises:
      Hm3Error: It is above the tolerance.
    """
    apart, worst = int((gaps > TOLERANCE).sum()), int(gaps.argmax())
    if apart:
        raise Hm3Error(
            f"skew check: expected the model's predictions of {len(rows):,} logged rows from the SavedModel, got {apart:,} "
            f"rows more than {TOLERANCE:g} apart through {signature}, by {gaps[worst]:.3g} at most, in row "
            f"{rows.numbers[worst]} of the split; nothing is exported: serving and training read that row differently"
        )
    return float(gaps[worst])
