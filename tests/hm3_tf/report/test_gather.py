"""What a report says is what evaluation, metrics.jsonl and the config say."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from hm3_tf.errors import ConfigError, DataError, Hm3Error
from hm3_tf.evaluate import evaluate_run
from hm3_tf.report.gather import check_runs, gather
from hm3_tf.workdir import METRICS_FILE, RUN_FILE
from tests.conftest import save_best, tiny_config, written_run
from tests.hm3_tf.report.conftest import SLICES


def test_the_figures_are_those_of_evaluate(report, runs, data):
    first, second = report.runs
    expected = evaluate_run(runs[0], data.split("test"), "test", compare=runs[1], slices=SLICES)
    difference = expected.pop("compare")
    assert first.evaluation.metrics == expected
    assert {"workdir": second.path, **second.evaluation.first_less_this} == difference
    assert second.evaluation.metrics == evaluate_run(runs[1], data.split("test"), "test", slices=SLICES)
    assert first.differences == {} and list(second.differences) == ["pctr", "pcvr", "pctcvr"]


def test_the_histograms_stand_under_the_names_of_their_figures(report):
    for run in report.runs:
        assert list(run.counts) == list(run.targets)
        for name, counts in run.counts.items():
            assert counts.sum() == run.targets[name]["rows"], name
            assert counts[1].sum() == run.targets[name]["positives"], name


def test_the_history_is_that_of_metrics_jsonl_without_a_torn_line(report, runs, data, tmp_path):
    written = [json.loads(line) for line in Path(runs[0].file(METRICS_FILE)).read_text().splitlines()]
    assert report.runs[0].history == written and any(line.get("epoch_end") for line in written)
    run = written_run(str(tmp_path), tiny_config(), data)
    save_best(run, run.build_model())
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert gather([run], data.split("test"), "test", ()).runs[0].history == [{"step": 1, "loss": 0.5}]


def test_a_run_without_metrics_jsonl_has_no_history(trained_run, data):
    assert gather([trained_run], data.split("test"), "test", ()).runs[0].history == []


def test_config_and_versions_are_those_of_the_run(report, runs):
    assert report.runs[1].settings["model.method"] == "esmm"
    assert report.runs[0].settings["training.learning_rate"] == runs[0].config.training.learning_rate
    assert report.runs[0].versions == json.loads(Path(runs[0].file(RUN_FILE)).read_text())["versions"]
    assert report.versions["numpy"] == np.__version__


def test_runs_are_named_by_the_last_part_of_their_path_where_that_tells_them_apart(report, runs, data, tmp_path):
    assert [run.name for run in report.runs] == ["hm3", "esmm"]
    other = written_run(str(tmp_path / "hm3"), tiny_config(), data)
    save_best(other, other.build_model())
    named = gather([runs[0], other], data.split("test"), "test", ())
    assert [run.name for run in named.runs] == [runs[0].path, other.path]


def test_a_run_named_twice_is_refused(runs):
    again = dataclasses.replace(runs[0], path=runs[1].path + "/../hm3/")
    with pytest.raises(ConfigError, match=r"--workdir: expected each run once, got .*/hm3/ again"):
        check_runs([*runs, again], same_log=True)
    check_runs(runs, same_log=True)


def test_runs_of_two_logs_need_one_that_is_named(runs):
    longer = dataclasses.replace(
        runs[1], train=dataclasses.replace(runs[1].train, label_patterns={"0000": 7}), data_dir="/logs/june"
    )
    with pytest.raises(
        ConfigError, match=r"esmm was trained on /logs/june .* name the log to evaluate on with --data_dir"
    ):
        check_runs([runs[0], longer], same_log=True)
    check_runs([runs[0], longer], same_log=False)


def test_runs_whose_levels_are_made_of_other_labels_are_refused(runs, data):
    levels = (*runs[1].schema.levels[:-1], dataclasses.replace(runs[1].schema.levels[-1], any_of=("click",)))
    other = dataclasses.replace(runs[1], schema=dataclasses.replace(runs[1].schema, levels=levels))
    with pytest.raises(
        ConfigError, match="expected runs of one log, but the levels of .*esmm .* evaluate them one by one"
    ):
        gather([runs[0], other], data.split("test"), "test", ())


def test_runs_that_group_rows_by_other_columns_are_refused(runs, data):
    columns = tuple(
        dataclasses.replace(column, role="feature") if column.role == "group" else column
        for column in runs[1].schema.columns
    )
    other = dataclasses.replace(runs[1], schema=dataclasses.replace(runs[1].schema, columns=columns))
    with pytest.raises(
        ConfigError, match="the group column of .*esmm is None and that of .*hm3 user_id; evaluate them one"
    ):
        gather([runs[0], other], data.split("test"), "test", ())


def test_a_run_without_a_checkpoint_is_refused(runs, data, tmp_path):
    run = written_run(str(tmp_path), tiny_config(), data)
    with pytest.raises(Hm3Error, match="expected a checkpoint, found none; run hm3 train"):
        gather([runs[0], run], data.split("test"), "test", ())


def test_history_that_is_not_json_is_named(trained_run, data, tmp_path):
    run = written_run(str(tmp_path), tiny_config(), data)
    save_best(run, run.build_model())
    (tmp_path / METRICS_FILE).write_text("step 1\n")
    with pytest.raises(DataError, match=r"metrics.jsonl: expected lines of JSON, got 'step 1'; move the file away"):
        gather([run], data.split("test"), "test", ())
