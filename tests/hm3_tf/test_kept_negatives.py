"""Training on a tenth of the unclicked rows against training on all, on a log whose true probabilities are known."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from data_pipeline.folder import DataFolder
from data_pipeline.schema import Column, Level, Schema
from hm3_tf import train
from hm3_tf.behavior_graph import Behavior, BehaviorGraph
from hm3_tf.config import Config, DataConfig, ModelConfig, TrainingConfig, checked
from hm3_tf.errors import ConfigError
from hm3_tf.evaluate import evaluate_run
from hm3_tf.methods import METHODS
from hm3_tf.model import build_model
from hm3_tf.train import train_and_evaluate
from hm3_tf.workdir import open_workdir
from tests.data_pipeline.conftest import convert_rows
from tests.reference import sigmoid

FEATURES, ROWS, KEEP_RATE = 3, 150_000, 0.1
BEHAVIORS = ("click", "d_mi", "d_ma", "purchase")
SCHEMA = Schema(
    (Column("x", "float", shape=(FEATURES,)), *(Column(name, "int64", "behavior") for name in BEHAVIORS)),
    tuple(Level(name, (name,), gate=name == "click") for name in BEHAVIORS),
)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A log of HM3's graph: the log-odds of every edge are linear in the features; clicks are one in ten."""
    rng = np.random.default_rng(0)
    means = {"click": -2.5, "d_mi": -0.5, "d_ma_mi": 0.5, "d_ma": -0.5, "purchase_ma": 1.0, "purchase": -0.5}
    x = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    draw = {name: rng.random(ROWS) < sigmoid(mean + x @ rng.normal(0, 0.5, FEATURES)) for name, mean in means.items()}
    click = draw["click"]
    d_mi = click & draw["d_mi"]
    d_ma = click & np.where(d_mi, draw["d_ma_mi"], draw["d_ma"])
    purchase = click & np.where(d_ma, draw["purchase_ma"], draw["purchase"])
    path = tmp_path_factory.mktemp("log") / "data"
    columns = {"x": x.tolist()} | {
        name: values.astype(int).tolist() for name, values in zip(BEHAVIORS, (click, d_mi, d_ma, purchase))
    }
    convert_rows(path, columns, schema=SCHEMA, split="fraction:0.5,0.1,0.4")
    return DataFolder.open(str(path))


def config(method: str, keep_rate: float, **training) -> Config:
    """Returns a config that converges in seconds."""
    model = ModelConfig(method, tower_units=(16,), dropout=0.0, embedding_dim=8)
    training = {
        "global_batch_size": 512,
        "epochs": 3,
        "learning_rate": 0.002,
        "best_metric": "pctcvr.log_loss",
    } | training
    return Config(model, DataConfig(negative_keep_rate=keep_rate), TrainingConfig(**training))


def trained(log, workdir, method="hm3", keep_rate=KEEP_RATE, *, epochs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "check_export", lambda run: None)
        train_and_evaluate(config(method, keep_rate, epochs=epochs), log.path, str(workdir))
    return open_workdir(str(workdir))


def figures(run, log):
    metrics = evaluate_run(run, log.split("test"), "test")
    return {name: metrics[name] for name in ("pctr", "pcvr", "pctcvr")} | metrics["levels"]


@pytest.fixture(scope="module")
def sampled(log, tmp_path_factory):
    """A run on all clicked and a tenth of the unclicked rows."""
    return trained(log, tmp_path_factory.mktemp("sampled"), epochs=14)


def test_an_epoch_has_a_fifth_of_the_steps(log, sampled, tmp_path):
    steps = {
        keep_rate: train.training_reader(
            dataclasses.replace(sampled, config=config("hm3", keep_rate)), log.split("train")
        ).steps(512)
        for keep_rate in (1.0, KEEP_RATE)
    }
    assert steps[KEEP_RATE] < steps[1.0] / 4


def test_probabilities_are_those_of_the_whole_log_and_rank_as_those_of_a_run_on_all_of_it(log, sampled, tmp_path):
    whole = figures(trained(log, tmp_path, keep_rate=1.0, epochs=4), log)
    for name, figure in figures(
        sampled, log
    ).items():  # within what so small a log carries; uncorrected it is 3 to 5 times off
        assert figure["prediction"] == pytest.approx(whole[name]["prediction"], rel=0.15), name
        assert 0.85 <= figure["pcoc"] <= 1.15, name
        assert figure["auc"] > whole[name]["auc"] - 0.01, name


def test_without_the_correction_clicks_are_far_off(log, sampled):
    plain = dataclasses.replace(sampled, config=config("hm3", 1.0))
    wrong = figures(plain, log)
    assert wrong["pctr"]["pcoc"] > 4 and wrong["pctcvr"]["pcoc"] > 3
    assert 0.85 <= wrong["pcvr"]["pcoc"] <= 1.15, "what is conditioned on the click is as in the log"


@pytest.mark.parametrize("method", METHODS)
def test_of_every_method_the_click_is_corrected_and_what_follows_it_is_not(log, method):
    model = build_model(config(method, KEEP_RATE), SCHEMA)
    inputs = {"x": tf.random.stateless_normal([40, FEATURES], seed=(0, 0))}
    kept, whole = (model.network(inputs, training=training)["log_probs"] for training in (True, False))
    odds = [probs["impression"]["click"][:, 0] - probs["impression"]["click"][:, 1] for probs in (kept, whole)]
    np.testing.assert_allclose(odds[1] - odds[0], np.log(KEEP_RATE), rtol=1e-5)
    for level, pair in whole["click"].items():
        np.testing.assert_array_equal(pair, kept["click"][level])
        product = whole["impression"]["click"][:, 0] + pair[:, 0]
        np.testing.assert_allclose(whole["impression"][level][:, 0], product, rtol=1e-5)


def test_a_run_on_a_share_resumes_to_the_weights_of_one_that_did_not_stop(log, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "check_export", lambda run: None)
    weights = {}
    for name, stops in {"whole": (0,), "stopped": (7, 0)}.items():
        for stop in stops:
            trainer = train.open_trainer(
                config("hm3", KEEP_RATE, epochs=1, max_steps=stop), log.path, str(tmp_path / name)
            )
            trainer.train()
        weights[name] = trainer.model.network.get_weights()
    for stopped, whole in zip(weights["stopped"], weights["whole"]):
        np.testing.assert_allclose(stopped, whole, atol=1e-6)


@pytest.mark.parametrize("keep_rate", [0.0, -0.1, 1.5])
def test_shares_that_are_none_are_refused(keep_rate):
    with pytest.raises(ConfigError, match=r"data.negative_keep_rate: expected a share in \(0, 1\], got"):
        checked(config("hm3", keep_rate))


def test_a_first_level_that_is_no_gate_is_refused():
    graph = BehaviorGraph((Behavior("d_mi"), Behavior("purchase")))
    wrong = config("own", 0.5)
    wrong.model.graph = graph
    with pytest.raises(
        ConfigError, match="data.negative_keep_rate: expected 1 where the first level 'd_mi' is no gate"
    ):
        checked(wrong)
