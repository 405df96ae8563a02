"""The page of a validation."""

from data_pipeline.validate_findings import Validation
from hm3_tf.report.templates import render_template


def render_validation(validation: Validation) -> str:
    """Returns findings, figures of the columns and rates a day as one HTML page, which needs nothing but itself."""
    return render_template("validation.html", validation=validation)
