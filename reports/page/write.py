"""The report: one HTML file that opens anywhere, offline, and runs nothing but its own scripts."""

import base64
import hashlib
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from data.contract import MAPS
from data.errors import UserError
from data.store.rundir import replacing
from reports.page import markup
from reports.page import wording as say
from reports.page.blocks import Prose, Samples, Section
from reports.page.run import Run, open_run
from reports.page.sections import ordered

Tables = tuple[Path, Sequence[str]]
STATIC = Path(__file__).parent / "static"

logger = logging.getLogger(__name__)


def write_report(
    folder: Path,
    path: Path,
    *,
    assets: Path | None = None,
    tables: Tables | None = None,
    map_of_activations: str = "pca",
) -> list[str]:
    """Write one self-contained HTML page of whatever the run directory holds.

    Args:
        folder: A run directory.
        path: The page.
        assets: Also write each chart as PNG and SVG and each table as CSV and parquet into this folder.
        tables: A folder, and the forms that each table is written there in, of `data.contract.TABLE_FORMATS`.
        map_of_activations: `pca` or `tsne`.

    Returns:
        Titles of the page's sections.

    Raises:
        UserError: There is nothing to report, or `run.json` is damaged.
    """
    if map_of_activations not in MAPS:
        raise UserError(f"unknown map {map_of_activations!r}; there are {', '.join(MAPS)}")
    run = open_run(folder)
    sections = [section for make in ordered(map_of_activations) if (section := make(run)) is not None]
    if not any(section.name not in ("provenance", "left-out") for section in sections):
        raise UserError(f"nothing to report in {folder}: run `python cli.py extract vectors trace evaluate` first")
    for fault in run.faults:
        logger.warning("left out of the report: %s", fault)
    model = run.first("model") or "a model"
    write_page(path, f"Refusal in {say.name(model)}", header(run), sections)
    write_files(sections, assets, tables)
    return [section.title for section in sections]


def write_files(sections: list[Section], assets: Path | None, tables: Tables | None) -> None:
    """What is asked for beside the page."""
    if assets is not None:
        from reports.page.assets import write_assets

        write_assets(sections, assets)
    if tables is not None:
        from reports.page.tables import write_tables

        write_tables(sections, *tables)


def header(run: Run) -> list[Prose]:
    """What was run on which model, the words to read it with, and what could not be read."""
    parts = [
        f"revision {say.name(revision, 20)}" if (revision := run.first("revision")) else "",
        say.name(run.first("dtype")),
    ]
    generations = run.table("generations")
    if generations is not None:
        prompts = generations.select("dataset", "id").unique().height
        sets = generations["dataset"].unique(maintain_order=True).to_list()
        parts.append(f"{say.counted(prompts, 'prompt')} from {say.listed(sets)}")
        parts.append(say.counted(len(run.arms()), "arm"))
    ends = sorted(str(entry["end"]) for entry in run.records.values() if entry.get("end"))
    parts += [f"made {say.name(ends[-1][:10])}"] if ends else []
    told = [Prose(" · ".join(part for part in parts if part), "meta"), Prose(say.WORDS, "note")]
    return told + [Prose(f"Left out, as it could not be read: {fault}", "warning") for fault in run.faults]


def write_page(path: Path, title: str, top: list[Prose], sections: list[Section]) -> None:
    """Put a page together and write it whole."""
    with replacing(path) as unfinished:
        unfinished.write_text(page(title, top, sections), encoding="utf-8", errors="backslashreplace")


def page(title: str, top: list[Prose], sections: list[Section]) -> str:
    """The whole page, with a policy that lets its own scripts and styles through by their hashes and nothing else.

    `default-src 'none'`: no network. No `unsafe-eval`: charts are drawn by Vega's expression interpreter. No
    `unsafe-inline`: what a text might smuggle in would not run.
    """
    scripts = []
    if any(section.charts() for section in sections):
        scripts += [vega(), _asset("charts.js")]
    if any(isinstance(block, Samples) for section in sections for block in section.blocks):
        scripts.append(_asset("samples.js"))
    style = _asset("page.css")
    allowed = " ".join(map(_hash, scripts)) or "'none'"
    policy = f"default-src 'none'; base-uri 'none'; form-action 'none'; script-src {allowed}; style-src {_hash(style)}"
    links = "".join(
        f'<a href="#{part.name}">{markup.escape(part.name.replace("-", " ").capitalize())}</a>' for part in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{markup.escape(title)}</title><style>{style}</style></head><body>"
        f'<header><h1 dir="auto">{markup.escape(title)}</h1>{"".join(map(markup.prose, top))}</header>'
        f'<nav aria-label="Sections">{links}</nav><main>{"".join(map(markup.section, sections))}</main>'
        f"{''.join(f'<script>{script}</script>' for script in scripts)}</body></html>\n"
    )


@cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed with its expression interpreter, as one script."""
    import vl_convert

    return vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]  # the stub lacks the default


def _asset(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
