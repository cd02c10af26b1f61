"""What only the model can give again: activations and answers, a share of them; gates, traces and what vectors write, whole."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from commands.framework.answers import arms_of
from commands.framework.arms import need_tools
from commands.framework.artefacts import (
    ACTIVATIONS_FOLDER,
    CARRIED,
    COHERENCE,
    GATE_FOLDER,
    GENERATIONS,
    LENS,
    PROBE,
    PROJECTIONS,
    SUMS,
    TRACES,
    VECTORS,
    activations_artefact,
    gate_artefact,
)
from commands.framework.settings import Record
from commands.verifying.fits import activations_of, gate_apart, is_trained, other_network
from commands.verifying.outcome import COMPUTED, DIFFERS, UNKNOWN, Case, Outcome, frames_apart, rows_apart, settled
from data.errors import UserError
from data.store import shipped

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from interventions.model.model import Model
    from interventions.steering.arms import Arm
    from interventions.steering.plans import Tools

KEY = ["dataset", "id", "arm"]
NEAR = {
    "float32": 1e-4,
    "bfloat16": 0.05,
    "float16": 0.01,
}  # how far a row may lie from itself on another machine, of its length
LEFT_OUT = "--share 0 leaves the model out"
REDUCED = {
    SUMS.name: "sums are not added up again: vectors in another --run does",
    PROJECTIONS.name: "moments and projections are not computed again: probe in another --run does",
    CARRIED.name: "projections are not computed again: probe in another --run does",
}
TIE = 2e-3  # nats: tokens so near are equally probable, but for rounding


def model_of(case: Case, record: Record) -> "Model":
    """The model that an artefact was made with, if it is here.

    Raises:
        UserError: It is not, or is another one now.
    """
    from interventions.model.opening import is_here

    name = case.s.given("model") or record["model"]
    if case.s.get("where") != "remote" and not is_here(name):
        raise UserError(f"model {name} is not on this machine; --model FOLDER names it")
    model = case.session.model(case.as_made(record, model=name), record)
    for what, now in (("weights", model.revision), ("template", model.template_hash)):
        made = record["revision" if what == "weights" else what]
        if made is not None and now != made and name == record["model"]:
            raise UserError(f"{name} has another {what} here than when this was made: {now} and {made}")
    return model if name == record["model"] else replace(model, name=record["model"])


def activations(case: Case) -> Iterator[Outcome]:
    """Some rows of every file of activations."""
    import numpy as np
    import polars as pl

    from data import PROMPT_COLUMNS
    from data.store.activations import Activations
    from interventions.reading.extract import JOIN, extract

    names = [name for name in case.records if name.startswith("activations/")]
    for name in names:
        record, path = case.records[name], activations_artefact(name.partition("/")[2]).path(case.run)
        suffixes = tuple(record["key"].get("suffixes") or ())
        if name in REDUCED or not path.exists():
            yield Outcome(name, "by the model", UNKNOWN, REDUCED.get(name, f"{path.name} is gone"))
            continue
        file, model = Activations.open(path), model_of(case, record)
        each = len(suffixes) or len(record["key"]["position"].split(JOIN))
        chosen = case.sample(file.rows.height // each)
        rows = [at * each + one for at in chosen for one in range(each)]
        prompts = file.rows[[at * each for at in chosen]].select(PROMPT_COLUMNS)
        again = Activations.open(extract(model, prompts, case.scratch / "activations", layers=file.layers, name="again", suffixes=suffixes,
                                         position=record["key"]["position"], batch_tokens=case.s.get("batch_tokens")))  # fmt: skip
        apart = max(rows_apart(file.layer(layer, rows), again.layer(layer)) for layer in file.layers)
        most = NEAR.get(str(record.get("dtype")), 1e-4)
        told = f"a row lies {apart:.3g} of its length away" if apart > most else ""
        columns = [column for column in ("n_tokens", "suffix", "position") if column in file.rows.columns]
        numbers = pl.Series("row", np.arange(len(rows)))
        told = told or frames_apart(
            file.rows[rows].select(numbers, *columns), again.rows.select(numbers, *columns), ["row"]
        )
        yield settled(
            name,
            "by the model",
            told,
            f"{seen(len(rows), file.rows.height)}; the farthest lies {apart:.1g} of its length away",
        )


def seen(again: int, of: int) -> str:
    """How much was computed again, and how large a forgery would have stayed unseen with a chance of 5 % at most."""
    if again >= of:
        return f"all {of}"
    forged, unseen = 0, 1.0
    while unseen > 0.05 and forged < of:
        unseen *= max(0.0, of - again - forged) / (of - forged)
        forged += 1
    return f"{again} of {of}: of {forged} forged ones or more one would be among them, with 95 % certainty"


def lens(case: Case) -> Iterator[Outcome]:
    """The tokens that vectors write."""
    from interventions.methods.lens import logit_lens
    from interventions.methods.vectors import SteeringVectors

    record = case.records[LENS.name]
    model = model_of(case, record)
    again = logit_lens(model, SteeringVectors.load(VECTORS.path(case.run)))
    most = min(COMPUTED, NEAR.get(str(record.get("dtype")), COMPUTED))
    told = frames_apart(LENS.load(LENS.path(case.run)), again, ["category", "layer", "token"], most)
    yield settled(LENS.name, "by the model", told, f"{again.height} logits")


def gates(case: Case) -> Iterator[Outcome]:
    """Every gate, fitted again to the prompts that it was fitted to, with its threshold and tables; where one that comes with this tool
    is fitted to the same, held against that one, but for a --share of 1."""
    import polars as pl

    from commands.probe import gate_features, gate_rows, probe_carried_over
    from data.store.tables import read_parquet
    from interventions.gates.fit_gate import fit_gate, kind_of
    from interventions.gates.gate import FittedGate

    for name in [name for name in case.records if name.startswith(GATE_FOLDER)]:
        record, artefact = case.records[name], gate_artefact(name.removeprefix(GATE_FOLDER))
        there = FittedGate.load(artefact.path(case.run))
        quality, rows = (read_parquet(case.run / beside) for beside in artefact.beside)
        if case.share < 1 and shipped.is_shipped(name, record):
            own = (read_parquet(shipped.FOLDER / beside) for beside in artefact.beside)
            told = gate_apart(there, FittedGate.load(artefact.path(shipped.FOLDER)))
            told = (
                told or frames_apart(quality, next(own), ["rows"]) or frames_apart(rows, next(own), ["dataset", "id"])
            )
            yield settled(
                name,
                "as it comes with this tool",
                told,
                f"threshold {float(there.threshold):.4g}, {rows.height} prompts",
            )
            continue
        if not case.share:
            yield Outcome(name, "fitted again", UNKNOWN, LEFT_OUT)
            continue
        model, own = model_of(case, record), record["key"]["gate"]
        made = case.as_made(record, data=tuple(record["data"]))
        made.run = in_scratch(case)
        prompts = rows.drop("score")
        labelled, first = gate_rows(case.session, made, model, prompts)
        features = gate_features(made, model, prompts, kind_of(own).reads(model), first)
        options = {option: record["key"][option] for option in ("keep_refusal", "fpr")}
        again = fit_gate(own, model, labelled, features, keep=options["keep_refusal"], fpr=options["fpr"])
        if (apart := gate_apart(there, again.gate)) and is_trained(there):
            yield from other_network(name, there, labelled, rows["score"].to_numpy(), again.score, options)
            continue
        yield settled(name, "fitted again", apart, f"threshold {float(there.threshold):.4g}")
        yield settled(
            name, "its quality", frames_apart(quality, again.quality, ["rows"], COMPUTED), f"{quality.height} rows"
        )
        scored = prompts.with_columns(score=pl.Series(again.score))
        yield settled(
            name, "its scores", frames_apart(rows, scored, ["dataset", "id"], COMPUTED), f"{rows.height} prompts"
        )
    carried = case.run / PROBE.beside[-1]
    if case.share and PROBE.name in case.records and carried.exists():
        record = case.records[PROBE.name]
        model_of(case, record)
        source = activations_of(case, record["key"])
        read = case.records[f"{ACTIVATIONS_FOLDER}/{source.stem}"]
        other = CARRIED.path(case.run) if source == PROJECTIONS.path(case.run) else None
        table = probe_carried_over(
            case.session, case.as_made(record), source, read, FittedGate.load(PROBE.path(case.run)), other
        )
        yield settled(
            PROBE.name,
            "how it carries over",
            frames_apart(read_parquet(carried), table, ["rows"], COMPUTED),
            f"{table.height} rows",
        )


def in_scratch(case: Case) -> "Path":
    """A run directory with the activations that gates read, where others may be read anew."""
    folder = case.scratch / "gates"
    if not folder.exists():
        (folder / "activations").mkdir(parents=True)
        shutil.copy(case.run / "run.json", folder / "run.json")
        for path in (case.run / "activations").glob("gate-*"):
            (folder / "activations" / path.name).symlink_to(path.absolute())
    return folder


def traces(case: Case) -> Iterator[Outcome]:
    """Traces: next tokens, divergence, projections and texts."""
    import polars as pl

    from interventions.steering.trace import trace

    record, there = case.records[TRACES.name], TRACES.load(TRACES.path(case.run))
    model, parts = model_of(case, record), []
    arms, tools = arms_and_tools(case, record)
    keys = there.select("dataset", "id").unique(maintain_order=True)
    some = there.join(keys[case.sample(keys.height)], on=["dataset", "id"], how="semi", maintain_order="left")
    for (tokens, name), rows in some.group_by("max_new_tokens", "arm", maintain_order=True):
        prompts = rows.select(
            "id",
            "prompt",
            pl.col("prompt_category").alias("category"),
            "label",
            "dataset",
            pl.lit(None, pl.String).alias("split"),
        )
        [arm] = [arm for arm in arms if arm.name == name]
        found = trace(
            model,
            prompts,
            tools,
            case.scratch,
            arms=[arm],
            max_new_tokens=int(str(tokens)),
            batch_tokens=case.s.get("batch_tokens"),
        )
        found.journal.remove()
        parts.append(found.table)
    most = COMPUTED if record.get("dtype") == "float32" else 0.2
    told = frames_apart(some, pl.concat(parts), KEY, most)
    yield settled(TRACES.name, "by the model", told, seen(some.height, there.height))


def arms_and_tools(case: Case, record: Record) -> "tuple[list[Arm], Tools]":
    """What answers were made in, and what that draws on."""
    from interventions.methods.vectors import SteeringVectors

    arms = arms_of(record)
    steering = SteeringVectors.load(VECTORS.path(case.run))
    made = case.as_made(record, data=None, limit=None, split=None)
    return arms, need_tools(case.session, made, arms, steering, case.records[VECTORS.name])[0]


def answers(case: Case) -> Iterator[Outcome]:
    """Every answer's text from its tokens; a share of them, in every arm, anew."""
    import polars as pl

    from data import PROMPT_COLUMNS
    from interventions.steering.generate import answered

    record, there = case.records[GENERATIONS.name], GENERATIONS.load(GENERATIONS.path(case.run))
    model = model_of(case, record)
    if "token_ids" in there.columns:
        yield settled(GENERATIONS.name, "texts from tokens", texts_apart(model, there), f"{there.height} answers")
    arms, tools = arms_and_tools(case, record)
    if odd := sorted(set(there["arm"]) ^ {arm.name for arm in arms}):
        yield Outcome(GENERATIONS.name, "arms", DIFFERS, f"{', '.join(odd)}: in the table or the record alone")
        return
    keys = there.select("dataset", "id").unique(maintain_order=True)
    some = there.join(keys[case.sample(keys.height, 16)], on=["dataset", "id"], how="semi", maintain_order="left")
    prompts = (
        some.unique(["dataset", "id"], keep="first", maintain_order=True)
        .with_columns(split=pl.lit(None, pl.String))
        .select(PROMPT_COLUMNS)
    )
    made = answered(model, prompts, tools, case.scratch / "generations.parquet", arms=arms, max_new_tokens=record["key"]["max_new_tokens"],
                    batch_tokens=case.s.get("batch_tokens"), seed=record["key"]["seed"])  # fmt: skip
    made.journal.remove()
    again = made.table.join(some, on=KEY, how="semi", maintain_order="left")
    ties = tied(model, some, again, arms, tools, prompts) if "token_ids" in there.columns else []
    if ties:
        some, again = (table.join(pl.DataFrame(ties, KEY, orient="row"), on=KEY, how="anti") for table in (some, again))
    figures = [name for name in again.columns if name not in (*KEY, "backend", "token_ids", "token_ends")]
    told = frames_apart(some, again, KEY, COMPUTED if record.get("dtype") == "float32" else 0.05, figures)
    near = f"; {len(ties)} part where two tokens are equally probable" if ties else ""
    yield settled(GENERATIONS.name, "by the model", told, seen(some.height + len(ties), there.height) + near)


def likelihoods(case: Case) -> Iterator[Outcome]:
    """How probable answers are to the unsteered model, of a share of them."""
    import polars as pl

    from interventions.methods.vectors import SteeringVectors
    from interventions.steering.compared.likelihood import log_likelihoods
    from interventions.steering.plans import Tools

    record, there = case.records[COHERENCE.name], COHERENCE.load(COHERENCE.path(case.run))
    model, tools = model_of(case, record), Tools(SteeringVectors.load(VECTORS.path(case.run)))
    whole = GENERATIONS.load(GENERATIONS.path(case.run)).join(there, on=KEY, how="semi", maintain_order="left")
    some = whole[case.sample(whole.height)]
    first = [int(token is not None) for token in some["control_token"]]
    found = log_likelihoods(model, some["prompt"].to_list(), some["token_ids"].to_list(), first, tools, case.scratch / "coherence.parquet",
                            batch_tokens=case.s.get("batch_tokens"))  # fmt: skip
    found.journal.remove()
    again = some.select(*KEY, pl.Series("log_likelihood", found.means, pl.Float64))
    mine = there.join(again, on=KEY, how="semi")
    told = frames_apart(mine, again, KEY, COMPUTED if record.get("dtype") == "float32" else 0.05)
    yield settled(COHERENCE.name, "by the model", told, seen(some.height, there.height))


def texts_apart(model: "Model", table: "pl.DataFrame") -> str:
    """Answers whose text, control token or length are not those of their tokens."""
    from interventions.steering.texts import finished, token_columns

    for row in table.to_dicts():
        told = finished(model, row["token_ids"], len(row["token_ids"]))
        told |= token_columns(model.tokenizer, row["token_ids"], told)
        odd = [
            name
            for name in ("response", "control_token", "refusal_token", "new_tokens", "token_ends")
            if told[name] != row[name]
        ]
        if odd:
            return f"{', '.join(odd)} of {row['dataset']}, {row['id']}, {row['arm']}: {str(row[odd[0]])[:60]!r}, its tokens say {str(told[odd[0]])[:60]!r}"
    return ""


def tied(
    model: "Model",
    there: "pl.DataFrame",
    again: "pl.DataFrame",
    arms: "Sequence[Arm]",
    tools: "Tools",
    prompts: "pl.DataFrame",
) -> list[tuple[str, ...]]:
    """Answers that part from those computed again at a token which is as probable as the other, but for rounding."""
    from interventions.steering.batches import variants_of
    from interventions.steering.effects import forced_variants
    from interventions.steering.plans import plan_arm

    mine = {tuple(row[:3]): row[3] for row in there.select(*KEY, "token_ids").iter_rows()}
    found = []
    for *key, ids in again.select(*KEY, "token_ids").iter_rows():
        theirs = mine[tuple(key)]
        if theirs == ids:
            continue
        at = next((at for at, (a, b) in enumerate(zip(theirs, ids, strict=False)) if a != b), None)
        if at is None:  # one ends where the other goes on
            continue
        row = prompts.filter(dataset=key[0], id=key[1])
        arm = next(arm for arm in arms if arm.name == key[2])
        plans = [plan_arm(model, arm, tools, row.select("category", "label").to_dicts())]
        variants, shipped = (
            variants_of(model, row["prompt"].to_list(), plans),
            tools.shipped(model, plans, row.to_dicts()),
        )
        nll = [
            forced_variants(model, variants, [0], [given[: at + 1]], "nll", shipped)[0, 0, at]
            for given in (theirs, ids)
        ]
        if abs(nll[0] - nll[1]) < TIE:
            found.append(tuple(key))
    return found
