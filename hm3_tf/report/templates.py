"""The HTML templates of this folder."""

from typing import Any

import jinja2


def render_template(name: str, **values: Any) -> str:
    """Returns the page of a template, with all text escaped.

    Args:
      name: Its file.
      **values: What it shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hm3_tf.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name).render(**values)
