"""Prediction by the processes of a Ray cluster: each loads the model once, and predicts one part of the split after another."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from data_pipeline import storage
from data_pipeline.index import SplitIndex
from hm3_tf.errors import Hm3Error, LostWorkerError
from hm3_tf.predict import Part, Predictor, missing_parts, parts_progress
from hm3_tf.ray_session import connected
from hm3_tf.workdir import Workdir

_TRIES_AGAIN = 3  # with one part, by a process that was lost with it


def predict_on_ray(run: Workdir, index: SplitIndex, output: str, address: str | None = None) -> int:
    """Writes what `predict_run` writes. A part that is lost with its process or machine is predicted again by another.

    A process has one GPU if the cluster has any, else one of Ray's CPUs. All machines read checkpoint and log and write the
    output under the same paths.

    Args:
      run: The run.
      index: The split.
      output: File or folder, see `predict_run`; a file is one part.
      address: Of the cluster, see `connected`; None for a Ray of this machine.

    Returns:
      Number of rows of the output.

    Raises:
      Hm3Error: As `predict_run`; or Ray is not installed, or there is no cluster at the address.
      DataError: As `predict_run`; of several shards with errors any one is named.
      LostWorkerError: A part was lost again and again.
    """
    checkpoint = storage.absolute(run.checkpoint())
    index = dataclasses.replace(index, files=tuple(storage.absolute(file) for file in index.files))
    with missing_parts(checkpoint, index, output) as parts, parts_progress(parts, index) as progress:
        if parts:
            with connected(address, os.cpu_count() or 1) as ray:
                for rows in _write(ray, (run, checkpoint, index), parts):
                    progress.advance(rows)
    return index.rows


def _write(ray: Any, job: tuple[Workdir, str, SplitIndex], parts: Sequence[Part]) -> Iterator[int]:
    """Yields the rows of each part, in any order, once it is written.

    Raises:
      Hm3Error: One of them failed.
      LostWorkerError: One of them was lost again and again.
    """
    kind = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
    actor = ray.remote(Worker).options(
        **{f"num_{kind.lower()}s": 1},
        scheduling_strategy="SPREAD",
        max_restarts=-1,
        max_task_retries=_TRIES_AGAIN,
    )
    places = max(1, int(ray.available_resources().get(kind, 0)))
    shared = ray.put(job)
    workers = [actor.remote(shared) for _ in parts[:places]]
    try:
        for result in ray.util.ActorPool(workers).map_unordered(lambda worker, part: worker.write.remote(part), parts):
            if isinstance(result, Hm3Error):
                raise result
            yield result
    except ray.exceptions.RayActorError as error:
        raise LostWorkerError(
            f"hm3 predict: expected each part to be predicted within {_TRIES_AGAIN} tries more, lost a process of Ray with "
            f"each: {str(error).strip().splitlines()[-1]}; the same command goes on"
        ) from error


class Worker:
    """An actor that predicts parts of a split.

    Args:
      job: What a `Predictor` is made from.
    """

    def __init__(self, job: tuple[Workdir, str, SplitIndex]) -> None:
        tf.config.threading.set_intra_op_parallelism_threads(1)  # there is such a process a core
        self._job = job
        self._predictor: Predictor | None = None

    def write(self, part: Part) -> int | Hm3Error:
        """Writes a part's file, and returns its rows, or what went wrong: Ray would make its traceback the message."""
        try:
            self._predictor = self._predictor or self._load()
            self._predictor.write(part)
        except Hm3Error as error:
            return error
        return part.index.rows

    def _load(self) -> Predictor:
        _, checkpoint, index = self._job
        for path in (checkpoint, index.folder):
            storage.open_file_system(path)
        return Predictor(*self._job)
