"""The page: one HTML file with its styles and scripts inside, the same for everybody; what it shows it asks for."""

import base64
import hashlib
from functools import cache
from pathlib import Path

import reports.page

HERE = Path(__file__).parent / "static"
SCRIPTS = ("show.js", "live.js")


@cache
def page() -> str:
    """The whole file."""
    html = (HERE / "live.html").read_text(encoding="utf-8")
    return html.replace("/*styles*/", _style()).replace("/*script*/", _script())


def _style() -> str:
    return (Path(reports.page.__file__).parent / "static" / "page.css").read_text(encoding="utf-8") + (
        HERE / "live.css"
    ).read_text(encoding="utf-8")


def _script() -> str:
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# Nothing runs but this script, and nothing is loaded or asked but from here: whatever a model writes.
POLICY = (
    f"default-src 'none'; script-src {_hash(_script())}; style-src {_hash(_style())}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
