"""Do the scorers agree? Cohen's kappa between each two of them, on the answers that both scored."""

from reports.page import wording as say
from reports.page.blocks import Prose, Section, Table
from reports.page.run import Run
from reports.statistics.agreement import agreement

NOTE = (
    "Kappa is the agreement beyond what the two scorers' own rates would give by chance (Cohen 1960), on refused "
    "or not refused, with a 95 % interval from its asymptotic standard error: 1 is full agreement, 0 none beyond "
    "chance. Answers of one prompt in several arms are not independent, so the interval is, if anything, too narrow."
)


def section(run: Run) -> Section | None:
    """A row for each two scorers, or None where there is only one."""
    scores = run.table("scores")
    if scores is None or scores["scorer"].n_unique() < 2:
        return None
    frame = agreement(scores.unique(["dataset", "id", "arm", "scorer"], maintain_order=True))
    if frame.is_empty():
        return None
    shown = say.table_of(
        frame,
        ("scorers", lambda a, b: f"{a} and {b}", "first", "second"),
        ("n", say.number, "n"),
        ("agree", say.percent, "agreement"),
        ("kappa", say.fixed, "kappa"),
        ("95 % interval", say.fixed_span, "kappa_low", "kappa_high"),
        ("both refused", say.number, "both"),
        ("only the first", say.number, "first_only"),
        ("only the second", say.number, "second_only"),
        ("neither", say.number, "neither"),
    )
    return Section("agreement", "Agreement of scorers", [Table("agreement", frame, shown), Prose(NOTE, "note")])
