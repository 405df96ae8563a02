"""A small plan run for real: its processes, its results, and what becomes of it when it is killed."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest

from data_pipeline.simulate import SimulatedLog
from hm3_tf.config import Config, DataConfig, ModelConfig, TrainingConfig
from hm3_tf.errors import ConfigError, Hm3Error, UsageError
from hm3_tf.experiment.document import check_blocks
from hm3_tf.experiment.plan import Log, Plan, load_plan
from hm3_tf.experiment.runner import TUNING_SEEDS, run_plan
from hm3_tf.experiment.tables import Table
from hm3_tf.model import build_model

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
    runs = {"base": [config("base")], "hm3": [config("hm3", 1e-6), config("hm3")], "esmm": [config("esmm")]}
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
    expected = {(run, f"true {volume}", 0) for run in ("base", "hm3", "esmm") for volume in "SL"}
    assert set(results.measured) == expected | {("base", "other", 0)}
    assert {"pcvr.auc", "soft_auc.pcvr", "regret.pctcvr", "bias.unclicked", "ranked_1.gmv"} <= set(
        results.measured["esmm", "true S", 0]
    )
    assert "slope.purchase_given_d_ma" in results.measured["hm3", "true S", 0]
    assert (workdir / "results.csv").read_text().startswith("run,log,seed,measure,value\nbase,other,0,pctr.auc,")


def test_logs_are_removed_when_their_runs_are_done(whole):
    workdir, _ = whole
    assert not list((workdir / "data").glob("*"))


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
    process = subprocess.Popen(command(plan_file, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("results/true/0/*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        children = [
            int(pid) for pid in pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ]
        process.kill()
        process.wait()
    deadline = time.monotonic() + 60
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children and not any(pathlib.Path(f"/proc/{pid}").exists() for pid in children), (
        "cells end with their parent"
    )
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/*/0/*.json")}
    assert done and not (tmp_path / "results.csv").exists()
    resumed = run_plan(load_plan(plan_file), str(tmp_path))
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert set(resumed.measured) == set(results.measured)
    for key, measures in results.measured.items():
        assert resumed.measured[key] == pytest.approx(measures, rel=1e-6, abs=1e-6, nan_ok=True), key


def test_the_command_prints_and_writes_tables_of_what_is_there(whole, plan_file, tmp_path):
    workdir, _ = whole
    document = tmp_path / "doc.md"
    document.write_text("<!-- cvr -->\n<!-- /cvr -->\n<!-- lines -->\n<!-- /lines -->\n")
    done = subprocess.run(
        command(plan_file, workdir, f"--output={document}"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    table, words = done.stdout.rsplit("\n", 2)[:2]
    assert "| hm3 | 0." in table and table.strip() in document.read_text()
    assert words.startswith("CVR by volume. Means and 95 % intervals. base: S 0.")
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
        ModelConfig("base", tower_units=(8,), dropout=0.0, features=("brand",)),
        training=TrainingConfig(epochs=1, global_batch_size=512),
    )
    changed = Plan({"true": plan.logs["true"]}, {"base": [other]}, 1, test_rows=4096)
    with pytest.raises(
        Hm3Error, match=r"base.json: expected the result of the plan's config and log of run 'base', got"
    ):
        run_plan(changed, str(workdir))


@pytest.mark.parametrize("changes", [{"world": "reversed"}, {"profile": "paper"}, {"users": 300}, {"rows": 8192}])
def test_results_of_another_log_are_refused(whole, plan_file, changes):
    workdir, _ = whole
    plan = load_plan(plan_file)
    log = Log(dataclasses.replace(plan.logs["other"].source, **changes))
    with pytest.raises(
        Hm3Error, match=r"base.json: expected the result of the plan's config and log of run 'base', got"
    ):
        run_plan(Plan({"other": log}, {"base": plan.runs["base"]}, 1, test_rows=4096), str(workdir))


def test_only_logs_that_are_shown_are_run(plan_file):
    plan = load_plan(plan_file)
    assert list(plan.for_parts(["cvr"]).logs) == ["true"]
    table = Table("Other.", ["base"], ["other"], {"pctr.auc": "AUC"})
    both = dataclasses.replace(plan, tables={**plan.tables, "other": table})
    assert list(both.for_parts(["other"]).logs) == ["true", "other"], "configs are chosen on the first"


PLANS = [f"configs/experiments/{name}" for name in ("simulated.py:paper", "simulated.py:worlds", "kuairand.py")]


def test_the_plans_fill_the_document_and_make_it_complete():
    names = [name for plan in map(load_plan, PLANS) for name in (*plan.tables, *plan.plots)]
    document = pathlib.Path("docs/experiments.md").read_text()
    assert sorted(re.findall(r"<!-- (\w+) -->", document)) == sorted(names)
    check_blocks("docs/experiments.md", names)


def test_the_larger_base_and_esmm_have_as_many_tower_weights_as_hm3():
    runs = load_plan(PLANS[0]).runs

    def tower_weights(run):
        network = build_model(runs[run][0], SimulatedLog().schema).network
        return sum(
            variable.shape.num_elements() for variable in network.trainable_variables if variable.shape[0] < 10_000
        )

    expected = pytest.approx(tower_weights("HM3"), rel=0.03)
    assert tower_weights("BASE, as large as HM3") == tower_weights("ESMM, as large as HM3") == expected


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
        ({"test_rows": 100}, "test_rows of whole slates of 8, got 100"),
        ({"runs": {"base": [Config(data=DataConfig(nesting="drop"))]}}, "data.nesting of coerce on a simulated log"),
        ({"runs": {"base": [Config(training=TrainingConfig(max_steps=5))]}}, "training.max_steps as it is by default"),
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
