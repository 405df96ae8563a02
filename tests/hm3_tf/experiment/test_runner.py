"""A small plan run for real: its processes, its results, and what becomes of it when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest

from data_pipeline.simulate import SimulatedLog
from hm3_tf.config import Config, ModelConfig, TrainingConfig
from hm3_tf.errors import ConfigError, Hm3Error, UsageError
from hm3_tf.experiment.plan import Log, Plan, load_plan
from hm3_tf.experiment.runner import TUNING_SEEDS, run_plan
from hm3_tf.experiment.tables import Table

PLAN = """
from data_pipeline.simulate import SimulatedLog
from hm3_tf.config import Config, ModelConfig, TrainingConfig
from hm3_tf.experiment.plan import Log, Plan
from hm3_tf.experiment.plots import Lines
from hm3_tf.experiment.tables import Table

FEATURES = ("user_id", "item_id", "brand", "price")


def config(method, learning_rate=0.01):
    model = ModelConfig(method, tower_units=(4,), dropout=0.0, embedding_dim=2, features=FEATURES)
    return Config(model, training=TrainingConfig(global_batch_size=512, epochs=1, learning_rate=learning_rate))


def get_plan(seeds="1"):
    log = SimulatedLog(rows=4096, users=200, items=200)
    runs = {"base": [config("base")], "hm3": [config("hm3", 1e-6), config("hm3")], "gmcm": [config("gmcm")]}
    logs = {"true": Log(log, {"S": 2048, "L": 4096}), "other": Log(log, runs=("base",))}
    table = Table("CVR.", ["base", "hm3"], ["true L"], {"soft_auc.pcvr": "soft AUC"}, "base")
    plot = Lines("CVR by volume", ["base", "hm3"], {"true S": "S", "true L": "L"}, "soft_auc.pcvr", "AUC")
    return Plan(
        logs, runs, int(seeds), test_rows=4096, tuning_log="true", tuning_seeds=1, tables={"cvr": table}, plots={"lines": plot}
    )
"""


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.py"
    path.write_text(PLAN)
    return str(path)


@pytest.fixture(scope="module")
def whole(plan_file, tmp_path_factory):
    """The plan run without a stop."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run_plan(load_plan(plan_file), str(workdir))


def command(plan_file, workdir, *flags):
    return [
        *(sys.executable, "-m", "hm3_tf", "experiment"),
        *(f"--plan={plan_file}", f"--workdir={workdir}", *flags),
    ]


def test_every_run_is_measured_on_every_log_and_volume(whole):
    workdir, results = whole
    expected = {(run, f"true {volume}", 0) for run in ("base", "hm3", "gmcm") for volume in "SL"}
    assert set(results.measured) == expected | {("base", "other", 0)}
    assert {"pcvr.auc", "soft_auc.pcvr", "regret.pctcvr", "bias.unclicked", "ranked_1.gmv"} <= set(
        results.measured["gmcm", "true S", 0]
    )
    assert "slope.purchase_given_d_ma" in results.measured["hm3", "true S", 0]
    assert (workdir / "results.csv").read_text().startswith("run,log,seed,measure,value\nbase,other,0,pctr.auc,")


def test_logs_are_removed_when_their_runs_are_done(whole):
    workdir, _ = whole
    assert not list((workdir / "data").iterdir())


def test_of_several_configs_the_better_one_is_chosen_on_other_logs(whole):
    workdir, _ = whole
    tuning = json.loads((workdir / "tuning.json").read_text())
    assert tuning["chosen"] == {"hm3": 1}
    assert tuning["auc_of_cvr_and_ctr"]["hm3.1"] > tuning["auc_of_cvr_and_ctr"]["hm3.0"]
    assert [path.name for path in (workdir / "tuning").iterdir()] == [str(TUNING_SEEDS)]
    used = json.loads((workdir / "results" / "true" / "0" / "hm3.json").read_text())["config"]
    assert used["training"]["learning_rate"] == 0.01


def test_a_model_learns_more_from_more_rows(whole):
    _, results = whole
    small, large = (results.measured["base", f"true {volume}", 0]["soft_auc.pctr"] for volume in "SL")
    assert small < large


def test_a_killed_experiment_goes_on_to_the_same_numbers(whole, plan_file, tmp_path):
    _, results = whole
    process = subprocess.Popen(
        command(plan_file, tmp_path), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("results/true/0/*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/*/0/*.json")}
    assert done and not (tmp_path / "results.csv").exists()
    resumed = run_plan(load_plan(plan_file), str(tmp_path))
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert set(resumed.measured) == set(results.measured)
    for key, measures in results.measured.items():
        assert resumed.measured[key] == pytest.approx(measures, abs=1e-6, nan_ok=True), key


def test_the_command_prints_and_writes_tables_of_what_is_there(whole, plan_file, tmp_path):
    workdir, _ = whole
    document = tmp_path / "doc.md"
    document.write_text("<!-- cvr -->\n<!-- /cvr -->\n<!-- lines -->\n<!-- /lines -->\n")
    done = subprocess.run(
        command(plan_file, workdir, f"--output={document}"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| hm3 | 0." in done.stdout and done.stdout.strip() in document.read_text()
    assert "![CVR by volume. Means and 95 % intervals. base: S 0." in document.read_text()
    svg = ElementTree.parse(tmp_path / "images" / "lines.svg").getroot()
    assert {"base", "hm3", "AUC", "S", "L"} <= {text.strip() for text in svg.itertext()}


def test_an_unknown_table_is_refused_before_anything_runs(plan_file, tmp_path):
    done = subprocess.run(command(plan_file, tmp_path / "w", "--part=cv"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--part: expected a table or plot of the plan, got 'cv'; did you mean 'cvr'" in done.stderr
    assert not (tmp_path / "w").exists()


def test_results_of_another_config_are_refused(whole, plan_file):
    workdir, _ = whole
    plan = load_plan(plan_file)
    other = Config(
        ModelConfig("base", tower_units=(8,), dropout=0.0, features=("brand",)), training=TrainingConfig(epochs=1)
    )
    changed = Plan({"true": plan.logs["true"]}, {"base": [other]}, 1, test_rows=4096)
    with pytest.raises(
        Hm3Error, match=r"base.json: expected the result of the plan's config of run 'base', got that of"
    ):
        run_plan(changed, str(workdir))


def test_a_cell_that_fails_ends_the_experiment_with_its_place(tmp_path, capfd):
    wrong = Config(ModelConfig("base", features=("pric",)), training=TrainingConfig(epochs=1))
    plan = Plan({"true": Log(SimulatedLog(rows=1024, users=200, items=200))}, {"base": [wrong]}, 1, test_rows=1024)
    with pytest.raises(Hm3Error, match=r"expected the process of .*results/true/0 to end well, but .* status 1"):
        run_plan(plan, str(tmp_path))
    assert "got 'pric'; did you mean 'price'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "expected seeds of at least 1, got 0"),
        ({"runs": {"base": []}}, "expected a config for run 'base', got none"),
        ({"logs": {"a": Log(SimulatedLog(), runs=("bas",))}}, "known run, got 'bas'; did you mean 'base'"),
        ({"tuning_log": "b", "runs": {"base": [Config()] * 2}}, "known tuning_log, got 'b'"),
        ({"tables": {"t": Table("", ["base"], ["a S"], {})}}, "known log of a table or plot, got 'a S'"),
        (
            {"runs": {"base": [Config()]}, "logs": {"a": Log(SimulatedLog(rows=2048), {"S": 1024, "L": 2048})}},
            "one epoch",
        ),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(changes, message):
    one_epoch = Config(training=TrainingConfig(epochs=1))
    plan = {"logs": {"a": Log(SimulatedLog())}, "runs": {"base": [one_epoch]}, "seeds": 1, **changes}
    with pytest.raises(ConfigError, match=message):
        Plan(**plan)


@pytest.mark.parametrize("volumes", [{"S": 1000, "L": 2048}, {"S": 2048, "L": 1024}, {"S": 1024}])
def test_volumes_that_are_no_parts_of_the_log_are_refused(volumes):
    with pytest.raises(ConfigError, match=r"expected volumes of multiples of 1,024 rows that ascend to the 2048 rows"):
        Log(SimulatedLog(rows=2048), volumes)


@pytest.mark.parametrize("text", ["def get_plan():\n  return 1", "x = 1", "def get_plan(:"])
def test_a_file_that_is_no_plan_is_refused(tmp_path, text):
    path = tmp_path / "plan.py"
    path.write_text(text)
    with pytest.raises(UsageError, match="--plan=.*plan.py: expected"):
        load_plan(str(path))
