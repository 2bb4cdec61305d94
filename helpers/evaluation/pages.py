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

from helpers.core.errors import EvaluationError
from helpers.core.files import write_text
from helpers.core.text import visible


def embed_json(data: object) -> str:
    """Write JSON that is safe inside a `script` element.

    Args:
        data: Anything `json` can write.

    Returns:
        JSON in ASCII, in which "<", ">" and "&" are escapes, so that no text in it can end the element.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def read_part(name: str) -> str:
    r"""Read a template, style sheet or script that comes with the package.

    Args:
        name: A file name in `helpers/evaluation/templates`.
    """
    return files("helpers.evaluation").joinpath("templates", name).read_text(encoding="utf-8").replace("\r\n", "\n")


def render_page(template: str, *, styles: tuple[str, ...], script: str, context: dict[str, Any]) -> str:
    """Fill a page template; every value is escaped.

    Args:
        template: File name of a jinja2 template that has places for `policy`, `styles` and `script`.
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
    code = read_part(script)
    # Our own files, not anybody's data: these are the only texts that go in unescaped.
    parts = {"policy": _policy(code), "styles": Markup("\n".join(map(read_part, styles))), "script": Markup(code)}  # noqa: S704
    return environment.get_template(template).render(**context, **parts)


def _policy(script: str) -> str:
    """Write the content security policy that runs this script, shows embedded pictures, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def write_page(path: str | Path, page: str) -> Path:
    """Write a page as UTF-8.

    Raises:
        EvaluationError: The path is a folder.
        RunError: The disk refuses.
    """
    path = Path(path)
    if path.is_dir():
        raise EvaluationError(
            "path", "a file name for the page", str(path), f"Use {path / 'report.html'} for instance."
        )
    write_text(path, page)
    return path
