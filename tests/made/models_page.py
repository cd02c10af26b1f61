"""The table of families in docs/models.md: `python -m tests.made.models_page` runs `check` on a tiny model of each and writes it."""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.made.families import FAMILIES, make_family

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- families: made by `python -m tests.made.models_page` -->\n", "<!-- end of families -->\n"
HEAD = "| family | read | answered, steered in four scopes | `bake --add` | `bake --ablate` |\n|---|---|---|---|---|\n"
PARTS = {
    "read": ("weights", "blocks", "user's text", "BOS once", "control tokens", "padded batch", "logit lens"),
    "answered": ("cache", "answers", "steered, prompt-last", "steered, prompt", "steered, generated", "steered, all"),
    "add": ("bake --add",),
    "ablate": ("bake --ablate",),
}
ALWAYS = ("gpt2", "gemma2", "falcon-alibi", "mamba", "phi3-longrope")


def row(name: str, checks: Sequence[Any]) -> str:
    """A family's line: `yes` where all checks of a part hold, `refused` where one is, `WRONG` elsewhere."""
    known = {one.name: one for one in checks}
    assert known.keys() <= {check for names in PARTS.values() for check in names}
    words = []
    for names in PARTS.values():
        found = [known[check] for check in names if check in known]
        odd = [one for one in found if not one.holds]
        refused = odd and all(one.found.startswith("refused") for one in odd)
        words.append("refused" if refused else "WRONG" if odd or not found else "yes")
    return f"| {name} | {' | '.join(words)} |"


def rows() -> dict[str, str]:
    """The page's lines, by family."""
    lines = PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0].removeprefix(HEAD).splitlines()
    return {line.split(" ")[1]: line for line in lines}


def third() -> tuple[str, list[str]]:
    """The families that a run of the tests takes, and why: some always, of the others a third, drawn by HEAD's hash, or else by
    the date; all of them where FAMILIES is `all`."""
    if os.environ.get("FAMILIES") == "all":
        return "all families", list(FAMILIES)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()  # fmt: skip
    seed = head or date.today().isoformat()
    which = int(sha256(seed.encode()).hexdigest(), 16) % 3
    others = [name for name in FAMILIES if name not in ALWAYS]
    return f"third {which + 1} of 3 of the families, by {seed[:12]}; FAMILIES=all takes all", [
        *ALWAYS,
        *others[which::3],
    ]


def main() -> None:
    """Write the page's table."""
    from interventions import open_model
    from interventions.carried.checks import every_check
    from tests.made.models import CONTROL, make_tiny

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        tiny = make_tiny(Path(folder) / "tiny", CONTROL)
        for name in FAMILIES:
            lines.append(row(name, every_check(open_model(str(make_family(name, tiny, Path(folder) / name))))))
            print(lines[-1], flush=True)  # noqa: T201
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + HEAD + "".join(f"{line}\n" for line in lines) + END + rest.partition(END)[2], "utf-8")  # fmt: skip


if __name__ == "__main__":
    main()
