"""The page of a validation."""

import jinja2

from data_pipeline.validate_findings import Validation


def render_validation(validation: Validation) -> str:
    """Returns findings, figures of the columns and rates a day as one HTML page, which needs nothing but itself."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hm3_tf.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("validation.html").render(validation=validation)
