"""What validation says of a log: findings by severity, as text and as JSON."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from hm3_tf.errors import DataError

SEVERITIES = ("error", "warning", "info")
"""From worst: a model trained on the log is wrong; it may be; worth knowing."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that was found in a log.

    Attributes:
      check: Name of the check, as docs/validation.md lists them.
      severity: One of `SEVERITIES`.
      where: Split, column or file.
      what: What was found, with its figures.
      remedy: What to do.
    """

    check: str
    severity: str
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.check}: {self.where}: {self.what}; {self.remedy}"


@dataclasses.dataclass(frozen=True)
class Validation:
    """The result of a validation.

    Attributes:
      data_dir: The data folder.
      rows: {split: rows that were read}.
      findings: What was found, in the order of the checks.
      columns: {column: {"auc": {label: AUC of the column alone}, "drift": {split: bits}, "unseen": {split: share}}}.
      days: {split: {day: {"rows": rows, level: rate}}}.
    """

    data_dir: str
    rows: Mapping[str, int]
    findings: tuple[Finding, ...]
    columns: Mapping[str, Mapping[str, Any]]
    days: Mapping[str, Mapping[str, Any]]

    def of(self, severity: str) -> tuple[Finding, ...]:
        """Returns the findings of a severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    @property
    def worst_first(self) -> tuple[Finding, ...]:
        """The findings, errors before warnings before infos."""
        return tuple(finding for severity in SEVERITIES for finding in self.of(severity))

    @property
    def summary(self) -> str:
        """How many findings there are of each severity."""
        return ", ".join(f"{severity} {len(self.of(severity))}" for severity in SEVERITIES)

    def as_text(self) -> str:
        """Returns the rows of the splits and the findings, for a terminal."""
        rows = ", ".join(f"{split} {count:,}" for split, count in self.rows.items())
        lines = [f"{self.data_dir}: {self.summary} (rows: {rows or 'none'})"]
        for finding in self.worst_first:
            lines += [
                f"  {finding.severity:<8} {finding.check:<12} {finding.where}: {finding.what}",
                f"  {'':<8} {'':<12} -> {finding.remedy}",
            ]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Returns all of it as JSON, with the number of findings of each severity."""
        counts = {severity: len(self.of(severity)) for severity in SEVERITIES}
        findings = [dataclasses.asdict(finding) for finding in self.worst_first]
        parts = {"data_dir": self.data_dir, "rows": self.rows, "counts": counts, "findings": findings}
        return json.dumps({**parts, "columns": self.columns, "days": self.days}, indent=1)

    def refuse_errors(self) -> None:
        """Ends the validation of a log with errors.

        Raises:
          DataError: There is a finding of severity `error`; the first is told.
        """
        errors = self.of("error")
        if errors:
            first = errors[0]
            raise DataError(
                f"{self.data_dir}: expected a log without errors, found {len(errors)}; the first, {first.check} of "
                f"{first.where}: {first.what}; {first.remedy}"
            )
