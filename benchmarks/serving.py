"""Latency of one user with 500 candidates on one core: HM3 through `rank`, and DeepCTR's ESMM through its own signature.

make bench-serving, or python benchmarks/serving.py [--folder=bench-out] where bench-out/deepctr is DeepCTR's environment

The columns are those of the KuaiRand log, 32 of the user and the request and 10 of the item, with values drawn at random:
the latency does not depend on them, nor on weights. One TensorFlow serves all models, as TensorFlow Serving would. Contenders
take turns in rounds; a ratio is the median over rounds of the ratio of medians.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import app, flags
from tensorflow_serving.apis import predict_pb2

from data_pipeline.schema import Schema
from data_pipeline.sources import kuairand
from data_pipeline.statistics import no_statistics
from hm3_tf.config import Config, ModelConfig, TrainingConfig
from hm3_tf.serving import ServingModule
from hm3_tf.warm_up import SIZES
from hm3_tf.workdir import Workdir

_FOLDER = flags.DEFINE_string("folder", "bench-out", "Folder for the models; DeepCTR's environment is in deepctr/.")
_CANDIDATES = flags.DEFINE_integer("candidates", 500, "Items of a request.")
_ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds in which each contender has its turn.")
_REQUESTS = flags.DEFINE_integer("requests", 50, "Requests of a turn.")
EXPORT = pathlib.Path(__file__).parent / "peers" / "deepctr_export.py"
SCHEMA = kuairand.SCHEMA
PEER = "DeepCTR 0.9.4 ESMM (two towers)"


@dataclasses.dataclass(frozen=True)
class Contender:
    """A SavedModel and what it is asked."""

    folder: pathlib.Path
    signature: str
    request: dict[str, np.ndarray]

    def bytes_of_request(self) -> int:
        """Returns the size of the request as TensorFlow Serving gets it."""
        message = predict_pb2.PredictRequest()
        message.model_spec.name, message.model_spec.signature_name = "model", self.signature
        for name, values in self.request.items():
            message.inputs[name].CopyFrom(tf.make_tensor_proto(values))
        return message.ByteSize()

    def bytes_of_model(self) -> int:
        """Returns the size of the model's files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def write_ours(folder: pathlib.Path, method: str, tables: str = "float32", precision: str = "float32") -> pathlib.Path:
    """Writes a SavedModel of towers 256-128-64 with weights as they start, and returns its folder."""
    path = folder / "serving" / f"{method}-{tables}-{precision}"
    model = ModelConfig(method, tower_units=(256, 128, 64), dropout=0.0)
    config = Config(model=model, training=TrainingConfig(precision=precision))
    run = Workdir(str(folder), config, SCHEMA, no_statistics(SCHEMA), "")
    module = ServingModule(run, run.build_model(), tables)
    tf.saved_model.save(module, str(path), signatures=module.signatures_to_save)
    return path


def write_peer(folder: pathlib.Path) -> pathlib.Path:
    """Writes the SavedModel of DeepCTR in its own environment, and returns its folder."""
    path, columns = folder / "serving" / "deepctr", folder / "serving" / "columns.json"
    hashed = [column for column in SCHEMA.inputs if column.hashing]
    single = {column.name: column.hashing.buckets for column in hashed if column.length is None}
    several = {column.name: [column.hashing.buckets, column.length] for column in hashed if column.length}
    numeric = [column.name for column in SCHEMA.inputs if not column.hashing]
    columns.write_text(json.dumps({"single": single, "several": several, "numeric": numeric}))
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}  # set by hm3_tf
    python = folder / "deepctr" / "bin" / "python"
    subprocess.run([python, EXPORT, columns, path], check=True, capture_output=True, env=environment)
    return path


def draw(schema: Schema, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns rows of one user with as many items, as `serving_default` takes them."""
    generator = np.random.default_rng(seed)
    result = {}
    for column in schema.inputs:
        shape = (rows,) if column.length is None else (rows, column.length)
        ids = generator.integers(1, column.hashing.buckets if column.hashing else 2, shape)
        values = ids
        if column.dtype == "string":
            values = np.char.encode(np.char.mod("value %d", ids))
        elif column.dtype == "float":
            values = generator.normal(size=shape).astype(np.float32)
        result[column.name] = np.repeat(values[:1], rows, axis=0) if column.entity == "user" else values
    return result


def requests(rows: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Returns the request of each signature: `rank`, `serving_default`, and DeepCTR's, of ids that are looked up already."""
    of_user = {column.name for column in SCHEMA.inputs if column.entity == "user"}
    ids = {}
    for column in SCHEMA.inputs:
        values = rows[column.name].reshape(len(rows[column.name]), -1)
        if column.dtype == "string":
            values = np.array([[int(value.split()[-1]) for value in row] for row in values])
        ids[column.name] = values.astype(np.float32 if column.dtype == "float" else np.int32)
    once = {name: values[:1] if name in of_user else values for name, values in rows.items()}
    return {"rank": once, "serving_default": rows, "peer": ids}


def contenders(folder: pathlib.Path, candidates: int) -> dict[str, Contender]:
    """Writes all models and returns who is timed."""
    of = requests(draw(SCHEMA, candidates))
    hm3 = {tables: write_ours(folder, "hm3", tables) for tables in ("float32", "bfloat16", "int8")}
    half = write_ours(folder, "hm3", precision="bfloat16")
    return {
        PEER: Contender(write_peer(folder), "serving_default", of["peer"]),
        "HM3 (six towers), rank": Contender(hm3["float32"], "rank", of["rank"]),
        "HM3, rank, bfloat16 tables": Contender(hm3["bfloat16"], "rank", of["rank"]),
        "HM3, rank, int8 tables": Contender(hm3["int8"], "rank", of["rank"]),
        "HM3, rank, bfloat16 products": Contender(half, "rank", of["rank"]),
        "HM3, serving_default": Contender(hm3["float32"], "serving_default", of["serving_default"]),
        "ESMM (two towers), rank": Contender(write_ours(folder, "esmm"), "rank", of["rank"]),
    }


def time_in_rounds(field: dict[str, Contender], rounds: int, number: int) -> dict[str, list[list[float]]]:
    """Returns the latencies of each contender in milliseconds, a list a round; a first round is not counted."""
    loaded = {name: tf.saved_model.load(str(contender.folder)) for name, contender in field.items()}
    served = {name: loaded[name].signatures[contender.signature] for name, contender in field.items()}
    asked = {name: {k: tf.constant(v) for k, v in contender.request.items()} for name, contender in field.items()}
    latencies: dict[str, list[list[float]]] = {name: [] for name in field}
    for _ in range(rounds + 1):
        for name, serve in served.items():
            turn = []
            for _ in range(number):
                start = time.perf_counter()
                serve(**asked[name])
                turn.append(1e3 * (time.perf_counter() - start))
            latencies[name].append(turn)
    return {name: turns[1:] for name, turns in latencies.items()}


def answer_s(serve: Callable[..., dict[str, tf.Tensor]], request: dict[str, np.ndarray]) -> float:
    """Returns the seconds that a request takes."""
    asked = {name: tf.constant(values) for name, values in request.items()}
    start = time.perf_counter()
    serve(**asked)
    return time.perf_counter() - start


def first_requests(contender: Contender, number: int) -> tuple[float, float]:
    """Returns how long the first request of a loaded model takes, over the median of later ones: cold, and after a warm-up."""
    loaded = [tf.saved_model.load(str(contender.folder)) for _ in range(2)]  # which share nothing
    cold, warm = (model.signatures[contender.signature] for model in loaded)
    first = answer_s(cold, contender.request)
    for size in SIZES:
        answer_s(warm, requests(draw(SCHEMA, size, seed=1))[contender.signature])
    after = answer_s(warm, contender.request)
    steady = statistics.median(answer_s(warm, contender.request) for _ in range(number))
    return first / steady, after / steady


def ratio(latencies: dict[str, list[list[float]]], name: str, reference: str) -> float:
    """Returns the median over rounds of the ratio of two contenders' medians."""
    pairs = zip(latencies[name], latencies[reference])
    return statistics.median(statistics.median(turn) / statistics.median(other) for turn, other in pairs)


def main(_: list[str]) -> None:
    """Prints the table."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    folder = pathlib.Path(_FOLDER.value).absolute()
    (folder / "serving").mkdir(parents=True, exist_ok=True)
    field = contenders(folder, _CANDIDATES.value)
    cold, warm = first_requests(field["HM3 (six towers), rank"], _REQUESTS.value)
    print(f"first request of a loaded model: {cold:.1f} times the median, after a warm-up {warm:.1f} times")
    latencies = time_in_rounds(field, _ROUNDS.value, _REQUESTS.value)
    print(
        f"| 1 user, {_CANDIDATES.value} items | p50 ms | p99 ms | requests/s | against DeepCTR | request KB | model MB |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, contender in field.items():
        every = np.concatenate(latencies[name])
        p50, p99 = np.percentile(every, [50, 99])
        sizes = f"{contender.bytes_of_request() / 1e3:.1f} | {contender.bytes_of_model() / 1e6:.1f}"
        against = ratio(latencies, name, PEER)
        print(f"| {name} | {p50:.2f} | {p99:.2f} | {1e3 / every.mean():.0f} | {against:.2f}x | {sizes} |")
    once = ratio(latencies, "HM3 (six towers), rank", "HM3, serving_default")
    int8 = ratio(latencies, "HM3, rank, int8 tables", "HM3 (six towers), rank")
    print(f"rank takes {once:.2f} of the time of serving_default, int8 tables {int8:.2f} of that of float32 ones")


if __name__ == "__main__":
    app.run(main)
