"""Validation of a data folder: of all of it (`hm3 validate`), or of a sample of its training split before it is trained on."""

import dataclasses
import math
from collections.abc import Collection

import numpy as np

from data_pipeline.folder import DataFolder
from data_pipeline.index import INDEX_FILE, SplitIndex, altered_shards
from data_pipeline.split_rules import SPLITS
from data_pipeline.statistics import SplitStatistics
from data_pipeline.times import day_name
from data_pipeline.validate_checks import CHECKS, SAMPLE_CHECKS, Evidence, level_rates
from data_pipeline.validate_clock import named_clock
from data_pipeline.validate_findings import Finding, Validation
from data_pipeline.validate_profile import Profile, profile
from data_pipeline.validate_sketches import CategoryCounts
from hm3_tf.errors import DataError
from hm3_tf.progress import Progress

_SAMPLE_BLOCKS, _SAMPLE_MOST_ROWS = 16, 2**18
_SAMPLE_POSITIVES = 200  # of each level, or negatives


def validate(data: DataFolder, time: str | None = None) -> Validation:
    """Validates a log, of which each row is read once; docs/validation.md lists the checks.

    Args:
      data: The log.
      time: Column that says when each row was, of dates, times or numbers of days; default one of
        `validate_clock.TIME_COLUMNS` that holds dates or times, or the days that the shards are named by.

    Returns:
      The findings and the figures they come from. A split that cannot be read is a finding too.

    Raises:
      ConfigError: There is no such column.
      UsageError: It is not one of times.
      DataError: `statistics.json` is not one.
    """
    clock = named_clock(data.schema, time) if time else None
    stored = dict(data.stored_statistics() or {})
    findings: list[Finding] = []
    profiles: dict[str, Profile] = {}
    for split in SPLITS:
        if not data.has_split(split):
            findings.append(_absent(split))
            continue
        try:
            index = data.split(split)
            lost = stored[split].rows - index.rows if split in stored else 0
            if data.max_bad_records is not None and lost > 0:
                findings.append(_skipped(split, lost))
                del stored[split]  # it tells of other rows
            findings += map(_altered, altered_shards(index))
            with Progress(f"validate {split}", index.rows) as progress:
                profiles[split] = profile(index, data.schema, clock, profiles.get("train"), progress.advance)
        except DataError as error:
            findings.append(_unreadable(split, error))
    rows = {split: each.rows for split, each in profiles.items()}
    if "train" not in profiles:
        return Validation(data.path, rows, tuple(findings), {}, {})
    evidence = Evidence(data.schema, profiles, {name: each.statistics() for name, each in profiles.items()}, stored)
    findings += [finding for check in CHECKS for finding in check(evidence)]
    return Validation(data.path, rows, tuple(findings), _columns(evidence), _days(evidence))


def validate_sample(data: DataFolder, index: SplitIndex, inputs: Collection[str]) -> tuple[Finding, ...]:
    """Validates rows from all over the training split, and what `statistics.json` says of all splits.

    They are sixteen blocks (16,384 rows) or more, until some 200 rows with each level are expected among them, and without
    it, but no more than 262,144.

    Args:
      data: The log.
      index: Its training split.
      inputs: Columns that the model reads; the other inputs of the schema are not validated.

    Returns:
      The findings.

    Raises:
      DataError: `statistics.json` is not one.
    """
    statistics = data.stored_statistics() or {}
    part = _sample(index, statistics.get("train"))
    columns = (column for column in data.schema.columns if not column.is_input or column.name in inputs)
    schema = dataclasses.replace(data.schema, columns=tuple(columns))
    try:
        sample = profile(part, schema)
    except DataError as error:
        return (_unreadable("train", error),)
    evidence = Evidence(schema, {"train": sample}, statistics)
    return tuple(finding for check in SAMPLE_CHECKS for finding in check(evidence))


def _sample(index: SplitIndex, statistics: SplitStatistics | None) -> SplitIndex:
    """Returns blocks evenly spread over a split, as many as its rates ask for; the most where they are not known."""
    rows = float(_SAMPLE_MOST_ROWS)
    if statistics:
        rarest = min((min(rate, 1 - rate) for rate in level_rates(statistics).values() if 0 < rate < 1), default=1)
        rows = min(rows, _SAMPLE_POSITIVES / rarest)
    blocks = max(_SAMPLE_BLOCKS, math.ceil(len(index.blocks) * rows / max(index.rows, 1)))
    chosen = np.unique(np.linspace(0, len(index.blocks) - 1, blocks).astype(np.int64))
    return dataclasses.replace(index, blocks=index.blocks[chosen])


def _absent(split: str) -> Finding:
    severity = "error" if split == "train" else "info"
    return Finding("split", severity, split, "it has no shards", "give it rows by --split of hm3 convert")


def _unreadable(split: str, error: DataError) -> Finding:
    return Finding("unreadable", "error", split, str(error), "what follows in the split was not validated")


def _altered(shard: str) -> Finding:
    what = f"its bytes are not those that were written, by their SHA-256 in {INDEX_FILE}"
    return Finding("altered", "error", shard, what, "restore the shard, or convert the log again")


def _skipped(split: str, rows: int) -> Finding:
    what = f"{rows:,} rows of statistics.json are not in the shards, or in bad records, which were skipped"
    return Finding("unreadable", "warning", split, what, "restore the shards, or convert the log again")


def _columns(evidence: Evidence) -> dict[str, dict]:
    """Returns the figures of the columns as `Validation` has them, None for what cannot be told."""
    unseen: dict[str, dict[str, float]] = {}
    for split in evidence.others:
        for column, counts in evidence.counts(split, CategoryCounts):
            unseen.setdefault(column, {})[split] = counts.unseen_share
    parts = {"auc": evidence.aucs, "drift": evidence.drift, "unseen": unseen}
    return {
        name: {part: _numbers(figures[name]) for part, figures in parts.items() if name in figures}
        for name in evidence.train.columns
    }


def _numbers(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def _days(evidence: Evidence) -> dict[str, dict]:
    """Returns rows and rates a day as `Validation` has them."""
    names = [level.name for level in evidence.schema.levels]
    return {
        split: {
            day_name(day): {"rows": int(rows), **{name: float(n / rows) for name, n in zip(names, happened)}}
            for day, (rows, *happened) in sorted(each.days.days.items())
        }
        for split, each in evidence.profiles.items()
    }
