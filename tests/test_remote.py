"""A run whose files are all on `s3://`, from the raw log to the SavedModel, on a server of the S3 API of this machine."""

import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline import storage
from hm3_tf.cluster import free_addresses
from hm3_tf.errors import Hm3Error
from tests.data_pipeline.test_parts import PROGRAM as CONVERSION

PATIENCE_S = 300
BUCKET = "logs"
CONFIG = [
    f"--config={pathlib.Path(__file__).parents[1]}/configs/hm3.py",
    "--config.model.tower_units=(8,4)",
    "--config.model.embedding_dim=4",
    "--config.training.global_batch_size=128",
    "--config.training.epochs=2",
    "--config.training.log_every_steps=1",
    "--config.training.checkpoint_every_steps=5",
]
ROWS = 4_000
KEY = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@pytest.fixture(scope="module")
def server():
    """The address of an S3 server with an empty bucket."""
    pytest.importorskip("moto.server", reason="needs moto, of the extra dev")
    try:
        storage.open_file_system("s3://")
    except Hm3Error as error:
        pytest.skip(str(error))
    host, port = free_addresses(1)[0].split(":")
    process = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", host, "-p", port], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/{BUCKET}", method="PUT"))
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.1)
        yield f"http://{host}:{port}"
    finally:
        process.kill()
        process.wait()


class Bucket:
    """The server's bucket, seen by another client than the one that is tested."""

    def __init__(self, server: str) -> None:
        import boto3

        names = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        self._client = boto3.client("s3", endpoint_url=server, **names)

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def get(self, key: str) -> bytes:
        return self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def names(self, prefix: str = "") -> list[str]:
        found = self._client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return [entry["Key"] for entry in found]


@pytest.fixture(scope="module")
def bucket(server):
    return Bucket(server)


@pytest.fixture(scope="module")
def start(server):
    """Starts Python on the bucket."""
    inherited = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
    own = {**KEY, "AWS_REGION": "us-east-1", "S3_ENDPOINT": server, "CUDA_VISIBLE_DEVICES": "-1"}

    def start(*arguments: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([sys.executable, *arguments], env={**inherited, **own}, **pipes)

    return start


@pytest.fixture(scope="module")
def hm3(start):
    """Runs the command to its end, and returns (status, output)."""

    def run(*arguments: str) -> tuple[int, str]:
        with start("-m", "hm3_tf", *arguments) as process:
            output, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, output

    return run


@pytest.fixture(scope="module")
def data(bucket, hm3):
    """A data folder, converted from two files of Parquet beside one of something else."""
    random = np.random.default_rng(0)
    for part in range(2):
        rows = ROWS // 2
        click = random.random(rows) < 0.4
        cart = click & (random.random(rows) < 0.5)
        columns = {"click": click, "cart": cart, "fav": cart, "purchase": cart & (random.random(rows) < 0.5)}
        features = {"user_id": random.integers(0, 99, rows), "price": random.random(rows, np.float32)}
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table({**features, **{k: v.astype(np.int64) for k, v in columns.items()}}), buffer)
        bucket.put(f"raw/day={part}/part.parquet", buffer.getvalue().to_pybytes())
    bucket.put("raw/README", b"not of the log")
    status, output = hm3(
        *("convert", "--source=parquet", f"--input=s3://{BUCKET}/raw", f"--output_dir=s3://{BUCKET}/data"),
        *("--behaviors=click,d_mi=cart,d_ma=fav,purchase", "--groups=user_id"),
    )
    assert status == 0, output
    return f"s3://{BUCKET}/data"


def test_a_log_is_converted_where_it_lies(data, bucket):
    statistics = json.loads(bucket.get("data/statistics.json"))
    assert sum(split["rows"] for split in statistics.values()) == ROWS
    written = {key.removeprefix("data/") for key in bucket.names("data")}
    assert {"schema.json", "statistics.json", "train/index.json"} <= written
    assert not [key for key in bucket.names() if ".tmp-" in key or "_parts" in key]


@pytest.mark.parametrize("part", [0, 1])
def test_a_conversion_that_was_killed_goes_on_and_is_whole_only_then(data, bucket, start, tmp_path, part):
    flags = ["--source=parquet", f"--input=s3://{BUCKET}/raw", "--behaviors=click,d_mi=cart,d_ma=fav,purchase"]

    def convert(output: str, then: str) -> tuple[int, str]:
        program = CONVERSION.format(part=part, then=then)
        with start("-c", program, "convert", *flags, f"--output_dir={output}", "--processes=1") as process:
            output, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, output

    name = f"again{part}"
    status, output = convert(f"s3://{BUCKET}/{name}", "os.kill(os.getpid(), signal.SIGKILL)")
    assert status == -signal.SIGKILL and f"{name}/schema.json" not in bucket.names(name), output
    status, output = convert(f"s3://{BUCKET}/{name}", "pass")
    assert status == 0 and ("1 of 2 parts of the log are written" in output) == (part == 1), output
    assert convert(str(tmp_path / "here"), "pass")[0] == 0
    here = {str(path.relative_to(tmp_path / "here")): path for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert {key.removeprefix(f"{name}/") for key in bucket.names(name)} == set(here)
    for key, path in here.items():
        assert bucket.get(f"{name}/{key}") == path.read_bytes(), key


def steps(bucket) -> list[int]:
    """Returns the steps in the log of the run, which may be being written."""
    if not bucket.names("run/metrics.jsonl"):
        return []
    lines = map(json.loads, bucket.get("run/metrics.jsonl").splitlines())
    return [line["step"] for line in lines if "epoch_end" not in line]


def wait_for_step(bucket, process: subprocess.Popen, step: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while max(steps(bucket), default=0) < step:
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0][-3000:]
        time.sleep(0.05)


def worker(launch: subprocess.Popen, index: int) -> int:
    """Returns the id of a worker's process."""
    children = pathlib.Path(f"/proc/{launch.pid}/task/{launch.pid}/children").read_text().split()
    tasks = {
        int(pid): re.search(rb'"index": (\d+)', pathlib.Path(f"/proc/{pid}/environ").read_bytes()) for pid in children
    }
    return next(pid for pid, task in tasks.items() if task and int(task[1]) == index)


@pytest.fixture(scope="module")
def ends(data, bucket, start):
    """(status, output) of a launch that lost a worker and was told to end, and of the one that went on."""
    flags = [*CONFIG, f"--data_dir={data}", f"--workdir=s3://{BUCKET}/run"]
    command = ["-m", "hm3_tf", "launch", "--workers=2", "--max_restarts=1", "--", "train", *flags]
    found = []
    for interrupted in (True, False):
        process = start(*command)
        try:
            if interrupted:
                wait_for_step(bucket, process, 7)
                os.kill(worker(process, 0), signal.SIGKILL)  # the chief, which writes the checkpoints
                wait_for_step(bucket, process, 20)
                os.kill(worker(process, 1), signal.SIGTERM)
            output, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
        found.append((process.returncode, output))
    return found


def test_a_launch_goes_on_without_a_lost_worker_and_ends_when_told_each_worker_with_its_own_status(ends):
    status, output = ends[0]
    assert status == 75, output[-3000:]
    assert re.search(r"lost workers, ended: worker 0 with SIGKILL, worker 1 with status 69 \(start 1 of 2\)", output)
    assert re.search(r"resuming at step \d+ from s3://", output)
    assert "told to end; ended: worker 0 with status 75, worker 1 with status 75" in output


def test_the_launch_that_follows_goes_on_from_where_it_ended(ends, bucket):
    stopped = int(re.search(r"told to end \(SIGTERM\) at step (\d+), whose checkpoint is written", ends[0][1])[1])
    status, output = ends[1]
    assert status == 0, output[-3000:]
    assert f"resuming at step {stopped} from s3://{BUCKET}/run/checkpoints/ckpt-{stopped}" in output
    rows = json.loads(bucket.get("data/statistics.json"))["train"]["rows"]
    assert steps(bucket) == list(range(1, 1 + 2 * math.ceil(rows / 128)))
    assert len([key for key in bucket.names("run/tensorboard/") if "tfevents" in key]) == 3, "one a start"


def test_the_run_is_evaluated_predicted_and_exported(ends, hm3, bucket):
    run = f"--workdir=s3://{BUCKET}/run"
    assert hm3("evaluate", run)[0] == 0
    rows = json.loads(bucket.get("data/statistics.json"))["test"]["rows"]
    assert json.loads(bucket.get("run/evaluation/test.json"))["rows"] == rows
    status, output = hm3("predict", run, f"--output=s3://{BUCKET}/predictions")
    assert status == 0, output[-3000:]
    predicted = [pq.read_table(pa.BufferReader(bucket.get(key))) for key in bucket.names("predictions/")]
    assert pa.concat_tables(predicted).num_rows == rows
    status, output = hm3("export", run, f"--export_dir=s3://{BUCKET}/export", "--check=64")
    assert (status, output.splitlines()[-1]) == (0, f"wrote s3://{BUCKET}/export/1")
    assert {"export/1/DONE", "export/1/saved_model.pb"} <= set(bucket.names("export/"))
    assert json.loads(bucket.get("export/1/assets.extra/metadata.json"))["skew"]["rows"] == 64


def test_an_error_ends_the_command_with_its_own_status(data, hm3):
    status, output = hm3("evaluate", f"--workdir=s3://{BUCKET}/none")
    assert (status, output.count("\n")) == (1, 1), output
    assert output.startswith(
        f"hm3: error: s3://{BUCKET}/none/config.json: expected a file, found none; name the --workdir"
    )


PROGRAM = """
import multiprocessing, sys
from data_pipeline import storage

def ask(path):
    return storage.find_files(path)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=ask, args=sys.argv[1:2])
    process.start()
    process.join()
    storage.write_text(sys.argv[2], "")
    print(process.exitcode, ask(sys.argv[1]))
    sys.exit(3)
"""


def test_any_process_that_used_the_file_system_ends_with_its_own_status(data, bucket, start, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    paths = [f"s3://{BUCKET}/{name}" for name in ("raw/**/part.par*", "empty")]
    with start(str(tmp_path / "program.py"), *paths) as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    found = [f"s3://{BUCKET}/{key}" for key in bucket.names("raw/day")]
    assert (process.returncode, output.splitlines()[-1]) == (3, f"0 {found}"), output
    assert "pure virtual" not in output
    assert bucket.get("empty") == b"", "a file without a byte is written as well"
    assert bucket.names("empty") == ["empty"]
