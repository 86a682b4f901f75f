"""Templates, and what may safely be put into them."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from visus.reporting import wording

_TEXTS = files("visus.reporting") / "templates"
_SCRIPTS = ("charts.js", "pictures.js", "page.js")


def page_template(name: str, *, live: str | None = None) -> jinja2.Template:
    """A template of a page with its style and script; what is put into it is escaped.

    A page that asks for itself again has `live.js` too, and `live` marks this state of it.
    """
    script = "\n".join(_read(each) for each in (*_SCRIPTS, *(["live.js"] if live else [])))
    environment = _environment(autoescape=True)
    environment.globals |= {
        "live": live,
        "script": Markup(script),
        "script_hash": _policy_hash(script),
        "style": Markup(_read("style.css")),
    }
    return environment.get_template(name)


def text_template(name: str, **filters: Any) -> jinja2.Template:
    """A template of plain text, with filters of its own, which must do the escaping."""
    environment = _environment(autoescape=False)
    environment.filters |= filters
    return environment.get_template(name)


def as_json(document: Any) -> Markup:
    """`document` as it may stand in a script element: nothing in it ends that, and all of it is ASCII."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _environment(*, autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("visus.reporting"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "range": wording.percent_range,
        "share": wording.share_of_hundred,
        "count": wording.count,
        "duration": wording.duration,
    }
    return environment


def _policy_hash(script: str) -> Markup:
    """What the page's policy lets run: this script, and none that came in with a name."""
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'")


def _read(name: str) -> str:
    return (_TEXTS / name).read_text(encoding="utf-8")
