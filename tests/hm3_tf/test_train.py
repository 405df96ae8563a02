"""Training: resuming, checkpoints, early stopping, logs, and losses that are not finite."""

import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data_pipeline import storage
from data_pipeline.convert import convert
from data_pipeline.folder import DataFolder
from data_pipeline.simulate import SimulatedLog
from data_pipeline.sources.simulated import DatedDays, SimulatedSource, day_split
from data_pipeline.split_rules import ThresholdRule
from hm3_tf import train
from hm3_tf.behavior_graph import Behavior, BehaviorGraph
from hm3_tf.errors import ConfigError, DataError, Hm3Error, PreemptionError
from hm3_tf.evaluate import evaluate_run
from hm3_tf.model import ConversionModel
from hm3_tf.train import open_trainer, train_and_evaluate
from hm3_tf.workdir import claim_workdir, open_workdir
from tests.conftest import LOG, tiny_config

STEPS = 9  # an epoch: 4,286 rows in batches of 512


@pytest.fixture(autouse=True)
def _no_trial_export(monkeypatch):
    """The trial export has tests of its own and takes seconds."""
    monkeypatch.setattr(train, "check_export", lambda run: None)


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An uninterrupted run of two epochs that logs every step, and its final weights."""
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "check_export", lambda run: None)
        trainer = open_trainer(tiny_config(epochs=2, log_every_steps=1), data.path, str(workdir))
        trainer.train()
    return workdir, trainer.model.network.get_weights()


@pytest.mark.parametrize("stop", [4, STEPS, 13])
def test_a_run_that_stopped_resumes_to_the_weights_of_one_that_did_not(data, whole, tmp_path, stop):
    _, weights = whole
    train_and_evaluate(tiny_config(epochs=2, log_every_steps=1, max_steps=stop), data.path, str(tmp_path))
    assert [line["step"] for line in lines(tmp_path) if "epoch_end" not in line][-1] == stop
    trainer = open_trainer(tiny_config(epochs=2, log_every_steps=1), data.path, str(tmp_path))
    trainer.train()
    for resumed, uninterrupted in zip(trainer.model.network.get_weights(), weights):
        np.testing.assert_allclose(resumed, uninterrupted, atol=1e-6)


def test_dropout_and_embeddings_that_start_anew_go_on_as_if_the_run_had_not_stopped(data, tmp_path):
    config = tiny_config(epochs=2, reset_embeddings=True)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.25))
    weights = {}
    for name, stops in {"whole": (0,), "stopped": (4, STEPS, 13, 0)}.items():
        for stop in stops:
            part = dataclasses.replace(config, training=dataclasses.replace(config.training, max_steps=stop))
            trainer = open_trainer(part, data.path, str(tmp_path / name))
            trainer.train()
        weights[name] = trainer.model.network.get_weights()
    for stopped, whole in zip(weights["stopped"], weights["whole"]):
        np.testing.assert_allclose(stopped, whole, atol=1e-6)


def test_every_epoch_but_the_first_starts_with_new_embeddings_if_asked(data, tmp_path, monkeypatch):
    resets = []
    monkeypatch.setattr(ConversionModel, "reset_embeddings", lambda self, draw: resets.append(draw))
    for reset, expected in ((False, []), (True, [1, 2])):
        config = tiny_config(epochs=3, reset_embeddings=reset, global_batch_size=4096)
        train_and_evaluate(config, data.path, str(tmp_path / str(reset)))
        assert resets == expected


def test_a_run_killed_between_an_epoch_and_its_validation_resumes_there(data, whole, tmp_path):
    _, weights = whole
    config = tiny_config(epochs=2, log_every_steps=1, checkpoint_every_steps=STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Evaluator, "__call__", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config, data.path, str(tmp_path))
    trainer = open_trainer(config, data.path, str(tmp_path))
    trainer.train()
    assert [line["step"] for line in lines(tmp_path) if "validation" in line] == [STEPS, 2 * STEPS]
    for resumed, uninterrupted in zip(trainer.model.network.get_weights(), weights):
        np.testing.assert_allclose(resumed, uninterrupted, atol=1e-6)


class Telling(keras.callbacks.Callback):
    """Tells its process to end before a step, as a scheduler does."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self._step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("batch, step", [(3, 4), (STEPS - 1, STEPS)], ids=["within", "at the last step of an epoch"])
def test_a_run_told_to_end_writes_a_checkpoint_and_resumes_there(data, whole, tmp_path, monkeypatch, batch, step):
    _, weights = whole
    config = tiny_config(epochs=2, log_every_steps=1)
    fit = ConversionModel.fit
    monkeypatch.setattr(
        ConversionModel,
        "fit",
        lambda self, *args, callbacks, **options: fit(self, *args, callbacks=[Telling(batch), *callbacks], **options),
    )
    with pytest.raises(PreemptionError, match=f"told to end .SIGTERM. at step {step}, whose checkpoint is written"):
        train_and_evaluate(config, data.path, str(tmp_path))
    monkeypatch.setattr(ConversionModel, "fit", fit)
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")).endswith(f"ckpt-{step}")
    with pytest.raises(Hm3Error, match=f"expected a run whose training has ended, found one that is at step {step} of"):
        open_workdir(str(tmp_path)).checkpoint("final")
    trainer = open_trainer(config, data.path, str(tmp_path))
    trainer.train()
    assert open_workdir(str(tmp_path)).checkpoint("final").endswith(f"ckpt-{2 * STEPS}")
    assert [line["step"] for line in lines(tmp_path) if "epoch_end" not in line] == list(range(1, 2 * STEPS + 1))
    assert [line["step"] for line in lines(tmp_path) if "validation" in line] == [STEPS, 2 * STEPS]
    for resumed, uninterrupted in zip(trainer.model.network.get_weights(), weights):
        np.testing.assert_allclose(resumed, uninterrupted, atol=1e-6)


def test_a_run_told_to_end_within_validation_ends_at_once(data, tmp_path, monkeypatch):
    def tell(_evaluator):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("validation went on")

    monkeypatch.setattr(train.Evaluator, "__call__", tell)
    with pytest.raises(PreemptionError, match=f"at step {STEPS}, whose checkpoint is written"):
        train_and_evaluate(tiny_config(epochs=1), data.path, str(tmp_path))
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")).endswith(f"ckpt-{STEPS}")


@pytest.mark.parametrize("minutes, kept", [(1e-9, {7, 8, 9}), (60.0, {9})])
def test_checkpoints_are_written_every_so_many_minutes(data, tmp_path, minutes, kept):
    train_and_evaluate(tiny_config(epochs=1, checkpoint_every_minutes=minutes), data.path, str(tmp_path))
    assert {int(path.stem.split("-")[1]) for path in tmp_path.glob("checkpoints/ckpt-*.index")} == kept


def test_a_resumed_log_has_each_step_once_with_the_losses_of_an_uninterrupted_one(data, whole, tmp_path):
    workdir, _ = whole
    config = tiny_config(epochs=2, log_every_steps=1, checkpoint_every_steps=5, max_steps=7)
    train_and_evaluate(config, data.path, str(tmp_path))
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(), str(tmp_path / "checkpoints"), 3)
    newest = manager.checkpoints[-1]  # as if the process had died between steps 5 and 7
    for file in tmp_path.glob("checkpoints/ckpt-7.*"):
        file.unlink()
    index = tmp_path / "checkpoints" / "checkpoint"
    index.write_text("\n".join(line for line in index.read_text().splitlines() if "ckpt-7" not in line))
    index.write_text(f'model_checkpoint_path: "ckpt-5"\n{index.read_text()}')
    assert newest.endswith("ckpt-7")
    train_and_evaluate(tiny_config(epochs=2, log_every_steps=1, checkpoint_every_steps=5), data.path, str(tmp_path))
    resumed = [line for line in lines(tmp_path) if "epoch_end" not in line]
    assert [line["step"] for line in resumed] == list(range(1, 2 * STEPS + 1))
    expected = [line["loss"] for line in lines(workdir) if "epoch_end" not in line]
    assert [line["loss"] for line in resumed] == pytest.approx(expected, abs=1e-6)


def test_the_log_holds_what_scripts_read(whole):
    workdir, _ = whole
    steps = [line for line in lines(workdir) if "epoch_end" not in line]
    assert set(steps[0]) == {"step", "epoch", "loss", "examples_per_second", "losses"}
    assert set(steps[0]["losses"]) == {"click", "d_mi", "d_ma", "purchase"}
    assert [line["step"] for line in steps] == list(range(1, 2 * STEPS + 1))
    validations = [line for line in lines(workdir) if "validation" in line]
    assert [line["step"] for line in validations] == [STEPS, 2 * STEPS]
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_tensorboard_has_the_same_scalars(whole):
    workdir, _ = whole
    events = list((workdir / "tensorboard").iterdir())
    tags = {value.tag for event in tf.compat.v1.train.summary_iterator(str(events[0])) for value in event.summary.value}
    assert {"loss", "losses/purchase", "examples_per_second", "validation/pctcvr/auc"} <= tags


def test_the_best_checkpoint_is_that_of_the_best_validation(data, whole):
    workdir, _ = whole
    values = {line["step"]: line["validation"]["pctcvr"]["auc"] for line in lines(workdir) if "validation" in line}
    best = tf.train.latest_checkpoint(str(workdir / "checkpoints" / "best"))
    assert best.endswith(f"ckpt-{max(values, key=values.get)}")


def test_the_best_by_a_loss_is_the_lowest(data, tmp_path, monkeypatch):
    losses = iter([0.5, 0.3, 0.4])
    monkeypatch.setattr(train.Evaluator, "__call__", lambda self: {"pctcvr": {"log_loss": next(losses)}, "levels": {}})
    config = tiny_config(epochs=3, best_metric="pctcvr.log_loss", global_batch_size=4096)
    train_and_evaluate(config, data.path, str(tmp_path))
    steps = [line["step"] for line in lines(tmp_path) if "validation" in line]
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints" / "best")).endswith(f"ckpt-{steps[1]}")


def test_training_stops_when_validation_no_longer_improves(data, tmp_path, monkeypatch):
    aucs = iter([0.6, 0.7, 0.65, 0.69, 0.69])  # the last is evaluated again by the process that finds the run ended
    figures = lambda: {"levels": {}, "pctcvr": {"auc": next(aucs)}}  # noqa: E731
    monkeypatch.setattr(train.Evaluator, "__call__", lambda self: figures())
    config = tiny_config(epochs=5, early_stopping_epochs=2, global_batch_size=4096)
    train_and_evaluate(config, data.path, str(tmp_path))
    assert [line["validation"]["pctcvr"]["auc"] for line in lines(tmp_path) if "validation" in line] == [
        0.6,
        0.7,
        0.65,
        0.69,
    ]
    train_and_evaluate(config, data.path, str(tmp_path))  # a run that has ended does not go on
    assert len([line for line in lines(tmp_path) if "validation" in line]) == 4


def test_a_loss_that_is_not_finite_stops_the_run_before_a_checkpoint(data, tmp_path):
    config = tiny_config(learning_rate=1e30, log_every_steps=100, checkpoint_every_steps=3)
    with pytest.raises(Hm3Error, match="expected a finite loss, got .* in steps 1 to 3; lower training.learning_rate"):
        train_and_evaluate(config, data.path, str(tmp_path))
    assert not list(tmp_path.glob("checkpoints/ckpt*"))


def test_a_figure_that_cannot_choose_the_best_checkpoint_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="training.best_metric: .*did you mean 'pctcvr.auc'.*got 'pctcvr.acu'"):
        train_and_evaluate(tiny_config(best_metric="pctcvr.acu"), data.path, str(tmp_path))


def test_a_log_without_validation_trains_and_keeps_its_latest_weights(data, tmp_path):
    log = tmp_path / "log"
    shutil.copytree(data.path, log)
    shutil.rmtree(log / "validation")
    assert train_and_evaluate(tiny_config(epochs=1), str(log), str(tmp_path / "run")) == {}
    assert open_workdir(str(tmp_path / "run")).trained_model()


def test_old_checkpoints_are_removed(data, tmp_path):
    config = tiny_config(epochs=1, checkpoint_every_steps=2, keep_checkpoints=2)
    train_and_evaluate(config, data.path, str(tmp_path))
    kept = sorted(path.name for path in tmp_path.glob("checkpoints/ckpt-*.index"))
    assert kept == ["ckpt-8.index", "ckpt-9.index"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(data, whole, tmp_path):
    _, weights = whole
    ends = []
    for seed in (0, 1):
        trainer = open_trainer(tiny_config(epochs=2, seed=seed), data.path, str(tmp_path / str(seed)))
        trainer.train()
        ends.append(trainer.model.network.get_weights())
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(ends[0], weights))
    assert not all(np.allclose(a, b, atol=1e-3) for a, b in zip(ends[0], ends[1]))


def test_a_funnel_of_ones_own_trains_with_three_lines(data, tmp_path):
    graph = BehaviorGraph((Behavior("click", gate=True), Behavior("d_ma"), Behavior("purchase")))
    config = tiny_config(epochs=1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, method="own", graph=graph))
    figures = train_and_evaluate(config, data.path, str(tmp_path))
    assert set(figures["levels"]) == {"click", "d_ma", "purchase"}


def test_a_config_that_cannot_start_does_not_claim_the_workdir(data, tmp_path):
    wrong = dataclasses.replace(
        tiny_config(epochs=1), model=dataclasses.replace(tiny_config().model, features=("pric",))
    )
    with pytest.raises(ConfigError, match="got 'pric'; did you mean 'price'"):
        train_and_evaluate(wrong, data.path, str(tmp_path))
    assert train_and_evaluate(tiny_config(epochs=1), data.path, str(tmp_path))


def test_a_gate_that_the_log_does_not_have_is_refused(data, tmp_path):
    graph = BehaviorGraph((Behavior("click", gate=True), Behavior("d_ma", gate=True), Behavior("purchase")))
    config = tiny_config(epochs=1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, method="own", graph=graph))
    with pytest.raises(ConfigError, match=r"expected its gate 'd_ma' to be a gate of the log, which has \['click'\]"):
        train_and_evaluate(config, data.path, str(tmp_path))


def test_a_log_line_torn_by_a_kill_is_dropped(data, tmp_path):
    train_and_evaluate(tiny_config(epochs=2, log_every_steps=1, max_steps=3), data.path, str(tmp_path))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "epo')
    train_and_evaluate(tiny_config(epochs=1, log_every_steps=1), data.path, str(tmp_path))
    assert [line["step"] for line in lines(tmp_path) if "epoch_end" not in line] == list(range(1, STEPS + 1))


def test_early_stopping_without_validation_is_refused(data, tmp_path):
    log = tmp_path / "log"
    shutil.copytree(data.path, log)
    shutil.rmtree(log / "validation")
    with pytest.raises(ConfigError, match="training.early_stopping_epochs: expected a validation split"):
        train_and_evaluate(tiny_config(early_stopping_epochs=1), str(log), str(tmp_path / "run"))


def test_a_run_does_not_resume_on_another_log_of_the_same_schema(data, tmp_path):
    train_and_evaluate(tiny_config(epochs=2, max_steps=3), data.path, str(tmp_path / "run"))
    log = SimulatedLog(rows=6000, seed=1)
    convert(SimulatedSource(log), str(tmp_path / "log"), day_split())
    shutil.copy(f"{data.path}/schema.json", tmp_path / "log" / "schema.json")
    assert DataFolder.open(str(tmp_path / "log")).split("train").rows == data.split("train").rows
    with pytest.raises(
        Hm3Error, match=r"expected the log of the run it holds, but the training shards in .*/log are of"
    ):
        train_and_evaluate(tiny_config(epochs=2), str(tmp_path / "log"), str(tmp_path / "run"))


def test_a_log_that_moved_is_resumed(data, tmp_path):
    train_and_evaluate(tiny_config(epochs=1, max_steps=3), data.path, str(tmp_path / "run"))
    shutil.copytree(data.path, tmp_path / "log")
    train_and_evaluate(tiny_config(epochs=1), str(tmp_path / "log"), str(tmp_path / "run"))
    assert open_workdir(str(tmp_path / "run")).data_dir == str(tmp_path / "log")


def test_a_workdir_in_which_a_process_trains_is_refused(data, tmp_path):
    run = claim_workdir(str(tmp_path), tiny_config(epochs=1), data)
    with storage.lock(run.path), pytest.raises(Hm3Error, match="expected no other work here, but a process holds lock"):
        train_and_evaluate(tiny_config(epochs=1), data.path, str(tmp_path))
    assert not (tmp_path / "checkpoints").exists()
    train_and_evaluate(tiny_config(epochs=1), data.path, str(tmp_path))


@pytest.mark.parametrize("stop", [4, STEPS])
def test_the_end_of_an_epoch_has_the_means_of_all_its_steps_also_after_a_stop(data, whole, tmp_path, stop):
    for max_steps in (stop, 0):
        train_and_evaluate(tiny_config(epochs=2, log_every_steps=1, max_steps=max_steps), data.path, str(tmp_path))
    ends = [line for line in lines(tmp_path) if line.get("epoch_end")]
    expected = [line for line in lines(whole[0]) if line.get("epoch_end")]
    assert [(line["step"], line["epoch"]) for line in ends] == [(STEPS, 0), (2 * STEPS, 1)]
    assert [line["loss"] for line in ends] == pytest.approx([line["loss"] for line in expected], abs=1e-6)
    steps = [line["loss"] for line in lines(tmp_path) if "epoch_end" not in line][:STEPS]
    rows = np.append(np.full(STEPS - 1, 512), data.split("train").rows - 512 * (STEPS - 1))
    assert ends[0]["loss"] == pytest.approx(np.average(steps, weights=rows), abs=1e-6)


def test_an_epoch_cut_short_is_not_called_ended(data, tmp_path):
    train_and_evaluate(tiny_config(epochs=1, max_steps=4), data.path, str(tmp_path))
    last = lines(tmp_path)[-1]
    assert (last["step"], last["epoch"], last["epoch_end"]) == (4, 0, False) and "validation" in last


def test_an_epoch_that_ended_after_the_checkpoint_is_logged_once(data, tmp_path, monkeypatch):
    """As if the process had died between the log line of the epoch's end and the checkpoint after it."""
    config = tiny_config(epochs=1, checkpoint_every_steps=STEPS)
    trainer = open_trainer(config, data.path, str(tmp_path))
    save = trainer._save
    monkeypatch.setattr(trainer, "_save", lambda: save() if trainer._checkpoints.epoch_step else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    train_and_evaluate(config, data.path, str(tmp_path))
    assert len([line for line in lines(tmp_path) if line.get("epoch_end")]) == 1


def test_an_epoch_does_not_resume_with_workers_that_read_other_rows(data, tmp_path, monkeypatch):
    train_and_evaluate(tiny_config(epochs=2, max_steps=3), data.path, str(tmp_path))
    monkeypatch.setattr(train, "lane_count", lambda batch, workers: 6)
    with pytest.raises(
        Hm3Error, match="expected to resume epoch 1 with a number of workers that reads 8 lanes, got one that"
    ):
        train_and_evaluate(tiny_config(epochs=2), data.path, str(tmp_path))


# Day by day: 858, 857 and 857 rows in batches of 512

DAYS = ["2022-05-01", "2022-05-02", "2022-05-03"]


def by_day(**training):
    return tiny_config("esmm", schedule="by_day", epochs=1, log_every_steps=1, **training)


@pytest.fixture(scope="module")
def dated(tmp_path_factory):
    """A log with a shard a day and no validation split; the third day is a split of its own too."""
    path = tmp_path_factory.mktemp("dated") / "data"
    convert(SimulatedSource(LOG), str(path), ThresholdRule("day", 3, 3), days=DatedDays())
    (path / "third").mkdir()
    shutil.copy(path / "train" / f"{DAYS[2]}-part-00000-00000.tfrecord", path / "third")
    return str(path)


@pytest.fixture(scope="module")
def each_day(dated, tmp_path_factory):
    """An uninterrupted run by day, and its final weights."""
    workdir = tmp_path_factory.mktemp("each_day")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "check_export", lambda run: None)
        trainer = open_trainer(by_day(), dated, str(workdir))
        trainer.train()
    return workdir, trainer.model.network.get_weights()


def of_days(workdir) -> list[tuple]:
    return [(line["step"], line["day"], line["progressive"]) for line in lines(workdir) if "progressive" in line]


def check_figures(found, expected):
    assert found["rows"] == expected["rows"]
    for target in ("pctr", "pctcvr"):
        for name in ("positives", "auc", "log_loss", "pcoc", "bayes_auc"):
            assert found[target][name] == pytest.approx(expected[target][name], rel=1e-4), (target, name)


def check_goes_on_as(trainer, workdir, each_day):
    trainer.train()
    assert [line[:2] for line in of_days(workdir)] == [line[:2] for line in of_days(each_day[0])]
    for (*_, found), (*_, expected) in zip(of_days(workdir), of_days(each_day[0])):
        check_figures(found, expected)
    for resumed, uninterrupted in zip(trainer.model.network.get_weights(), each_day[1]):
        np.testing.assert_allclose(resumed, uninterrupted, atol=1e-6)


def test_each_day_is_evaluated_and_then_trained_on(each_day):
    workdir, _ = each_day
    assert [line[:2] for line in of_days(workdir)] == [(0, DAYS[0]), (2, DAYS[1]), (4, DAYS[2])]
    assert [figures["rows"] for *_, figures in of_days(workdir)] == [858, 857, 857]
    kinds = [line.get("day", "end" if "epoch_end" in line else line["step"]) for line in lines(workdir)]
    assert kinds == [DAYS[0], 1, 2, "end", DAYS[1], 3, 4, "end", DAYS[2], 5, 6, "end"]
    assert (
        open_workdir(str(workdir)).train.rows == 858
    )  # of the first day: what is known of no day comes from later ones


def test_a_run_by_day_resumes_within_a_day_without_evaluating_it(dated, each_day, tmp_path):
    train_and_evaluate(by_day(max_steps=3), dated, str(tmp_path))
    assert [day for _, day, _ in of_days(tmp_path)] == DAYS[:2]
    check_goes_on_as(open_trainer(by_day(), dated, str(tmp_path)), tmp_path, each_day)


def test_a_day_has_the_figures_of_the_model_before_it_also_where_a_run_died_in_between(dated, each_day, tmp_path):
    fit = train.Trainer._fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "_fit", lambda self, epoch, *a: fit(self, epoch, *a) if epoch < 2 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_and_evaluate(by_day(), dated, str(tmp_path))
    run = open_workdir(str(tmp_path))
    assert run.latest_step() == 4
    until_then = evaluate_run(run, DataFolder.open(dated).split("third"), "third")
    check_figures(of_days(tmp_path)[2][2], until_then)
    check_goes_on_as(open_trainer(by_day(), dated, str(tmp_path)), tmp_path, each_day)


def test_shards_without_days_cannot_be_trained_on_by_day(data, tmp_path):
    with pytest.raises(
        DataError, match="part-00000-00000.tfrecord: expected a date in the name of each shard, as 2022-05-01-"
    ):
        train_and_evaluate(by_day(), data.path, str(tmp_path))
