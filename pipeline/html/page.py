"""Render the Jinja2 templates of this folder: one HTML file a page, without outside resources.

Values come from logs, which are hostile input. Two rules hold for every `{{ value }}` of every template:
Jinja2 escapes it (autoescape), and a character that does not print, hides text or reorders it is shown by its code.
No Python code here or elsewhere writes HTML, so nothing has to be marked as safe.
"""

import base64
import hashlib
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.errors import printable


def render(template: str, **content: object) -> str:
    """Render `template`, a file of this folder, with `content`. Raises UndefinedError for a name that is not in it."""
    return _environment().get_template(template).render(content)


def printable_runs(text: str) -> Iterator[tuple[str, bool]]:
    """Cut `text` into runs: (characters that print, True), and (the codes of characters that do not, False)."""
    for prints, characters in groupby(text, str.isprintable):
        yield printable("".join(characters)), prints


def percent(share: float, digits: int = 3) -> str:
    """Write a share as a percentage with so many significant digits: 3.89 %."""
    return f"{100 * share:.{digits}g} %"


@cache
def _environment() -> Environment:
    # PackageLoader asks the package's own loader, so templates are also found in a zip (spark-submit --py-files).
    environment = Environment(
        loader=PackageLoader("pipeline.html", "."),
        autoescape=True,
        finalize=_escape_unprintable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals["script_hash"] = _script_hash
    environment.filters |= {"percent": percent, "printable_runs": printable_runs, "thousands": "{:,}".format}
    return environment


def _script_hash(name: str) -> str:
    """Return the hash of a script of this folder, as a Content-Security-Policy names it."""
    text = _environment().get_template(name).render()
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _escape_unprintable(value: Any) -> Any:
    """Escape the characters that do not print in a value of a template, except line breaks.

    Markup of a macro is left as it is.
    """
    if isinstance(value, Markup):
        return value
    return "\n".join(map(printable, str(value).split("\n")))
