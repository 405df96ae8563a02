"""A trained model as a SavedModel that takes raw values and needs nothing but TensorFlow."""

import dataclasses
import datetime
import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from data_pipeline import schema as schemas
from data_pipeline import storage
from data_pipeline.folder import SCHEMA_FILE
from hm3_tf import __version__, evaluate
from hm3_tf import config as configs
from hm3_tf.errors import Hm3Error
from hm3_tf.export_gate import VALIDATION, pass_gate
from hm3_tf.features import embedding_tables
from hm3_tf.metrics_log import read_metrics
from hm3_tf.model import ConversionModel, model_features
from hm3_tf.serving import RankingScore, ServingModule, round_tables
from hm3_tf.signatures import LoggedRows, Signature, input_columns, read_rows, read_signatures
from hm3_tf.skew import check_skew
from hm3_tf.versions import new_version
from hm3_tf.warm_up import SIZES, write_warm_up
from hm3_tf.workdir import CONFIG_FILE, Workdir, checkpoint_step

METADATA_FILE = "metadata.json"
FIGURES_FILE = "metrics.json"
_LOGGER = logging.getLogger(__name__)
_DRY_RUN_BUCKETS = 16


def _save(
    run: Workdir, model: ConversionModel, folder: str, tables: str = "float32", score: RankingScore | None = None
) -> None:
    module = ServingModule(run, model, tables, score)
    tf.saved_model.save(module, folder, signatures=module.signatures_to_save)


def export_run(
    run: Workdir,
    export_dir: str,
    *,
    weights: str = "best",
    tables: str = "float32",
    score: RankingScore | None = None,
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
      tables: How embedding tables are held, of `compact_tables.STORAGES`.
      score: What to rank by, one more output of each signature; None for none.
      keep: Versions that remain, the new one among them; at least 2, so that the one that is served until a server has loaded
        the new one is not removed. None keeps all.
      warm_up: Rows of the requests that a server is to warm up with, none where empty. None takes 1, 100 and 500 where the
        log and tensorflow-serving-api are there, and says so where they are not.
      check: Logged rows of which the SavedModel has to serve the model's predictions, see `skew.check_skew`.
      gate: Folder of versions whose newest one is live: the new one must be no worse on validation, see `export_gate.judge`.
      force: Whether a version that is worse is exported all the same; its metadata says so.

    Returns:
      The folder of the new version: a SavedModel with the signatures of `serving.ServingModule`; in `assets.extra`
      `schema.json`, `config.json`, `metadata.json` (docs/export.md), figures of validation in `metrics.json` and
      `tf_serving_warmup_requests`; and `DONE`.

    Raises:
      Hm3Error: The run has no such weights, the version is worse than the live one or does not serve what the model predicts,
        another export is at work in the folder, or it cannot be written.
      ConfigError: The tables or the price are not as expected, the live version takes other columns, or the weights asked for
        are not calibrated.
      DataError: The log cannot be read, but something is asked for that needs it.
    """
    storage.open_file_system(export_dir)
    checkpoint = run.checkpoint(weights)
    model = run.trained_model(checkpoint)
    with new_version(export_dir, keep) as (folder, version):
        _save(run, model, folder, tables, score)
        metadata = _origin(run, weights, checkpoint)
        metadata |= {"tables": tables, "score": dataclasses.asdict(score) if score else None, "skew": None}
        if check:
            round_tables(model, tables)
            metadata["skew"] = check_skew(run, model, folder, _read_rows(run, folder, check))
        served, metadata["gate"] = pass_gate(run, folder, gate, force) if gate else (None, None)
        figures = served or _logged_figures(run, checkpoint)
        metadata["warm_up"] = _warm_up(run, folder, warm_up)
        metadata["signatures"] = _described(read_signatures(folder))
        files = {SCHEMA_FILE: schemas.to_json(run.schema), CONFIG_FILE: configs.to_json(run.config)}
        files |= {FIGURES_FILE: evaluate.to_json({"split": VALIDATION, **figures})} if figures else {}
        for name, text in {**files, METADATA_FILE: json.dumps(metadata, indent=1)}.items():
            storage.write_text(storage.join(folder, "assets.extra", name), text)
    return version


def _origin(run: Workdir, weights: str, checkpoint: str) -> dict[str, Any]:
    """Returns what `metadata.json` says of where a version comes from."""
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {"hm3_tf": __version__, "tensorflow": tf.__version__},
        "workdir": storage.absolute(run.path),
        "method": run.config.method.name,
        "weights": weights,
        "step": checkpoint_step(checkpoint),
    }


def _logged_figures(run: Workdir, checkpoint: str) -> dict[str, Any] | None:
    """Returns the figures of validation that training logged for the weights of a checkpoint, None where it logged none.

    The calibration is fitted after them: of calibrated weights there are none.
    """
    step = checkpoint_step(checkpoint)
    found = [line["validation"] for line in read_metrics(run) if line["step"] == step and "validation" in line]
    return found[-1] if found and not run.config.training.calibrate else None


def _read_rows(run: Workdir, folder: str, count: int) -> LoggedRows:
    """Returns rows of the run's validation split, or of its training split if it has none, for the signatures of a version.

    Raises:
      DataError: The log cannot be read.
    """
    data = run.open_data()
    index = data.split(VALIDATION if data.has_split(VALIDATION) else "train")
    return read_rows(run, index, input_columns(read_signatures(folder), run.schema.columns), count)


def _warm_up(run: Workdir, folder: str, sizes: Sequence[int] | None) -> list[int]:
    """Writes requests to warm up with, and returns their sizes: none if they are not asked for and cannot be made."""
    wanted = list(SIZES if sizes is None else sizes)
    try:
        if wanted:
            write_warm_up(folder, _read_rows(run, folder, max(wanted)), wanted)
    except Hm3Error as error:
        if sizes is not None:
            raise
        _LOGGER.warning("exported without requests to warm up with: %s", error)
        return []
    return wanted


def _described(signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """Returns the names, dtypes and shapes of signatures as JSON has them."""
    return {
        name: {
            kind: {name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()} for name, spec in specs.items()}
            for kind, specs in (("inputs", signature.inputs), ("outputs", signature.outputs))
        }
        for name, signature in signatures.items()
    }


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
