"""What a report costs: the time and memory to write it, its size, and how long Chromium takes to draw and to search it.

Without arguments: a made-up run of 20,000 answers (5,000 prompts in 4 arms) of 1,200 characters and all other tables.
With run directories, such as runs/demo: those, as they are.
Run: .venv/bin/python benchmarks/report_size.py [RUN ...]
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
PROMPTS, CHARACTERS = 5000, 1200
ARMS = ["baseline", "fixed:strength=-0.2", "fixed:strength=-0.4", "random"]
# Each is done in the page and timed until the next frame is painted.
ACTIONS = {
    "search a word": "find('f-text', 'kettle', 'submit')",
    "search a phrase": "find('f-text', 'kettle window', 'submit')",
    "search what no answer has": "find('f-text', 'zzzz', 'submit')",
    "another arm": "find('f-arm', '2', 'change')",
    "changed by steering": "find('f-changed', 'verdict', 'change')",
    "another text": "find('f-changed', 'text', 'change')",
    "next page": "document.getElementById('p-next').click()",
    "last page": "find('p-page', document.getElementById('p-page').max, 'change')",
}
TIMED = """new Promise((done) => {
  const find = (id, value, how) => {
    const field = document.getElementById(id);
    field.value = value;
    if (how === 'submit') { document.getElementById('samples-form').requestSubmit(); }
    else { field.dispatchEvent(new Event('change', { bubbles: true })); }
  };
  document.getElementById('samples-form').reset();
  setTimeout(() => {
    const start = performance.now();
    ACTION;
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - start), 0));
  }, 300);
})"""


def made_up(folder):
    """A run directory of 20,000 answers."""
    from tests.made.runs import synthetic_run  # pyright: ignore[reportMissingImports]  # of tests/, see above

    def longer(column, text):
        return (text + " ") * (CHARACTERS // (len(text) + 1) + 1) if column == "response" else text

    return synthetic_run(folder, PROMPTS, arms=ARMS, texts=longer)


def written(run, page):
    """Write the page as a user does, in a process of its own."""
    report = [sys.executable, "cli.py", "--json", "--run", str(run), "report", "--out", str(page)]
    # The system's own count of the child, which `/usr/bin/time -v` shows too.
    watch = "import json,resource,subprocess,sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); u = resource.getrusage(resource.RUSAGE_CHILDREN); print(json.dumps([u.ru_utime + u.ru_stime, u.ru_maxrss]))"  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", watch, *report], check=True, capture_output=True, text=True, cwd=HERE.parent
    )
    worked, peak = json.loads(done.stdout)
    print(
        f"{run}: written in {time.perf_counter() - start:.1f} s ({worked:.1f} s of processor), peak {peak / 1024:.0f} MiB, "
        f"{page.stat().st_size / 1e6:.2f} MB"
    )


def drawn(page):
    """Open it in Chromium, twice, as the first start of a browser reads itself from the disk."""
    from tests.browser import chromium  # pyright: ignore[reportMissingImports]  # of tests/, see above

    with chromium() as tab:
        opened = [tab.open(page, settled="document.documentElement.dataset.drawn") for _ in range(2)][-1]
        inside = tab.run("Number(document.documentElement.dataset.drawn)") / 1000
        charts, rows = (tab.run(f"document.querySelectorAll('{what}').length") for what in (".plot svg", "tr"))
        print(f"  Chromium: drawn {inside:.2f} s after the page began to load ({opened:.2f} s seen from outside), {charts} charts, {rows} table rows in the document")  # fmt: skip
        if tab.run("Boolean(document.getElementById('samples-form'))"):
            took = {name: tab.run(TIMED.replace("ACTION", action)) for name, action in ACTIONS.items()}
            print("  " + ", ".join(f"{name} {value:.0f} ms" for name, value in took.items()))
        if tab.complaints:
            print(f"  complaints: {tab.complaints}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        given = [Path(word).resolve() for word in sys.argv[1:]]
        for at, run in enumerate(given or [made_up(Path(scratch) / "run")]):
            page = Path(scratch) / f"report-{at}.html"
            written(run, page)
            drawn(page)
