"""A trained model as a SavedModel that takes raw values and needs nothing but TensorFlow."""

import dataclasses
import datetime
import functools
import json
import logging
import re
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipeline import schema as schemas
from data_pipeline import storage
from data_pipeline.folder import SCHEMA_FILE, DataFolder
from data_pipeline.hashing import network_inputs
from data_pipeline.index import SplitIndex
from data_pipeline.records import MISSING, TF_DTYPES, parse_rows
from data_pipeline.schema import SCALAR, VARIABLE, Column
from hm3_tf import __version__, evaluate
from hm3_tf import config as configs
from hm3_tf.errors import Hm3Error
from hm3_tf.export_gate import evaluate_versions
from hm3_tf.features import embedding_tables
from hm3_tf.model import ConversionModel, model_features, probabilities
from hm3_tf.signatures import LoggedRows, input_columns, read_rows, read_signatures
from hm3_tf.skew import check_skew
from hm3_tf.versions import new_version, version_numbers
from hm3_tf.warm_up import SIZES, write_warm_up
from hm3_tf.workdir import CONFIG_FILE, Workdir, absolute_path, checkpoint_step

METADATA_FILE = "metadata.json"
FIGURES_FILE = "metrics.json"
_VALIDATION = "validation"
_LOGGER = logging.getLogger(__name__)
_DRY_RUN_BUCKETS = 16


def _raw_spec(column: Column) -> tf.TensorSpec:
    tail = [] if column.shape == SCALAR else [None if column.shape == VARIABLE else column.length]
    return tf.TensorSpec([None, *tail], TF_DTYPES[column.dtype], name=column.name)


def _fit_length(values: tf.Tensor, column: Column) -> tf.Tensor:
    """Cuts and pads a variable-length column [batch, any length] to the length the network reads."""
    if column.shape != VARIABLE:
        return values
    missing = tf.fill([tf.shape(values)[0], column.length], tf.constant(MISSING[column.dtype], values.dtype))
    return tf.ensure_shape(tf.concat([values, missing], axis=1)[:, : column.length], [None, column.length])


class ServingModule(tf.Module):
    """The functions of a served model: raw columns, or serialized tf.Examples, to probabilities.

    Args:
      run: The run whose model it is.
      model: The model.
    """

    def __init__(self, run: Workdir, model: ConversionModel) -> None:
        super().__init__()
        self._weights = model.network.variables
        features = model_features(run.config, run.schema, run.train)
        columns = [run.schema.column(feature.name) for feature in features]
        levels = run.config.method.levels
        parse_examples = tf.autograph.experimental.do_not_convert(parse_rows)

        @tf.autograph.experimental.do_not_convert
        def predict(raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            inputs = network_inputs(
                {column.name: _fit_length(raw[column.name], column) for column in columns}, features
            )
            return probabilities(model.network(inputs, training=False), levels)

        @tf.function(input_signature=[{column.name: _raw_spec(column) for column in columns}])
        def serve(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return predict(inputs)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def serve_examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            return predict(parse_examples(examples, columns))

        self.signatures_to_save = {"serving_default": serve, "serving_examples": serve_examples}


def _save(run: Workdir, model: ConversionModel, folder: str) -> None:
    module = ServingModule(run, model)
    tf.saved_model.save(module, folder, signatures=module.signatures_to_save)


def export_run(
    run: Workdir,
    export_dir: str,
    *,
    weights: str = "best",
    keep: int | None = None,
    warm_up: Sequence[int] | None = None,
    check: int = 0,
    gate: str | None = None,
    force: bool = False,
) -> str:
    """Writes a trained run as the next version of a served model; it appears under its number only when complete.

    Args:
      run: The run.
      export_dir: Folder of versions, as TensorFlow Serving watches it: `export_dir/1`, `export_dir/2`, ...
      weights: `best`, `latest` or `final`, see `Workdir.checkpoint`.
      keep: Versions that remain, the new one among them; at least 2, so that the one that is served until a server has loaded
        the new one is not removed. None keeps all.
      warm_up: Rows of the requests that a server is to warm up with, none where empty. None takes 1, 100 and 500 where the
        log and tensorflow-serving-api are there, and says so where they are not.
      check: Logged rows of which the SavedModel has to serve the model's predictions, see `skew.check_skew`.
      gate: Folder of versions whose newest one is live: the new one must be no worse on validation, see `export_gate.judge`.
      force: Whether a version that is worse is exported all the same; its metadata says so.

    Returns:
      The folder of the new version: a SavedModel with the signatures `serving_default` (a named tensor a raw column) and
      `serving_examples` (`examples`: serialized tf.Example, a row each); `assets.extra/schema.json`, `config.json`,
      `metadata.json` (docs/export.md), `metrics.json` (validation, as served) and `tf_serving_warmup_requests`; and `DONE`.

    Raises:
      Hm3Error: The run has no such weights, the version is worse than the live one or does not serve what the model predicts,
        another export is at work in the folder, or it cannot be written.
      ConfigError: The live version takes other columns, or the weights asked for are not calibrated.
      DataError: The log cannot be read, but something is asked for that needs it.
    """
    storage.open_file_system(export_dir)
    checkpoint = run.checkpoint(weights)
    model = run.trained_model(checkpoint)
    index = _open_log(run, gate, needed=bool(warm_up or check or gate))
    with new_version(export_dir, keep) as (folder, version):
        _save(run, model, folder)
        extra = functools.partial(storage.join, folder, "assets.extra")
        metadata = _metadata(run, checkpoint, weights, folder)
        if index:
            sizes = SIZES if warm_up is None else warm_up
            columns = input_columns(read_signatures(folder), run.schema.columns)
            rows = read_rows(run, index, columns, max([1, check, *sizes]))
            if check:
                metadata["skew"] = check_skew(run, model, folder, rows.take(np.arange(min(check, len(rows)))))
            metadata["warm_up"] = _warm_up(folder, rows, sizes, needed=warm_up is not None)
        if index and index.folder.endswith(f"/{_VALIDATION}"):
            live = _live_version(gate) if gate else None
            metrics, verdict = evaluate_versions(run, index, folder, live)
            storage.write_text(extra(FIGURES_FILE), evaluate.to_json({"split": _VALIDATION, **metrics}))
            if gate:
                metadata["gate"] = {"live": live, **(verdict or {})}
                metadata["forced"] = _pass_gate(live, verdict, force)
        storage.write_text(extra(SCHEMA_FILE), schemas.to_json(run.schema))
        storage.write_text(extra(CONFIG_FILE), configs.to_json(run.config))
        storage.write_text(extra(METADATA_FILE), json.dumps(metadata, indent=1))
    return version


def _open_log(run: Workdir, gate: str | None, needed: bool) -> SplitIndex | None:
    """Returns the validation rows of a run's log, the training rows where it has none; None where it is gone.

    Raises:
      DataError: It cannot be read but is needed, or has no validation split to compare by.
    """
    try:
        data = DataFolder.open(run.data_dir)
        split = _VALIDATION if data.has_split(_VALIDATION) or gate else "train"
        return data.split(split)
    except Hm3Error as error:
        if needed:
            raise
        _LOGGER.warning("exported without figures of validation and requests to warm up with: %s", error)
        return None


def _metadata(run: Workdir, checkpoint: str, weights: str, folder: str) -> dict[str, Any]:
    """Returns what `metadata.json` says before anything is tried."""
    described = {
        name: {
            kind: {spec.name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()} for spec in specs.values()}
            for kind, specs in (("inputs", signature.inputs), ("outputs", signature.outputs))
        }
        for name, signature in read_signatures(folder).items()
    }
    return {
        "versions": {"hm3_tf": __version__, "tensorflow": tf.__version__},
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "workdir": absolute_path(run.path),
        "method": run.config.method.name,
        "weights": weights,
        "step": checkpoint_step(checkpoint),
        "signatures": described,
        "warm_up": [],
        "skew": None,
        "gate": None,
        "forced": False,
    }


def _warm_up(folder: str, rows: LoggedRows, sizes: Sequence[int], needed: bool) -> list[int]:
    """Writes requests to warm up with, and returns their sizes; none where they are not needed and cannot be made."""
    try:
        write_warm_up(folder, rows, sizes)
    except Hm3Error as error:
        if needed:
            raise
        _LOGGER.warning("exported without requests to warm up with: %s", error)
        return []
    return list(sizes)


def _live_version(gate: str) -> str | None:
    storage.open_file_system(gate)
    numbers = version_numbers(gate)
    return storage.join(gate, str(numbers[-1])) if numbers else None


def _pass_gate(live: str | None, verdict: dict[str, Any] | None, force: bool) -> bool:
    """Returns whether a version passes the gate by force alone.

    Raises:
      Hm3Error: It does not pass.
    """
    if not verdict:
        _LOGGER.info("gate: no version is live, so there is none to be compared with")
        return False
    if not verdict["reasons"]:
        _LOGGER.info("gate: no worse than %s on %s validation rows", live, f"{verdict['rows']:,}")
        return False
    found = (
        f"gate: expected a version no worse than {live} on {verdict['rows']:,} validation rows, got "
        f"{'; '.join(verdict['reasons'])}"
    )
    if not force:
        raise Hm3Error(f"{found}; nothing is exported: train another model, or add --force")
    _LOGGER.warning("%s; exported by force", found)
    return True


def check_export(run: Workdir) -> None:
    """Exports the run's network with small tables, loads it and serves a row.

    It is for before the training: a model that cannot be exported should fail in seconds, not after hours.

    Args:
      run: The run.

    Raises:
      Hm3Error: The model cannot be exported or served.
    """
    tables = [table.name for table in embedding_tables(model_features(run.config, run.schema, run.train))]
    small = dataclasses.replace(run.config.model, hash_buckets=dict.fromkeys(tables, _DRY_RUN_BUCKETS))
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, model=small))
    with tempfile.TemporaryDirectory() as folder:
        try:
            _save(run, run.build_model(), folder)
            served = tf.saved_model.load(folder).signatures["serving_examples"]
            served(examples=tf.constant([tf.train.Example().SerializeToString()]))
        except Hm3Error:
            raise
        except Exception as error:
            kind = type(error).__name__
            inner = re.search(rf"^\s*{kind}: (.*)", str(error), re.MULTILINE)  # where AutoGraph has wrapped it
            reason = inner[1] if inner else str(error).partition("\n")[0]
            raise Hm3Error(
                f"expected a model that can be exported, but a trial export of {run.config.method.name} failed: "
                f"{kind}: {reason}; run with --traceback to see where"
            ) from error
