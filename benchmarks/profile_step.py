"""Where a training step on W spends its time, from TensorFlow's profiler, and whether it waits for its input.

python benchmarks/profile_step.py [--folder=bench-out] [--method=hm3]

Times of operations are summed over the threads of both cores; nested events count once, for the inner one.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import collections
import pathlib
import tempfile
import time

import tensorflow as tf
import tf_keras as keras
import workload
from absl import app, flags
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from data_pipeline.folder import DataFolder
from data_pipeline.read import Reader
from hm3_tf.config import Config, ModelConfig
from hm3_tf.model import build_model, model_features

_FOLDER = flags.DEFINE_string("folder", "bench-out", "Folder of the log.")
_METHOD = flags.DEFINE_string("method", "hm3", "Method.")
FIRST, STEPS = 40, 40
WAIT = "IteratorGetNext"
GROUPS = {
    "matrix products, and what runs beside them on other threads": ("MatMul", "_FusedMatMul", "ParallelFor"),
    "optimizer: arithmetic of rows and dense weights": (
        *("Mul", "Square", "Sub", "AddV2", "Sqrt", "RealDiv", "AssignAddVariableOp", "AssignSubVariableOp"),
    ),
    "embeddings: gather": ("ResourceGather",),
    "embeddings: distinct rows, their sums, update": (
        *("Unique", "UnsortedSegmentSum", "ResourceScatterUpdate", "ResourceScatterSub"),
    ),
    "towers: bias, ReLU and their gradients": ("BiasAdd", "BiasAddGrad", "Relu", "ReluGrad", "AddN"),
    "towers: kernels beside each other, outputs apart": ("ConcatV2", "Split", "SplitV", "Pack", "Unpack", "Slice"),
    "input: parsing and reading": ("ParseExampleV2", "TFRecordDatasetV2", "TFRecordV2"),
    "input: hashing": ("BitwiseXor", "RightShift", "FloorMod"),
    "input: rows to batches": ("GatherV2", "Unbatch"),
}


class Profiler(keras.callbacks.Callback):
    """Profiles a range of steps into a folder."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def on_train_batch_begin(self, batch: int, logs=None) -> None:
        """Starts or ends the profile."""
        if batch == FIRST:
            tf.profiler.experimental.start(self._folder)
            self._start = time.perf_counter()
        if batch == FIRST + STEPS:
            self.seconds = time.perf_counter() - self._start
            tf.profiler.experimental.stop()


def self_times(folder: str) -> collections.Counter[str]:
    """Returns the seconds of each operation by itself, summed over threads."""
    (path,) = pathlib.Path(folder).glob("**/*.xplane.pb")
    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    totals: collections.Counter[str] = collections.Counter()
    for plane in space.planes:
        if plane.name == "/host:CPU":
            names = {number: metadata.name.rsplit(":", 1)[-1] for number, metadata in plane.event_metadata.items()}
            for line in plane.lines:
                open_events: list[tuple[int, str]] = []
                for event in sorted(line.events, key=lambda e: (e.offset_ps, -e.duration_ps)):
                    while open_events and open_events[-1][0] <= event.offset_ps:
                        open_events.pop()
                    name = names[event.metadata_id]
                    totals[name] += event.duration_ps
                    if open_events:
                        totals[open_events[-1][1]] -= event.duration_ps
                    open_events.append((event.offset_ps + event.duration_ps, name))
    return collections.Counter({name: picoseconds / 1e12 for name, picoseconds in totals.items()})


def input_wait(config: Config, data: DataFolder, reader: Reader) -> float:
    """Returns the seconds a step that a loop of steps waits for its next batch."""
    model = build_model(config, data.schema, data.statistics()["train"])
    step = tf.function(model.train_step)
    batches = iter(reader.training_dataset(workload.BATCH, seed=0, epoch=0))
    waits = []
    for _ in range(FIRST + STEPS):
        start = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - start)
        step(batch)
    return sum(waits[FIRST:]) / STEPS


def main(_: list[str]) -> None:
    """Prints the milliseconds a step by group."""
    folder = pathlib.Path(_FOLDER.value).absolute()
    workload.write(folder)
    data = DataFolder.open(str(folder / "data"))
    statistics = data.statistics()["train"]
    config = Config(model=ModelConfig(method=_METHOD.value, tower_units=(256, 128, 64), dropout=0.0))
    model = build_model(config, data.schema, statistics)
    features = model_features(config, data.schema, statistics)
    reader = Reader(data.split("train"), data.schema, features, config.method.merged_levels)
    with tempfile.TemporaryDirectory() as profile:
        profiler = Profiler(profile)
        dataset = reader.training_dataset(workload.BATCH, seed=0, epoch=0)
        model.fit(dataset, steps_per_epoch=FIRST + STEPS + 1, verbose=0, callbacks=[profiler])
        totals = self_times(profile)
    print(f"{_METHOD.value}: {profiler.seconds / STEPS * 1e3:.1f} ms a step under the profiler")
    for group, names in GROUPS.items():
        print(f"{sum(totals.pop(name, 0) for name in names) / STEPS * 1e3:8.1f} ms  {group}")
    wait = input_wait(config, data, reader)
    print(f"waits {wait * 1e3:.2f} ms a step for its input")


if __name__ == "__main__":
    app.run(main)
