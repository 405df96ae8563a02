"""The command: its help, its statuses, and what it says about bad input."""

import dataclasses
import json
import os
import pathlib
import re
import resource
import shutil
import socket
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.folder import DataFolder
from hm3_tf.cli import VERBS, _status
from hm3_tf.config import Config

JOIN = ["--impressions=x", "--events=x", "--output=y"]
TINY = [
    f"--config={pathlib.Path(__file__).parents[2]}/configs/hm3.py",
    "--config.model.tower_units=(8,4)",
    "--config.model.embedding_dim=4",
    "--config.model.features=('position','user_id','price')",
    "--config.model.dropout=0.0",
    "--config.training.global_batch_size=512",
    "--config.training.epochs=1",
]


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs the command in this process: (status, standard output, standard error)."""
    monkeypatch.setattr("hm3_tf.train.check_export", lambda run: None)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = _status(arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def workdir(data, tmp_path_factory):
    """A run made by the command."""
    path = tmp_path_factory.mktemp("cli") / "run"
    assert _status(["train", *TINY, f"--data_dir={data.path}", f"--workdir={path}"]) == 0
    return path


def the_error(result: tuple[int, str, str]) -> str:
    status, _, error = result
    lines = [line for line in error.splitlines() if line.startswith("hm3: error: ")]
    assert status == 1 and len(lines) == 1 and "Traceback" not in error
    return lines[0]


def test_help_takes_less_than_a_second_of_processor_time():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "hm3_tf", "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(verb in done.stdout for verb in VERBS)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 1.0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_lists_its_flags_with_their_defaults(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        _status([verb, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(f"--{flag}" in text for flag in VERBS[verb].required)
    assert "(default: " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "expected a verb of .*, got 'trian'; did you mean 'train'"),
        (["train"], "expected --config, --data_dir, --workdir"),
        (["evaluate", "--workdri=x"], "Unknown command line flag 'workdri'"),
        (["export", "--workdir=x", "--export_dir=y", "z"], r"expected flags only, got \['z'\]"),
        (["export", "--workdir=x", "--export_dir=y", "--force"], "--force: expected --gate beside it"),
        (["export", "--workdir=x", "--export_dir=y", "--score_exponent=2"], "expected --score_price beside it"),
        (["export", "--workdir=x", "--export_dir=y", "--keep=1"], "flag --keep=1: 1 is not integer >= 2"),
        (["export", "--workdir=x", "--export_dir=y", "--warm_up=1,many"], "--warm_up: expected numbers .* got 'many'"),
        (["export", "--workdir=x", "--export_dir=y", "--warm_up=0"], "--warm_up: expected numbers of rows .* got '0'"),
        (["simulate", "--output_dir=x", "--rows=none"], "rows"),
        (
            ["train", "--config=configs/none.py", "--data_dir=x", "--workdir=y"],
            "got 'configs/none.py', which is no file",
        ),
        (["train", "--config=configs/hm3.py:esmm"], r"a Python file whose get_config\(argument\) .* TypeError"),
        (["train", "--config", "README.md"], r"README.md: expected a Python file .* got SyntaxError"),
        (["train", "--config=deploy/predict_saved_model.py"], "got KeyError: 'get_config'"),
        (["train", *TINY, "--config.trainng.epochs=1"], "unknown config field 'trainng'; did you mean 'training'"),
        (
            ["train", *TINY, "--config.training.learnin_rate=1", "--data_dir=x", "--workdir=y"],
            "unknown config field 'learnin_rate'; did you mean 'learning_rate'",
        ),
        (["convert", "--source=parqet", "--input=x", "--output_dir=y"], "did you mean 'parquet'"),
        (["convert", "--source=csv", "--input=x", "--output_dir=y"], "expected --schema=schema.json or --behaviors"),
        (["join", *JOIN, "--window=click"], "--window: expected behavior:"),
        (
            ["join", *JOIN, "--window=click:1m", "--ray_address=auto"],
            "--ray_address: expected --engine=ray beside it, got --engine=local",
        ),
        (["convert", "--source=csv", "--input=x", "--output_dir=y", "--split=half"], "--split: expected date:"),
        (
            ["validate", "--data_dir=x", "--output=y.txt"],
            "--output: expected a name that ends in .html or .json, got .y.txt",
        ),
    ],
)
def test_a_command_line_that_cannot_be_understood_exits_with_2(command, arguments, message):
    status, _, error = command(*arguments)
    assert status == 2
    assert error.startswith("hm3: error: ") and len(error.splitlines()) == 1
    assert re.search(message, error)


def test_help_of_train_lists_every_field_of_the_config_with_its_value(capsys):
    with pytest.raises(SystemExit):
        _status(["train", "--config=configs/kuairand.py:esmm", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--config.model.method: base, esmm, esm2, esm2_mi, hm3," in text and "(default: 'esmm')" in text
    assert "--config.training.learning_rate: Step size of Adam (HM3: 0.0005). (default: 0.002)" in text
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(getattr(Config(), section.name)):
            assert f"--config.{section.name}.{field.name}: " in text


def test_a_config_file_that_returns_something_else_is_refused(command, tmp_path):
    (tmp_path / "c.py").write_text("def get_config():\n    return {}\n")
    status, _, error = command("train", f"--config={tmp_path}/c.py", "--data_dir=x", "--workdir=y")
    assert status == 2 and "expected get_config to return a hm3_tf.config.Config, got <class 'dict'>" in error


def test_the_traceback_is_shown_when_asked_for(command, tmp_path):
    _, _, error = command("evaluate", f"--workdir={tmp_path}", "--traceback")
    assert "Traceback" in error and "hm3: error: " in error


def test_evaluate_prints_and_writes_slices_and_the_difference_from_another_run(command, workdir, tmp_path):
    status, output, _ = command(
        *("evaluate", f"--workdir={workdir}", "--slice=position", f"--compare={workdir}", f"--output={tmp_path}/m.json")
    )
    assert status == 0
    assert "pcvr by position" in output and "too few rows" in output
    assert re.search(rf"less {workdir}.*\n  pctr       auc +0\.00000   0\.00000…0\.00000\n", output)
    figures = json.loads((tmp_path / "m.json").read_text())
    assert figures["compare"]["pctr"]["auc_interval"] == [0, 0]
    assert sum(part["rows"] for part in figures["slices"]["position"].values()) == 857


def test_a_slice_by_a_column_that_is_not_there_is_refused(command, workdir):
    assert "--slice: expected a column of the schema, got 'positio'; did you mean 'position'" in the_error(
        command("evaluate", f"--workdir={workdir}", "--slice=positio")
    )


def test_evaluate_prints_and_writes_the_figures(command, workdir):
    status, output, _ = command("evaluate", f"--workdir={workdir}")
    assert status == 0 and "pctcvr" in output and "Bayes AUC" in output
    figures = json.loads((workdir / "evaluation" / "test.json").read_text())
    assert figures["split"] == "test" and figures["rows"] == 857
    assert set(figures) == {"split", "data_dir", "rows", "pctr", "pcvr", "pctcvr", "levels"}
    assert figures["pcvr"]["rows"] == figures["pctr"]["positives"]


def test_predict_and_export_say_what_they_wrote(command, data, workdir, tmp_path):
    arguments = [f"--workdir={workdir}", f"--data_dir={data.path}", f"--output={tmp_path}/p.parquet"]
    status, output, _ = command("predict", *arguments)
    assert status == 0 and "857 rows" in output
    assert pq.read_table(tmp_path / "p.parquet").num_rows == 857
    status, output, _ = command("export", f"--workdir={workdir}", f"--export_dir={tmp_path}/e")
    assert status == 0 and f"wrote {tmp_path}/e/1" in output


def test_the_flags_of_export_reach_the_version(command, workdir, tmp_path):
    for number in ("1", "2"):
        (tmp_path / "models" / number).mkdir(parents=True)
    arguments = [f"--workdir={workdir}", f"--export_dir={tmp_path}/models"]
    assert "other/schema.json: expected a file, found none" in the_error(
        command("export", *arguments, f"--data_dir={tmp_path}/other", "--check=5")
    )
    (tmp_path / "none").mkdir()
    flags = [f"--gate={tmp_path}/none", "--weights=final", "--warm_up=2", "--keep=2"]
    flags += ["--tables=int8", "--score_price=price", "--score_exponent=0.5"]
    assert command("export", *arguments, *flags)[0] == 0
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["2", "3", "lock"]
    metadata = json.loads((tmp_path / "models" / "3" / "assets.extra" / "metadata.json").read_text())
    assert (metadata["weights"], metadata["step"], metadata["warm_up"]) == ("final", 9, [2])
    assert metadata["gate"] == {"live": None, "forced": False}
    assert (metadata["tables"], metadata["score"]) == ("int8", {"price": "price", "exponent": 0.5})
    assert all("score" in signature["outputs"] for signature in metadata["signatures"].values())


def test_simulate_is_the_same_for_the_same_seed(command, tmp_path):
    for name in "ab":
        assert command("simulate", f"--output_dir={tmp_path}/{name}", "--rows=3000", "--seed=7")[0] == 0
    for file in ("train/part-00000-00000.tfrecord", "schema.json", "statistics.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_parquet_with_named_behaviors_converts_and_trains(command, tmp_path):
    rng = np.random.default_rng(0)
    rows = 4000
    click = rng.random(rows) < 0.4
    table = pa.table(
        {
            "user": rng.integers(2**60, 2**60 + 50, rows),
            "shop": rng.choice(["a", "b", None], rows),
            "cart": click & (rng.random(rows) < 0.3),
            "wish": click & (rng.random(rows) < 0.1),
            "click": click,
            "buy": click & (rng.random(rows) < 0.1),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    arguments = ["--source=parquet", f"--input={tmp_path}/log.parquet", f"--output_dir={tmp_path}/data"]
    behaviors = ["--behaviors=click,d_ma=cart|wish,purchase=buy", "--groups=user"]
    assert command("convert", *arguments, *behaviors)[0] == 0
    config = [flag for flag in TINY if "features" not in flag and "--config=" not in flag]
    run = [f"--data_dir={tmp_path}/data", f"--workdir={tmp_path}/run"]
    status, output, error = command("train", "--config=configs/esm2.py", *config, *run)
    assert status == 0 and "P(d_ma)" in output, error
    assert "--config=configs/hm3.py" not in output
    message = the_error(command("train", "--config=configs/hm3.py", *config, run[0], f"--workdir={tmp_path}/other"))
    assert "expected levels of the log, got 'd_mi', which is none of click, d_ma, purchase; use a method" in message


def test_impressions_and_events_are_joined_and_converted(command, tmp_path):
    keys = {"user_id": [1, 1, 2], "item_id": [7, 8, 7], "time": [100, 200, 100]}
    pq.write_table(pa.table({**keys, "price": [0.5, 1.5, 2.5]}), tmp_path / "impressions.parquet")
    lines = (
        "user_id,item_id,time,behavior",
        "1,7,160,click",
        "1,7,161,click",
        "1,8,250,click",
        "1,8,900,buy",
        "2,9,5,buy",
    )
    (tmp_path / "events.csv").write_text("\n".join(lines))
    tables = [f"--impressions={tmp_path}/impressions.parquet", f"--events={tmp_path}/events.csv", "--time_unit=s"]
    options = ["--window=click:1m,buy:1d", "--history=click:5", f"--output={tmp_path}/joined"]
    status, output, error = command("join", *tables, *options)
    assert status == 0, error
    assert output.splitlines()[0] == f"wrote {tmp_path}/joined: 3 impressions"
    assert [line.split() for line in output.splitlines()[2:]] == [
        ["click", "2", "2", "1", "0", "0"],
        ["buy", "1", "1", "0", "1", "0"],
    ]
    behaviors = ["--behaviors=click,purchase=buy", "--groups=user_id", "--ignore=time", "--split=fraction:1,0,0"]
    where = ["--source=parquet", f"--input={tmp_path}/joined", f"--output_dir={tmp_path}/data"]
    assert command("convert", *where, *behaviors)[0] == 0
    folder = DataFolder.open(str(tmp_path / "data"))
    assert folder.statistics()["train"].label_patterns == {"00": 1, "10": 1, "11": 1}
    assert folder.schema.column("click_history").hashing is not None


def test_a_table_of_several_days_is_converted_with_shards_of_each(command, tmp_path):
    days = ["2022-05-02", "2022-05-01", "2022-05-02"]
    pq.write_table(
        pa.table({"item": [1, 2, 3], "date": days, "click": [1, 0, 1], "buy": [0, 0, 1]}), tmp_path / "log.parquet"
    )
    where = [f"--input={tmp_path}/log.parquet", f"--output_dir={tmp_path}/data", "--split=fraction:1,0,0"]
    status, output, _ = command("convert", "--source=parquet", *where, "--behaviors=click,buy", "--shard_by_day")
    assert status == 0 and re.search(r"ignored +date \(string\)", output)
    names = sorted(path.name for path in (tmp_path / "data" / "train").glob("*.tfrecord"))
    assert names == ["2022-05-01-part-00000-00000.tfrecord", "2022-05-02-part-00000-00000.tfrecord"]


# What goes wrong with a run: one line each, with what was expected, what came, where, and what to do.


def train(command, data_dir, workdir, *flags: str) -> str:
    return the_error(command("train", *TINY, *flags, f"--data_dir={data_dir}", f"--workdir={workdir}"))


def copy_of(data, tmp_path):
    shutil.copytree(data.path, tmp_path / "log")
    return tmp_path / "log"


def test_a_folder_without_a_log_is_named(command, tmp_path):
    message = train(command, tmp_path, tmp_path / "run")
    assert f"{tmp_path}/schema.json: expected a file, found none; make the folder with hm3 convert" in message


def test_an_unknown_column_in_the_config_is_named(command, data, tmp_path):
    message = train(command, data.path, tmp_path / "run", "--config.model.features=('user_di',)")
    assert "model.features: expected a column of the schema, got 'user_di'; did you mean 'user_id'" in message


def test_an_earlier_run_of_another_network_is_not_started_from(command, data, workdir, tmp_path):
    message = train(command, data.path, tmp_path, f"--warm_start_from={workdir}", "--config.model.embedding_dim=5")
    assert f"--warm_start_from: expected dim of 'position' as in {workdir} (4), got 5; train with that" in message


@pytest.mark.parametrize(("column", "why"), [("cart", "is a label"), ("truth_pctr", "is the simulator's truth")])
def test_a_label_or_a_truth_as_feature_is_refused(command, data, tmp_path, column, why):
    message = train(command, data.path, tmp_path / "run", f"--config.model.features=('user_id','{column}')")
    assert f"expected an input column, but '{column}' {why}" in message


def test_an_empty_split_is_named(command, data, tmp_path):
    log = copy_of(data, tmp_path)
    for file in (log / "train").iterdir():
        file.unlink()
    (log / "train" / "part-00000-00000.tfrecord").touch()
    message = train(command, log, tmp_path / "run")
    assert f"{log}/train: expected impressions, found an empty split" in message


def test_a_corrupt_record_is_named_with_file_and_offset(command, data, tmp_path):
    log = copy_of(data, tmp_path)
    shard = log / "train" / "part-00000-00000.tfrecord"
    content = bytearray(shard.read_bytes())
    second = json.loads((log / "train" / "index.json").read_text())["shards"][0]["blocks"][1][0]
    second += 12  # the record's data stand after its length and the checksum of that
    content[second + 500] ^= 0xFF
    shard.write_bytes(content)
    message = train(command, log, tmp_path / "run")
    assert f"{shard}: expected TFRecord data, found a corrupt or cut-off record at byte offset {second}" in message


def test_a_truncated_shard_is_named_with_file_and_sizes(command, data, tmp_path):
    log = copy_of(data, tmp_path)
    shard = log / "train" / "part-00000-00000.tfrecord"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-100])
    message = train(command, log, tmp_path / "run")
    assert f"{shard}: expected the {size} bytes that index.json names, found {size - 100} bytes" in message


def test_a_workdir_of_another_config_is_refused(command, data, workdir):
    message = train(command, data.path, workdir, "--config.training.learning_rate=0.5")
    assert "expected the config of the run it holds (training.learning_rate=0.0005), got 0.5" in message


def test_a_workdir_that_cannot_be_written_is_named(command, data, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    message = train(command, data.path, tmp_path / "file" / "run")
    assert f"{tmp_path}/file/run" in message and "expected a place that can be written" in message


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["folder", "binary"])
def test_a_schema_that_is_no_text_file_is_named(command, tmp_path, content):
    path = tmp_path / "schema.json"
    path.mkdir() if content is None else path.write_bytes(content)
    result = command("convert", "--source=csv", f"--schema={path}", "--input=x", f"--output_dir={tmp_path}/o")
    assert f"{path}: expected a text file, got: " in the_error(result)


def test_a_folder_in_place_of_a_parquet_file_is_named_before_anything_is_predicted(command, data, workdir, tmp_path):
    (tmp_path / "p.parquet").mkdir()
    arguments = [f"--workdir={workdir}", f"--data_dir={data.path}", f"--output={tmp_path}/p.parquet"]
    assert f"{tmp_path}/p.parquet: expected the name of a file to write, got a folder" in the_error(
        command("predict", *arguments)
    )


def test_a_file_in_place_of_a_folder_is_named(command, data, workdir, tmp_path):
    (tmp_path / "p").write_text("mine")
    arguments = [f"--workdir={workdir}", f"--data_dir={data.path}", f"--output={tmp_path}/p"]
    assert f"{tmp_path}/p: expected a place that can be written" in the_error(command("predict", *arguments))
    assert (tmp_path / "p").read_text() == "mine"
    status, _, error = command("predict", *arguments[:2], f"--output={tmp_path}/p.csv")
    assert status == 2 and "--output: expected a name that ends in .parquet" in error


def test_predict_on_ray_needs_its_engine(command, workdir):
    arguments = [f"--workdir={workdir}", "--data_dir=x", "--output=y", "--ray_address=auto"]
    status, _, error = command("predict", *arguments)
    assert status == 2 and "--ray_address: expected --engine=ray beside it, got --engine=local" in error


def test_a_run_is_evaluated_from_any_directory(command, data, tmp_path, monkeypatch):
    monkeypatch.chdir(os.path.dirname(data.path))
    assert command("train", *TINY, f"--data_dir={os.path.basename(data.path)}", f"--workdir={tmp_path}/run")[0] == 0
    monkeypatch.chdir(tmp_path)
    assert command("evaluate", "--workdir=run")[0] == 0


def test_a_run_without_a_checkpoint_is_named(command, data, workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    message = the_error(command("evaluate", f"--workdir={tmp_path}/run"))
    assert f"{tmp_path}/run: expected a checkpoint, found none; run hm3 train on this workdir first" in message


def test_nesting_error_refuses_a_purchase_without_a_click(command, tmp_path):
    table = pa.table({"user": [1, 2, 3], "click": [1, 0, 0], "buy": [1, 0, 1]})
    pq.write_table(table, tmp_path / "log.parquet")
    arguments = ["--source=parquet", f"--input={tmp_path}/log.parquet", f"--output_dir={tmp_path}/data"]
    message = the_error(command("convert", *arguments, "--behaviors=click,purchase=buy", "--nesting=error"))
    assert "log.parquet: row 2: expected labels that keep the hierarchy, got purchase without click" in message
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("tf_config", "message"),
    [
        (None, "expected TF_CONFIG in the environment, found none"),
        ("{cluster", "TF_CONFIG: expected JSON, got '{cluster'"),
        ('{"cluster": {"worker": ["127.0.0.1:1"]}}', "expected this worker's task among the addresses"),
        *(
            (
                json.dumps({"cluster": {job: ["127.0.0.1:1"]}, "task": {"type": job, "index": index}}),
                "this worker's task",
            )
            for job, index in (("evaluator", 0), ("worker", -1), ("worker", 1))
        ),
        ('{"cluster": {"worker": [7]}, "task": {"type": "worker", "index": 0}}', "expected addresses as host:port"),
        (
            '{"cluster": {"worker": ["here"]}, "task": {"type": "worker", "index": 0}}',
            "expected addresses as host:port",
        ),
    ],
)
def test_a_tf_config_that_cannot_be_used_is_explained(command, data, tmp_path, monkeypatch, tf_config, message):
    if tf_config is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", tf_config)
    flags = ["--config.distribution.strategy=multi_worker"]
    assert message in train(command, data.path, tmp_path / "run", *flags)


@pytest.mark.parametrize("strategy", ["one_device", "mirrored"])
def test_a_cluster_is_not_left_idle(command, data, tmp_path, monkeypatch, strategy):
    task = {"cluster": {"chief": ["10.0.0.1:1"], "worker": ["10.0.0.2:1"]}, "task": {"type": "chief", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    message = train(command, data.path, tmp_path / "run", f"--config.distribution.strategy={strategy}")
    assert f"distribution.strategy={strategy}: expected no cluster, but TF_CONFIG names one of 2 tasks" in message


def test_a_port_in_use_is_named(command, data, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        task = {"cluster": {"worker": [address]}, "task": {"type": "worker", "index": 0}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(task))
        message = train(command, data.path, tmp_path / "run", "--config.distribution.strategy=multi_worker")
    assert f"for this worker ({address}), but it cannot be opened" in message


def test_the_process_ends_with_the_commands_own_status(tmp_path):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    arguments = [sys.executable, "-m", "hm3_tf", "evaluate", f"--workdir={tmp_path}/none"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("hm3: error: ")


@pytest.mark.parametrize("name", ["matplotlib", "jinja2"])
def test_a_report_without_its_packages_says_what_to_install(command, workdir, tmp_path, monkeypatch, name):
    for module in [*sys.modules]:
        if module.startswith("hm3_tf.report") or module.split(".")[0] == name:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    error = the_error(command("report", f"--workdir={workdir}", f"--output={tmp_path}/report.html"))
    assert error == (
        f"hm3: error: hm3 report: expected the packages of the extra 'report', but {name} is not installed; "
        "pip install 'hm3-tf[report]'"
    )


def test_a_join_without_duckdb_says_what_to_install(command, tmp_path, monkeypatch):
    for module in [*sys.modules]:
        if module.startswith("data_pipeline.event_") or module.split(".")[0] == "duckdb":
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    error = the_error(command("join", "--impressions=x", "--events=x", f"--output={tmp_path}/o", "--window=click:1m"))
    assert "expected the packages of the extra 'join', but duckdb is not installed" in error


def test_a_report_is_of_the_log_that_the_run_was_trained_on(command, workdir, data, tmp_path):
    output = tmp_path / "new" / "report.html"
    status, printed, _ = command("report", f"--workdir={workdir}", "--slice=position", f"--output={output}")
    assert (status, printed) == (0, f"wrote {output}\n")
    page = output.read_text()
    assert data.path in page and "Slices by position" in page


def test_a_report_on_a_run_named_twice_is_refused(command, workdir, tmp_path):
    twice = [f"--workdir={workdir}", f"--workdir={workdir}/"]
    error = the_error(command("report", *twice, f"--output={tmp_path}/report.html"))
    assert "--workdir: expected each run once" in error and not list(tmp_path.iterdir())


@pytest.fixture
def leaking(command, tmp_path):
    """Path of a log, a feature of which is the click."""
    rng = np.random.default_rng(0)
    click = rng.integers(0, 2, 2_000)
    item, purchase = rng.integers(0, 50, 2_000), click * rng.integers(0, 2, 2_000)
    table = pa.table({"item": item, "seen": click, "click": click, "purchase": purchase})
    pq.write_table(table, tmp_path / "log.parquet")
    arguments = ["--source=parquet", f"--input={tmp_path}/log.parquet", f"--output_dir={tmp_path}/leaking"]
    assert command("convert", *arguments, "--behaviors=click,purchase")[0] == 0
    return tmp_path / "leaking"


def test_a_log_without_errors_is_valid_and_one_with_a_leak_is_not(command, data, leaking, tmp_path):
    page, figures = tmp_path / "report.html", tmp_path / "report.json"
    status, printed, _ = command("validate", f"--data_dir={data.path}", f"--output={figures}")
    assert status == 0 and "error 0, warning 0" in printed
    assert json.loads(figures.read_text())["counts"]["warning"] == 0
    error = the_error(command("validate", f"--data_dir={leaking}", f"--output={page}"))
    assert f"{leaking}: expected a log without errors, found 1; the first, label_leak of train, column 'seen'" in error
    assert "<td>label_leak</td><td>train, column &#39;seen&#39;</td>" in page.read_text()


def test_training_on_a_log_with_a_leak_says_so_and_goes_on(command, leaking, tmp_path, caplog):
    flags = [flag for flag in TINY if "model.features" not in flag]
    config = flags[0].replace("configs/hm3.py", "configs/esmm.py")
    status, _, _ = command("train", config, *flags[1:], f"--data_dir={leaking}", f"--workdir={tmp_path}/run")
    assert status == 0
    (warning,) = [record.message for record in caplog.records if record.message.startswith("the log: ")]
    assert warning.startswith(
        "the log: error: label_leak: train, column 'seen': alone it tells 'click' with an AUC of 1.0000"
    )
