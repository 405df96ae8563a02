"""Configs: what flags set, what is refused, and what a file gives back."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from hm3_tf.behavior_graph import Behavior, BehaviorGraph
from hm3_tf.config import (
    Config,
    DataConfig,
    DistributionConfig,
    ModelConfig,
    TrainingConfig,
    checked,
    from_json,
    to_json,
)
from hm3_tf.errors import ConfigError
from hm3_tf.methods import CHAINS, METHODS

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
FILES = {"aux": "aux_control"}  # some systems cannot have a file named aux.py
GRAPH = BehaviorGraph((Behavior("click", gate=True), Behavior("apply", gate=True), Behavior("approve")))


def parse(path, *arguments):
    """Returns the config of a file as the command's flags leave it."""
    values, command = flags.FlagValues(), ["hm3 train", f"--config={path}", *arguments]
    config_flags.DEFINE_config_file("config", None, "", sys_argv=command, flag_values=values)
    values(command)
    return values.config


def changed(**sections):
    """Returns a config with fields of its sections set: training={"epochs": 3}."""
    config = Config()
    for section, fields in sections.items():
        for name, value in fields.items():
            setattr(getattr(config, section), name, value)
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_flags_set_any_field_of_every_config_file(path):
    config = parse(
        path,
        "--config.training.learning_rate=1e-3",
        "--config.training.global_batch_size=64",
        "--config.training.optimizer=adam",
        "--config.training.edge_loss_weight=2",
        "--config.model.tower_units=(16,8)",
        "--config.model.embedding_dim=4",
        "--config.model.features=('user_id','price')",
        "--config.data.nesting=drop",
        "--config.distribution.strategy=mirrored",
    )
    assert type(config) is Config
    config = checked(config)
    assert (config.training.learning_rate, config.training.global_batch_size) == (1e-3, 64)
    assert (config.training.optimizer, config.training.edge_loss_weight) == ("adam", 2)
    assert (config.model.tower_units, config.model.embedding_dim) == ((16, 8), 4)
    assert config.model.features == ("user_id", "price")
    assert (config.data.nesting, config.distribution.strategy) == ("drop", "mirrored")
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_file_is_a_config_that_opens_with_its_command(path):
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "hm3 train --config=configs/" in module.__doc__
    assert checked(module.get_config()).method.name in METHODS


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_config_file_that_leaves_its_losses_as_they_are(name):
    config = checked(parse(next(path for path in CONFIGS if path.stem == FILES.get(name, name))))
    assert config.method is METHODS[name]
    assert config.training.edge_loss_weight == 0 and not config.training.loss_weights


@pytest.mark.parametrize("name", [*CHAINS, "gmcm", "hm3_ipw"])
def test_every_chain_has_a_config_file_with_the_settings_of_the_paper(name):
    config = checked(parse(next(path for path in CONFIGS if path.stem == name)))
    assert config.method is METHODS[name]
    assert config.model.tower_units == (512, 256, 128, 32) and config.model.dropout == 0.5
    assert config.training.learning_rate == 0.0005 and config.training.epochs == 2
    assert config.training.edge_loss_weight == 0 and not config.training.loss_weights


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if p.stem not in {*METHODS, *FILES.values()}], ids=lambda path: path.name
)
@pytest.mark.parametrize("name", METHODS)
def test_a_config_file_for_all_methods_takes_one_after_a_colon(path, name):
    assert checked(parse(f"{path}:{name}")).method is METHODS[name]


def test_the_settings_of_the_real_log_weigh_the_losses_of_chains_only():
    path = next(path for path in CONFIGS if path.stem == "kuairand")
    chain, other = (parse(f"{path}:{name}").training for name in ("hm3", "dcmt"))
    assert (chain.loss_weights, chain.edge_loss_weight) == ({"purchase": 10.0}, 1)
    assert (other.loss_weights, other.edge_loss_weight) == ({}, 0)
    assert chain.learning_rate == other.learning_rate


def test_the_full_path_likelihood_has_a_config_file():
    path = next(path for path in CONFIGS if path.stem == "edge_likelihood")
    assert parse(f"{path}:hm3").training.edge_loss_weight == 1


def test_a_loss_that_a_design_adds_can_be_weighed_and_one_of_another_cannot():
    config = Config(model=ModelConfig("dcmt"), training=TrainingConfig(loss_weights={"counterfactual": 0.01}))
    assert checked(config).training.loss_weights["counterfactual"] == 0.01
    config.model.method = "escm2_ipw"
    with pytest.raises(ConfigError, match=r"training\.loss_weights.*'click', 'purchase', 'cvr'.*'counterfactual'"):
        checked(config)


@pytest.mark.parametrize("clip", [0.5, float("inf")])
def test_a_clip_of_inverse_propensities_below_one_or_without_bound_is_refused(clip):
    message = r"training\.propensity_clip: expected a finite number of at least 1"
    with pytest.raises(ConfigError, match=message):
        checked(Config(training=TrainingConfig(propensity_clip=clip)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_flag_sets_the_loss_weight_of_a_level_in_every_config_file(path):
    config = checked(parse(path, "--config.training.loss_weights.purchase=3"))
    assert config.training.loss_weights == {"purchase": 3.0}
    assert from_json(to_json(config)) == config


def test_flags_set_several_loss_weights_and_do_not_leak_into_the_next_config():
    path = CONFIGS[0]
    config = parse(path, "--config.training.loss_weights.purchase=3", "--config.training.loss_weights.click=0.5")
    assert config.training.loss_weights == {"purchase": 3.0, "click": 0.5}
    assert parse(path).training.loss_weights == {}


def test_a_flag_for_the_loss_weight_of_no_level_is_refused_with_a_hint():
    with pytest.raises(ConfigError, match=r"training\.loss_weights: .*did you mean 'purchase'"):
        checked(parse(CONFIGS[0], "--config.training.loss_weights.purchas=3"))


@pytest.mark.parametrize(
    "section, field, value, message",
    [
        ("model", "tower_units", [64, 32], "model.tower_units: expected tuple"),
        ("model", "tower_units", (64, 32.0), "model.tower_units: expected"),
        ("model", "tower_units", ("64",), "model.tower_units: expected"),
        ("model", "dropout", "0.5", "model.dropout: expected float, got '0.5'"),
        ("model", "embedding_dim", 8.0, "model.embedding_dim: expected int, got 8.0"),
        ("model", "hash_buckets", {"user_id": "many"}, "model.hash_buckets: expected"),
        ("model", "graph", "click,apply", "model.graph: expected"),
        ("model", "method", None, "model.method: expected str, got None"),
        ("training", "epochs", 2.5, "training.epochs: expected int, got 2.5"),
        ("training", "epochs", True, "training.epochs: expected int, got True"),
        ("training", "learning_rate", True, "training.learning_rate: expected float, got True"),
        ("training", "loss_weights", {"purchase": "3"}, "training.loss_weights: expected"),
        ("data", "shuffle_rows", None, "data.shuffle_rows: expected int, got None"),
    ],
)
def test_a_value_of_another_type_is_refused(section, field, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        checked(changed(**{section: {field: value}}))


@pytest.mark.parametrize(
    "section, field, value, message",
    [
        ("model", "tower_units", (64, 0), "model.tower_units: expected a number above 0, got 0"),
        ("model", "embedding_dim", 0, "model.embedding_dim: expected a number above 0, got 0"),
        ("model", "dropout", 1.0, "model.dropout: expected a share in [0, 1), got 1.0"),
        ("model", "dropout", -0.1, "model.dropout: expected a share in [0, 1), got -0.1"),
        ("model", "cross_layers", -1, "model.cross_layers: expected a number of at least 0, got -1"),
        ("data", "shuffle_rows", 0, "data.shuffle_rows: expected a number above 0, got 0"),
        ("training", "global_batch_size", 0, "training.global_batch_size: expected a number above 0, got 0"),
        ("training", "epochs", -1, "training.epochs: expected a number above 0, got -1"),
        ("training", "learning_rate", 0.0, "training.learning_rate: expected a number above 0, got 0.0"),
        ("training", "learning_rate", float("nan"), "training.learning_rate: expected a number above 0, got nan"),
        ("training", "checkpoint_every_steps", 0, "training.checkpoint_every_steps: expected a number above 0, got 0"),
        ("training", "max_steps", -1, "training.max_steps: expected a number of at least 0, got -1"),
        ("training", "seed", -1, "training.seed: expected a number of at least 0, got -1"),
        ("training", "loss_weights", {"purchase": -3.0}, "training.loss_weights"),
        ("training", "loss_weights", {"purchase": float("nan")}, "training.loss_weights"),
        ("training", "edge_loss_weight", -0.5, "training.edge_loss_weight: expected a number of at least 0, got -0.5"),
    ],
)
def test_a_value_out_of_range_is_refused(section, field, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        checked(changed(**{section: {field: value}}))


@pytest.mark.parametrize(
    "section, field, value, hint",
    [
        ("model", "method", "hm33", "model.method: expected a method, got 'hm33'; did you mean 'hm3'?"),
        ("training", "precision", "bfloat", "did you mean 'bfloat16'?"),
        ("training", "optimizer", "lazy_adm", "did you mean 'lazy_adam'?"),
        ("training", "best_metric", "pctcvr.acu", "did you mean 'pctcvr.auc'?"),
        ("data", "nesting", "coerc", "did you mean 'coerce'?"),
        ("training", "loss_weights", {"purchas": 2.0}, "did you mean 'purchase'?"),
        ("distribution", "strategy", "mirored", "did you mean 'mirrored'?"),
    ],
)
def test_an_unknown_name_gets_a_hint(section, field, value, hint):
    with pytest.raises(
        ConfigError, match=rf"^{section}\.{field}: .*{re.escape(hint.removeprefix(f'{section}.{field}: '))}"
    ):
        checked(changed(**{section: {field: value}}))


def test_the_loss_weights_are_of_the_levels_of_the_method():
    with pytest.raises(ConfigError, match=r"training\.loss_weights: .*'click', 'purchase'.*got 'd_mi'"):
        checked(changed(model={"method": "esmm"}, training={"loss_weights": {"d_mi": 1.0}}))


def test_a_checked_config_is_frozen_and_what_it_was_made_of_is_not():
    config = Config()
    frozen = checked(config)
    for owner, field in ((frozen, "model"), (frozen.training, "epochs"), (frozen.model, "method")):
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"field '{field}' of a checked config"):
            setattr(owner, field, None)
    config.training.epochs = 7
    config.training.loss_weights["purchase"] = 2.0
    assert frozen.training.epochs == 2 and frozen.training.loss_weights == {}
    assert checked(frozen) == frozen


def test_replacing_a_field_of_a_checked_config_makes_another():
    frozen = checked(Config())
    longer = dataclasses.replace(frozen, training=dataclasses.replace(frozen.training, epochs=5))
    assert (longer.training.epochs, frozen.training.epochs) == (5, 2)


def test_defaults_of_two_configs_share_nothing():
    first, second = Config(), Config()
    first.model.hash_buckets["user_id"] = 5
    first.training.loss_weights["click"] = 5.0
    assert not second.model.hash_buckets and not second.training.loss_weights


def test_a_graph_of_ones_own_makes_a_method_under_any_name():
    config = checked(changed(model={"method": "loans", "graph": GRAPH}, training={"loss_weights": {"approve": 2.0}}))
    assert config.method.name == "loans" and config.method.graphs == (GRAPH,)
    assert config.method.levels == ("click", "apply", "approve")


@pytest.mark.parametrize("field, value", [("epochs", 2), ("early_stopping_epochs", 1), ("reset_embeddings", True)])
def test_a_run_by_day_reads_each_day_once(field, value):
    checked(Config(training=TrainingConfig(schedule="by_day", epochs=1)))
    training = TrainingConfig(**{"schedule": "by_day", "epochs": 1, field: value})
    message = f"training.{field}: expected .* with training.schedule=by_day, which reads each day once, got {value}"
    with pytest.raises(ConfigError, match=message):
        checked(Config(training=training))


EVERY_FIELD = Config(
    model=ModelConfig(
        method="loans",
        graph=BehaviorGraph((Behavior("click", gate=True), Behavior("apply"), Behavior("approve"))),
        tower_units=(8,),
        dropout=0.1,
        embedding_dim=3,
        embedding_dims={"user_id": 8},
        hash_buckets={"user_id": 100},
        features=("user_id", "price"),
        cross_layers=2,
    ),
    training=TrainingConfig(epochs=3, learning_rate=0.25, loss_weights={"approve": 3.0}, precision="bfloat16", seed=5),
    distribution=DistributionConfig(strategy="mirrored"),
)


@pytest.mark.parametrize("config", [Config(), EVERY_FIELD], ids=["defaults", "every field"])
def test_a_config_survives_json(config):
    config = checked(config)
    again = from_json(to_json(config))
    assert again == config and again.method == config.method
    assert again.training.loss_weights["another level"] == 1.0, "flags may still name any level"
    with pytest.raises(dataclasses.FrozenInstanceError):
        again.training.epochs = 1


def test_a_file_without_a_field_has_its_default():
    config = from_json('{"training": {"epochs": 9}}')
    assert config.training.epochs == 9 and config.model == checked(Config()).model


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "runs/a.json: expected the JSON of a config"),
        ("[]", "runs/a.json: expected the JSON of a config"),
        ('{"training": 3}', "runs/a.json: expected the JSON of a config"),
        ('{"trainin": {}}', "runs/a.json: unknown field 'trainin'; did you mean 'training'?"),
        ('{"training": {"epoch": 3}}', "runs/a.json: training: unknown field 'epoch'; did you mean 'epochs'?"),
        ('{"training": {"epochs": 0}}', "training.epochs: expected a number above 0, got 0"),
        ('{"training": {"epochs": "3"}}', "training.epochs: expected int, got '3'"),
        ('{"model": {"graph": {"behaviors": []}}}', "runs/a.json: expected the JSON of a config"),
        ('{"model": {"graph": {"behaviors": [], "root": "impression"}}}', "at least one behavior"),
    ],
)
def test_a_file_that_is_no_config_is_refused(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_json(text, "runs/a.json")


def test_the_json_holds_every_field_that_scripts_rely_on():
    data = json.loads(to_json(Config()))
    assert list(data) == ["model", "data", "training", "distribution"]
    assert {"method", "tower_units", "dropout", "embedding_dim"} <= set(data["model"])
    assert {
        *("global_batch_size", "epochs", "learning_rate", "optimizer", "precision", "seed", "loss_weights"),
        *("edge_loss_weight", "checkpoint_every_steps", "max_steps"),
    } <= set(data["training"])
    assert "nesting" in data["data"] and "strategy" in data["distribution"]


def test_bad_records_are_skipped_up_to_a_bound_where_the_config_says_so():
    data = DataConfig(max_bad_records=7)
    assert data.most_bad_records is None
    assert dataclasses.replace(data, on_error="skip").most_bad_records == 7
