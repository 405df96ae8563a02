"""Trains torch-rechub's ESMM on W, as documented or at its fastest: fused Adam on batches that were built before.

Runs in torch-rechub's own environment: python torch_rechub_esmm.py {documented,prebuilt} FOLDER
"""

import sys
import time

import numpy as np
import torch
from meter import BATCH, COLUMNS, IDS, WARM_STEPS, report
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.multi_task import ESMM
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import DataGenerator


class Timed:
    """Batches of a loader; times those after the first ones."""

    def __init__(self, loader):
        self._loader = loader

    def __iter__(self):
        for step, batch in enumerate(self._loader):
            if step == WARM_STEPS:
                self.start = time.perf_counter(), time.process_time()
            yield batch
        self.steps = step + 1 - WARM_STEPS


def main(feed, folder):
    """Trains an epoch and prints the rates."""
    torch.set_num_threads(2)
    arrays = np.load(f"{folder}/train.npz")
    x = {name: arrays[name] for name in COLUMNS}
    y = np.stack([arrays["purchase"], arrays["click"], arrays["purchase"]], axis=1).astype(np.float32)
    features = [SparseFeature(name, vocab_size=IDS, embed_dim=16) for name in COLUMNS]
    towers = {"dims": [256, 128, 64], "dropout": 0.0, "activation": "relu"}
    model = ESMM(features[:13], features[13:], cvr_params=dict(towers), ctr_params=dict(towers))
    optimizer = {"lr": 5e-4}
    if feed == "documented":
        loader, *_ = DataGenerator(x, y).generate_dataloader(batch_size=BATCH)
    else:
        optimizer["fused"] = True
        tensors = {name: torch.from_numpy(values.astype(np.int64)) for name, values in x.items()}
        starts = range(0, len(y), BATCH)
        loader = [
            ({n: t[i : i + BATCH] for n, t in tensors.items()}, torch.from_numpy(y[i : i + BATCH])) for i in starts
        ]
    trainer = MTLTrainer(model, ["classification"] * 3, optimizer_params=optimizer, n_epoch=1)
    timed = Timed(loader)
    trainer.train_one_epoch(timed)
    report(timed.steps, timed.start)


if __name__ == "__main__":
    main(*sys.argv[1:])
