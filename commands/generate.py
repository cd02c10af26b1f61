"""`generate`: answers in every arm."""

from typing import TYPE_CHECKING, Any

from commands.framework.answers import all_asked, answer_prompts, asked_prompts, prepare, split_of
from commands.framework.app import Session, command, perform
from commands.framework.artefacts import GENERATIONS, VECTORS, Artefact, Making, made_by
from commands.framework.options import DATA, FOLLOW, NEW_TOKENS, REPLACE, STEERING, TEST, WRAP
from commands.framework.output import Summary, warn
from commands.framework.prompts import check_there, prompts_of
from commands.framework.seen import fitted_texts, wrapped
from commands.framework.settings import Record, Settings, Values
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl


@command(*STEERING, NEW_TOKENS, FOLLOW, REPLACE, WRAP, TEST)
def generate(session: Session, s: Settings) -> Summary:
    """Answer prompts in every arm; answers that are there already stay, other arms and prompts join them."""
    check_there(s, s.get("split"))
    ready = prepare(session, s)
    prompts = prompts_of(s, s.get("split"))[: s.get("limit")]
    if prompts.is_empty():
        raise UserError(f"no prompt in split {s.get('split')!r}: pass --split, --holdout or other --data")
    warn_of_others(s)
    if s.get("wrap"):
        prompts = wrapped(s, prompts, ready.rests_on, s.get("wrap"))
    warn_of_fitted(s, prompts, ready.rests_on)
    answer_prompts(s, ready, prompts, GENERATIONS, s.get("data"))
    path = GENERATIONS.path(s.run)
    return {
        "prompts": prompts.height,
        "arms": GENERATIONS.load(path)["arm"].unique(maintain_order=True).to_list(),
        "wrote": str(path),
    }


def warn_of_others(s: Settings) -> None:
    """Say that the default prompts are answered where the vectors are of others, since no record says what --data is."""
    from data.store.rundir import records

    fitted = records(s.run).get(VECTORS.name, {}).get("data") or []
    if (
        s.given("data") is None
        and fitted
        and not set(fitted) <= {name for name in fitted if name.startswith("embedded")}
    ):
        warn(f"{s.command} runs on {', '.join(DATA.default)}, the default, and the vectors are of {', '.join(fitted)}: pass --data, "
             "best before the first command")  # fmt: skip


def warn_of_fitted(s: Settings, prompts: "pl.DataFrame", rests_on: dict[str, str]) -> None:
    """Say, before anything is generated, that no rate can come of it: all of the prompts were fitted to or chosen on."""
    from reports.scoring.scores import same_text

    fitted = fitted_texts(s, rests_on)
    if all(same_text(text) in fitted for text in prompts["prompt"]):
        warn("every prompt to be answered was used for fitting, so that no rates can come of the answers: pass other --data, "
             "--split test, or extract with --holdout 0.5")  # fmt: skip


def others_asked(_session: Session, s: Settings, artefact: Artefact[Any], record: Record) -> str:
    """Whether answers to prompts that have none were asked for."""
    from data.store.adding import missing

    prompts = asked_prompts(s, record)
    if prompts is None:
        return ""
    table = artefact.load(artefact.path(s.run))
    arms = table["arm"].unique(maintain_order=True).to_list()
    if not missing(table, arms, prompts, [False] * len(arms)):
        return ""
    split, was = split_of(s, record)
    return f"split is {split}, was {was}" if split != was else "the prompts changed"


@made_by(GENERATIONS, unless=others_asked)
def answer_again(session: Session, s: Settings, artefact: Artefact[Any], record: Record | None) -> Making:
    """Answer as before, command by command, the same prompts unless others were asked for."""
    if record is None:
        return Making("generate", lambda: perform(session, s, "generate"))
    other = {name: s.given(name) for name in ("data", "split", "limit") if s.given(name) is not None}

    def make() -> Summary:
        every = [s.with_values(**as_asked(one) | other) for one in all_asked(artefact, record)]
        return [perform(session, one, "generate") for one in every][-1]

    return Making("generate", make)


def as_asked(asked: Values) -> Values:
    """Options of an earlier command."""
    values = {name: value for name, value in asked.items() if name != "arms"}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
