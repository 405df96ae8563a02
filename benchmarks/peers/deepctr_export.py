"""Exports DeepCTR's ESMM of two towers, with weights as they start, as a SavedModel of its own signature.

Runs in DeepCTR's own environment: python deepctr_export.py COLUMNS.json FOLDER, where the columns are
{"single": {name: ids}, "several": {name: [ids, values]}, "numeric": [name]}.
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
from deepctr.feature_column import DenseFeat, SparseFeat, VarLenSparseFeat
from deepctr.models.multitask import ESMM


def main(columns, folder):
    """Writes the SavedModel."""
    columns = json.loads(pathlib.Path(columns).read_text())
    features = [SparseFeat(name, vocabulary_size=ids, embedding_dim=16) for name, ids in columns["single"].items()]
    for name, (ids, values) in columns["several"].items():
        sparse = SparseFeat(name, vocabulary_size=ids, embedding_dim=16)
        features.append(VarLenSparseFeat(sparse, maxlen=values, combiner="mean"))
    features += [DenseFeat(name, 1) for name in columns["numeric"]]
    tf.saved_model.save(ESMM(features, tower_dnn_hidden_units=(256, 128, 64), l2_reg_embedding=0, l2_reg_dnn=0), folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
