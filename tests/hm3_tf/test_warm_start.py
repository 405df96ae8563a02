"""A run that starts from the model of an earlier one: what goes on, what starts anew, and what is refused."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from data_pipeline import statistics as stats
from data_pipeline.folder import DataFolder
from data_pipeline.read import Reader
from data_pipeline.schema import Column
from hm3_tf import train
from hm3_tf.config import checked
from hm3_tf.errors import ConfigError, DataError, Hm3Error
from hm3_tf.train import open_trainer, train_and_evaluate
from hm3_tf.warm_start import WarmStart
from hm3_tf.workdir import claim_workdir, open_workdir
from tests.conftest import BUCKETS, read_split, tiny_config, written_run

STEPS = 9  # an epoch: 4,286 rows in batches of 512


@pytest.fixture(autouse=True, scope="module")
def _same_order_and_no_trial_export():
    """Every epoch reads the rows in the order of the first, so that two runs of one epoch read what one of two reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "check_export", lambda run: None)
        ordered = Reader.training_dataset
        patch.setattr(Reader, "training_dataset", lambda self, *a, **k: ordered(self, *a, **{**k, "epoch": 0}))
        yield


def config_with(section="training", **fields):
    config = tiny_config("esmm", epochs=1)
    config.model.dropout = 0.25
    for name, value in fields.items():
        setattr(getattr(config, section), name, value)
    return config


@pytest.fixture(scope="module")
def log(data, tmp_path_factory):
    """The log without a validation split."""
    path = tmp_path_factory.mktemp("log") / "data"
    shutil.copytree(data.path, path, ignore=shutil.ignore_patterns("validation"))
    return str(path)


@pytest.fixture(scope="module")
def earlier(log, tmp_path_factory):
    """A run of one epoch; not to be changed."""
    workdir = str(tmp_path_factory.mktemp("earlier") / "run")
    train_and_evaluate(config_with(), log, workdir)
    return workdir


@pytest.fixture(scope="module")
def both(log, tmp_path_factory):
    """The weights of a run of two epochs."""
    trainer = open_trainer(config_with(epochs=2), log, str(tmp_path_factory.mktemp("both")))
    trainer.train()
    return trainer.model.network.get_weights()


def distance(weights, others):
    return max(np.abs(a.astype(np.float64) - b).max() for a, b in zip(weights, others, strict=True))


def test_two_runs_are_one_run_also_if_the_second_stops_and_the_first_is_gone(log, earlier, both, tmp_path):
    shutil.copytree(earlier, tmp_path / "earlier")
    start = (log, str(tmp_path / "run"), WarmStart(str(tmp_path / "earlier")))
    train_and_evaluate(config_with(max_steps=4), *start)
    shutil.rmtree(tmp_path / "earlier")
    trainer = open_trainer(config_with(), *start)
    trainer.train()
    assert trainer._checkpoints.step == STEPS
    assert distance(trainer.model.network.get_weights(), both) < 1e-6


def test_the_state_of_the_optimizer_is_kept_or_starts_anew(log, earlier, tmp_path):
    states = {}
    for optimizer in ("keep", "reset"):
        trainer = open_trainer(
            config_with(learning_rate=0.5), log, str(tmp_path / optimizer), WarmStart(earlier, optimizer)
        )
        own = trainer._model.optimizer
        assert own.learning_rate.numpy() == 0.5
        states[optimizer] = own.iterations.numpy(), sum(np.abs(moments).sum() for moments in own._velocities)
    assert states["keep"][0] == STEPS and states["keep"][1] > 0
    assert states["reset"] == (0, 0)


def test_before_its_first_step_a_run_predicts_as_the_one_it_starts_from(log, earlier, tmp_path):
    """On a log of other moments and rates: those of the earlier run go on, so that inputs mean the same."""
    other = shutil.copytree(log, tmp_path / "log")
    statistics = json.loads((other / "statistics.json").read_text())
    statistics["train"]["columns"]["price"]["mean"] = [1e3]
    statistics["train"]["label_patterns"] = {"1111": 1000, "0000": 10}
    (other / "statistics.json").write_text(json.dumps(statistics))
    trainer = open_trainer(config_with(), str(other), str(tmp_path / "run"), WarmStart(earlier))
    before = open_workdir(earlier).trained_model()
    features, _ = read_split(config_with(), DataFolder.open(log), "test")
    for mine, others in zip(*(tf.nest.flatten(model.network(features)) for model in (trainer._model, before))):
        np.testing.assert_array_equal(mine, others)


def test_a_directory_says_what_its_run_started_from(log, earlier, tmp_path):
    data = DataFolder.open(log)
    run = claim_workdir(str(tmp_path), checked(config_with()), data, WarmStart(earlier, "reset"))
    run.write()
    assert json.loads((tmp_path / "run.json").read_text())["warm_start"] == {
        "workdir": earlier,
        "step": STEPS,
        "optimizer": "reset",
    }
    assert open_workdir(str(tmp_path)) == run
    assert run.train == open_workdir(earlier).train
    with pytest.raises(ConfigError, match=r"--warm_start_optimizer: expected one of \('keep', 'reset'\), got 'kep'"):
        WarmStart(earlier, "kep")


@pytest.mark.parametrize(
    "other", [None, ("elsewhere", "reset"), ("earlier", "keep")], ids=["none", "another run", "another optimizer state"]
)
def test_a_run_with_another_start_is_refused(log, earlier, tmp_path, other):
    data, config = DataFolder.open(log), checked(config_with())
    claim_workdir(str(tmp_path), config, data, WarmStart(earlier, "reset")).write()
    warm_start = other and WarmStart(other[0].replace("earlier", earlier), other[1])
    message = f"expected the --warm_start_from and --warm_start_optimizer of the run it holds (('{earlier}', 'reset'))"
    with pytest.raises(Hm3Error, match=re.escape(message)):
        claim_workdir(str(tmp_path), config, data, warm_start)
    assert claim_workdir(str(tmp_path), config, data, WarmStart(f"{earlier}/", "reset"))


def test_a_run_that_began_without_an_earlier_one_does_not_take_one_later(log, earlier, tmp_path):
    data = DataFolder.open(log)
    written_run(str(tmp_path), checked(config_with()), data)
    with pytest.raises(Hm3Error, match=r"of the run it holds \(None\), got \('.*', 'keep'\); use another --workdir"):
        claim_workdir(str(tmp_path), checked(config_with()), data, WarmStart(earlier))


@pytest.mark.parametrize(
    ("section", "field", "value", "name"),
    [
        ("model", "method", "esm2", "model.method as in .* ('esmm'), got 'esm2'"),
        ("model", "tower_units", (8, 5), "model.tower_units as in .* ((8, 4)), got (8, 5)"),
        ("model", "embedding_dim", 5, "dim of 'position' as in .* (4), got 5"),
        ("model", "hash_buckets", {**BUCKETS, "brand": 300}, "buckets of 'brand' as in .* (200), got 300"),
        ("model", "features", tuple(BUCKETS), "the features as in .* (('position', 'user_id', "),
        ("data", "negative_keep_rate", 0.5, "data.negative_keep_rate as in .* (1.0), got 0.5"),
        ("training", "calibrate", True, "training.calibrate as in .* (False), got True"),
    ],
)
def test_another_network_is_refused_naming_what_differs(log, earlier, tmp_path, section, field, value, name):
    message = f"--warm_start_from: expected {name}"
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(ConfigError, match=pattern) as error:
        claim_workdir(
            str(tmp_path), checked(config_with(section, **{field: value})), DataFolder.open(log), WarmStart(earlier)
        )
    assert str(error.value).endswith(f"on days converted with --schema={earlier}/schema.json")


@pytest.mark.parametrize("change", ["levels", "order", "unused"])
def test_a_schema_may_differ_in_what_the_network_does_not_read(log, earlier, tmp_path, change):
    schema = DataFolder.open(log).schema
    levels = (*schema.levels[:-1], dataclasses.replace(schema.levels[-1], any_of=("cart",)))
    schema = {
        "levels": dataclasses.replace(schema, levels=levels),
        "order": dataclasses.replace(schema, columns=schema.columns[::-1]),
        "unused": dataclasses.replace(schema, columns=(*schema.columns, Column("age_days", "float"))),
    }[change]
    claim = (str(tmp_path), checked(config_with()), DataFolder(log, schema), WarmStart(earlier))
    if change == "unused":
        assert claim_workdir(*claim)
        return
    with pytest.raises(ConfigError, match=f"expected the {'levels' if change == 'levels' else 'features'} as in "):
        claim_workdir(*claim)


def test_another_spelling_of_the_same_tables_is_the_same_network(log, earlier, tmp_path):
    config = config_with("model", embedding_dim=9, embedding_dims=dict.fromkeys(BUCKETS, 4))
    assert claim_workdir(str(tmp_path), checked(config), DataFolder.open(log), WarmStart(earlier))


def test_a_run_without_a_checkpoint_cannot_be_started_from(log, tmp_path):
    data, config = DataFolder.open(log), checked(config_with())
    written_run(str(tmp_path / "earlier"), config, data)
    with pytest.raises(Hm3Error, match=f"{tmp_path}/earlier: expected a checkpoint, found none; run hm3 train on this"):
        claim_workdir(str(tmp_path / "run"), config, data, WarmStart(str(tmp_path / "earlier")))


def test_a_run_starts_from_the_step_it_was_claimed_for_and_from_no_other(log, earlier, tmp_path):
    shutil.copytree(earlier, tmp_path / "earlier")
    start = (log, str(tmp_path / "run"), WarmStart(str(tmp_path / "earlier")))
    claim_workdir(start[1], checked(config_with()), DataFolder.open(log), start[2]).write()
    checkpoints = tmp_path / "earlier" / "checkpoints"
    (checkpoints / "checkpoint").write_text(f'model_checkpoint_path: "ckpt-{STEPS + 1}"')  # as if that run had gone on
    assert open_trainer(config_with(), *start)._model.optimizer.iterations.numpy() == STEPS
    for file in checkpoints.glob(f"ckpt-{STEPS}.*"):
        file.unlink()
    with pytest.raises(DataError, match=f"ckpt-{STEPS}: expected the checkpoint that the run starts from, found none"):
        open_trainer(config_with(), *start)


def test_statistics_go_on_over_several_runs(log, earlier, tmp_path):
    """The third run reads inputs as the first did."""
    second = claim_workdir(str(tmp_path / "second"), checked(config_with()), DataFolder.open(log), WarmStart(earlier))
    second.write()
    shutil.copytree(f"{earlier}/checkpoints", tmp_path / "second" / "checkpoints")
    other = DataFolder.open(shutil.copytree(log, str(tmp_path / "log")))
    with tf.io.gfile.GFile(f"{other.path}/statistics.json", "w") as file:
        file.write(stats.to_json({"train": stats.no_statistics(other.schema)}))
    third = claim_workdir(str(tmp_path / "third"), checked(config_with()), other, WarmStart(second.path))
    assert third.train == open_workdir(earlier).train
