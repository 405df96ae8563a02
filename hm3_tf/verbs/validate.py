"""`hm3 validate`: what is wrong with a data folder."""

from collections.abc import Sequence

from absl import flags

from hm3_tf.errors import UsageError
from hm3_tf.verbs.shared import define_bad_records, explain_extra, string
from hm3_tf.verbs.verb import Verb


def _define(values: flags.FlagValues, _arguments: Sequence[str]) -> None:
    string(values, "data_dir", None, "Data folder.")
    string(values, "output", None, "Report to write: its name ends in .html or .json.")
    string(
        *(values, "time_column", None),
        "Column that says when each row was, of dates, times or numbers of days; default one named date, day, timestamp, ... "
        "that holds dates or times.",
    )
    define_bad_records(values)


def _run(values: flags.FlagValues) -> None:
    output = values.output or ""
    if output and not output.endswith((".html", ".json")):
        raise UsageError(f"--output: expected a name that ends in .html or .json, got {output!r}")
    if output.endswith(".html"):
        try:
            from hm3_tf.report.validation import render_validation
        except ModuleNotFoundError as error:
            explain_extra("report", ("jinja2",), error)
            raise
    from data_pipeline import storage
    from data_pipeline.folder import DataFolder
    from data_pipeline.validate import validate

    most = values.max_bad_records if values.on_error == "skip" else None
    validation = validate(DataFolder.open(values.data_dir, most), values.time_column)
    if output:
        storage.write_text(output, render_validation(validation) if output.endswith(".html") else validation.to_json())
    print(validation.as_text())
    validation.refuse_errors()


VERB = Verb("say what is wrong with a data folder", _define, _run, ("data_dir",))
