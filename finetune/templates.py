"""Open the templates of pages, whose only script the browser knows by its digest."""

import base64
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def open_templates(package: str) -> Environment:
    """Return the templates of a package; every value that they insert is escaped.

    They insert their file `page.js` as `script`. A policy that allows `script_hash` alone makes the browser refuse any
    other script.

    Args:
        package: name of the package with the folder `templates`.
    """
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = environment.get_template("page.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    environment.globals |= {"script": Markup(script), "script_hash": f"sha256-{digest}"}
    return environment
