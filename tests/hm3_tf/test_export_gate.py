"""A version goes live unless it is worse than the live one on the same rows."""

import dataclasses
import re

import numpy as np
import pytest

from data_pipeline.schema import Schema
from hm3_tf import evaluate, export
from hm3_tf.errors import ConfigError, Hm3Error
from hm3_tf.export_gate import ServedModel, evaluate_versions, judge, pass_gate
from tests.conftest import read_split, save_best, tiny_config, written_run
from tests.truth_model import TRUTH, save_truth


@pytest.fixture(scope="module")
def index(data):
    """The largest split: it has clicks enough that figures lie where they should."""
    return data.split("train")


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """The live version: it serves the true probabilities."""
    return save_truth(str(tmp_path_factory.mktemp("truth")))


def test_an_equal_version_passes(trained_run, index, truth):
    _, verdict = evaluate_versions(trained_run, index, truth, truth)
    assert verdict["reasons"] == [] and verdict["rows"] == 4286
    auc = verdict["targets"]["pctr"]["auc"]
    assert auc["new"] == auc["live"] > 0.6 and auc["interval"] == [0, 0]


def test_a_version_half_as_high_again_as_the_truth_is_refused(trained_run, index, truth, tmp_path):
    high = save_truth(str(tmp_path), factor=1.5)
    _, verdict = evaluate_versions(trained_run, index, high, truth)
    live = verdict["targets"]["pctr"]["pcoc"]["live"]
    assert verdict["targets"]["pctr"]["pcoc"]["new"] == pytest.approx(1.5 * live, rel=0.02)
    assert re.fullmatch(
        r"pctr PCOC 1\.\d{4} against \d\.\d{4} \(difference \+0\.\d{4}, 95 % \+0\.\d{4} to \+0\.\d{4}\), "
        r"outside of 0.8 to 1.25",
        verdict["reasons"][0],
    )
    _, back = evaluate_versions(trained_run, index, truth, high)
    assert back["reasons"] == [], "the way back is open"


def test_a_model_trained_on_shuffled_labels_is_refused_with_the_figures_of_hm3_evaluate(data, index, truth, tmp_path):
    config = tiny_config()
    run = written_run(str(tmp_path / "run"), config, data)
    features, labels = read_split(config, data, "train")
    order = np.random.default_rng(0).permutation(len(labels["click"]))
    model = run.build_model()
    model.fit(features, {level: values[order] for level, values in labels.items()}, batch_size=512, epochs=2, verbose=0)
    save_best(run, model)
    export._save(run, model, str(tmp_path / "model"))
    metrics, verdict = evaluate_versions(run, index, str(tmp_path / "model"), truth)
    assert verdict["targets"]["pctr"]["auc"]["new"] < 0.6
    assert any(reason.startswith("pctr AUC 0.") for reason in verdict["reasons"])
    expected = evaluate.evaluate_run(run, index, "train")
    assert metrics["rows"] == expected["rows"]
    for served, figures in (
        *((metrics[name], expected[name]) for name in TRUTH),
        *((metrics["levels"][level], expected["levels"][level]) for level in expected["levels"]),
    ):
        assert set(served) == set(figures) - {"bayes_auc"}
        for name in ("rows", "positives", "auc", "log_loss", "pcoc", "gauc", "gauc_groups"):
            assert served[name] == pytest.approx(figures[name], rel=1e-4), name
    assert metrics["pctr"]["pcoc_interval"] == pytest.approx(expected["pctr"]["pcoc_interval"], rel=1e-4)


def test_a_live_version_of_other_columns_is_named(data, truth):
    columns = [column for column in data.schema.columns if column.name != "truth_pctr"]
    schema = Schema(tuple(columns), data.schema.levels)
    with pytest.raises(ConfigError, match="takes 'truth_pctr' as float32 .None., which the log does not have"):
        ServedModel(truth, schema, ("click", "purchase"))
    columns.append(dataclasses.replace(data.schema.column("truth_pctr"), dtype="int64"))
    with pytest.raises(ConfigError, match="takes 'truth_pctr' as float32 .None., which the log has otherwise"):
        ServedModel(truth, Schema(tuple(columns), data.schema.levels), ("click", "purchase"))
    columns[-1] = dataclasses.replace(data.schema.column("truth_pctr"), shape=(2,))
    with pytest.raises(ConfigError, match=r"takes 'truth_pctr' as float32 \[None\], which the log has otherwise"):
        ServedModel(truth, Schema(tuple(columns), data.schema.levels), ("click", "purchase"))


def test_a_folder_that_holds_no_model_is_named(data, tmp_path):
    with pytest.raises(
        Hm3Error, match=f"{tmp_path}: expected a SavedModel, got: .*; remove the folder, or export without"
    ):
        ServedModel(str(tmp_path), data.schema, ("click", "purchase"))


def test_a_probability_that_is_no_number_is_no_figure(data, truth):
    served = ServedModel(truth, data.schema, ("click", "purchase"))
    raw = {name: np.array([0.5, np.nan, 0.25], np.float32) for name in served.columns}
    with pytest.raises(Hm3Error, match="expected probabilities, got no numbers in 1 of 3 rows; do not serve it"):
        served.pairs(raw)


def test_a_folder_of_versions_that_does_not_exist_lets_nothing_pass(trained_run, tmp_path):
    with pytest.raises(
        Hm3Error, match=f"--gate: expected the folder of the versions that are served, found none at {tmp_path}/x"
    ):
        pass_gate(trained_run, str(tmp_path), f"{tmp_path}/x", force=False)


def figures(new, live, interval, too_small=False):
    """Returns (new, live, difference) where pctr's figures are {figure: value} and the others are alike."""
    alike = {"auc": 0.7, "pcoc": 1.0}
    same = dict.fromkeys(("pcvr", "pctcvr"), alike)
    gaps = {"auc": 0.0, "pcoc": 0.0, "auc_interval": [-0.01, 0.01], "pcoc_interval": [-0.01, 0.01]}
    gap = {**gaps, **{name: new[name] - live[name] for name in new}, **interval}
    none = {"auc_interval": None, "pcoc_interval": None} if too_small else {}
    difference = {
        name: {**gaps, **(gap if name == "pctr" else {}), **none, "too_small": too_small}
        for name in ("pctr", "pcvr", "pctcvr")
    }
    return {"rows": 1000, "pctr": {**alike, **new}, **same}, {"pctr": {**alike, **live}, **same}, difference


CASES = {
    "an AUC that may be as good passes": ({"auc": 0.69}, {"auc": 0.7}, [-0.02, 0.001], False),
    "an AUC that is lower for sure is refused": ({"auc": 0.69}, {"auc": 0.7}, [-0.015, -0.005], True),
    "an AUC that is lower by next to nothing passes": ({"auc": 0.6998}, {"auc": 0.7}, [-0.0003, -0.0001], False),
    "a higher AUC passes": ({"auc": 0.71}, {"auc": 0.7}, [0.005, 0.015], False),
    "a PCOC within the bounds passes": ({"pcoc": 1.2}, {"pcoc": 1.0}, [0.1, 0.3], False),
    "a PCOC above them and farther is refused": ({"pcoc": 1.3}, {"pcoc": 1.2}, [0.05, 0.15], True),
    "a PCOC below them and farther is refused": ({"pcoc": 0.7}, {"pcoc": 0.9}, [-0.3, -0.1], True),
    "a PCOC above them but nearer passes": ({"pcoc": 1.5}, {"pcoc": 1.7}, [-0.3, -0.1], False),
    "a PCOC below them but nearer passes": ({"pcoc": 0.7}, {"pcoc": 0.5}, [0.1, 0.3], False),
    "a PCOC below them but nearer than one above passes": ({"pcoc": 0.79}, {"pcoc": 3.0}, [-2.5, -2.0], False),
    "a PCOC above them but nearer than one below passes": ({"pcoc": 1.3}, {"pcoc": 0.4}, [0.7, 1.1], False),
    "a PCOC below them and farther than one above is refused": ({"pcoc": 0.5}, {"pcoc": 1.6}, [-1.3, -0.9], True),
    "a PCOC of 0 is infinitely far": ({"pcoc": 0.0}, {"pcoc": 3.0}, [-3.5, -2.5], True),
    "a PCOC above them that may be as near passes": ({"pcoc": 1.3}, {"pcoc": 1.29}, [-0.05, 0.07], False),
}


@pytest.mark.parametrize("case", CASES)
def test_judgement(case):
    new, live, interval, refused = CASES[case]
    verdict = judge(*figures(new, live, {f"{next(iter(new))}_interval": interval}))
    assert bool(verdict["reasons"]) == refused
    assert all(reason.startswith(f"pctr {next(iter(new)).upper()} ") for reason in verdict["reasons"])


def test_too_few_rows_to_tell_is_a_reason():
    verdict = judge(*figures({"auc": 0.7}, {"auc": 0.7}, {}, too_small=True))
    assert verdict["reasons"] == ["1,000 rows, or their groups, are too few to tell"]
