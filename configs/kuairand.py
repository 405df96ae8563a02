"""Methods as tuned for the real log (KuaiRand-Pure), on its validation day only.

hm3 convert --source=kuairand --input=KuaiRand-Pure --output_dir=data/kuairand --split=date:2022-05-02,2022-05-03
hm3 train --config=configs/kuairand.py:hm3 --data_dir=data/kuairand --workdir=runs/hm3
"""

from hm3_tf.config import Config, LossWeights, ModelConfig, TrainingConfig


def get_config(method: str = "hm3") -> Config:
    """Returns the config of a method of the paper; all share the settings that were chosen for HM3.

    The loss of the like is 1/10 of that of the click: with weight 20 both have their say in two epochs.
    """
    return Config(
        model=ModelConfig(method=method, tower_units=(128, 64), dropout=0.5, embedding_dim=16, cross_layers=1),
        training=TrainingConfig(
            global_batch_size=1024,
            epochs=2,
            learning_rate=0.002,
            loss_weights=LossWeights(purchase=20.0),
            edge_loss_weight=1.0,
            log_every_steps=20,
        ),
    )
