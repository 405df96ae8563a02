"""Figures and predictions of a run against scikit-learn and against the simulated log itself."""

import dataclasses
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from data_pipeline.folder import DataFolder
from data_pipeline.schema import Schema
from data_pipeline.simulate import LEVELS
from hm3_tf import evaluate, predict
from hm3_tf.errors import DataError, Hm3Error
from hm3_tf.evaluate import Evaluator, evaluate_run, evaluation_reader, to_json
from hm3_tf.model import probabilities
from hm3_tf.predict import predict_run
from hm3_tf.tally import Rows, Tally
from tests import reference
from tests.conftest import LOG, read_split, save_best, tiny_config, written_run
from tests.data_pipeline.conftest import write_records

ESTIMATES = {"auc", "pr_auc", "log_loss", "normalized_entropy", "pcoc", "ece", "gauc", "gauc_unweighted"}
COUNTS = {"rows", "positives", "rate", "prediction", "auc_error", "gauc_groups", "gauc_share", "too_small"}
FIGURES = ESTIMATES | COUNTS | {f"{name}_interval" for name in ESTIMATES}


@pytest.fixture(scope="module")
def truth():
    """The rows of the test split as they were simulated: {column: array}, levels among them."""
    columns = next(LOG.batches())
    rows = columns["day"] == 6
    result = {name: values[rows] for name, values in columns.items() if name != "history"}
    return result | {level: np.any([result[name] > 0 for name in names], axis=0) for level, names in LEVELS.items()}


@pytest.fixture(scope="module")
def small_batches():
    """Batches of 100 rows, so that a split takes nine and the last one is filled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "BATCH_ROWS", 100)
        yield


@pytest.fixture(scope="module")
def predictions(trained_run, data, small_batches, tmp_path_factory):
    """Path of the predictions of the test split, and the number of rows that was returned."""
    path = tmp_path_factory.mktemp("predictions") / "test.parquet"
    path.write_text("predictions of before")
    return path, predict_run(trained_run, data.split("test"), str(path))


@pytest.fixture(scope="module")
def table(predictions):
    return pq.read_table(predictions[0])


@pytest.fixture(scope="module")
def metrics(trained_run, data, small_batches):
    return evaluate_run(trained_run, data.split("test"), "test")


def test_predictions_have_a_row_for_every_impression_in_the_order_of_the_log(predictions, table, truth):
    path, rows = predictions
    assert rows == table.num_rows == len(truth["click"]) == 857
    assert os.listdir(path.parent) == ["test.parquet"]
    np.testing.assert_array_equal(table["user_id"].to_numpy(), truth["user_id"])


def test_predictions_name_the_groups_then_the_probabilities(table):
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("user_id", "int64"),
        *((name, "float") for name in ("pctr", "pcvr", "pctcvr", "p_d_mi", "p_d_ma")),
    ]


def test_ids_of_groups_are_exact(table, truth):
    ids = table["user_id"].to_numpy()
    assert ids.min() > 2**53 and (ids.astype(np.float64).astype(np.int64) != ids).any()
    assert set(ids.tolist()) == set(truth["user_id"].tolist())


def test_a_log_without_labels_is_predicted_too(trained_run, data, table, tmp_path):
    index = data.split("test")
    unlabeled = []
    for record in tf.data.TFRecordDataset(index.files).as_numpy_iterator():
        example = tf.train.Example.FromString(record)
        for column in data.schema.with_role("behavior", "truth"):
            del example.features.feature[column.name]
        unlabeled.append(example.SerializeToString())
    write_records(f"{tmp_path}/test/a.tfrecord", unlabeled)
    index = dataclasses.replace(data, path=str(tmp_path)).split("test")
    predict_run(trained_run, index, f"{tmp_path}/test.parquet")
    assert pq.read_table(tmp_path / "test.parquet").equals(table)
    with pytest.raises(DataError, match=f"{tmp_path}/test: expected the column 'click' of the schema"):
        evaluate_run(trained_run, index, "test")


def test_predictions_are_those_of_the_model(trained_run, data, table):
    features, _ = read_split(trained_run.config, data, "test")
    expected = probabilities(trained_run.trained_model().network(features), trained_run.config.method.levels)
    for name, p in expected.items():
        np.testing.assert_allclose(table[name], p, rtol=1e-5, err_msg=name)


def test_figures_are_those_of_scikit_learn_on_the_predictions(metrics, table, truth):
    clicked = truth["click"]
    targets = {
        "pctr": (truth["click"], table["pctr"].to_numpy()),
        "pcvr": (truth["purchase"][clicked], table["pcvr"].to_numpy()[clicked]),
        "pctcvr": (truth["purchase"], table["pctcvr"].to_numpy()),
    }
    for name, (labels, p) in targets.items():
        figures = metrics[name]
        assert (figures["rows"], figures["positives"]) == (len(labels), labels.sum()), name
        assert figures["auc"] == pytest.approx(roc_auc_score(labels, p), abs=figures["auc_error"] + 1e-9), name
        if labels.sum() >= 30:  # of fewer positives two rows that tie in a bin can show
            assert figures["pr_auc"] == pytest.approx(average_precision_score(labels, p), rel=1e-2), name
        assert figures["log_loss"] == pytest.approx(log_loss(labels, p.astype(np.float64)), rel=1e-5), name
        assert figures["prediction"] == pytest.approx(p.mean(dtype=np.float64), rel=1e-5), name
        assert figures["pcoc"] == pytest.approx(p.mean(dtype=np.float64) / labels.mean(), rel=1e-5), name


@pytest.mark.parametrize("level", ["d_mi", "d_ma"])
def test_figures_of_a_level_are_over_impressions(metrics, table, truth, level):
    figures, p = metrics["levels"][level], table[f"p_{level}"].to_numpy()
    assert (figures["rows"], figures["positives"]) == (len(p), truth[level].sum())
    assert figures["auc"] == pytest.approx(roc_auc_score(truth[level], p), abs=figures["auc_error"] + 1e-9)
    assert figures["log_loss"] == pytest.approx(log_loss(truth[level], p.astype(np.float64)), rel=1e-5)


def test_the_best_possible_aucs_stand_beside_those_of_a_simulated_log(metrics, truth):
    clicked = truth["click"]
    best = {
        "pctr": reference.auc(clicked, truth["truth_pctr"]),
        "pcvr": reference.auc(truth["purchase"][clicked], truth["truth_pcvr_given_click"][clicked]),
        "pctcvr": reference.auc(truth["purchase"], truth["truth_pctcvr"]),
    }
    assert {name: metrics[name]["bayes_auc"] for name in best} == pytest.approx(best, abs=1e-9)
    assert metrics["pctr"]["auc"] < metrics["pctr"]["bayes_auc"]


def test_a_log_without_truth_has_no_best_possible_aucs(trained_run, data):
    schema = trained_run.schema
    plain = Schema(tuple(column for column in schema.columns if column.role != "truth"), schema.levels)
    run = dataclasses.replace(trained_run, schema=plain)
    figures = evaluate_run(run, data.split("test"), "test")
    assert all("bayes_auc" not in figures[name] for name in ("pctr", "pcvr", "pctcvr"))


def test_metrics_json_is_the_contract_of_other_scripts(metrics, data):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    loaded = json.loads(to_json(metrics), parse_constant=refuse)
    assert loaded == metrics
    assert list(loaded) == ["split", "data_dir", "rows", "pctr", "pcvr", "pctcvr", "levels"]
    assert (loaded["split"], loaded["data_dir"], loaded["rows"]) == ("test", data.path, 857)
    for name in ("pctr", "pcvr", "pctcvr"):
        assert set(loaded[name]) == FIGURES | {"bayes_auc"}
    assert list(loaded["levels"]) == ["click", "d_mi", "d_ma", "purchase"]
    assert all(set(figures) == FIGURES for figures in loaded["levels"].values())
    assert loaded["levels"]["click"].items() <= loaded["pctr"].items()


def test_an_evaluator_sees_the_weights_of_the_moment(trained_run, data):
    model = trained_run.trained_model()
    evaluator = Evaluator(model, trained_run.config, evaluation_reader(trained_run, data.split("validation")))
    first = evaluator()
    towers = model.network.get_layer("hm3/towers")
    towers.set_weights([-w for w in towers.get_weights()])
    assert evaluator()["pctr"]["log_loss"] > 2 * first["pctr"]["log_loss"]


def test_an_evaluator_on_other_rows_has_their_figures_and_leaves_the_first_its_own(trained_run, data, truth):
    reader = evaluation_reader(trained_run, data.split("validation"))
    evaluator = Evaluator(trained_run.build_model(), trained_run.config, reader)
    first = evaluator()
    assert evaluator.on(data.split("test"))()["pctr"]["positives"] == truth["click"].sum() != first["pctr"]["positives"]
    assert evaluator() == first


@pytest.mark.parametrize("name", ["base", "esm2_mi"])
def test_a_method_of_several_networks_or_merged_levels_has_the_same_targets(data, tmp_path, truth, name):
    config = tiny_config(name)
    run = written_run(str(tmp_path), config, data)
    figures = Evaluator(run.build_model(), config, evaluation_reader(run, data.split("test")))()
    assert tuple(figures["levels"]) == config.method.levels
    assert figures["pctcvr"]["positives"] == truth["purchase"].sum()
    assert figures["pctr"]["prediction"] == pytest.approx(truth["click"].mean(), rel=0.5)
    if name == "esm2_mi":
        assert figures["levels"]["d_action"]["positives"] == (truth["d_mi"] | truth["d_ma"]).sum()


def test_a_split_without_clicks_has_no_figures_of_clicked_rows():
    tally = Tally(("click", "d_mi", "d_ma", "purchase"), grouped=True)
    tally.update(
        Rows(np.zeros((3, 4), bool), np.log(np.full((3, 5, 2), 0.5, np.float32)), np.arange(3, dtype=np.uint64))
    )
    figures = json.loads(to_json(tally.result()))
    assert figures["pcvr"]["rows"] == 0
    assert figures["pcvr"]["auc"] is figures["pcvr"]["log_loss"] is figures["pcvr"]["gauc"] is None
    assert figures["pctr"]["auc"] is figures["pctr"]["pcoc"] is figures["pctr"]["auc_interval"] is None
    assert figures["pctr"]["too_small"]


def test_a_log_without_groups_has_probabilities_only(trained_run, data, tmp_path):
    columns = tuple(
        dataclasses.replace(c, role="feature") if c.role == "group" else c for c in trained_run.schema.columns
    )
    run = dataclasses.replace(trained_run, schema=Schema(columns, trained_run.schema.levels))
    predict_run(run, data.split("test"), str(tmp_path / "p.parquet"))
    assert pq.read_table(tmp_path / "p.parquet").column_names == ["pctr", "pcvr", "pctcvr", "p_d_mi", "p_d_ma"]


def test_predictions_that_fail_leave_no_file(trained_run, data, monkeypatch, tmp_path):
    def fail(features):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(predict, "prediction_function", lambda model, levels: fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        predict_run(trained_run, data.split("test"), str(tmp_path / "p.parquet"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_refused(trained_run, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Hm3Error, match="expected a place that can be written"):
        predict_run(trained_run, data.split("test"), str(tmp_path / "file" / "p.parquet"))


def test_a_run_without_a_checkpoint_is_not_evaluated(data, tmp_path):
    run = written_run(str(tmp_path), tiny_config(), data)
    with pytest.raises(Hm3Error, match="expected a checkpoint, found none; run hm3 train"):
        evaluate_run(run, data.split("test"), "test")


def test_a_run_is_compared_with_another_method_on_the_same_rows(trained_run, data, metrics, tmp_path):
    other = written_run(str(tmp_path), tiny_config("esm2"), data)
    save_best(other, other.build_model())
    compared = evaluate_run(trained_run, data.split("test"), "test", compare=other)
    alone = evaluate_run(other, data.split("test"), "test")
    assert {name: compared[name] for name in metrics} == metrics
    assert compared["compare"]["workdir"] == str(tmp_path)
    assert list(compared["compare"]["levels"]) == ["click", "d_ma", "purchase"]
    for target in ("pctr", "pcvr", "pctcvr"):
        expected = metrics[target]["auc"] - alone[target]["auc"]
        assert compared["compare"][target]["auc"] == pytest.approx(expected, abs=1e-12)
        assert compared["compare"][target]["rows"] == metrics[target]["rows"]


def test_slices_have_the_figures_of_their_rows(trained_run, data, metrics, table, truth):
    sliced = evaluate_run(trained_run, data.split("test"), "test", slices=["position"])
    assert {name: sliced[name] for name in metrics} == metrics
    for value, figures in sliced["slices"]["position"].items():
        chosen = truth["position"] == int(value)
        assert figures["pctr"]["rows"] == chosen.sum()
        assert figures["pctr"]["positives"] == truth["click"][chosen].sum()
        loss = log_loss(
            truth["click"][chosen], table["pctr"].to_numpy()[chosen].astype(np.float64), labels=[False, True]
        )
        assert figures["pctr"]["log_loss"] == pytest.approx(loss, rel=1e-5)


def test_a_split_that_is_not_there_is_refused(data):
    with pytest.raises(DataError, match=r"holdout: expected \*\.tfrecord shards, found none"):
        data.split("holdout")


def test_corrupt_shards_are_named(trained_run, data, tmp_path):
    tf.io.gfile.makedirs(str(tmp_path / "test"))
    for name in ("schema.json", "statistics.json", "test/index.json", "test/part-00000-00000.tfrecord"):
        tf.io.gfile.copy(f"{data.path}/{name}", str(tmp_path / name))
    shard = tmp_path / "test" / "part-00000-00000.tfrecord"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"part-00000-00000\.tfrecord: .*corrupt.* record at byte offset \d+"):
        evaluate_run(trained_run, DataFolder.open(str(tmp_path)).split("test"), "test")
