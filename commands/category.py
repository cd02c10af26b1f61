"""`category`: does it matter whose vector is added?"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from commands.framework.app import Session, command
from commands.framework.arms import single_arm
from commands.framework.artefacts import CATEGORY, VECTORS, need
from commands.framework.options import EQUAL_KL, LAYER, NEW_TOKENS, RANDOMS, SCOPE, TEST, UNIT
from commands.framework.output import Summary, warn
from commands.framework.prompts import fingerprint_of, prompts_of, spread
from commands.framework.records import model_key, note, unchanged
from commands.framework.seen import asked_themes
from commands.framework.settings import Settings
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from interventions.model.model import Model
    from interventions.steering.arms import Arm
    from interventions.steering.plans import Tools

HARMLESS = 60  # prompts that the budget is measured on
SIDES = {"towards": ("harmful", 1.0), "away": ("benign", -1.0)}
BIAS = "logit bias"
UNSTEERED = "(unsteered)"


@command(
    LAYER,
    UNIT,
    SCOPE,
    EQUAL_KL,
    RANDOMS,
    NEW_TOKENS.but(default=1, help="Tokens an answer; the first tells a refusal."),
    TEST,
)
def category(session: Session, s: Settings) -> Summary:
    """Add every category's vector to every category's prompts, at equal KL: does it matter whose is added?

    Towards refusal on harmful prompts of --split and away from it on benign near-misses, beside the mean vector, random
    directions and a bias on the refusal tokens' logits. Strengths are found on benign prompts of the split validation.
    """
    import polars as pl

    from data.store.rundir import now
    from data.store.tables import read_parquet, write_table
    from interventions.model.control_tokens import refusal_tokens
    from interventions.steering.plans import Tools
    from reports.statistics.category import matrix, own_or_another, sentence

    start = now()
    steering, record = need(session, s, VECTORS)
    model = session.model(s, record)
    if not refusal_tokens(model).ids:
        raise UserError(
            f"category compares refusal tokens' probabilities, and model {model.name!r} has none; use a model tuned with them"
        )
    default = replace(single_arm(s, model, steering), scope=s.get("scope"))
    rows = prompts_of(s, s.get("split")).filter(
        pl.col("category").is_in(steering.categories) & pl.col("label").is_not_null()
    )[: s.get("limit")]
    harmless = spread(prompts_of(s, "validation").filter(pl.col("label") == "benign"), HARMLESS)
    for there, what in (
        (rows, f"of a category of the vectors in split {s.get('split')!r}"),
        (harmless, "that is benign in split 'validation'"),
    ):
        if there.is_empty():
            raise UserError(f"no prompt {what}: pass other --data or --split")
    options = {name: s.get(name) for name in ("kl", "random", "max_new_tokens", "seed")}
    key = model_key(model) | {VECTORS.name: record["id"], "fingerprint": fingerprint_of(rows), "harmless": fingerprint_of(harmless),
                              "arm": default.record, **options}  # fmt: skip
    path, test_path = CATEGORY.path(s.run), s.run / CATEGORY.beside[0]
    if unchanged(s, CATEGORY, key):
        table, test = CATEGORY.read(s.run), read_parquet(test_path)
    else:
        tools, names = (
            Tools(steering),
            [*steering.categories, "mean", *(f"random {at + 1}" for at in range(options["random"])), BIAS],
        )
        reached = at_equal_kl(s, model, tools, harmless, default, names)
        outcomes = outcomes_of(s, model, tools, rows, default, reached)
        table, test = (
            matrix(outcomes, reached, options["seed"]),
            own_or_another(outcomes, steering.categories, options["seed"]),
        )
        write_table(test_path, test)
        write_table(path, table)
        note(s, CATEGORY, key, model, start, data=s.get("data"))
    for row in table.filter(pl.col("why_not") != "").unique(["side", "vector"], maintain_order=True).to_dicts():
        warn(f"{row['vector']}, {row['side']}: KL is {row['kl']:.3g} and not {options['kl']:g}: {row['why_not']}")
    shown = table if s.get("as_json") else shown_matrix(table)
    return {"answer": sentence(test, options["kl"]), "prompts": rows.height, "table": shown, "wrote": str(path)}


def vector_arm(default: "Arm", vector: str, strength: float) -> "Arm":
    """The arm that adds a category's vector, the mean, a random direction or a bias."""
    from data.contract import MEAN

    if vector == UNSTEERED:
        return replace(default, name="baseline", kind="baseline")
    if vector == BIAS:
        return replace(default, name="logit-bias", kind="logit-bias", category=MEAN, strength=strength, unit="raw")
    if vector.startswith("random "):
        seed = int(vector.removeprefix("random "))
        return replace(default, name=f"random:seed={seed}", kind="random", category=MEAN, seed=seed, strength=strength)
    return replace(default, name=f"fixed:category={vector}", kind="fixed", category=vector, strength=strength)


def at_equal_kl(
    s: Settings, model: "Model", tools: "Tools", harmless: "pl.DataFrame", default: "Arm", names: "list[str]"
) -> "pl.DataFrame":
    """`side`, `vector`, `strength`, `unit`, `kl`, `why_not`: each vector at the budget, both ways."""
    import polars as pl

    from interventions.steering.compared.equal_kl import HarmlessKL, equal_kl

    kl = HarmlessKL.of(model, harmless, tools, batch_tokens=s.get("batch_tokens"))
    asked = [(side, sign, vector) for side, (_, sign) in SIDES.items() for vector in names]

    def measure(sizes: Mapping[int, float]) -> dict[int, float]:
        arms = [vector_arm(default, asked[at][2], asked[at][1] * size) for at, size in sizes.items()]
        return dict(zip(sizes, kl(arms).tolist(), strict=True))

    starts = [5.0 if vector == BIAS else abs(default.strength) or 1.0 for _, _, vector in asked]
    found = equal_kl(measure, starts, s.get("kl"))
    return pl.DataFrame(
        [(side, vector, sign * one.strength, "raw" if vector == BIAS else default.unit, one.kl, one.why_not)
         for (side, sign, vector), one in zip(asked, found, strict=True)],
        ["side", "vector", "strength", "unit", "kl", "why_not"], orient="row",
    )  # fmt: skip


def outcomes_of(
    s: Settings, model: "Model", tools: "Tools", rows: "pl.DataFrame", default: "Arm", reached: "pl.DataFrame"
) -> "pl.DataFrame":
    """What became of each row under each vector: `side`, `vector`, `row`, `rows`, `cluster`, `refusal_probability`, `refused`."""
    import polars as pl

    from interventions.steering.generate import generate

    found, key = [], ["dataset", "id"]
    themes, _ = asked_themes(s, rows.select(*key, "prompt"))
    alone = pl.format("{} {}", *key)
    clusters = rows.select(*key).with_columns(cluster=pl.coalesce(themes["theme"], alone), row=alone)
    for side, (label, _) in SIDES.items():
        mine = rows.filter(pl.col("label") == label)
        if mine.is_empty():
            warn(f"no {label} row of a category: nothing is said of vectors {side} refusal")
            continue
        chosen = reached.filter(pl.col("side") == side)
        arms = {
            vector: vector_arm(default, vector, strength)
            for vector, strength in chosen.select("vector", "strength").iter_rows()
        }
        arms[UNSTEERED] = vector_arm(default, UNSTEERED, 0.0)
        table = generate(model, mine, tools, s.run / f"category_{side}.parquet", arms=list(arms.values()), seed=s.get("seed"),
                         max_new_tokens=s.get("max_new_tokens"), batch_tokens=s.get("batch_tokens"))  # fmt: skip
        names = {arm.name: vector for vector, arm in arms.items()}
        found.append(table.join(clusters, on=key, how="left", maintain_order="left").select(
            pl.lit(side).alias("side"), pl.col("arm").replace_strict(names).alias("vector"), "row", pl.col("category").alias("rows"),
            "cluster", "refusal_probability", pl.col("refusal_token").is_not_null().alias("refused")))  # fmt: skip
    return pl.concat(found)


def shown_matrix(table: "pl.DataFrame") -> "pl.DataFrame":
    """One line a side and vector, a column a category of rows: mean refusal probability."""
    import polars as pl

    rates = table.with_columns(
        pl.col("refusal_probability").round(3), pl.col("strength").round(3), pl.col("kl").round(3)
    )
    return rates.pivot(
        "rows", index=["side", "vector", "strength", "kl"], values="refusal_probability", maintain_order=True
    )
