"""Whether a SavedModel serves what the model predicts: logged rows through both, the former in a process without hm3-tf."""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipeline import storage
from hm3_tf import plain_scoring
from hm3_tf.errors import Hm3Error
from hm3_tf.model import ConversionModel, prediction_function
from hm3_tf.signatures import LoggedRows, read_signatures
from hm3_tf.workdir import Workdir

TOLERANCE = 1e-6
ROUNDED_TOLERANCE = 2e-3  # of bfloat16 products in two parts, each rounded to eight bits
_REQUEST_ROWS = 50  # each of one user in `rank`


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
      The figures: `rows`, and of each signature the `largest_difference` and the `tolerance`.

    Raises:
      Hm3Error: A prediction is more than the tolerance apart, or the SavedModel cannot be served.
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
    rounded = run.config.training.precision == "bfloat16"
    tolerances = {
        name: ROUNDED_TOLERANCE if rounded and each.is_split else TOLERANCE for name, each in signatures.items()
    }
    largest = {name: _check(name, np.concatenate(found), rows, tolerances[name]) for name, found in gaps.items()}
    return {"rows": len(rows), "largest_difference": largest, "tolerance": tolerances}


def _predictor(run: Workdir, model: ConversionModel) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    predict = prediction_function(model, run.config.method.levels)

    def on_cpu(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with tf.device("CPU:0"):
            tensors = {name: tf.constant(values) for name, values in features.items()}
            return {name: p.numpy() for name, p in predict(tensors).items()}

    return on_cpu


def _answers(folder: str, requests: Sequence[tuple[str, dict[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    """Returns the answers of a SavedModel that another process, with TensorFlow alone, has loaded."""
    with tempfile.TemporaryDirectory() as place:
        program, asked, answered = (os.path.join(place, name) for name in ("score.py", "requests", "answers"))
        shutil.copy(plain_scoring.__file__, program)  # away from modules that it must not import
        with open(asked, "wb") as file:
            pickle.dump(requests, file)
        model = _fetch(folder, os.path.join(place, "model")) if storage.is_remote(folder) else os.path.abspath(folder)
        command = [sys.executable, program, model, asked, answered]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
        done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
            raise Hm3Error(
                f"skew check: expected a SavedModel that TensorFlow serves in a process of its own, got: {reason}; export "
                f"without --check and run {plain_scoring.__file__} to see where"
            )
        with open(answered, "rb") as file:
            return pickle.load(file)


def _fetch(folder: str, copy: str) -> str:
    """Copies a folder of a remote file system, which TensorFlow alone may not know, to this machine."""
    for path, _, names in tf.io.gfile.walk(folder):
        here = os.path.join(copy, os.path.relpath(path, folder))
        os.makedirs(here, exist_ok=True)
        for name in names:
            tf.io.gfile.copy(storage.join(path, name), os.path.join(here, name))
    return copy


def _gaps(expected: dict[str, np.ndarray], answer: dict[str, np.ndarray]) -> np.ndarray:
    """Returns how far apart the probabilities of each row are at most, [rows]; infinitely where one is no number."""
    gaps = [np.abs(answer[name].astype(np.float64) - p) for name, p in expected.items()]
    return np.nan_to_num(np.max(gaps, axis=0), nan=np.inf)


def _check(signature: str, gaps: np.ndarray, rows: LoggedRows, tolerance: float) -> float:
    """Returns the largest of the gaps.

    Raises:
      Hm3Error: It is above the tolerance.
    """
    apart, worst = int((gaps > tolerance).sum()), int(gaps.argmax())
    if apart:
        raise Hm3Error(
            f"skew check: expected the model's predictions of {len(rows):,} logged rows from the SavedModel, got {apart:,} "
            f"rows more than {tolerance:g} apart through {signature}, by {gaps[worst]:.3g} at most, in row "
            f"{rows.numbers[worst]} of the split; nothing is exported: serving and training read that row differently"
        )
    return float(gaps[worst])
