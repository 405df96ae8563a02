"""The checks of a log, from what was counted of its splits. docs/validation.md gives the reasons for the thresholds."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from data_pipeline.schema import SCALAR, VARIABLE, Column, Schema
from data_pipeline.statistics import SplitStatistics
from data_pipeline.times import DAY, day_name
from data_pipeline.validate_findings import Finding
from data_pipeline.validate_profile import Profile
from data_pipeline.validate_sketches import ALIKE, FEWEST, CategoryCounts, OrderCounts

LEAK_AUC, LEAK_ROWS = 0.98, FEWEST * ALIKE  # and rows with and without a label, below which it is not checked
BROKEN_WARNING, BROKEN_ERROR = 0.05, 0.5  # of a level's labels without the gate before it
MISSING_INFO = 0.5  # of the values of a column
COLLISIONS_INFO, COLLISIONS_WARNING = 0.25, 0.5  # of the distinct values that share a bucket
IDENTIFIER, IDENTIFIER_ROWS = 0.9, 1_000  # distinct values a present one, of so many
FLOAT_IDS = 0.5  # of the numbers of a column
DRIFT_BITS = 0.1
UNSEEN, UNSEEN_VALUES = 0.9, 100  # of the values of a split, of so many
REPEATED = SHARED = 0.01  # of the rows
TIMES = 0.5  # of the values of a column that is named as one of times
RATE_FACTOR, DEVIATIONS = 2, 5  # of a rate
EXPECTED = 20  # positives by the rate of training, of which none came
THIN_DAY = 0.1  # of the median day's rows


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What the checks look at.

    Attributes:
      schema: The columns and levels.
      profiles: {split: what was counted of it}, `train` among them.
      statistics: {split: its statistics}; of the rows that were read, or of `statistics.json`.
      stored: The splits of `statistics.json`, to be compared with what was read; empty where there is none.
    """

    schema: Schema
    profiles: Mapping[str, Profile]
    statistics: Mapping[str, SplitStatistics]
    stored: Mapping[str, SplitStatistics] = dataclasses.field(default_factory=dict)

    @property
    def train(self) -> Profile:
        """The training split."""
        return self.profiles["train"]

    @property
    def others(self) -> dict[str, Profile]:
        """The splits that are compared with it."""
        return {name: profile for name, profile in self.profiles.items() if name != "train"}

    @functools.cached_property
    def aucs(self) -> dict[str, dict[str, float]]:
        """{column: {label: AUC of the column alone}} on the training split; NaN for labels of too few rows."""
        return {
            name: {
                label: area if self.rarer(label) >= LEAK_ROWS else math.nan
                for label, area in zip(self.train.labels, counts.aucs())
            }
            for name, counts in self.train.columns.items()
        }

    def rarer(self, label: str) -> int:
        """Returns the rows of the training split with a label, or without it if they are fewer."""
        happened = self.train.happened[label]
        return min(happened, self.train.rows - happened)

    @functools.cached_property
    def drift(self) -> dict[str, dict[str, float]]:
        """{column: {split: divergence from the training split, bits}}."""
        return {
            name: {split: profile.columns[name].drift(counts) for split, profile in self.others.items()}
            for name, counts in self.train.columns.items()
        }

    def counts(self, split: str, kind: type) -> Iterator[tuple[str, Any]]:
        """Yields (column, counts) of the columns of a split whose counts are of a kind."""
        return ((name, c) for name, c in self.profiles[split].columns.items() if isinstance(c, kind))

    def figures(self) -> Iterator[tuple[Column, int, int, Mapping[str, Any]]]:
        """Yields (input, present values, missing values, figures) of the training split's statistics."""
        columns = self.statistics["train"].columns if "train" in self.statistics else {}
        for column in self.schema.inputs:
            if column.name in columns:
                figures = columns[column.name]
                yield column, figures["count"], figures["missing"], figures


def level_rates(statistics: SplitStatistics) -> dict[str, float]:
    """Returns the rate of each level, empty for a split without rows."""
    return statistics.rates() if statistics.rows else {}


def positives(statistics: SplitStatistics, level: str) -> int:
    """Returns the rows on which a level happened, by labels that keep the hierarchy."""
    return round(level_rates(statistics).get(level, 0) * statistics.rows)


def departs(happened: int, rows: int, rate: float) -> bool:
    """Whether a rate is another one by a factor of two or more, and not by chance."""
    found = happened / max(rows, 1)
    by_chance = DEVIATIONS * math.sqrt(ALIKE * rate * (1 - rate) / max(rows, 1))
    return abs(found - rate) > by_chance and not rate / RATE_FACTOR <= found <= rate * RATE_FACTOR


def hierarchy(evidence: Evidence) -> Iterator[Finding]:
    """Labels without the gate before them, by kind."""
    for split, statistics in evidence.statistics.items():
        for kind, rows in statistics.violations.items():
            share = rows / max(rows + positives(statistics, kind.partition(" without ")[0]), 1)
            if rows:
                severity = "error" if share > BROKEN_ERROR else "warning" if share > BROKEN_WARNING else "info"
                yield Finding(
                    *("hierarchy", severity, split, f"{rows:,} rows with {kind}, {share:.2%} of these labels"),
                    "see why the log has them; data.nesting says whether training drops the labels (coerce) or the rows (drop)",
                )


def label_leak(evidence: Evidence) -> Iterator[Finding]:
    """Features that tell a label by themselves, and labels of too few rows to find that out."""
    for label, happened in evidence.train.happened.items():
        if 0 < evidence.rarer(label) < LEAK_ROWS:
            yield Finding(
                *("label_leak", "info", f"train, label {label!r}"),
                f"not checked: it happened on {happened:,} of the {evidence.train.rows:,} rows read, and {LEAK_ROWS} with it "
                "and without it are needed",
                "look by hand at columns that may be written after it, or validate a log of more days",
            )
    for column, areas in evidence.aucs.items():
        told = {label: area for label, area in areas.items() if area > LEAK_AUC}
        if told:
            label = max(told, key=lambda name: told[name])
            same = "it is that label" if told[label] == 1 else "no honest feature does"
            yield Finding(
                *("label_leak", "error", f"train, column {column!r}"),
                f"alone it tells {label!r} with an AUC of {told[label]:.4f}: {same}",
                "it is an outcome, or written after one: give it the role 'ignored' and convert again, or leave it out of "
                "model.features",
            )


def levels(evidence: Evidence) -> Iterator[Finding]:
    """Levels that never happen, or always."""
    train = level_rates(evidence.statistics["train"]) if "train" in evidence.statistics else {}
    for split, statistics in evidence.statistics.items():
        for level, rate in level_rates(statistics).items():
            if rate == 1:
                yield Finding(
                    *("level", "info", f"{split}, level {level!r}", "it happened on every row"),
                    "the log has no rows without it: its tower learns nothing, and figures of it mean nothing",
                )
            expected = train.get(level, 0) * statistics.rows
            if rate == 0 and (split == "train" or expected >= EXPECTED):
                severity = "error" if split == "train" else "warning"
                yield Finding(
                    *("level", severity, f"{split}, level {level!r}", f"it never happened in {statistics.rows:,} rows"),
                    "check the columns and values of the level in schema.json, and whether the labels of these days had come",
                )


def missing_labels(evidence: Evidence) -> Iterator[Finding]:
    """Behavior columns without a value."""
    for split, profile in evidence.profiles.items():
        for column, missing in profile.missing_labels.items():
            if missing:
                yield Finding(
                    *("missing_label", "warning", f"{split}, column {column!r}"),
                    f"{missing:,} of {profile.rows:,} labels are missing and read as 'did not happen'",
                    "fill them in, or leave the rows out of the log until their labels are known",
                )


def time_leak(evidence: Evidence) -> Iterator[Finding]:
    """Rows of other splits that are older than rows of training."""
    newest = evidence.train.newest
    if newest is None:
        yield Finding(
            *("time_leak", "info", "all splits", "no column and no shard says when rows were, so time was not checked"),
            "name the column, of times or of numbers of days, with --time_column, or convert with --shard_by_day",
        )
    for split, profile in evidence.others.items():
        if newest is not None and profile.older:
            share = profile.older / profile.rows
            yield Finding(
                *("time_leak", "warning", split),
                f"{share:.2%} of its rows are older than the newest of train, of {day_name(newest // DAY)}",
                "split by time (--split=date:FIRST_VALIDATION_DAY,FIRST_TEST_DAY): figures on days of training are too good",
            )


def late_features(evidence: Evidence) -> Iterator[Finding]:
    """Features that are stamped later than the impression."""
    for split, profile in evidence.profiles.items():
        for column, late in profile.late.items():
            if late and profile.stamped[column] > TIMES * profile.filled[column]:
                yield Finding(
                    *("late_feature", "warning", f"{split}, column {column!r}"),
                    f"{late:,} of its times ({late / profile.stamped[column]:.2%}) are later than the impression",
                    "unless it is a date that is known ahead (an expiry, a check-in), it was not known when the model would "
                    "have to predict: join it as of the impression, or give it the role 'ignored'",
                )


def missing(evidence: Evidence) -> Iterator[Finding]:
    """Inputs that have no value, or seldom one."""
    for column, present, absent, _ in evidence.figures():
        share = absent / max(present + absent, 1)
        if not present:
            yield Finding(
                *("missing", "warning", f"train, column {column.name!r}", "it has no value in any row"),
                "mend the join that fills it, or give it the role 'ignored'",
            )
        elif share > MISSING_INFO and column.shape != VARIABLE:
            yield Finding(
                *("missing", "info", f"train, column {column.name!r}", f"{share:.1%} of its values are missing"),
                "see whether it is filled for all rows that will be predicted",
            )


def constant(evidence: Evidence) -> Iterator[Finding]:
    """Inputs with one value everywhere."""
    for column, present, absent, figures in evidence.figures():
        one = figures["min"] == figures["max"] if column.dtype == "float" else figures["cardinality"] == 1
        if one and present and not absent and column.shape != VARIABLE:
            yield Finding(
                *("constant", "warning", f"train, column {column.name!r}", "it has the same value in every row"),
                "give it the role 'ignored': nothing can be learned from it",
            )


def identifiers(evidence: Evidence) -> Iterator[Finding]:
    """Inputs whose values do not come again."""
    for column, present, _, figures in evidence.figures():
        distinct = figures.get("cardinality", 0)
        if column.shape == SCALAR and present >= IDENTIFIER_ROWS and distinct > IDENTIFIER * present:
            yield Finding(
                *("identifier", "warning", f"train, column {column.name!r}"),
                f"it has about {distinct:,} values in {present:,} rows",
                "a value that does not come again cannot be learned: give it the role 'ignored', or a coarser value",
            )


def collisions(evidence: Evidence) -> Iterator[Finding]:
    """Values of hashed columns that share a bucket."""
    for column, _, _, figures in evidence.figures():
        distinct, buckets = figures.get("cardinality", 0), column.hashing.buckets if column.hashing else 0
        if distinct < 2 or not buckets:
            continue
        share = 1 - (1 - 1 / (buckets - 1)) ** (distinct - 1)
        if share > COLLISIONS_INFO:
            yield Finding(
                *("collisions", "warning" if share > COLLISIONS_WARNING else "info", f"train, column {column.name!r}"),
                f"of about {distinct:,} values in {buckets:,} buckets {share:.0%} are expected to share theirs",
                f"set its buckets to {5 * distinct:,}, in schema.json or model.hash_buckets",
            )


def numbers(evidence: Evidence) -> Iterator[Finding]:
    """Numbers that are infinite, or ids that became floats."""
    for split in evidence.profiles:
        for column, counts in evidence.counts(split, OrderCounts):
            if counts.infinite:
                yield Finding(
                    *("infinite", "error", f"{split}, column {column!r}", f"{counts.infinite:,} numbers are infinite"),
                    "the loss will not be finite: mend the division or logarithm they come from, or write them as missing",
                )
            elif counts.large > FLOAT_IDS * counts.present:
                yield Finding(
                    *("float_ids", "warning", f"{split}, column {column!r}"),
                    f"{counts.large / counts.present:.0%} of its numbers are above 2**24, where a float is not told from its "
                    "neighbors",
                    "ids and timestamps are int64 or string: mend the type in the schema and convert again",
                )


def drift(evidence: Evidence) -> Iterator[Finding]:
    """Columns whose values are distributed otherwise than in training, or are new."""
    for column, splits in evidence.drift.items():
        for split, bits in splits.items():
            if bits > DRIFT_BITS:
                yield Finding(
                    *("drift", "warning", f"{split}, column {column!r}"),
                    f"its Jensen-Shannon divergence from train is {bits:.3f} bits beyond chance",
                    "see whether its unit, coding or source changed between the splits; if the world did, train on later days",
                )
    for split in evidence.others:
        for column, counts in evidence.counts(split, CategoryCounts):
            if math.isnan(counts.unseen_share):
                yield Finding(
                    *("unseen", "info", f"{split}, column {column!r}"),
                    f"not told: train has too many values to say how many of its {counts.present:,} are new",
                    "nothing to mend; count them where the log was made if new values are in doubt",
                )
            elif counts.present >= UNSEEN_VALUES and counts.unseen_share > UNSEEN:
                yield Finding(
                    *("unseen", "warning", f"{split}, column {column!r}"),
                    f"{counts.unseen_share:.1%} of its values are none of train's",
                    "see whether it is coded or cast in another way (an id through a float, another salt); a column of values "
                    "that do not come again is no feature",
                )


def duplicates(evidence: Evidence) -> Iterator[Finding]:
    """Rows that are there twice, in a split or in two."""
    for split, profile in evidence.profiles.items():
        share = profile.sample.repeated_share
        if share:
            yield Finding(
                *("duplicates", "warning" if share > REPEATED else "info", split),
                f"{share:.2%} of its rows are copies, equal in all columns to a row before",
                "see whether a file was read twice or an event sent twice; leave copies out before the conversion",
            )
    for split, profile in evidence.others.items():
        share = profile.sample.share_in(evidence.train.sample)
        if share > SHARED:
            yield Finding(
                *("shared_rows", "warning", split, f"{share:.2%} of its rows are in train too, equal in all columns"),
                "split again without copies: the model is evaluated on what it learned by heart",
            )


def shared_groups(evidence: Evidence) -> Iterator[Finding]:
    """Groups of other splits that are in training too."""
    for split, profile in evidence.others.items():
        for column, groups in profile.groups.items():
            share = groups.share_in(evidence.train.groups[column])
            if share:
                yield Finding(
                    *("shared_groups", "info", f"{split}, column {column!r}"),
                    f"{share:.1%} of its rows are of groups that train has rows of too",
                    "users come again; a session or search that is in both tells its own outcome: split by time",
                )


def rates(evidence: Evidence) -> Iterator[Finding]:
    """Rates that change between splits."""
    train = level_rates(evidence.statistics["train"])
    for split in evidence.others:
        statistics = evidence.statistics[split]
        for level, rate in train.items():
            if departs(positives(statistics, level), statistics.rows, rate):
                yield Finding(
                    *("rates", "warning", f"{split}, level {level!r}"),
                    f"its rate is {level_rates(statistics)[level]:.4%}, in train {rate:.4%}",
                    "see whether its label was logged in the same way, and had the same time to come",
                )


def days(evidence: Evidence) -> Iterator[Finding]:
    """Days that are missing, thin, or of another rate than their split."""
    names = [level.name for level in evidence.schema.levels]
    for split, profile in evidence.profiles.items():
        counted = profile.days.days
        if len(counted) < 2:
            continue
        gone = sorted(set(range(min(counted), max(counted))) - set(counted))
        if gone:
            yield Finding(
                *("days", "warning", split),
                f"{len(gone):,} days between its first and last have no row, the first is {day_name(gone[0])}",
                "see whether their log was lost",
            )
        rows, *happened = np.sum(list(counted.values()), axis=0)
        median = np.median([counts[0] for counts in counted.values()])
        for day, counts in sorted(counted.items()):
            if counts[0] < THIN_DAY * median:
                yield Finding(
                    *(
                        "days",
                        "info",
                        f"{split}, {day_name(day)}",
                        f"{counts[0]:,} rows, of {median:,.0f} on a median day",
                    ),
                    "see whether the day is whole",
                )
            for level, total, of_day in zip(names, happened, counts[1:]):
                if departs(of_day, counts[0], total / rows):
                    yield Finding(
                        *("days", "warning", f"{split}, {day_name(day)}, level {level!r}"),
                        f"its rate is {of_day / counts[0]:.4%}, over all days {total / rows:.4%}",
                        "see whether its label was logged that day, and had the time to come; leave the day out if not",
                    )


def stored_statistics(evidence: Evidence) -> Iterator[Finding]:
    """A `statistics.json` that is not of these rows."""
    for split, stored in evidence.stored.items():
        read = evidence.statistics.get(split)
        if read and dict(stored.label_patterns) != dict(read.label_patterns):
            yield Finding(
                *("statistics", "error", f"{split}, statistics.json"),
                f"it tells of {stored.rows:,} rows with other labels than the {read.rows:,} of the shards",
                "shards were added, taken away or changed since: convert the log again, or remove the file to have it counted",
            )


Check = Callable[[Evidence], Iterator[Finding]]

SAMPLE_CHECKS: tuple[Check, ...] = (
    *(
        hierarchy,
        label_leak,
        levels,
        missing_labels,
        late_features,
        missing,
        constant,
        identifiers,
        collisions,
        numbers,
    ),
)
"""The checks that hold on a sample of the training split beside the statistics of all of it."""

CHECKS: tuple[Check, ...] = (
    *SAMPLE_CHECKS,
    time_leak,
    drift,
    duplicates,
    shared_groups,
    rates,
    days,
    stored_statistics,
)
