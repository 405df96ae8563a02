"""Methods as tuned for the real log (KuaiRand-Pure), on days before its test days only (docs/adr/0007).

hm3 convert --source=kuairand --input=KuaiRand-Pure --output_dir=data/kuairand --split=date:2022-05-02,2022-05-03
hm3 train --config=configs/kuairand.py:hm3 --data_dir=data/kuairand --workdir=runs/hm3

About a minute on two cores. On ten days of the log (README) HM3 has test AUCs of about .722 (CTR), .742 (CVR) and .774 (CTCVR).
"""

from hm3_tf.config import Config, LossWeights, ModelConfig, TrainingConfig
from hm3_tf.methods import CHAINS


def get_config(method: str = "hm3") -> Config:
    """Returns the config of a method; all share the settings that were chosen for HM3, but for the weights of losses.

    Those are of the chains only; a method with a design of its own has its own weights.

    Ids overfit the click in a second pass, and the rare like needs more than one: so each epoch starts with new embeddings.
    """
    weights = {"loss_weights": LossWeights(purchase=10.0), "edge_loss_weight": 1.0} if method in CHAINS else {}
    return Config(
        model=ModelConfig(method=method, tower_units=(128, 64), dropout=0.5, embedding_dim=16, cross_layers=1),
        training=TrainingConfig(
            global_batch_size=512,
            epochs=3,
            learning_rate=0.002,
            reset_embeddings=True,
            log_every_steps=50,
            **weights,
        ),
    )
