"""The paper's comparison (its Tables 3, 4 and 5), and other worlds, on simulated logs whose truth is known.

hm3 experiment --plan=configs/experiments/simulated.py:paper --workdir=experiments-out/paper --output=docs/experiments.md
hm3 experiment --plan=configs/experiments/simulated.py:worlds --workdir=experiments-out/worlds --output=docs/experiments.md

docs/experiments.md says what comes of it, docs/adr/0033-experiments.md why it is set up so.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from data_pipeline.simulate import SimulatedLog
from hm3_tf.config import Config, ModelConfig, TrainingConfig
from hm3_tf.errors import ConfigError, did_you_mean
from hm3_tf.experiment.measures import EDGE_TRUTHS
from hm3_tf.experiment.plan import Log, Plan
from hm3_tf.experiment.plots import Lines
from hm3_tf.experiment.tables import Steps, Table
from hm3_tf.methods import METHODS, TITLES

FEATURES = ("user_id", "item_id", "city", "age", "gender", "power", "category", "brand", "shop", "price")
TOWERS = (32, 16)
WIDER = (80, 32)  # two towers of these have as many weights as six of the others
LEARNING_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)  # tried for each run
INVERSE_CLICK_RATE = 10.0
PROPENSITY_CLIP = 10 * INVERSE_CLICK_RATE  # docs/adr/0030-designs.md
BATCH = 2_048
VOLUMES = {"S": 244 * BATCH, "M": 732 * BATCH, "L": 1_587 * BATCH}  # 0.5, 1.5 and 3.25 million rows, as 1 : 3 : 6.5
NAMES = {method: TITLES[method] for method in ("base", "esmm", "esm2", "gmcm", "esm2_mi", "hm3_r", "hm3")}
CHAINS = ("esmm", "esm2", "esm2_mi", "hm3_r", "hm3")
MODERN = {method: TITLES[method] for method in ("escm2_ipw", "escm2_dr", "dcmt", "aitm", "hm3_ipw")}
PAPER_AUCS = {
    "CVR": {
        "BASE": (0.84117, 0.84583, 0.84932), "ESMM": (0.84297, 0.84601, 0.85098), "ESM2": (0.84493, 0.84794, 0.85213),
        "GMCM": (0.84624, 0.84928, 0.85405), "ESM2+Mi": (0.84703, 0.85118, 0.85596), "HM3-R": (0.84799, 0.85285, 0.85646),
        "HM3": (0.84891, 0.85328, 0.85726),
    },
    "CTCVR": {
        "BASE": (0.84883, 0.85532, 0.85993), "ESMM": (0.85051, 0.85652, 0.86192), "ESM2": (0.85148, 0.85804, 0.86296),
        "GMCM": (0.85241, 0.85953, 0.86411), "ESM2+Mi": (0.85402, 0.86098, 0.86596), "HM3-R": (0.85516, 0.86163, 0.86712),
        "HM3": (0.85675, 0.86213, 0.86806),
    },
}  # fmt: skip
PAPER_GAINS = {
    "BASE": "0",
    "ESMM": "CVR +2.76 %, GMV +3.02 %",
    "ESM2": "CVR +4.84 %, GMV +5.11 %",
    "HM3": "CVR +8.27 %, GMV +8.32 %",
}
SOFT = {"CVR": "soft_auc.pcvr", "CTCVR": "soft_auc.pctcvr"}
LABELS = {"CVR": "pcvr.auc", "CTCVR": "pctcvr.auc"}


def configs(
    method: str,
    towers: Sequence[int] = TOWERS,
    loss_weight: float = 1.0,
    edge: float = 0.0,
    features: Sequence[str] = FEATURES,
    propensities: bool = True,
) -> list[Config]:
    """Returns a config for each learning rate.

    Args:
      method: The method.
      towers: Units of each tower.
      loss_weight: Of each loss after that of the click.
      edge: Weight of the full-path likelihood.
      features: Columns that are read.
      propensities: Whether clicked rows are weighed by them, where the method does; else all by their mean.
    """
    weights = dict.fromkeys(METHODS[method].losses[1:], loss_weight) if loss_weight != 1 else {}
    if not propensities:
        weights["cvr"] = INVERSE_CLICK_RATE
    model = ModelConfig(method, tower_units=tuple(towers), dropout=0.0, embedding_dim=8, features=tuple(features))
    training = TrainingConfig(
        global_batch_size=BATCH,
        epochs=1,
        loss_weights=weights,
        edge_loss_weight=edge,
        propensity_clip=PROPENSITY_CLIP if propensities else 1.0,
    )
    return [
        Config(model, training=dataclasses.replace(training, learning_rate=learning_rate))
        for learning_rate in LEARNING_RATES
    ]


def post_click(run: str) -> str:
    """Returns the name of a run whose losses after the click weigh 3."""
    return f"{run}, post-click 3"


def edge(run: str) -> str:
    """Returns the name of a run with a full-path likelihood of weight 1."""
    return f"{run}, edge 1"


def placed(run: str) -> str:
    """Returns the name of a run of which the position is a feature."""
    return f"{run}, with position"


def variants() -> dict[str, list[Config]]:
    """Returns the runs of the paper: each method, AUX, the three losses of each chain, and BASE and ESMM as large as HM3."""
    runs = {name: configs(method) for method, name in NAMES.items()} | {"AUX": configs("aux")}
    for method in (*CHAINS, "aux"):
        name = TITLES[method]
        runs |= {post_click(name): configs(method, loss_weight=3.0), edge(name): configs(method, edge=1.0)}
    return runs | {f"{NAMES[method]}, as large as HM3": configs(method, WIDER) for method in ("base", "esmm")}


def gains(figures: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Returns what a method gained over BASE in the paper, in words."""
    base = figures["BASE"]
    return {
        name: ", ".join(f"{size} {value - first:+.4f}" for size, value, first in zip(VOLUMES, values, base))
        for name, values in figures.items()
    }


def steps(figures: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Returns what a method gained over the one before it in the paper, in words."""
    ordered = list(figures.items())
    return {
        name: ", ".join(f"{size} {value - last:+.4f}" for size, value, last in zip(VOLUMES, values, before))
        for (_, before), (name, values) in itertools.pairwise(ordered)
    }


def paper() -> Plan:
    """Returns the plan of Tables 3, 4 and 5: three volumes, and three settings of what clicks share with what follows them."""
    runs, methods = variants(), list(NAMES.values())
    chains = [NAMES[method] for method in CHAINS]
    compared = (*methods, "AUX", *map(edge, (*chains, "AUX")))
    logs = {
        "graph_true": Log(SimulatedLog(rows=VOLUMES["L"]), VOLUMES),
        "graph_true_weak": Log(SimulatedLog("graph_true_weak", rows=VOLUMES["S"]), runs=compared),
        "graph_true_opposed": Log(SimulatedLog("graph_true_opposed", rows=VOLUMES["S"]), runs=compared),
    }
    volumes = [f"graph_true {size}" for size in VOLUMES]
    settings = [volumes[0], "graph_true_weak", "graph_true_opposed"]
    large = [name for name in runs if name.endswith("as large as HM3")]
    tables: dict[str, Table | Steps] = {}
    for number, target in ((3, "CVR"), (4, "CTCVR")):
        column, figures = {SOFT[target]: target}, PAPER_AUCS[target]
        tables |= {
            f"table{number}": Table(
                f"{target} AUC in expectation over labels, weights 1.",
                [*methods, "AUX", *large], volumes, column, "BASE", published=gains(figures),
            ),
            f"table{number}_labels": Table(
                f"{target} AUC against the labels of the test rows, weights 1.",
                [*methods, "AUX", *large], volumes, {LABELS[target]: target}, "BASE", published=gains(figures),
            ),
            f"table{number}_order": Steps(
                f"{target} AUC, each method less the one that the paper puts below it, weights 1.",
                list(zip(methods[1:], methods)), volumes, column, published=steps(figures),
            ),
            f"table{number}_losses": Table(
                f"{target} AUC of the three losses of every chain.",
                ["BASE", *(vary(name) for name in (*chains, "AUX") for vary in (str, post_click, edge))],
                volumes, column, "BASE",
            ),
            f"table{number}_edge_order": Steps(
                f"{target} AUC, each chain less the one below it, edge likelihood 1.",
                [*((edge(a), edge(b)) for a, b in zip(chains[1:], chains)), (edge("HM3"), edge("AUX"))], volumes, column,
            ),
            f"table{number}_settings": Table(
                f"{target} AUC in the three settings of correlations, volume S.",
                compared, settings, column, "BASE",
            ),
        }  # fmt: skip
    ranked = {"ranked_0.cvr": "CVR", "ranked_0.purchases": "purchases", "ranked_1.gmv": "GMV"}
    tables["table5"] = Table(
        "Gain over BASE if slates had been shown by each model.",
        [*methods, "AUX", *map(edge, chains)], volumes, ranked, "BASE",
        relative=True, published=PAPER_GAINS,
    )  # fmt: skip
    for name, figure, title, digits in (
        ("edges", "slope", "Slope of each edge's log-odds, 1 where it is known.", 2),
        (
            "edges_excess",
            "excess",
            "Cross-entropy of each edge above that of the truth, nats a row that reaches it.",
            4,
        ),
    ):
        columns = {f"{figure}.{each}": each for each in EDGE_TRUTHS}
        tables[name] = Table(title, ["HM3", post_click("HM3"), edge("HM3")], volumes[-1:], columns, digits=digits)
    plots = {
        "auc_by_volume": Lines(
            "CVR AUC less that of BASE", [*methods[1:], edge("HM3")], dict(zip(volumes, VOLUMES)), SOFT["CVR"],
            "difference of AUC", "BASE",
        ),
        "regret_by_volume": Lines(
            "Regret of CVR AUC to the true probabilities", ["BASE", "ESMM", "ESM2+Mi", "HM3", edge("HM3")],
            dict(zip(volumes, VOLUMES)), "regret.pcvr", "AUC of the truth less that of the model",
        ),
    }  # fmt: skip
    return Plan(
        logs, runs, seeds=20, test_rows=200_000, tuning_log="graph_true", tuning_volume="M", tables=tables, plots=plots
    )


EQUAL = "HM3+IPW, equal weights"
WEIGHED = ("micro_direct", "latent_intent", "null_micro")
DISTINCT = ("micro_direct", "reversed", "mixed_order", "latent_intent", "null_micro", "non_nested")
SELECTION = {f"selection{rho:+.2f}": f"{rho:+.2f}" for rho in (-0.5, -0.25, 0.0, 0.25, 0.5)}


def worlds() -> Plan:
    """Returns the plan of all worlds at volume S, with methods against clicks that select what is observed."""
    runs = {name: configs(method) for method, name in NAMES.items()} | {"AUX": configs("aux")}
    runs |= {edge(TITLES[method]): configs(method, edge=1.0) for method in (*CHAINS, "aux")}
    runs |= {name: configs(method) for method, name in MODERN.items()}
    every = tuple(runs)
    runs |= {
        EQUAL: configs("hm3_ipw", propensities=False),
        placed("BASE"): configs("base", features=(*FEATURES, "position")),
        placed(edge("HM3")): configs("hm3", edge=1.0, features=(*FEATURES, "position")),
    }
    positions = ("position_none", "graph_true", "position_strong")
    chosen = {
        **dict.fromkeys((*DISTINCT, *SELECTION), every),
        **dict.fromkeys(WEIGHED, (*every, EQUAL)),
        **dict.fromkeys(positions, tuple(runs)),
    }
    logs = {world: Log(SimulatedLog(world, rows=VOLUMES["S"]), runs=chosen[world]) for world in chosen}
    tables: dict[str, Table | Steps] = {
        f"worlds_{target.lower()}": Table(
            f"{target} AUC by world.", every, ("graph_true", *DISTINCT), {SOFT[target]: target}, "BASE"
        )
        for target in SOFT
    }
    tables["worlds_micro"] = Steps(
        "CVR AUC, what labels of micro behaviors add.",
        [("ESM2+Mi", "ESM2"), ("HM3", "ESM2"), (edge("ESM2+Mi"), edge("ESM2")), (edge("HM3"), edge("ESM2")),
         ("HM3", "AUX"), (edge("HM3"), edge("AUX")), ("HM3", "HM3-R"), (edge("HM3"), edge("HM3-R"))],
        ("graph_true", *DISTINCT), {SOFT["CVR"]: "CVR"},
    )  # fmt: skip
    tables["worlds_ipw"] = Steps(
        "CVR AUC, what weighing clicked rows by propensities adds to HM3.",
        [("HM3+IPW", "HM3"), ("HM3+IPW", EQUAL), (EQUAL, "HM3"), ("HM3+IPW", "ESCM2-IPW"), ("HM3+IPW", "GMCM")],
        ("graph_true", *WEIGHED), {SOFT["CVR"]: "CVR"},
    )  # fmt: skip
    bias = {"bias.unclicked": "bias", "soft_auc.pcvr_unclicked": "AUC"}
    tables["worlds_unclicked"] = Table("P(purchase if clicked) of unclicked impressions: mean of predicted less true, and AUC.",
                                       every, ["graph_true", "latent_intent"], bias)  # fmt: skip
    tables["worlds_position"] = Table(
        "CVR AUC by the effect of the position, which is a feature of the last two runs.", tuple(runs), positions,
        {SOFT["CVR"]: "CVR"}, "BASE",
    )  # fmt: skip
    plots = {
        "selection_bias": Lines(
            "Bias of pcvr on unclicked impressions", ["BASE", "ESMM", "HM3", edge("HM3"), "ESCM2-IPW", "DCMT"], SELECTION,
            "bias.unclicked", "mean of predicted less true",
        )
    }  # fmt: skip
    return Plan(logs, runs, seeds=6, test_rows=200_000, tuning_log="graph_true", tables=tables, plots=plots)


def get_plan(name: str) -> Plan:
    """Returns the plan `paper` or `worlds`.

    Raises:
      ConfigError: The name is another one.
    """
    plans = {"paper": paper, "worlds": worlds}
    if name not in plans:
        raise ConfigError(
            f"configs/experiments/simulated.py: expected a plan, got {name!r}; {did_you_mean(name, plans)}"
        )
    return plans[name]()
