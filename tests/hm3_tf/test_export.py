"""The served model: raw values in, the model's probabilities out, with TensorFlow alone."""

import dataclasses
import datetime
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import hm3_tf
from data_pipeline import schema as schemas
from data_pipeline.hashing import hash_to_bucket
from data_pipeline.schema import Hashing, Schema
from hm3_tf import config as configs
from hm3_tf import export, serving, skew
from hm3_tf.behavior_graph import Behavior, BehaviorGraph
from hm3_tf.errors import ConfigError, DataError, Hm3Error
from hm3_tf.export import check_export, export_run
from hm3_tf.layers import HashedEmbeddings
from hm3_tf.model import probabilities
from hm3_tf.versions import version_numbers
from tests.conftest import BUCKETS, FEATURES, LOG, tiny_config, written_run
from tests.truth_model import save_truth

ROOT = Path(__file__).parents[2]

LEVELS = ("click", "d_mi", "d_ma", "purchase")
MISSING_INT64 = -(2**63)


@pytest.fixture(scope="module")
def exported(trained_run, tmp_path_factory):
    """Folder of the first version."""
    return Path(export_run(trained_run, str(tmp_path_factory.mktemp("export") / "models")))


@pytest.fixture(scope="module")
def served(exported):
    return tf.saved_model.load(str(exported))


@pytest.fixture(scope="module")
def model(trained_run):
    return trained_run.trained_model()


def raw_rows(rows=6, history=3):
    """Returns the first rows of the log as a client has them, each with `history` items."""
    columns = next(LOG.batches())
    raw = {name: columns[name][:rows] for name in FEATURES if name != "history"}
    raw["brand"] = raw["brand"].astype(bytes)
    raw["history"] = np.resize(columns["item_id"], (rows, history))
    return raw


def serve(served, raw):
    tensors = {name: tf.constant(values) for name, values in raw.items()}
    return {name: p.numpy() for name, p in served.signatures["serving_default"](**tensors).items()}


def serve_examples(served, rows):
    """Returns the predictions for rows given as {column: list of values}."""
    kinds = {
        int: lambda values: {"int64_list": tf.train.Int64List(value=values)},
        float: lambda values: {"float_list": tf.train.FloatList(value=values)},
        bytes: lambda values: {"bytes_list": tf.train.BytesList(value=values)},
    }
    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={name: tf.train.Feature(**kinds[type(values[0])](values)) for name, values in row.items()}
            )
        ).SerializeToString()
        for row in rows
    ]
    return {
        name: p.numpy() for name, p in served.signatures["serving_examples"](examples=tf.constant(examples)).items()
    }


def as_lists(raw):
    """Returns {column: array} as a list of rows {column: list of plain values}."""
    return [
        {name: np.atleast_1d(values[row]).tolist() for name, values in raw.items()} for row in range(len(raw["price"]))
    ]


def predict(model, raw):
    """Returns what the model predicts for raw columns, hashed here column by column."""
    history = np.full((len(raw["price"]), 10), MISSING_INT64)
    length = min(10, raw["history"].shape[1])
    history[:, :length] = raw["history"][:, :length]
    tables = {name: "item_id" if name == "history" else name for name in FEATURES}
    inputs = {
        name: hash_to_bucket(tf.constant(values), BUCKETS[tables[name]], tables[name])
        for name, values in ({**raw, "history": history}).items()
        if name != "price"
    }
    predictions = model.network({**inputs, "price": tf.constant(raw["price"])})
    return {name: p.numpy() for name, p in probabilities(predictions, LEVELS).items()}


def assert_equal(actual, expected):
    assert set(actual) == set(expected)
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=1e-6, err_msg=name)


def test_the_signatures_name_raw_columns_and_probabilities(served):
    default, examples = (served.signatures[name] for name in ("serving_default", "serving_examples"))
    inputs = {name: (spec.dtype, spec.shape.rank) for name, spec in default.structured_input_signature[1].items()}
    assert inputs == {
        "position": (tf.int64, 1),
        "user_id": (tf.int64, 1),
        "item_id": (tf.int64, 1),
        "brand": (tf.string, 1),
        "price": (tf.float32, 1),
        "history": (tf.int64, 2),
    }
    assert {name: spec.dtype for name, spec in examples.structured_input_signature[1].items()} == {
        "examples": tf.string
    }
    for signature in (default, examples):
        assert set(signature.structured_outputs) == {"pctr", "pcvr", "pctcvr", "p_d_mi", "p_d_ma"}


@pytest.mark.parametrize("history", [0, 1, 3, 10, 15])
def test_sequences_shorter_and_longer_than_the_network_reads_are_padded_and_cut(served, model, history):
    raw = raw_rows(history=history)
    expected = predict(model, raw)
    assert_equal(serve(served, raw), expected)
    rows = [{name: values for name, values in row.items() if values} for row in as_lists(raw)]
    assert_equal(serve_examples(served, rows), expected)


def test_examples_of_unequal_lengths_go_into_one_batch(served, model):
    raw = raw_rows(rows=3, history=12)
    rows = as_lists(raw)
    expected = []
    for i, length in enumerate((12, 4, 1)):
        rows[i]["history"] = rows[i]["history"][:length]
        one = {name: values[i : i + 1] for name, values in raw.items()}
        expected.append(predict(model, {**one, "history": one["history"][:, :length]})["pctr"][0])
    np.testing.assert_allclose(serve_examples(served, rows)["pctr"], expected, rtol=0, atol=1e-6)


def from_json(text):
    """Returns the columns of a REST request in row format, as a server reads them."""
    rows = json.loads(text)["instances"]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_ids_above_two_to_the_53_are_told_apart(served):
    ids = 2**53 + np.arange(8)
    assert len(set(ids.astype(np.float64))) < 8, "a float64 merges them"
    raw = {name: np.repeat(values[:1], 8, axis=0) for name, values in raw_rows().items()}
    by_column = serve(served, {**raw, "user_id": ids})["pctr"]
    by_example = serve_examples(served, as_lists({**raw, "user_id": ids}))["pctr"]
    assert len(set(by_column.tolist())) == len(set(by_example.tolist())) == 8
    np.testing.assert_array_equal(by_column, by_example)
    lists = {
        name: values.tolist() for name, values in {**raw, "user_id": ids, "brand": raw["brand"].astype(str)}.items()
    }
    instances = [dict(zip(lists, row)) for row in zip(*lists.values())]
    columns = from_json(json.dumps({"instances": instances}))
    by_json = serve(served, {**columns, "price": columns["price"].astype(np.float32)})["pctr"]
    np.testing.assert_array_equal(by_column, by_json)


def test_a_missing_string_is_empty_or_left_out(served, model):
    raw = raw_rows()
    raw["brand"] = np.full(len(raw["brand"]), b"", dtype="S1")
    expected = predict(model, raw)
    assert_equal(serve(served, raw), expected)
    rows = as_lists(raw)
    assert_equal(serve_examples(served, rows), expected)
    for row in rows:
        del row["brand"]
    assert_equal(serve_examples(served, rows), expected)
    assert np.abs(expected["pctr"] - predict(model, raw_rows())["pctr"]).max() > 1e-5


def test_an_empty_example_is_served_as_a_row_of_missing_values(served, model):
    nothing = {
        **{name: np.full(1, MISSING_INT64) for name in ("position", "user_id", "item_id")},
        "brand": np.array([b""]),
        "price": np.array([np.nan], np.float32),
        "history": np.full((1, 1), MISSING_INT64),
    }
    assert_equal(serve_examples(served, [{}]), predict(model, nothing))
    assert_equal(serve(served, nothing), predict(model, nothing))


def test_an_unknown_brand_and_an_unknown_id_are_served(served, model):
    raw = raw_rows(rows=1)
    raw |= {"brand": np.array(["läden & söhne".encode()]), "user_id": np.array([-1]), "position": np.array([2**62])}
    assert_equal(serve(served, raw), predict(model, raw))


def test_rows_do_not_depend_on_the_batch_they_come_in(served):
    raw = raw_rows(rows=5)
    whole = serve(served, raw)["pctcvr"]
    single = [serve(served, {name: values[i : i + 1] for name, values in raw.items()})["pctcvr"][0] for i in range(5)]
    np.testing.assert_allclose(single, whole, rtol=1e-5)
    assert serve(served, {name: values[:0] for name, values in raw.items()})["pctcvr"].shape == (0,)


def test_the_served_model_holds_the_tables_and_no_slots_of_the_optimizer(exported, model):
    shapes = [tuple(s) for name, s in tf.train.list_variables(str(exported / "variables" / "variables")) if s]
    tables = [layer for layer in model.network.layers if isinstance(layer, HashedEmbeddings)]
    assert shapes == [tuple(variable.shape) for layer in tables for variable, _ in layer.parts]


def test_schema_and_config_travel_with_the_served_model(exported, trained_run):
    extra = exported / "assets.extra"
    assert schemas.from_json((extra / "schema.json").read_text()) == trained_run.schema
    assert configs.from_json((extra / "config.json").read_text()) == trained_run.config


STANDALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hm3_tf", "data_pipeline", "tests"):
            raise ImportError(f"{name} is not to be needed here")

sys.meta_path.insert(0, Refuse())
for name in ("hm3_tf", "data_pipeline"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported")

import numpy as np
import tensorflow as tf

folder, inputs, outputs = sys.argv[1:]
raw = dict(np.load(inputs))
examples = raw.pop("examples")
signatures = tf.saved_model.load(folder).signatures
results = {
    "default": signatures["serving_default"](**{k: tf.constant(v) for k, v in raw.items()}),
    "examples": signatures["serving_examples"](examples=tf.constant(examples)),
}
np.savez(outputs, **{f"{name} {k}": v.numpy() for name, result in results.items() for k, v in result.items()})
"""


def test_the_served_model_needs_tensorflow_alone(exported, model, tmp_path):
    raw = raw_rows()
    feature = tf.train.Feature(int64_list=tf.train.Int64List(value=[int(raw["user_id"][0])]))
    one = tf.train.Example(features=tf.train.Features(feature={"user_id": feature})).SerializeToString()
    np.savez(tmp_path / "in.npz", examples=np.array([one]), **raw)
    command = [
        sys.executable,
        "-I",
        "-c",
        STANDALONE,
        str(exported),
        str(tmp_path / "in.npz"),
        str(tmp_path / "out.npz"),
    ]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    results = np.load(tmp_path / "out.npz")
    for name, p in predict(model, raw).items():
        np.testing.assert_allclose(results[f"default {name}"], p, rtol=0, atol=1e-6)
        assert results[f"examples {name}"].shape == (1,)


@pytest.fixture
def quick_save(monkeypatch):
    """Has a model that serves the truth saved in place of the run's."""
    monkeypatch.setattr(export, "_save", lambda run, model, folder, *_: save_truth(folder))


def metadata(version):
    return json.loads((Path(version) / "assets.extra" / "metadata.json").read_text())


def test_the_metadata_say_where_a_version_comes_from_and_what_it_takes(exported, trained_run):
    found = metadata(exported)
    assert found["workdir"] == trained_run.path and (found["method"], found["weights"], found["step"]) == (
        "hm3",
        "best",
        1,
    )
    assert found["versions"] == {"hm3_tf": hm3_tf.__version__, "tensorflow": tf.__version__}
    assert abs(datetime.datetime.fromisoformat(found["time"]).timestamp() - time.time()) < 3600
    assert (found["skew"], found["gate"]) == (None, None)
    default = found["signatures"]["serving_default"]
    assert default["inputs"]["history"] == {"dtype": "int64", "shape": [None, None]}
    assert default["outputs"]["pcvr"] == {"dtype": "float32", "shape": [None]}


def test_the_log_of_training_gives_the_figures_of_the_weights(trained_run, quick_save, tmp_path):
    run = dataclasses.replace(trained_run, path=str(tmp_path / "run"))
    shutil.copytree(trained_run.path, run.path)
    figures = {"rows": 857, "pctr": {"auc": 0.7}}
    lines = [{"step": 1, "loss": 1.0}, {"step": 1, "validation": figures}, {"step": 2, "validation": {"rows": 1}}]
    Path(run.file("metrics.jsonl")).write_text("".join(json.dumps(line) + "\n" for line in lines))
    version = export_run(run, str(tmp_path / "models"), warm_up=())
    written = json.loads((Path(version) / "assets.extra" / "metrics.json").read_text())
    assert written == {"split": "validation", **figures}


def test_warm_up_requests_of_the_log_are_answered_by_every_signature(exported, served):
    prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    assert metadata(exported)["warm_up"] == [1, 100, 500]
    records = tf.data.TFRecordDataset(str(exported / "assets.extra" / "tf_serving_warmup_requests"))
    requests = [prediction_log_pb2.PredictionLog.FromString(r.numpy()).predict_log.request for r in records]
    answered = {name: [] for name in served.signatures}
    for request in requests:
        inputs = {name: tf.constant(tf.make_ndarray(proto)) for name, proto in request.inputs.items()}
        answer = served.signatures[request.model_spec.signature_name](**inputs)
        answered[request.model_spec.signature_name].append(len(answer["pctr"]))
    assert answered == {name: [1, 100, 500] for name in served.signatures}


def test_a_log_that_is_gone_costs_the_warm_up_and_is_missed_where_it_is_asked_for(
    trained_run, quick_save, tmp_path, caplog
):
    run = dataclasses.replace(trained_run, data_dir=str(tmp_path / "gone"))
    with pytest.raises(DataError, match="gone/schema.json: expected a file, found none"):
        export_run(run, str(tmp_path / "models"), warm_up=[1])
    version = export_run(run, str(tmp_path / "models"))
    assert version.endswith("/1") and metadata(version)["warm_up"] == []
    assert "exported without requests to warm up with: " in caplog.text


def test_a_version_that_serves_other_than_the_model_predicts_is_not_exported(
    trained_run, quick_save, tmp_path, monkeypatch
):
    def answers(folder, requests):
        return [{name: np.full(50, 2.0) for name in ("pctr", "pcvr", "pctcvr", "p_d_mi", "p_d_ma")} for _ in requests]

    monkeypatch.setattr(skew, "_answers", answers)
    with pytest.raises(Hm3Error, match="skew check: expected the model's predictions of 50 logged rows"):
        export_run(trained_run, str(tmp_path), check=50)
    assert version_numbers(str(tmp_path)) == []


def test_the_gate_lets_an_equal_version_pass_and_a_worse_one_by_force_alone(
    trained_run, quick_save, tmp_path, monkeypatch
):
    models = str(tmp_path)
    run = functools.partial(export_run, trained_run, models, warm_up=(), gate=models)
    assert metadata(run())["gate"] == {"live": None, "forced": False}
    equal = metadata(run())["gate"]
    assert (equal["live"], equal["forced"], equal["reasons"], equal["rows"]) == (f"{models}/1", False, [], 857)
    monkeypatch.setattr(export, "_save", lambda run, model, folder, *_: save_truth(folder, factor=2.5))
    message = rf"gate: expected a version no worse than {models}/2 on 857 rows of validation, got pctr PCOC \d"
    with pytest.raises(Hm3Error, match=message):
        run()
    assert version_numbers(models) == [1, 2]
    forced = run(force=True)
    assert metadata(forced)["gate"]["forced"] and metadata(forced)["gate"]["reasons"][0].startswith("pctr PCOC ")
    figures = json.loads((Path(forced) / "assets.extra" / "metrics.json").read_text())
    assert figures["pctr"]["pcoc"] == metadata(forced)["gate"]["targets"]["pctr"]["pcoc"]["new"]


KILLED = """
import os, signal, sys
import tensorflow as tf
from hm3_tf.export import export_run
from hm3_tf.workdir import open_workdir

rename = tf.io.gfile.rename

def killed_before_a_version_appears(source, target, overwrite=False):
    if tf.io.gfile.isdir(source):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target, overwrite)

tf.io.gfile.rename = killed_before_a_version_appears
export_run(open_workdir(sys.argv[1]), sys.argv[2])
"""


def test_a_kill_during_export_leaves_the_old_version_served_and_no_half_one(
    trained_run, exported, quick_save, tmp_path
):
    shutil.copytree(exported, tmp_path / "1")
    command = [sys.executable, "-c", KILLED, trained_run.path, str(tmp_path)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (left,) = [path for path in tmp_path.iterdir() if path.name not in ("1", "lock")]
    assert left.name.startswith("2.tmp-") and (left / "assets.extra" / "metadata.json").exists()
    assert version_numbers(str(tmp_path)) == [1]
    assert tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    export_run(trained_run, str(tmp_path), warm_up=())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "lock"]


def test_a_version_that_could_not_be_written_does_not_appear(trained_run, monkeypatch, tmp_path):
    def save(run, model, folder, *_):
        (Path(folder) / "saved_model.pb").write_text("half")
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(export, "_save", save)
    with pytest.raises(RuntimeError, match="on fire"):
        export_run(trained_run, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_an_export_folder_that_cannot_be_made_is_refused(trained_run, quick_save, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Hm3Error, match="file/models: expected a place that can be written"):
        export_run(trained_run, str(tmp_path / "file" / "models"))


def test_a_run_without_a_checkpoint_is_not_exported_and_leaves_no_folder(data, tmp_path):
    run = written_run(str(tmp_path / "run"), tiny_config(), data)
    with pytest.raises(Hm3Error, match="expected a checkpoint, found none; run hm3 train on this workdir first"):
        export_run(run, str(tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_the_trial_export_passes_and_does_not_need_the_memory_of_the_tables(trained_run):
    config = tiny_config()
    config.model.hash_buckets.update(user_id=2**30, item_id=2**30)  # 32 GiB of embeddings
    check_export(dataclasses.replace(trained_run, config=config))


def test_a_model_that_cannot_be_exported_fails_the_trial_with_the_reason(trained_run, monkeypatch):
    def parse_rows(examples, columns):
        raise ValueError("Feature brand: data types do not match.\nand a long story")

    monkeypatch.setattr(serving, "parse_rows", parse_rows)
    message = (
        "expected a model that can be exported, but a trial export of hm3 failed: "
        "ValueError: Feature brand: data types do not match.; run with --traceback to see where"
    )
    with pytest.raises(Hm3Error, match=re.escape(message)):
        check_export(trained_run)


def test_a_config_that_does_not_fit_the_log_fails_the_trial_with_its_own_message(trained_run):
    config = tiny_config()
    config.model.graph = BehaviorGraph((Behavior("click", gate=True), Behavior("apply")))
    with pytest.raises(ConfigError, match=r"^method 'hm3': expected levels of the log, got 'apply'"):
        check_export(dataclasses.replace(trained_run, config=config))


def test_a_salt_of_the_schema_is_served_too(trained_run, model):
    """The hash of serving is that of the schema the run was trained on, not a default one."""
    columns = tuple(
        dataclasses.replace(c, hashing=Hashing(c.hashing.buckets, "pepper")) if c.name == "brand" else c
        for c in trained_run.schema.columns
    )
    salted = dataclasses.replace(trained_run, schema=Schema(columns, trained_run.schema.levels))
    raw = {name: tf.constant(values) for name, values in raw_rows().items()}
    plain, other = (
        serving.ServingModule(run, model).signatures_to_save["serving_default"](raw)["pctr"].numpy()
        for run in (trained_run, salted)
    )
    assert np.abs(plain - other).max() > 1e-6


def test_the_config_beside_the_model_is_plain_json(exported):
    assert json.loads((exported / "assets.extra" / "config.json").read_text())["model"]["method"] == "hm3"
