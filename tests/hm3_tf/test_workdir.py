"""A run's directory: what may change when a run resumes, and what is refused."""

import dataclasses
import json
import re

import numpy as np
import pytest
import tensorflow as tf

import hm3_tf
from data_pipeline.folder import DataFolder
from data_pipeline.schema import Column, Schema
from hm3_tf.behavior_graph import Behavior, BehaviorGraph
from hm3_tf.config import checked
from hm3_tf.errors import ConfigError, DataError, Hm3Error
from hm3_tf.workdir import checkpoint_step, claim_workdir, open_workdir
from tests.conftest import save_best, tiny_config, written_run

FILES = ("config.json", "schema.json", "statistics.json", "run.json")
GRAPH = BehaviorGraph((Behavior("click", gate=True), Behavior("purchase")))


def config_with(section=None, **fields):
    config = tiny_config()
    for name, value in fields.items():
        setattr(getattr(config, section), name, value)
    return checked(config)


@pytest.fixture
def claimed(data, tmp_path):
    """Path of a directory that holds a run."""
    written_run(str(tmp_path / "run"), config_with(), data)
    return tmp_path / "run"


def test_a_new_directory_holds_all_that_the_run_needs(data, claimed):
    assert sorted(path.name for path in claimed.iterdir()) == sorted(FILES)
    run = open_workdir(str(claimed))
    assert run.config == config_with() and run.schema == data.schema
    assert run.train == data.statistics()["train"]
    assert (run.path, run.data_dir) == (str(claimed), data.path)
    versions = json.loads((claimed / "run.json").read_text())["versions"]
    assert versions == {"hm3_tf": hm3_tf.__version__, "tensorflow": tf.__version__}


def test_the_model_of_an_opened_run_is_that_of_the_run(data, claimed):
    first, second = claim_workdir(str(claimed), config_with(), data), open_workdir(str(claimed))
    for a, b in zip(first.build_model().network.get_weights(), second.build_model().network.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_a_run_that_has_not_started_leaves_no_file(data, tmp_path):
    run = claim_workdir(str(tmp_path / "run"), config_with(), data)
    assert not (tmp_path / "run").exists()
    assert run.train.rows == 4286


@pytest.mark.parametrize(
    "section, field, value, old",
    [
        ("model", "method", "esm2", "'hm3'"),
        ("model", "graph", GRAPH, "None"),
        ("model", "tower_units", (8, 5), "[8, 4]"),
        ("model", "embedding_dim", 5, "4"),
        ("model", "features", ("position", "price"), "['position'"),
        ("data", "nesting", "drop", "'coerce'"),
        ("data", "shuffle_rows", 512, "65536"),
        ("training", "learning_rate", 0.02, "0.01"),
        ("training", "global_batch_size", 256, "512"),
        ("training", "optimizer", "adam", "'lazy_adam'"),
        ("training", "seed", 1, "0"),
        ("training", "loss_weights", {"purchase": 2.0}, "{}"),
        ("training", "edge_loss_weight", 1.0, "0.0"),
        ("training", "best_metric", "pctr.auc", "'pctcvr.auc'"),
    ],
)
def test_a_run_of_another_config_is_refused_naming_the_field(data, claimed, section, field, value, old):
    before = (claimed / "config.json").read_text()
    message = f"{claimed}: expected the config of the run it holds ({section}.{field}={old}"
    with pytest.raises(Hm3Error, match=re.escape(message)) as error:
        claim_workdir(str(claimed), config_with(section, **{field: value}), data)
    assert str(error.value).endswith("; use another --workdir, or remove this one to start anew")
    assert (claimed / "config.json").read_text() == before


@pytest.mark.parametrize(
    "section, field, value",
    [
        ("training", "epochs", 9),
        ("training", "max_steps", 100),
        ("training", "log_every_steps", 7),
        ("training", "checkpoint_every_steps", 7),
        ("training", "keep_checkpoints", 1),
        ("distribution", "strategy", "mirrored"),
    ],
)
def test_how_long_and_where_a_run_is_may_change(data, claimed, section, field, value):
    config = config_with(section, **{field: value})
    assert written_run(str(claimed), config, data).config == config
    assert open_workdir(str(claimed)).config == config


def test_a_log_of_another_schema_is_refused(data, claimed):
    schema = Schema((*data.schema.columns, Column("age_days", "float")), data.schema.levels)
    message = (
        f"{claimed}: expected the schema of the run it holds (trained on {data.path}), but that of elsewhere differs"
    )
    with pytest.raises(Hm3Error, match=re.escape(message)):
        claim_workdir(str(claimed), config_with(), DataFolder("elsewhere", schema))


def test_a_log_may_say_later_whose_its_columns_are(data, claimed):
    item = dataclasses.replace(data.schema.column("price"), entity="user")
    columns = tuple(item if column.name == "price" else column for column in data.schema.columns)
    run = claim_workdir(str(claimed), config_with(), DataFolder(data.path, Schema(columns, data.schema.levels)))
    assert run.schema.column("price").entity == "user"


def test_a_log_of_the_same_schema_is_taken_with_the_statistics_of_the_first(data, claimed, tmp_path):
    """Statistics are part of the network: a resumed run keeps those that its weights were trained with."""
    tf.io.gfile.makedirs(str(tmp_path / "copy"))
    tf.io.gfile.copy(f"{data.path}/schema.json", str(tmp_path / "copy" / "schema.json"))
    other = DataFolder.open(str(tmp_path / "copy"))
    run = written_run(str(claimed), config_with(), other)
    assert run.train == data.statistics()["train"]
    assert open_workdir(str(claimed)).data_dir == other.path


@pytest.mark.parametrize("name", FILES)
def test_a_directory_without_one_of_its_files_is_not_that_of_a_run(claimed, name):
    (claimed / name).unlink()
    message = f"{claimed}/{name}: expected a file, found none; name the --workdir of an hm3 train run"
    with pytest.raises(DataError, match=re.escape(message)):
        open_workdir(str(claimed))


def test_a_directory_that_is_not_there_is_not_that_of_a_run(tmp_path):
    with pytest.raises(DataError, match="config.json: expected a file, found none"):
        open_workdir(str(tmp_path / "nowhere"))


def test_a_run_that_died_before_its_config_was_written_starts_anew(data, claimed):
    (claimed / "config.json").unlink()
    config = config_with("training", seed=5)
    assert written_run(str(claimed), config, data).config == config
    assert open_workdir(str(claimed)).config == config


def test_a_run_without_a_checkpoint_has_no_trained_model(claimed):
    message = f"{claimed}: expected a checkpoint, found none; run hm3 train on this workdir first"
    with pytest.raises(Hm3Error, match=re.escape(message)):
        open_workdir(str(claimed)).trained_model()


def save_latest(run, model):
    checkpoint = tf.train.Checkpoint(network=model.network, optimizer=model.optimizer, position=tf.Variable(3))
    tf.train.CheckpointManager(checkpoint, run.file("checkpoints"), 1).save(3)


def test_the_best_weights_are_taken_before_the_latest_ones(claimed):
    run = open_workdir(str(claimed))
    model = run.build_model()
    marks = {}
    for name, save in (("latest", save_latest), ("best", save_best)):
        marks[name] = [w + len(marks) + 1 for w in run.build_model().network.get_weights()]
        model.network.set_weights(marks[name])
        save(run, model)
        np.testing.assert_array_equal(run.trained_model().network.get_weights()[0], marks[name][0])
    assert (marks["latest"][0] != marks["best"][0]).all()


def test_every_weight_is_restored(claimed):
    run = open_workdir(str(claimed))
    model = run.build_model()
    generator = np.random.default_rng(0)
    model.network.set_weights([generator.normal(size=w.shape) for w in model.network.get_weights()])
    save_best(run, model)
    for mine, restored in zip(model.network.get_weights(), run.trained_model().network.get_weights()):
        np.testing.assert_array_equal(restored, mine)


def test_a_workdir_is_a_value(claimed):
    run = open_workdir(str(claimed))
    assert run.file("evaluation", "test.json") == f"{claimed}/evaluation/test.json"
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.path = "elsewhere"


def save_checkpoints(run, **steps):
    """Writes checkpoints after so many steps: `latest` and `best`."""
    folders = {"latest": run.file("checkpoints"), "best": run.file("checkpoints", "best")}
    for name, step in steps.items():
        tf.train.CheckpointManager(tf.train.Checkpoint(step=tf.Variable(step)), folders[name], 1).save(step)


def test_weights_are_those_that_were_best_the_latest_or_those_of_the_end(claimed):
    run = open_workdir(str(claimed))
    save_checkpoints(run, latest=9)
    assert checkpoint_step(run.checkpoint("best")) == 9, "without validation"
    save_checkpoints(run, best=4)
    assert checkpoint_step(run.checkpoint()) == checkpoint_step(run.checkpoint("best")) == 4
    assert checkpoint_step(run.checkpoint("latest")) == run.latest_step() == 9
    unfinished = "expected a run whose training has ended, found one that is at step 9 of it"
    with pytest.raises(Hm3Error, match=unfinished):
        run.checkpoint("final")
    run.write_end(8)  # and then it went on
    with pytest.raises(Hm3Error, match=unfinished):
        run.checkpoint("final")
    run.write_end(9)
    assert run.checkpoint("final") == run.checkpoint("latest")


def test_only_the_best_weights_of_a_calibrated_run_are_calibrated(data, tmp_path):
    run = written_run(str(tmp_path), config_with("training", calibrate=True), data)
    save_checkpoints(run, latest=9)
    with pytest.raises(Hm3Error, match="expected a checkpoint, found none"):
        run.checkpoint()
    save_checkpoints(run, best=4)
    assert checkpoint_step(run.checkpoint()) == 4
    with pytest.raises(
        ConfigError, match=r"expected the best weights, as training.calibrate .* of these alone, got 'latest'"
    ):
        run.checkpoint("latest")
