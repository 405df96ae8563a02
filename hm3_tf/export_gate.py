"""Whether a version may go live: its figures on validation, beside those of the version that is live."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipeline import storage
from data_pipeline.folder import check_records, explained_read_errors
from data_pipeline.hashing import fingerprint
from data_pipeline.index import SplitIndex
from data_pipeline.read import Reader
from data_pipeline.schema import Schema
from hm3_tf.compare import Comparison
from hm3_tf.config import TARGETS
from hm3_tf.errors import ConfigError, Hm3Error
from hm3_tf.evaluate import group_column
from hm3_tf.prefetch import prefetch
from hm3_tf.progress import Progress
from hm3_tf.serving import raw_specs
from hm3_tf.tally import Rows, Tally
from hm3_tf.versions import whole_versions
from hm3_tf.workdir import Workdir

VALIDATION = "validation"
AUC_TOLERANCE = 0.0005
PCOC_BOUNDS = (0.8, 1.25)
_BATCH_ROWS = 16_384
_LOGGER = logging.getLogger(__name__)
_ALMOST_ONE = 1 - 2.0**-24  # what a float32 below 1 can be


class ServedModel:
    """A version of a served model, scored through its signature `serving_default`.

    Args:
      folder: The SavedModel.
      schema: Schema of the log that it is to score.
      levels: Levels whose probabilities it is asked for; the first is the click, the last the conversion.

    Attributes:
      levels: These.
      columns: Names of the columns that it takes.

    Raises:
      ConfigError: The log lacks a column that it takes, or has it in another dtype or shape.
      Hm3Error: There is no SavedModel in the folder.
    """

    def __init__(self, folder: str, schema: Schema, levels: Sequence[str]) -> None:
        self.levels, self._folder = tuple(levels), folder
        try:
            self._loaded = tf.saved_model.load(folder)  # its variables live as long as it is referred to
        except OSError as error:
            raise Hm3Error(
                f"{folder}: expected a SavedModel, got: {str(error).splitlines()[0]}; remove the folder, or export "
                "without --gate"
            ) from error
        self._serve = self._loaded.signatures["serving_default"]
        specs = self._serve.structured_input_signature[1]
        self.columns = tuple(specs)
        known = raw_specs(schema.columns)
        for name, spec in specs.items():
            if name not in known or not spec.is_compatible_with(known[name]):
                raise ConfigError(
                    f"{folder}: expected a model that scores the run's log, but it takes {name!r} as {spec.dtype.name} "
                    f"{spec.shape.as_list()}, which the log {'has otherwise' if name in known else 'does not have'}; export "
                    "without --gate"
                )

    def pairs(self, raw: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns natural-log (P, 1 - P) of the levels, then of the conversion given a click: float64 [rows, levels + 1, 2].

        Raises:
          Hm3Error: A probability is no number.
        """
        answer = self._serve(**{name: tf.constant(raw[name]) for name in self.columns})
        between = [f"p_{level}" for level in self.levels[1:-1]]
        p = np.stack([answer[name].numpy() for name in ("pctr", *between, "pctcvr", "pcvr")], axis=1, dtype=np.float64)
        if not np.isfinite(p).all():
            rows = np.count_nonzero(~np.isfinite(p).all(axis=1))
            raise Hm3Error(
                f"{self._folder}: expected probabilities, got no numbers in {rows:,} of {len(p):,} rows; do not serve it"
            )
        p = np.clip(p, np.finfo(np.float32).tiny, _ALMOST_ONE)
        return np.stack([np.log(p), np.log1p(-p)], axis=-1)


def pass_gate(run: Workdir, folder: str, gate: str, force: bool) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Compares a version that is to be with the live one: the newest of a folder.

    Args:
      run: The run whose model the version is.
      folder: The version.
      gate: Folder of versions.
      force: Whether it passes even if it is worse.

    Returns:
      Its figures of validation as in `metrics.json`, None where no version is live; and `live` (its path, or None), `forced`
      (whether it would not have passed otherwise) and what `judge` says.

    Raises:
      Hm3Error: The version is worse than the live one, or the folder of versions does not exist.
      ConfigError: The live version takes columns that the log does not have.
      DataError: The log has no validation split, or it cannot be read.
    """
    storage.open_file_system(gate)
    if not tf.io.gfile.isdir(gate):
        raise Hm3Error(
            f"--gate: expected the folder of the versions that are served, found none at {gate}; check the path"
        )
    numbers = whole_versions(gate)
    if not numbers:
        _LOGGER.warning("gate: no version is live in %s, so there is none to be compared with", gate)
        return None, {"live": None, "forced": False}
    live = storage.join(gate, str(numbers[-1]))
    figures, verdict = evaluate_versions(run, run.open_data().split(VALIDATION), folder, live)
    on_rows = f"{live} on {verdict['rows']:,} rows of validation"
    if not verdict["reasons"]:
        _LOGGER.info("gate: no worse than %s", on_rows)
    elif force:
        _LOGGER.warning("gate: worse than %s, exported by force: %s", on_rows, "; ".join(verdict["reasons"]))
    else:
        raise Hm3Error(
            f"gate: expected a version no worse than {on_rows}, got {'; '.join(verdict['reasons'])}; nothing is exported: "
            "train another model, or add --force"
        )
    return figures, {"live": live, "forced": bool(verdict["reasons"]), **verdict}


def evaluate_versions(run: Workdir, index: SplitIndex, folder: str, live: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluates a version and the live one on the same rows, in the same groups, as they are served.

    Args:
      run: The run whose model the version is; its labels and its policy for broken ones are those of both.
      index: The validation rows.
      folder: The version.
      live: The live version.

    Returns:
      The version's figures as in `metrics.json`, and what `judge` says of it beside the live one.

    Raises:
      ConfigError: The live version takes columns that the log does not have.
      DataError: The rows cannot be read.
    """
    levels = run.config.method.levels
    ends = (levels[0], levels[-1])  # what every method has
    models = [ServedModel(folder, run.schema, levels), ServedModel(live, run.schema, ends)]
    group = group_column(run.schema)
    carry = tuple(dict.fromkeys([*([group] if group else []), *(name for model in models for name in model.columns)]))
    merged, nesting = run.config.method.merged_levels, run.config.data.nesting
    reader = Reader(index, run.schema, (), merged, nesting=nesting, sample_weights=False, carry=carry)
    check_records(reader)
    tallies = [Tally(model.levels, grouped=group is not None) for model in models]
    comparison = Comparison(levels, ends)
    with Progress("validate", index.rows) as progress, explained_read_errors(index):
        for scored in prefetch(_scored_rows(reader, models, group)):
            for tally, rows in zip(tallies, scored):
                tally.update(rows)
            comparison.update(*scored)
            progress.advance(len(scored[0]))
    estimates = [tally.estimates() for tally in tallies]
    new, old = (tally.result(found) for tally, found in zip(tallies, estimates))
    return new, judge(new, old, comparison.result(*estimates))


def _scored_rows(reader: Reader, models: Sequence[ServedModel], group: str | None) -> Iterator[list[Rows]]:
    """Yields the rows of a split as each model scores them, many at a time."""
    start = 0
    for _, labels, weights, raw in reader.ordered_dataset(_BATCH_ROWS):
        real = weights.numpy() > 0
        columns = {name: values.numpy()[real] for name, values in raw.items()}
        groups = tf.constant(columns[group]) if group else start + tf.range(real.sum(), dtype=tf.int64)
        hashes = fingerprint(groups, salt="groups").numpy()
        start += len(hashes)
        yield [
            Rows(
                np.stack([labels[level].numpy()[real] > 0 for level in model.levels], axis=1),
                model.pairs(columns),
                hashes,
            )
            for model in models
        ]


def judge(new: Mapping[str, Any], live: Mapping[str, Any], difference: Mapping[str, Any]) -> dict[str, Any]:
    """Returns whether a version is worse than the live one.

    It is where, for pctr, pcvr or pctcvr, the 95 % interval of its AUC less that of the live one is all below -0.0005; or
    where its PCOC is outside of 0.8 to 1.25, farther out than the live one's (as a factor), and apart from it by the interval
    of the paired difference. A target with too few rows or groups for intervals says nothing; where none says anything, the
    version is refused.

    Args:
      new: Figures of the version, as in `metrics.json`.
      live: Those of the live one, of the same rows.
      difference: The former less the latter, see `Comparison.result`.

    Returns:
      `rows`; `targets`: of pctr, pcvr and pctcvr the figures that count; and `reasons`: why it is worse, empty where it is not.
    """
    targets = {name: _target(new[name], live[name], difference[name]) for name in TARGETS}
    reasons = [reason for name, figures in targets.items() for reason in _reasons(name, figures)]
    if all(difference[name]["too_small"] for name in TARGETS):
        reasons.append(f"{new['rows']:,} rows, or their groups, are too few to tell")
    return {"rows": new["rows"], "targets": targets, "reasons": reasons}


def _target(new: Mapping[str, Any], live: Mapping[str, Any], difference: Mapping[str, Any]) -> dict[str, Any]:
    return {
        figure: {
            "new": new[figure],
            "live": live[figure],
            "difference": difference[figure],
            "interval": difference[f"{figure}_interval"],
        }
        for figure in ("auc", "pcoc")
    }


def _reasons(name: str, figures: Mapping[str, Any]) -> Iterator[str]:
    auc, pcoc = figures["auc"], figures["pcoc"]
    low, high = PCOC_BOUNDS
    farther = pcoc["interval"] and _factor(pcoc["new"]) > _factor(pcoc["live"])
    if auc["interval"] and auc["interval"][1] < -AUC_TOLERANCE:
        yield f"{name} AUC {_against(auc)}"
    if farther and (
        (pcoc["new"] > high and pcoc["interval"][0] > 0) or (pcoc["new"] < low and pcoc["interval"][1] < 0)
    ):
        yield f"{name} PCOC {_against(pcoc)}, outside of {low} to {high}"


def _factor(pcoc: float) -> float:
    """Returns how far a PCOC is from 1, as a factor of at least 1."""
    return max(pcoc, 1 / pcoc) if pcoc > 0 else np.inf


def _against(figure: Mapping[str, Any]) -> str:
    first, last = figure["interval"]
    return (
        f"{figure['new']:.4f} against {figure['live']:.4f} (difference {figure['difference']:+.4f}, 95 % "
        f"{first:+.4f} to {last:+.4f})"
    )
