"""`verify`: is a run directory what it says? What can be computed again is, and held against what is there."""

import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from commands.framework.app import Session, command
from commands.framework.options import SEED, Declared
from commands.framework.output import Summary, emit
from commands.framework.settings import Settings
from commands.framework.types import Numbers
from commands.verifying.outcome import DIFFERS, PASS, UNKNOWN, Case, Check, Outcome, attempted
from data.errors import UserError

SHARE = Declared("--share", "Share of activations and answers that the model computes again; 1: all, as long as making them took; 0: nothing that takes the model.",
                 Numbers(0, 1), 0.05)  # fmt: skip
DRAW = SEED.but(
    help="Seed of what is drawn to be computed again.", default=None, shown="another each time, which is said"
)
ONLY = Declared("--only", "Only the checks of this artefact, as the table's first column calls it, such as effects or gates; repeatable.",
                multiple=True, shown="all")  # fmt: skip
NOT_AGAIN = {
    "lowrank": "training is not repeated",
    "capability": "lm-eval's items are not asked again",
    "diff": "its activations are of two models",
    "rubric": "its judge is not asked again",
    "model": "fine-tuning is not repeated",
}


@command(SHARE, DRAW, ONLY, writes=False)
def verify(session: Session, s: Settings) -> Summary:
    """Compute again what a run directory says, figure by figure; exit 1 if anything differs.

    Files against their SHA-256, prompts against their data sets, vectors and probe against activations, verdicts against answers,
    rates against verdicts, scorers against labels by hand, the sweep's choice against its table, the page against the tables; and,
    where the model is at hand, gates, traces, and a random share of activations and answers; all of them, a sweep's figures, side
    effects and categories with --share 1. Nothing is written.
    """
    import polars as pl

    outcomes, seed = verified(session, s)
    table = pl.DataFrame(outcomes, ["artefact", "check", "outcome", "found"], orient="row")
    counts = {word: table.filter(outcome=word).height for word in (PASS, DIFFERS, UNKNOWN)}
    told: Summary = {"checks": table.height, **counts, "seed": seed, "table": table}
    if not counts[DIFFERS]:
        return told
    emit("verify", told, s.get("as_json"))
    odd = dict.fromkeys(one.artefact for one in outcomes if one.outcome == DIFFERS)
    raise UserError(f"{s.run} is not what it says: {', '.join(odd)}; the lines above say what differs, and by how much")


def verified(session: Session, s: Settings) -> tuple[list[Outcome], int]:
    """What came of every check, and the seed of what was drawn.

    Raises:
        UserError: There is no run to verify.
    """
    import numpy as np

    from data.store.rundir import read_records, records

    if not read_records(s.run):
        raise UserError(f"{s.run} holds no run: no artefact in its run.json")
    seed = secrets.randbits(32) if s.given("seed") is None else s.given("seed")  # not one that a forger could know
    try:
        known = records(s.run)
    except UserError as error:
        return [Outcome("run.json", "records", DIFFERS, str(error))], seed
    with tempfile.TemporaryDirectory() as scratch:
        case = Case(
            session, s.with_values(no_auto=True), known, s.get("share"), np.random.default_rng(seed), Path(scratch)
        )
        wanted = chosen(list(checks(case)), s.get("only"))
        return [one for check, artefact, what in wanted for one in attempted(check, case, artefact, what)], seed


def chosen(all_checks: list[tuple[Check, str, str]], only: Sequence[str]) -> list[tuple[Check, str, str]]:
    """The checks of some artefacts; without any, all.

    Raises:
        UserError: An artefact has none.
    """
    names = list(dict.fromkeys(artefact for _, artefact, _ in all_checks))
    if odd := sorted(set(only) - set(names)):
        raise UserError(f"--only {odd[0]}: there is nothing to check of it; there are {', '.join(names)}")
    return [one for one in all_checks if not only or one[1] in only]


def checks(case: Case) -> Iterator[tuple[Check, str, str]]:
    """Every check that the artefacts there are allow, with the artefact and the words for it where it can't be done."""
    from commands.verifying import fits, model, records, remade, scoring

    known = case.records
    yield records.files, "run.json", "files"
    yield records.rests_on, "run.json", "rests on"
    yield records.prompts, "prompts", "prompts"
    for name, check in (("vectors", fits.vectors), ("probe", fits.probe), ("sweep", fits.sweep)):
        if name in known:
            yield check, name, "computed again"
    if any(name.startswith("methods/") for name in known):
        yield fits.methods, "methods", "from activations"
    for name, check in (
        ("scores", scoring.scores),
        ("summary", scoring.summary),
        ("coherence", scoring.coherence),
        ("lengths", scoring.lengths),
        ("paper", scoring.paper),
    ):
        if name in known:
            yield check, name, "computed again"
    if (case.run / "report.html").exists():
        yield scoring.page, "report.html", "from tables"
    computed = {
        "logit_lens": model.lens,
        "traces": model.traces,
        "generations": model.answers,
        "coherence": model.likelihoods,
    }
    computed |= {"activations": model.activations} if any(name.startswith("activations/") for name in known) else {}
    computed |= {"gates": model.gates} if "probe" in known or any(name.startswith("gates/") for name in known) else {}
    for name, check in computed.items():
        if name in known or name in ("activations", "gates"):
            yield check if case.share or name == "gates" else left_out(name), name, "by the model"
    for name, check in (
        ("sweep", remade.sweep),
        ("effects", remade.effects),
        ("category", remade.category),
        ("judges", remade.judges),
    ):
        if name in known:
            yield check, name, "made again"
    for name, why in NOT_AGAIN.items():
        if name in known:
            yield told(name, f"{why}: make it in another --run and compare"), name, "computed again"


def left_out(name: str) -> Check:
    """That the model was not asked."""
    from commands.verifying import model

    return told(name, model.LEFT_OUT)


def told(name: str, why: str) -> Check:
    """That something can't be checked."""

    def check(_case: Case) -> Iterator[Outcome]:
        yield Outcome(name, "computed again", UNKNOWN, why)

    return check
