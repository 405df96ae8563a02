"""What TensorBoard reads from the events of a run."""

import json

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import precision_recall_curve
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.pr_curve import metadata

from hm3_tf.board import Board, settings
from hm3_tf.metrics import TargetCounts
from hm3_tf.train import train_and_evaluate
from tests.conftest import tiny_config
from tests.hm3_tf.test_metrics import pairs_of_odds


def events(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A workdir of two epochs, and the events of it."""
    path = tmp_path_factory.mktemp("board")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hm3_tf.train.check_export", lambda run: None)
        train_and_evaluate(tiny_config(epochs=2), data.path, str(path))
    return path, events(path / "tensorboard")


def hparams_data(board: EventAccumulator, tag: str):
    return plugin_data_pb2.HParamsPluginData.FromString(board.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content)


def test_the_scalars_are_those_of_metrics_jsonl(run):
    path, board = run
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    ends = [line for line in lines if line.get("epoch_end")]
    for tag, figure in {"validation/pctcvr/auc": "auc", "validation/pctcvr/log_loss": "log_loss"}.items():
        written = [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in board.Tensors(tag)]
        assert written == [(end["step"], pytest.approx(end["validation"]["pctcvr"][figure])) for end in ends]


def test_each_target_has_a_precision_recall_curve_an_epoch(run):
    _, board = run
    curves = board.PluginTagToContent("pr_curves")
    assert sorted(curves) == [
        f"validation/{name}/pr_curves" for name in ("levels/d_ma", "levels/d_mi", "pctcvr", "pctr", "pcvr")
    ]
    assert len(board.Tensors("validation/pctr/pr_curves")) == 2


def test_the_settings_and_the_figures_to_show_are_under_hparams(run):
    path, board = run
    started = hparams_data(board, "session_start_info").session_start_info
    assert started.group_name == str(path)
    assert started.hparams["training.learning_rate"].number_value == 0.01
    assert started.hparams["model.method"].string_value == "hm3"
    experiment = hparams_data(board, "experiment").experiment
    types = {info.name: info.type for info in experiment.hparam_infos}
    assert set(types) == set(settings(tiny_config()))
    assert types["training.learning_rate"] == api_pb2.DATA_TYPE_FLOAT64
    assert types["training.calibrate"] == api_pb2.DATA_TYPE_BOOL
    assert types["model.tower_units"] == api_pb2.DATA_TYPE_STRING
    tags = {metric.name.tag for metric in experiment.metric_infos}
    assert "validation/pctcvr/auc" in tags and tags <= set(board.Tags()["tensors"])
    assert hparams_data(board, "session_end_info").session_end_info.status == api_pb2.STATUS_SUCCESS


def test_a_precision_recall_curve_is_that_of_scikit_learn(tmp_path):
    generator = np.random.default_rng(0)
    odds = generator.normal(-4, 1, 5_000)
    labels = generator.random(5_000) < 1 / (1 + np.exp(-odds))
    target = TargetCounts()
    target.update(labels, pairs_of_odds(odds))
    Board(str(tmp_path)).write_pr_curves({"rare": target.counts, "never": np.zeros((2, 64), int)}, step=7)
    board = events(tmp_path)
    assert list(board.PluginTagToContent("pr_curves")) == ["rare/pr_curves"], "none without positives"
    (event,) = board.Tensors("rare/pr_curves")
    curve = tf.make_ndarray(event.tensor_proto)
    assert event.step == 7
    precision, recall, _ = precision_recall_curve(labels, odds)
    order = np.argsort(recall, kind="stable")
    for p, r in zip(curve[metadata.PRECISION_INDEX], curve[metadata.RECALL_INDEX]):
        at = order[np.abs(recall[order] - r) < 1e-6]
        assert np.abs(precision[at] - p).min() < 2e-3, r
    assert (curve[:4].sum(axis=0) == len(labels)).all()


def test_settings_are_named_in_full():
    found = settings(tiny_config())
    assert found["model.tower_units"] == "(8, 4)" and found["training.calibrate"] is False
    assert found["model.hash_buckets.brand"] == 200 and found["model.graph"] == "None"
