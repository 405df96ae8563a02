"""All methods on the real log (KuaiRand-Pure), with the settings of its other plans and a learning rate chosen for each.

hm3 convert --source=kuairand --input=KuaiRand-Pure --output_dir=data/kuairand --split=date:2022-05-02,2022-05-03
hm3 experiment --plan=configs/experiments/kuairand.py:data/kuairand --workdir=experiments-out/kuairand \
  --output=docs/experiments.md
"""

from hm3_tf.config import Config, ModelConfig, TrainingConfig
from hm3_tf.experiment.plan import Log, Plan
from hm3_tf.experiment.tables import Table
from hm3_tf.methods import CHAINS, TITLES

LEARNING_RATES = (1e-3, 2e-3)


def configs(method: str, edge: float = 0.0) -> list[Config]:
    """Returns a config for each learning rate."""
    model = ModelConfig(method, tower_units=(128, 64), dropout=0.5, embedding_dim=16, cross_layers=1)
    return [
        Config(
            model,
            training=TrainingConfig(
                global_batch_size=512,
                epochs=3,
                learning_rate=learning_rate,
                reset_embeddings=True,
                edge_loss_weight=edge,
            ),
        )
        for learning_rate in LEARNING_RATES
    ]


def get_plan(data_dir: str = "data/kuairand") -> Plan:
    """Returns the plan on a data folder of the log."""
    runs = {name: configs(method) for method, name in TITLES.items()}
    runs |= {f"{TITLES[method]}, edge 1": configs(method, edge=1.0) for method in (*CHAINS, "aux") if method != "base"}
    targets = {"pctr.auc": "CTR AUC", "pcvr.auc": "CVR AUC", "pctcvr.auc": "CTCVR AUC", "pcvr.pcoc": "CVR PCOC"}
    table = Table(
        "The real log, test days; intervals of seeds, not of rows.",
        list(runs),
        ["kuairand"],
        targets,
    )
    logs = {"kuairand": Log(data_dir)}
    return Plan(logs, runs, seeds=3, tuning_log="kuairand", tuning_seeds=1, tables={"kuairand": table})
