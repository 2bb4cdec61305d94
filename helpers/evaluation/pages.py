"""What the report and the voting page share: templates, escaping, and the policy that keeps a page off the network.

Everything a model, a voter or a prompt file says is data. Three layers see to it: jinja2 escapes each value; what a
script reads is JSON that cannot close its own tag; and the page's policy runs the one script it was written with, known
by its hash, and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from helpers.core.files import write_text
from helpers.core.text import visible


def embed_json(data: object) -> str:
    """Write JSON in which "<", ">" and "&" are escapes, so that no text in it can end a `script` element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def read_part(name: str) -> str:
    r"""Read a template, style sheet or script that comes with the package."""
    return files("helpers.evaluation").joinpath("templates", name).read_text(encoding="utf-8").replace("\r\n", "\n")


def write_page(path: Path, name: str, context: dict[str, Any]) -> Path:
    """Fill a page's template and write it; every value is escaped.

    Args:
        name: "report" or "vote": the name of its template, style sheet and script.
        context: The values the template names. Text goes through `visible`, then through HTML escaping.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def seen(value: object) -> object:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FunctionLoader(read_part),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=seen,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    code = read_part(f"{name}.js")
    styles = "\n".join(map(read_part, ("theme.css", f"{name}.css")))
    # Our own files, not anybody's data: these are the only texts that go in unescaped.
    parts = {"policy": _policy(code), "styles": Markup(styles), "script": Markup(code)}  # noqa: S704
    write_text(path, environment.get_template(f"{name}.html").render(**context, **parts))
    return path


def _policy(script: str) -> str:
    """Write the content security policy that runs this script, shows embedded pictures, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
