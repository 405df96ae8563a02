"""The layers between the probabilities of training and those of the log, alone and in a run."""

import logging
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from hm3_tf.calibration import Calibration, KeptNegatives, kept_rate, platt_line
from hm3_tf.errors import ConfigError
from hm3_tf.evaluate import Evaluator, evaluate_run, evaluation_reader
from hm3_tf.export import export_run
from hm3_tf.predict import predict_run
from hm3_tf.train import open_trainer
from hm3_tf.workdir import open_workdir
from tests.conftest import read_split, save_best, tiny_config, written_run
from tests.hm3_tf.test_metrics import counted, pairs_of_odds
from tests.reference import sigmoid


def test_the_odds_of_a_click_are_those_of_the_log_outside_of_training_only():
    # Of 10 clicked and 90 unclicked rows 9 unclicked ones are kept: odds 10 / 9 in training, 10 / 90 in the log.
    logit = tf.constant([math.log(10 / 9)])
    layer = KeptNegatives(0.1)
    np.testing.assert_allclose(layer(logit, training=False), [math.log(10 / 90)], rtol=1e-6)
    np.testing.assert_allclose(layer(logit), [math.log(10 / 90)], rtol=1e-6)
    np.testing.assert_array_equal(layer(logit, training=True), logit)


def test_the_rate_of_kept_rows_by_hand():
    assert kept_rate(0.1, 0.1) == pytest.approx(10 / 19)
    assert kept_rate(0.1, 1.0) == pytest.approx(0.1)


def miscalibrated(rows=200_000, scale=0.5, shift=-2.0, seed=0):
    """Returns labels, and predicted log-odds of which `scale` times plus `shift` are the true ones."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(-1, 2, rows)
    return generator.random(rows) < sigmoid(scale * odds + shift), odds


def test_the_line_of_a_known_distortion_is_found():
    labels, odds = miscalibrated()
    scale, shift = platt_line(counted(labels, pairs_of_odds(odds)).counts)
    assert (scale, shift) == (pytest.approx(0.5, abs=0.02), pytest.approx(-2, abs=0.03))


def test_the_line_has_the_greatest_likelihood():
    labels, odds = miscalibrated(rows=2_000)

    def loss(line):
        mapped = line[0] * odds + line[1]
        return np.logaddexp(0, mapped).sum() - mapped[labels].sum() + ((line - [1, 0]) ** 2).sum() / 2

    line = np.array(platt_line(counted(labels, pairs_of_odds(odds)).counts))
    for step in ([0.01, 0], [-0.01, 0], [0, 0.01], [0, -0.01], [0.005, 0.005], [-0.005, -0.005]):
        assert loss(line) < loss(line + step)


@pytest.mark.parametrize("labels", [[], [True] * 5, [False] * 5, [False, False, True, True, True]])
def test_the_line_of_missing_or_separable_classes_is_finite(labels):
    scale, shift = platt_line(counted(np.array(labels, bool), pairs_of_odds(np.linspace(-20, 20, len(labels)))).counts)
    assert 0 < scale < 10 and abs(shift) < 10
    assert labels or (scale, shift) == (1, 0)


def test_a_ranking_is_not_turned_round(caplog):
    labels, odds = miscalibrated(rows=5_000)
    with caplog.at_level(logging.WARNING):
        assert platt_line(counted(labels, pairs_of_odds(-odds)).counts) == (1, 0)
    assert "expected odds that rise with the prediction, got a slope of -" in caplog.text


def test_the_layer_maps_each_target_outside_of_training_only():
    layer = Calibration(("click", "purchase"))
    layer.lines.assign([[1, 1], [2, 0], [1, -3]])
    odds = {"impression": {"click": 0.5, "purchase": -4.0}, "click": {"purchase": -2.0}}
    log_probs = {
        space: {level: tf.constant(pairs_of_odds([x]), tf.float32) for level, x in levels.items()}
        for space, levels in odds.items()
    }
    mapped = layer(log_probs, training=False)
    expected = {"impression": {"click": 1.5, "purchase": -8.0}, "click": {"purchase": -5.0}}
    for space, levels in expected.items():
        for level, x in levels.items():
            np.testing.assert_allclose(mapped[space][level], pairs_of_odds([x]), rtol=1e-5)
            np.testing.assert_array_equal(layer(log_probs, training=True)[space][level], log_probs[space][level])
    layer.reset()
    np.testing.assert_allclose(layer(log_probs)["click"]["purchase"], log_probs["click"]["purchase"], rtol=1e-6)


@pytest.fixture(scope="module")
def distorted(data, tmp_path_factory):
    """(run, figures of the test split before calibration) of a model whose towers were tampered with."""
    config = tiny_config(calibrate=True)
    run = written_run(str(tmp_path_factory.mktemp("distorted")), config, data)
    model = run.build_model()
    model.fit(*read_split(config, data, "train"), batch_size=512, epochs=2, verbose=0)
    towers = model.network.get_layer("hm3/towers")
    start = next(weight for weight in towers.weights if weight.shape == (6,))
    start.assign(start * 0.5 + 0.5)
    before = Evaluator(model, config, evaluation_reader(run, data.split("test")))()
    validation = Evaluator(model, config, evaluation_reader(run, data.split("validation")))
    validation()
    model.network.get_layer("hm3/calibration").fit(validation.counts)
    save_best(run, model)
    return run, before


def test_calibration_halves_the_error_of_a_miscalibrated_model_and_changes_no_ranking(distorted, data):
    run, before = distorted
    after = evaluate_run(run, data.split("test"), "test")
    for target in ("pctr", "pcvr", "pctcvr"):
        assert after[target]["ece"] < before[target]["ece"] / 2, target
        slack = before[target]["auc_error"] + after[target]["auc_error"]
        assert after[target]["auc"] == pytest.approx(before[target]["auc"], abs=slack + 1e-6), target
        assert abs(math.log(after[target]["pcoc"])) < abs(math.log(before[target]["pcoc"])) / 2, target


def test_calibration_is_part_of_the_saved_model(distorted, data, tmp_path):
    run, _ = distorted
    export = export_run(run, str(tmp_path / "export"))
    served = tf.saved_model.load(export).signatures["serving_default"]
    columns = [run.schema.column(name) for name in served.structured_input_signature[1]]
    _, _, raw = read_split(run.config, data, "test", carry=tuple(column.name for column in columns))
    outputs = served(**{name: tf.constant(values) for name, values in raw.items()})
    assert predict_run(run, data.split("test"), str(tmp_path / "p.parquet")) == 857
    table = pq.read_table(tmp_path / "p.parquet")
    for name, p in outputs.items():
        np.testing.assert_allclose(table[name], p, rtol=0, atol=1e-6, err_msg=name)


def test_training_saves_the_best_weights_with_their_calibration_and_goes_on_without(data, tmp_path):
    trainer = open_trainer(tiny_config(epochs=2, calibrate=True, learning_rate=0.05), data.path, str(tmp_path))
    trainer.train()
    identity = np.tile([1.0, 0.0], (5, 1))
    np.testing.assert_array_equal(trainer.model.network.get_layer("hm3/calibration").lines, identity)
    run = open_workdir(str(tmp_path))
    assert (run.trained_model().network.get_layer("hm3/calibration").lines.numpy() != identity).all()


def test_a_run_whose_best_metric_does_not_exist_keeps_its_latest_weights_calibrated(data, tmp_path, monkeypatch):
    evaluate = Evaluator.__call__

    def without_auc(evaluator):
        figures = evaluate(evaluator)
        return {**figures, "pctcvr": {**figures["pctcvr"], "auc": None}}

    monkeypatch.setattr(Evaluator, "__call__", without_auc)
    trainer = open_trainer(tiny_config(epochs=2, calibrate=True, best_metric="pctcvr.auc"), data.path, str(tmp_path))
    trainer.train()
    network = open_workdir(str(tmp_path)).trained_model().network
    assert (network.get_layer("hm3/calibration").lines.numpy() != np.tile([1.0, 0.0], (5, 1))).all()
    for kept, latest in zip(network.trainable_variables, trainer.model.network.trainable_variables):
        np.testing.assert_array_equal(kept, latest)


def test_a_run_that_calibrates_trains_as_one_that_does_not(data, tmp_path):
    weights = {}
    for calibrate in (False, True):
        trainer = open_trainer(tiny_config(epochs=1, calibrate=calibrate), data.path, str(tmp_path / str(calibrate)))
        trainer.train()
        weights[calibrate] = [variable.numpy() for variable in trainer.model.network.trainable_variables]
    for plain, calibrated in zip(weights[False], weights[True]):
        np.testing.assert_allclose(plain, calibrated, atol=1e-6)


def test_calibration_without_a_validation_split_is_refused(data, tmp_path):
    shutil.copytree(data.path, tmp_path / "log")
    shutil.rmtree(tmp_path / "log" / "validation")
    with pytest.raises(
        ConfigError, match="training.calibrate: expected a validation split to fit it on, found none in"
    ):
        open_trainer(tiny_config(calibrate=True), str(tmp_path / "log"), str(tmp_path / "run"))
