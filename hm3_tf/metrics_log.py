"""The figures of a training, in `metrics.jsonl` and TensorBoard."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipeline import storage
from hm3_tf.board import Board
from hm3_tf.errors import DataError
from hm3_tf.workdir import METRICS_FILE, Workdir


class MetricsLog:
    """Writes the figures of a training to `metrics.jsonl` and TensorBoard.

    Args:
      run: The run's directory.
      step: Steps that the restored checkpoint has taken; lines of later ones are dropped, as they will be taken again.
      epoch: Epochs it has ended; ends of later ones are dropped too.
    """

    def __init__(self, run: Workdir, step: int, epoch: int) -> None:
        self._path = run.file(METRICS_FILE)
        self._kept: set[tuple[str, int]] = set()
        if tf.io.gfile.exists(self._path):
            *lines, _ = storage.read_text(self._path, "").split("\n")  # what follows the last end of a line is torn
            kept = [figures for figures in map(json.loads, lines) if self._is_past(figures, step, epoch)]
            storage.write_text(self._path, "".join(f"{json.dumps(figures)}\n" for figures in kept))
            self._kept = {(name, figures["step"]) for figures in kept for name in figures}
        with storage.explained(run.path):
            self._board = Board(run.file("tensorboard"))
            self._board.write_config(run.config, run.path)

    @staticmethod
    def _is_past(figures: dict[str, Any], step: int, epoch: int) -> bool:
        return figures["step"] <= step and not (figures.get("epoch_end") and figures["epoch"] >= epoch)

    def has(self, name: str, step: int) -> bool:
        """Whether an earlier process wrote a line with figures of this name after `step` steps."""
        return (name, step) in self._kept

    def write(self, figures: dict[str, Any]) -> None:
        """Adds a line of figures, one of which is `step`."""
        with storage.explained(self._path):
            with tf.io.gfile.GFile(self._path, "a") as file:
                file.write(json.dumps(figures) + "\n")
            self._board.write_scalars(figures, figures["step"])

    def write_curves(self, counts: Mapping[str, np.ndarray], step: int) -> None:
        """Adds precision-recall curves to TensorBoard, of {name: int [2, bins], rows by label and bin of the score}."""
        with storage.explained(self._path):
            self._board.write_pr_curves(counts, step)

    def end(self, step: int) -> None:
        """Says in TensorBoard that training ended well after `step` steps."""
        with storage.explained(self._path):
            self._board.write_end(step)


def read_metrics(run: Workdir) -> list[dict[str, Any]]:
    """Returns the lines of a run's `metrics.jsonl`, none where there is no such file; one that is being written is left out.

    Raises:
      DataError: It does not hold lines of JSON.
    """
    path = run.file(METRICS_FILE)
    if not tf.io.gfile.exists(path):
        return []
    *lines, _ = storage.read_text(path, "").split("\n")
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: expected lines of JSON, got {error.doc!r}; move the file away to go on without the figures of training"
        ) from error
