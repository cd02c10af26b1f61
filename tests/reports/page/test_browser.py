"""The report in a real Chromium: drawn, quiet, usable, and deaf to whatever text says."""

import itertools
import json

import polars as pl
import pytest

from reports.page import labels
from reports.page.compare import write_comparison
from reports.page.write import write_report
from tests.browser import chromium
from tests.made.runs import synthetic_run

pytestmark = pytest.mark.browser

DRAWN = "document.documentElement.dataset.drawn"
HOSTILE = [
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg onload=window.pwned=1>",
    "<svg><script>window.pwned=1</script></svg>",
    "'\"><img src=x onerror='window.pwned=1'>",
    "\" onmouseover=\"window.pwned=1\" x=\"",
    "' onfocus='window.pwned=1' autofocus='",
    "javascript:window.pwned=1",
    "<a href='javascript:window.pwned=1' id=samples-form>press</a>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<style>*{display:none}</style>",
    "</style><script>window.pwned=1</script>",
    "</title><script>document.title='pwned'</script>",
    "--><script>window.pwned=1</script><!--",
    "<!--<script>",
    "]]><script>window.pwned=1</script>",
    "${window.pwned=1}{{constructor.constructor('window.pwned=1')()}}",
    "\"}]}</script><script>window.pwned=1//",
    "'];window.pwned=1;['",
    "datum['x']||(window.pwned=1)",
    "{\"signal\":\"window.pwned=1\"}",
    "event.view.eval('window.pwned=1')",
    "constructor.constructor('window.pwned=1')()",
    "__proto__",
    "<meta http-equiv=refresh content='0;url=https://example.org'>",
    "<base href='https://example.org/'><form action=x><input name=x>",
    "\u202egnp.esrever\u202c \u2066\u2067\u200f left?",
    "\u0000\u0007\u001b[31mred\u009b\ufeff\u2028\u2029\U000e0041",
    "Z\u0351\u0352\u0353\u0354\u0355" * 40 + "\u0489" * 40,
    "x" * 1_000_000,
    "&lt;img src=x onerror=window.pwned=1&gt;&amp;#60;",
]  # fmt: skip


@pytest.fixture(scope="module")
def page():
    with chromium() as tab:
        yield tab


@pytest.fixture(autouse=True)
def fresh(request):
    if "page" in request.fixturenames:
        tab = request.getfixturevalue("page")
        tab.complaints.clear()
        tab.requests.clear()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = synthetic_run(tmp_path_factory.mktemp("run") / "whole", 120)
    write_report(folder, folder / "report.html")
    return folder / "report.html"


def quiet(page):
    """Nothing was logged, nothing was asked for, and every chart was drawn."""
    page.run("0")
    assert page.complaints == []
    assert {url.partition(":")[0] for url in page.requests} == {"file"}
    places = page.run("document.querySelectorAll('.plot').length")
    assert places == page.run("document.querySelectorAll('.plot svg .mark-group').length && [...document.querySelectorAll('.plot')]"
                              ".filter((p) => p.querySelector('svg') && p.querySelector('svg').clientHeight > 40).length")  # fmt: skip
    assert page.run("document.querySelectorAll('.failed').length") == 0
    return places


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_everything_is_drawn_without_a_word_or_a_request(page, report, width, dark):
    page.open(report, width=width, dark=dark, settled=DRAWN)
    assert quiet(page) >= 20
    assert page.run("document.documentElement.scrollWidth") == width
    ink, paper = (page.run(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert (sum(channels(ink)) > sum(channels(paper))) is dark
    text = page.run("getComputedStyle(document.querySelector('.plot svg text')).fill")
    assert channels(text) == channels(ink)  # charts take the page's ink


@pytest.mark.parametrize("width", [1280, 700, 390])
def test_no_label_of_the_trade_off_lies_on_another(page, tmp_path, width):
    arms = ["baseline", *(f"gated:layer=17,strength=-0.{at}" for at in (15, 3, 4, 45)), "random", "prompt-only"]
    folder = synthetic_run(tmp_path, 200, arms=arms)  # arms that move little: their points lie close together
    write_report(folder, folder / "report.html")
    page.open(folder / "report.html", width=width, settled=DRAWN)
    boxes = page.run("[...document.querySelectorAll('#trade-off .mark-text.role-mark text')].filter((e) => e.textContent)"
                     ".map((e) => { const b = e.getBoundingClientRect(); return [b.left, b.top + 2, b.right, b.bottom - 2]; })")  # fmt: skip
    assert len(boxes) >= 2
    assert not any(labels.overlap(a, b) for a, b in itertools.combinations(boxes, 2))
    edge = page.run("document.getElementById('trade-off').getBoundingClientRect().right")
    assert all(box[2] <= edge for box in boxes)


def channels(colour):
    return [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]


def count(page):
    page.run("new Promise((done) => setTimeout(done, 250))")
    return int(page.run("document.getElementById('samples-count').textContent.split(' of ')[0].replace(/,/g, '')"))


def choose(page, name, value):
    page.run(f"(() => {{ const f = document.getElementById({json.dumps(name)}); f.value = {json.dumps(value)};"
             " f.dispatchEvent(new Event('input', {bubbles: true})); f.dispatchEvent(new Event('change', {bubbles: true})); })()")  # fmt: skip


def option(page, name, text):
    return page.run(
        f"[...document.getElementById('{name}').options].find((o) => o.textContent === {json.dumps(text)}).value"
    )


def test_filters_and_search_find_what_polars_finds(page, report):
    page.open(report, settled=DRAWN)
    folder = report.parent
    generations, scores = (pl.read_parquet(folder / f"{name}.parquet") for name in ("generations", "scores"))
    phrases = scores.filter(pl.col("scorer") == "phrases").pivot(
        "arm", index=["dataset", "id", "category", "label"], values="verdict"
    )
    assert count(page) == 120
    choose(page, "f-scorer", option(page, "f-scorer", "phrases"))
    choose(page, "f-arm", option(page, "f-arm", "fixed\u00a0−0.4"))
    arm, before = pl.col("fixed:strength=-0.4"), pl.col("baseline")
    wanted = {
        ("f-set", option(page, "f-set", "xstest/safe")): pl.col("dataset") == "xstest/safe",
        ("f-category", option(page, "f-category", "Incomplete requests")): pl.col("category") == "Incomplete requests",
        ("f-label", option(page, "f-label", "benign")): pl.col("label") == "benign",
        ("f-verdict", "refuse"): arm == "refuse",
        ("f-changed", "verdict"): arm != before,
        ("f-changed", "from"): (before == "refuse") & (arm != "refuse"),
        ("f-changed", "to"): (before != "refuse") & (arm == "refuse"),
        ("f-changed", "broken"): (before != "broken") & (arm == "broken"),
    }
    for (field, value), expected in wanted.items():
        choose(page, field, value)
        assert count(page) == phrases.filter(expected).height, (field, value)
        choose(page, field, "")
    texts = generations.filter(pl.col("arm").is_in(["baseline", "fixed:strength=-0.4"]))
    for word in ("kettle", "CAN'T HELP", "no such words"):
        choose(page, "f-text", word)
        held = (
            pl.concat_str("prompt", pl.lit("\n"), "response")
            .str.to_lowercase()
            .str.contains(word.lower(), literal=True)
        )
        assert count(page) == texts.filter(held).select("dataset", "id").unique().height, word
    page.run("document.querySelector('button[type=reset]').click()")
    assert count(page) == 120
    assert quiet(page)


def test_differences_are_marked_word_by_word(page, tmp_path):
    folder = synthetic_run(tmp_path, 60, arms=["baseline", "random"])
    table = pl.read_parquet(folder / "generations.parquet")
    answer = (
        pl.when(pl.col("arm") == "baseline")
        .then(pl.lit("The cat sat on the red mat today."))
        .otherwise(pl.lit("The cat sat on the blue mat today."))
    )
    table.with_columns(answer.alias("response")).write_parquet(folder / "generations.parquet")
    write_report(folder, folder / "report.html")
    page.open(folder / "report.html", settled=DRAWN)
    assert page.run("[...document.querySelectorAll('del')].map((e) => e.textContent)") == ["red"] * 20
    assert page.run("[...document.querySelectorAll('ins')].map((e) => e.textContent)") == ["blue"] * 20
    assert (
        page.run("document.querySelector('.answer-text del').closest('.answer-text').textContent")
        == "The cat sat on the red mat today."
    )


def test_twenty_thousand_answers_stay_quick(page, tmp_path):
    import time

    folder = synthetic_run(tmp_path, 5000, arms=["baseline", "fixed:strength=-0.2", "fixed:strength=-0.4", "random"])
    start = time.process_time()
    write_report(folder, folder / "report.html")
    assert time.process_time() - start < 15  # of this process: the machine may be busy
    page.open(folder / "report.html", settled=DRAWN)
    assert quiet(page)
    assert page.run("document.querySelectorAll('#samples-body tr').length") == 20
    took = page.run("(() => { const t = performance.now(); const f = document.getElementById('f-text'); f.value = 'kettle window';"
                    " document.getElementById('samples-form').requestSubmit(); return performance.now() - t; })()")  # fmt: skip
    assert 0 < count(page) < 5000 and took < 2000
    page.run("document.getElementById('p-next').click()")
    assert page.run("document.getElementById('p-page').value") == "2"


def test_the_page_is_used_with_the_keyboard_alone(page, report):
    page.open(report, settled=DRAWN)
    seen = []
    for _ in range(60):
        page.key("Tab", 9)
        seen.append(page.run("document.activeElement.id || document.activeElement.tagName"))
        if seen[-1] == "BODY":  # past the last one
            break
        ring = page.run("getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none", seen[-1]  # where the focus is can be seen
    assert seen[0] == "A" and {"f-text", "f-arm", "f-changed"} <= set(seen)
    page.run("document.getElementById('p-next').focus()")
    page.key("Enter", 13)
    page.run("document.getElementById('p-next').click()")
    assert int(page.run("document.getElementById('p-page').value")) >= 2
    unnamed = "[...document.querySelectorAll('input,select,button')].filter((e) => !(e.labels?.length || e.textContent.trim())).length"
    assert page.run(unnamed) == 0
    assert page.run("[...document.querySelectorAll('.plot')].every((p) => p.getAttribute('aria-labelledby').split(' ')"
                    ".every((id) => document.getElementById(id)))")  # fmt: skip


def test_it_prints_whole_and_on_white(page, report):
    page.open(report, settled=DRAWN, dark=True)
    page.send("Emulation.setEmulatedMedia", media="print")
    assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert channels(page.run("getComputedStyle(document.body).color")) == [0, 0, 0]
    assert page.run("getComputedStyle(document.querySelector('.wide')).maxHeight") == "none"
    page.send("Emulation.setDeviceMetricsOverride", width=794, height=1123, deviceScaleFactor=1, mobile=False)  # A4
    assert page.run("document.documentElement.scrollWidth") == 794
    page.send("Emulation.setEmulatedMedia", media="")
    assert len(page.send("Page.printToPDF")["data"]) > 50_000


def test_hostile_text_in_every_column_runs_nothing_and_leaks_nothing(page, tmp_path):
    folder = hostile_run(tmp_path / "run")
    write_report(folder, folder / "report.html", assets=tmp_path / "assets")
    held_down(page, folder / "report.html")
    for at in range(pl.read_parquet(folder / "generations.parquet").select("dataset", "id").unique().height // 20 + 1):
        choose(page, "p-page", str(at + 1))
        page.run("document.querySelectorAll('button.more').forEach((b) => b.click())")
        unharmed(page)
    for field in ("f-arm", "f-scorer", "f-set", "f-category", "f-label", "f-verdict"):  # each hostile name, chosen
        for value in page.run(f"[...document.getElementById('{field}').options].map((o) => o.value)")[:40]:
            choose(page, field, value)
        unharmed(page)
        page.run("document.querySelector('button[type=reset]').click()")
    other = synthetic_run(tmp_path / "other", 60, texts=Hostile())
    write_comparison([folder, other], tmp_path / "compare.html")
    held_down(page, tmp_path / "compare.html")
    for path in (tmp_path / "assets").glob("*.svg"):
        page.open(path)
        assert (
            page.run("window.pwned") is None
            and page.run("document.querySelectorAll('script,image,foreignObject').length") == 0
        ), path.name


LONG_NAME = 20_000  # of the million characters: a name stands in thousands of rows


class Hostile:
    """Another hostile string for each text of a column; names stay apart, and arms keep their kind."""

    def __init__(self):
        self.turn: dict[tuple[str, str], int] = {}
        self.sets = -1

    def __call__(self, column, text):
        if column == "dataset":  # asked for prompt by prompt: there are few names of sets, but many strings
            self.sets += 1
            return f"{HOSTILE[self.sets % len(HOSTILE)][:LONG_NAME]} {text}"
        at = self.turn.setdefault((column, text), len([key for key in self.turn if key[0] == column]))
        string = HOSTILE[at % len(HOSTILE)]
        if column in ("response", "prompt", "token"):
            return string
        string = string[:LONG_NAME]
        return f"{text}{',' if ':' in text else ':'}{string}" if column == "arm" else f"{string} {text}"


def hostile_run(folder):
    """A run in which every column of text of every table holds every hostile string, and so does run.json."""
    arms = ["baseline", *(f"fixed:strength=-0.{at}" for at in range(1, len(HOSTILE) + 1))]
    synthetic_run(folder, 2 * len(HOSTILE), texts=Hostile(), arms=arms)
    for path in folder.rglob("*.parquet"):
        poisoned(pl.read_parquet(path), path.stem).write_parquet(path)
    record = json.loads((folder / "run.json").read_text())
    for at, entry in enumerate(record["artefacts"].values()):
        fields = ("command", "model", "revision", "dtype", "template", "tokenizer", "backend", "seed", "end")
        entry |= {name: HOSTILE[(at + k) % len(HOSTILE)] for k, name in enumerate(fields)}
        entry |= {"data": HOSTILE, "options": dict(zip(HOSTILE, HOSTILE[::-1], strict=True))}
        entry["versions"] = dict(zip(HOSTILE, HOSTILE[::-1], strict=True))
        entry["key"] = {"base": {"model": HOSTILE[at]}, "tuned": {"model": HOSTILE[at + 1]}}
    record["artefacts"] |= {
        string: dict(entry) for string, entry in zip(HOSTILE, list(record["artefacts"].values()) * 3, strict=False)
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


# What ties a run's tables together is made hostile by `synthetic_run`, so that rows still find each other.
TIED = {"generations": ("dataset", "id", "arm", "label", "prompt", "response"), "scores": ("dataset", "id", "arm"),
        "summary": ("dataset", "arm", "label", "scorer"), "prompts": ("label", "prompt")}  # fmt: skip
# What a report sorts rows by: hostile in the first rows, as it was in the others.
KNOWN = ("label", "split", "scorer", "verdict", "kind", "against", "text")


def poisoned(frame, name):
    """A table with every hostile string in every column of text, as far as it is no key."""
    if name not in ("generations", "prompts"):
        frame = pl.concat([frame] * (2 * len(HOSTILE) // frame.height + 1))
    columns = [
        column for column, kind in frame.schema.items() if kind == pl.String and column not in TIED.get(name, ())
    ]
    made = []
    for k, column in enumerate(columns):
        strings = [
            HOSTILE[(at + k) % len(HOSTILE)][: None if at < len(HOSTILE) else LONG_NAME] for at in range(frame.height)
        ]
        if column in KNOWN:
            strings[len(HOSTILE) :] = frame[column].to_list()[len(HOSTILE) :]
        made.append(pl.Series(column, strings, pl.String))
        assert set(strings) >= set(HOSTILE), (name, column)
    return frame.with_columns(made)


def held_down(page, path):
    page.open(path, settled=DRAWN)
    quiet(page)
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    for mark in range(0, 60, 5):  # tooltips hold names too
        place = page.run(f"(() => {{ const m = [...document.querySelectorAll('.plot path')][{mark}]; if (!m) return null;"
                         " m.scrollIntoView({block: 'center'}); const b = m.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()")  # fmt: skip
        if place:
            page.send("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    unharmed(page)


def unharmed(page):
    """No script ran, no element came of text, no hidden character is on the page, nothing stands outside of its place."""
    assert page.run("window.pwned") is None and page.run("document.title").startswith("Refusal")
    assert page.run("location.protocol") == "file:" and page.run("document.baseURI") == page.run("location.href")
    assert page.run("document.querySelectorAll('img,iframe,object,embed,base,link,style ~ style,[onerror],[onload],[onclick],[onmouseover],[onfocus],"
                    "a:not([href^=\"#\"])').length") == 0  # fmt: skip
    assert (
        page.run("document.querySelectorAll('form:not(.vega-bindings)').length") <= 1
        and page.run("document.querySelectorAll('meta').length") == 4
    )
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run(
        "(() => { const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); let n = 0;"
        " while (walk.nextNode()) { const t = walk.currentNode; if (t.parentElement.closest('script')) continue;"
        " if (/[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\\ufeff]/.test(t.data)) n++; } return n; })()"
    ) == 0  # fmt: skip
    assert page.run(
        "[...document.querySelectorAll('.answer-text')].every((e) => getComputedStyle(e).contain.includes('paint'))"
    )
    assert page.run(
        "[...document.querySelectorAll('.wide td')].every((e) => getComputedStyle(e).overflow !== 'visible')"
    )
    page.run("0")
    assert page.complaints == []
