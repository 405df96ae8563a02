"""Trains DeepCTR's ESMM on W at its fastest: Keras' legacy Adam, no l2, from TFRecord in parsed batches or from memory.

Runs in DeepCTR's own environment: python deepctr_esmm.py {tfrecord,memory} FOLDER
"""

import glob
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from deepctr.feature_column import SparseFeat
from deepctr.models.multitask import ESMM
from meter import BATCH, COLUMNS, IDS, WARM_STEPS, report


class Meter(tf.keras.callbacks.Callback):
    """Times the steps after the first ones."""

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == WARM_STEPS:
            self.start = time.perf_counter(), time.process_time()
        self.steps = batch + 1 - WARM_STEPS


def tfrecord(folder):
    """Returns batches of the row records: files interleaved, shuffled by record, parsed by the batch."""
    specs = {name: tf.io.FixedLenFeature([], tf.int64) for name in (*COLUMNS, "click", "purchase")}

    def parse(records):
        columns = tf.io.parse_example(records, specs)
        labels = tuple(tf.cast(columns[name], tf.float32) for name in ("click", "purchase"))
        return {name: tf.cast(columns[name], tf.int32) for name in COLUMNS}, labels

    files = tf.data.Dataset.from_tensor_slices(sorted(glob.glob(f"{folder}/row/train/*.tfrecord")))
    records = files.interleave(tf.data.TFRecordDataset, num_parallel_calls=tf.data.AUTOTUNE)
    batches = records.shuffle(16 * BATCH).batch(BATCH, drop_remainder=True)
    return batches.map(parse, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def main(feed, folder):
    """Trains an epoch and prints the rates."""
    features = [SparseFeat(name, vocabulary_size=IDS, embedding_dim=16) for name in COLUMNS]
    model = ESMM(features, tower_dnn_hidden_units=(256, 128, 64), l2_reg_embedding=0, l2_reg_dnn=0)
    model.compile(tf.keras.optimizers.legacy.Adam(5e-4), loss=["binary_crossentropy"] * 2)
    meter = Meter()
    if feed == "tfrecord":
        model.fit(tfrecord(folder), verbose=0, callbacks=[meter])
    else:
        arrays = np.load(f"{folder}/train.npz")
        labels = [arrays["click"].astype(np.float32), arrays["purchase"].astype(np.float32)]
        model.fit({name: arrays[name] for name in COLUMNS}, labels, BATCH, verbose=0, callbacks=[meter])
    report(meter.steps, meter.start)


if __name__ == "__main__":
    main(*sys.argv[1:])
