"""The page as one HTML file that needs no other.

Names come from files of anybody. In the text jinja2 escapes them; to the script they go as
JSON in which nothing can end the element, and it puts them in as text only. A content
security policy allows the page's own scripts and style sheet, by their hashes, and no
request at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from caffe_fold import __version__
from caffe_fold.errors import show
from caffe_fold.inspection.table import gain_text, outcome, shape_text
from caffe_fold.page.page import Page
from caffe_fold.page.view import drawing, view_of
from caffe_fold.quantization.readiness import HURT

__all__ = ["rendered"]

_SCRIPTS = ("vendor/dagre.min.js", "layout.js", "page.js")


def rendered(page: Page) -> str:
    """The HTML of a page."""
    style = _file("page.css")
    scripts = [_without_source_map(_file(name)) for name in _SCRIPTS]
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"page": _file("page.html.j2")}),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        name=show, shape=shape_text, gain=gain_text, outcome=outcome, scientific=_scientific
    )
    return environment.get_template("page").render(
        view=view_of(page),
        version=__version__,
        hurt=f"{HURT:g}",
        policy=_policy(style, scripts),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        data=Markup(_json(drawing(page))),
        licence=_file("vendor/dagre-LICENSE"),
    )


def _file(name: str) -> str:
    return (resources.files("caffe_fold.page") / name).read_text(encoding="utf-8")


def _without_source_map(script: str) -> str:
    return re.sub(r"(?m)^//# sourceMappingURL=.*$", "", script).strip() + "\n"


def _policy(style: str, scripts: list[str]) -> str:
    allowed = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _json(data: Any) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _scientific(value: float) -> str:
    return f"{value:.1e}"
