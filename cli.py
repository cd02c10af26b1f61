"""The command line: read and steer refusal in Llama models. `python cli.py extract vectors trace evaluate report`."""

import hashlib
import json
import logging
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data.errors import UserError
from settings import Command, Finite, Layers, Settings, shared

if TYPE_CHECKING:
    import polars as pl

    from interventions.arms import Arm
    from interventions.models import Model
    from interventions.vectors import SteeringVectors

DEFAULT_MODEL = "smollm2"
TRACED_AT_MOST = 20
ACTIVATIONS, VECTORS, GENERATIONS = "activations/prompts", "vectors", "generations"


@dataclass
class Session:
    """What a chain of commands shares: the open model."""

    models: dict[tuple[Any, ...], "Model"] = field(default_factory=dict)

    def model(self, s: Settings, record: dict[str, Any] | None = None) -> "Model":
        """The model that the settings name, else the record, else the default; opened once."""
        from interventions.backends import is_loopback, resolve
        from interventions.embedded import ALIASES
        from interventions.models import open_model

        name = s.get("model", DEFAULT_MODEL, record)
        key = (name, s.get("where", "local"), s.get("host"), s.get("device"), s.get("dtype", None, record))
        if key not in self.models:
            where = resolve(key[1], key[2])
            if isinstance(where, str) and where != "local" and name in ALIASES and not is_loopback(where):
                raise UserError(f"model {name!r} lives on this machine; pass --model with a hub id")
            model = open_model(name, remote=where, device=key[3], dtype=key[4])
            self.models |= {key: model, (*key[:4], model.dtype): model}
        return self.models[key]


@click.group(chain=True, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@shared
@click.pass_context
def cli(ctx: click.Context, **_options: Any) -> None:
    """Read and steer refusal in Llama models.

    Commands chain and share a run directory: `python cli.py extract vectors trace evaluate report`. A command makes
    what it needs and finds missing. Every option also comes from REFUSAL_OPTION or REFUSAL_COMMAND_OPTION.
    """
    ctx.obj = Session()


MAKERS: dict[str, Callable[[Session, Settings], dict[str, Any]]] = {}


def command(*options: Callable[..., Any]) -> Callable[[Callable[[Session, Settings], dict[str, Any]]], click.Command]:
    """Register a function as a command: it gets the session and settings and returns its summary."""

    def register(make: Callable[[Session, Settings], dict[str, Any]]) -> click.Command:
        name = make.__name__.rstrip("_")

        def run(**_options: Any) -> None:
            from interventions.rundir import writing

            ctx = click.get_current_context()
            settings = Settings(ctx)
            with writing(settings.run):
                emit(name, make(ctx.obj, settings), settings.get("as_json", False))

        for option in reversed(options):
            run = option(run)
        MAKERS[name] = make
        return cli.command(name, cls=Command, help=make.__doc__)(shared(run))

    return register


STEERING = (
    click.option("--layer", type=click.IntRange(min=0), help="Block to steer.  [default: round(18/32 · n_layers)]"),
    click.option("--category", help="Whose vector to add.  [default: the mean of all categories']"),
    click.option("--strength", type=Finite(), help="How much of it.  [default: -0.3]"),
    click.option("--strength-unit", type=click.Choice(["raw", "unit", "residual"]), help="Times the vector, the unit "
                 "vector, or the unit vector × the mean residual norm.  [default: residual]"),
    click.option("--scope", type=click.Choice(["prompt-last", "prompt", "generated", "all"]), help="Positions to steer; "
                 "generated: the last prompt token and each generated one.  [default: generated]"),
    click.option("--arm", multiple=True, help="baseline, fixed, or fixed:KEY=VALUE,… with the keys category, layer, scope, "
                 "strength, unit; repeatable.  [default: baseline and fixed]"),
)  # fmt: skip


@command(
    click.option("--layers", type=Layers(), help="Blocks to read, such as 5, 0-9 or 3,5.  [default: all]"),
    click.option("--position", type=click.Choice(["last", "mean", "suffix"]), help="last prompt token, mean over the user's "
                 "tokens, or a suffix's last token.  [default: last]"),
    click.option("--suffix", multiple=True, help="Text after each rendered prompt; repeatable.  [default: none]"),
    click.option("--benign", multiple=True, help="More prompts, all benign; repeatable.  [default: none]"),
)  # fmt: skip
def extract(session: Session, s: Settings) -> dict[str, Any]:
    """Read residual activations of prompts."""
    from interventions.extraction import checked_layers
    from interventions.extraction import extract as run_extract
    from interventions.rundir import now

    start = now()
    prompts = load_prompts(s, limited=True)
    model = session.model(s)
    suffixes = list(s.get("suffix", ()))
    position = s.get("position", "suffix" if suffixes else "last")
    key = model_key(model) | {
        "fingerprint": fingerprint_of(prompts),
        "layers": checked_layers(model, s.get("layers")),
        "position": position,
        "suffixes": suffixes,
        "seed": s.get("seed", 0),
    }
    name = "pairs" if suffixes else "prompts"
    artefact = f"activations/{name}"
    path = s.run / "activations" / f"{name}.safetensors"
    if not unchanged(s, artefact, key, path):
        run_extract(model, prompts, path.parent, layers=key["layers"], position=position, suffixes=suffixes,
                    batch_tokens=s.get("batch_tokens", 2048))  # fmt: skip
        note(s, artefact, key, model, start, data=list(s.get("data", ("embedded",))), options=s.given())
    return {"rows": prompts.height * max(1, len(suffixes)), "layers": len(key["layers"]), "wrote": str(path)}


@command(
    click.option("--method", type=click.Choice(["mean"]), help="Difference in means.  [default: mean]"),
    click.option("--tau", type=click.FloatRange(min=0), help="Zero entries below this.  [default: none; published: 1e-3]"),
    click.option("--top-k", type=click.IntRange(min=1), help="Keep the K largest entries.  [default: all; published: 200]"),
    click.option("--normalize", is_flag=True, default=None, help="Scale to unit length.  [default: off]"),
    click.option("--benign", multiple=True, help="More prompts, all benign; repeatable.  [default: none]"),
)  # fmt: skip
def vectors(session: Session, s: Settings) -> dict[str, Any]:
    """Compute one steering vector a category."""
    return make_vectors(session, s, own_data=True)


@command(
    *STEERING,
    click.option("--max-new-tokens", type=click.IntRange(min=0), help="Also generate so many.  [default: 0]"),
    click.option("--prompt", multiple=True, help="A prompt; repeatable.  [default: embedded examples]"),
)
def trace(session: Session, s: Settings) -> dict[str, Any]:
    """Look at prompts unsteered and steered, side by side."""
    from interventions.rundir import now, replacing
    from interventions.tracing import trace as run_trace

    start = now()
    prompts = traced_prompts(s)
    steering, record = need_vectors(session, s)
    model = session.model(s, record)
    arm = single_arm(s, model, steering)
    tokens = s.get("max_new_tokens", 0)
    key = model_key(model) | {
        "vectors": record["id"],
        "fingerprint": fingerprint_of(prompts),
        "arm": [arm.layer, arm.category, arm.strength, arm.unit, arm.scope],
        "max_new_tokens": tokens,
        "seed": s.get("seed", 0),
    }
    path = s.run / "traces.parquet"
    if unchanged(s, "traces", key, path):
        import polars as pl

        table = pl.read_parquet(path)
    else:
        table = run_trace(
            model, prompts, steering, arm, max_new_tokens=tokens, batch_tokens=s.get("batch_tokens", 2048)
        )
        with replacing(path) as unfinished:
            table.write_parquet(unfinished)
        note(s, "traces", key, model, start, data=list(s.get("data", ())), options=s.given())
    return {"prompts": table.height, "table": trace_table(table), "wrote": str(path)}


@command(
    *STEERING, click.option("--max-new-tokens", type=click.IntRange(min=1), help="Tokens an answer.  [default: 32]")
)
def generate(session: Session, s: Settings) -> dict[str, Any]:
    """Answer prompts in every arm."""
    return make_generations(session, s)


@command()
def evaluate(session: Session, s: Settings) -> dict[str, Any]:
    """Score answers and summarise them with intervals."""
    import polars as pl

    from interventions.rundir import now, records, replacing
    from reports.scoring import score
    from reports.statistics import summarise

    start = now()
    record = need_generations(session, s)
    generations = pl.read_parquet(s.run / "generations.parquet")
    key = {"generations": record["id"], "fitted": records(s.run).get(VECTORS, {}).get("id"), "seed": s.get("seed", 0)}
    path = s.run / "summary.parquet"
    if unchanged(s, "scores", key, s.run / "scores.parquet") and unchanged(s, "summary", key, path):
        summary = pl.read_parquet(path)
    else:
        scores = score(generations, fitted_texts(s))
        summary = summarise(scores, key["seed"])
        for name, table in (("scores", scores), ("summary", summary)):
            with replacing(s.run / f"{name}.parquet") as unfinished:
                table.write_parquet(unfinished)
            note(s, name, key, None, start, like=record)
    if summary.filter(pl.col("n") > 0).is_empty():
        warn("every answer's prompt was used for fitting: nothing is left to evaluate")
    shown = summary.filter(~pl.col("dataset").is_in(["(pooled)", "(macro)"])).select(
        "dataset",
        "label",
        "arm",
        "scorer",
        "n",
        "rate",
        "low",
        "high",
        "broken",
        "delta",
        "delta_low",
        "delta_high",
        "p_holm",
    )
    return {"answers": generations.height, "table": shown, "wrote": str(path)}


@command(
    click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The page.  [default: RUN/report.html]")
)
def report(_session: Session, s: Settings) -> dict[str, Any]:
    """Write one HTML page of whatever the run directory holds."""
    from reports.page import write_report

    path = s.get("out", s.run / "report.html")
    sections = write_report(s.run, path)
    return {"sections": len(sections), "bytes": path.stat().st_size, "wrote": str(path)}


# Making artefacts, and finding those that are made already.


def make_vectors(session: Session, s: Settings, *, own_data: bool) -> dict[str, Any]:
    """Compute vectors from activations, which are made if they are missing."""
    from interventions.rundir import now
    from interventions.vectors import SteeringVectors, difference_in_means

    start = now()
    record = need_activations(session, s, own_data=own_data)
    options: dict[str, Any] = {name: s.get(name) for name in ("tau", "top_k")}
    options |= {"normalize": s.get("normalize", False), "split": s.get("split", "train")}
    key = {"activations": record["id"], "method": "mean", **options, "seed": s.get("seed", 0)}
    path = s.run / "vectors.safetensors"
    if unchanged(s, VECTORS, key, path):
        steering = SteeringVectors.load(path)
    else:
        steering = difference_in_means(s.run / "activations" / "prompts.safetensors", **options)
        steering.save(path)
        note(s, VECTORS, key, None, start, like=record, options=s.given())
    layers = steering.layers
    layer = layers[min(round(18 / 32 * len(layers)), len(layers) - 1)]
    return {"categories": len(steering.tensors), "layer": layer, "table": steering.table(layer), "wrote": str(path)}


def make_generations(session: Session, s: Settings) -> dict[str, Any]:
    """Answer the prompts, with vectors that are made if they are missing."""
    from data import for_split
    from interventions.arms import parse_arms
    from interventions.generation import generate as run_generate
    from interventions.rundir import now

    start = now()
    prompts = for_split(load_prompts(s, limited=False), s.get("split", "test"))
    prompts = prompts.head(s.get("limit", prompts.height))
    if prompts.is_empty():
        raise UserError(f"no prompt in split {s.get('split', 'test')!r}: pass --split or other --data")
    steering, record = need_vectors(session, s)
    model = session.model(s, record)
    arms = parse_arms(s.get("arm", ("baseline", "fixed")), single_arm(s, model, steering))
    tokens = s.get("max_new_tokens", 32)
    key = model_key(model) | {
        "vectors": record["id"],
        "fingerprint": fingerprint_of(prompts),
        "arms": [[a.name, a.layer, a.category, a.strength, a.unit, a.scope] for a in arms],
        "max_new_tokens": tokens,
        "seed": s.get("seed", 0),
    }
    path = s.run / "generations.parquet"
    if not unchanged(s, GENERATIONS, key, path):
        run_generate(model, prompts, steering, path, arms=arms, max_new_tokens=tokens,
                     batch_tokens=s.get("batch_tokens", 2048), seed=key["seed"])  # fmt: skip
        note(s, GENERATIONS, key, model, start, data=list(s.get("data", ("embedded",))), options=s.given())
    return {"prompts": prompts.height, "arms": [arm.name for arm in arms], "wrote": str(path)}


def need_activations(session: Session, s: Settings, *, own_data: bool) -> dict[str, Any]:
    """The record of activations that fit the settings; made if there are none."""
    from interventions.rundir import records

    record = records(s.run).get(ACTIVATIONS)
    made = (s.run / f"{ACTIVATIONS}.safetensors").exists() and record is not None
    reason = "there are none"
    if made and record is not None:
        reason = next((f"{name} is {s.get(name)}, was {record[name]}" for name in ("model", "dtype")
                       if s.get(name) is not None and s.get(name) != record[name]), "")  # fmt: skip
        if not reason and own_data and (s.get("data") or s.get("limit") or s.get("benign")):
            same = fingerprint_of(load_prompts(s, limited=True)) == record["key"]["fingerprint"]
            reason = "" if same else "the prompts changed"
    if not reason and record is not None:
        return record
    missing(s, "extract", "activations", reason)
    settings = s.for_missing(own_data=own_data)
    if record is not None:
        settings = settings.with_values(model=s.get("model", None, record), dtype=s.get("dtype", None, record))
        if not own_data or not s.get("data"):
            data = settings.get("data", ()) or (tuple(record.get("data") or ()) if s.get("benign") else ())
            settings = settings.with_values(data=data)
    extract_settings = settings.with_values(layers=s.get("layers"), position=None, suffix=())
    emit_progress(MAKERS["extract"](session, extract_settings))
    return records(s.run)[ACTIVATIONS]


def need_vectors(session: Session, s: Settings) -> tuple["SteeringVectors", dict[str, Any]]:
    """Vectors that fit the settings, and their record; made if there are none."""
    from interventions.rundir import records
    from interventions.vectors import SteeringVectors

    path = s.run / "vectors.safetensors"
    record, below = records(s.run).get(VECTORS), records(s.run).get(ACTIVATIONS)
    reason = ""
    if not path.exists() or record is None:
        reason = "there are none"
    elif below is not None and record["key"]["activations"] != below["id"]:
        reason = "the activations are newer"
    else:
        reason = next((f"{name} is {s.get(name)}, was {record[name]}" for name in ("model", "dtype")
                       if s.get(name) is not None and s.get(name) != record[name]), "")  # fmt: skip
    if reason:
        missing(s, "vectors", "vectors", reason)
        emit_progress(make_vectors(session, s.for_missing(own_data=False), own_data=False))
        record = records(s.run)[VECTORS]
    assert record is not None
    return SteeringVectors.load(path), record


def need_generations(session: Session, s: Settings) -> dict[str, Any]:
    """The record of generations that fit the settings; made if there are none."""
    from interventions.rundir import records

    record, below = records(s.run).get(GENERATIONS), records(s.run).get(VECTORS)
    reason = ""
    if not (s.run / "generations.parquet").exists() or record is None:
        reason = "there are none"
    elif below is not None and record["key"]["vectors"] != below["id"]:
        reason = "the vectors are newer"
    else:
        reason = next((f"{name} is {s.get(name)}, was {record[name]}" for name in ("model", "dtype")
                       if s.get(name) is not None and s.get(name) != record[name]), "")  # fmt: skip
        if not reason and (s.get("data") or s.get("limit")):
            from data import for_split

            prompts = for_split(load_prompts(s, limited=False), s.get("split", "test"))
            prompts = prompts.head(s.get("limit", prompts.height))
            reason = "" if fingerprint_of(prompts) == record["key"]["fingerprint"] else "the prompts changed"
    if reason:
        missing(s, "generate", "generations", reason)
        before = (record or {}).get("options", {})
        kept = ("layer", "category", "strength", "strength_unit", "scope", "arm", "max_new_tokens")
        emit_progress(make_generations(session, s.with_values(**{name: before.get(name) for name in kept})))
        record = records(s.run)[GENERATIONS]
    assert record is not None
    return record


def missing(s: Settings, name: str, what: str, reason: str) -> None:
    """Say that an input is made, or refuse to with --no-auto."""
    if s.get("no_auto", False):
        raise UserError(
            f"{s.command} needs {what} in {s.run} ({reason}): run `python cli.py --run {s.run} {name}` first"
        )
    warn(f"{s.command} needs {what} ({reason}): running {name}")


def unchanged(s: Settings, artefact: str, key: dict[str, Any], path: Path) -> bool:
    """Whether the artefact was made with this very key; says so if it was made with another."""
    from interventions.rundir import records

    record = records(s.run).get(artefact)
    if record is None or not path.exists():
        return False
    if record["id"] == identity(key):
        return True
    old = record.get("key", {})
    changed = sorted(name for name in {*old, *key} if old.get(name) != json.loads(json.dumps(key.get(name))))
    warn(f"{artefact} is made again: {', '.join(changed)} changed")
    return False


def note(s: Settings, artefact: str, key: dict[str, Any], model: "Model | None", start: str, *,
         like: dict[str, Any] | None = None, data: list[str] | None = None, options: dict[str, Any] | None = None) -> None:  # fmt: skip
    """Write an artefact's record; what there is no model for is taken over from the record it rests on."""
    from interventions.rundir import record

    entry: dict[str, Any] = {
        "command": "python cli.py " + shlex.join(sys.argv[1:]),
        "options": options or {},
        "data": data if data is not None else (like or {}).get("data", []),
        "key": key,
        "id": identity(key),
        "seed": s.get("seed", 0),
        "start": start,
    }
    if model is not None:
        entry |= model_key(model) | {"backend": model.backend}
    else:
        entry |= {
            name: (like or {}).get(name) for name in ("model", "revision", "template", "tokenizer", "dtype", "backend")
        }
    record(s.run, artefact, entry)


def identity(key: dict[str, Any]) -> str:
    """A short hash of a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def model_key(model: "Model") -> dict[str, Any]:
    """What makes a model the same model."""
    tokenizer = hashlib.sha256(json.dumps(sorted(model.tokenizer.get_vocab().items())).encode()).hexdigest()
    return {"model": model.name, "revision": model.revision, "template": model.template_hash,
            "tokenizer": tokenizer, "dtype": model.dtype}  # fmt: skip


# Prompts and arms.


def load_prompts(s: Settings, *, limited: bool) -> "pl.DataFrame":
    """The prompts of --data, with those of --benign."""
    import polars as pl

    from data import load_all

    prompts = load_all(s.get("data", ("embedded",)))
    if limited:
        prompts = prompts.head(s.get("limit", prompts.height))
    if s.get("benign"):
        more = load_all(s.get("benign")).filter(pl.col("label").fill_null("benign") == "benign")
        more = more.with_columns(pl.lit("benign").alias("label"))
        prompts = pl.concat([prompts, more.join(prompts, on=["dataset", "id"], how="anti")])
    return prompts


def traced_prompts(s: Settings) -> "pl.DataFrame":
    """The prompts of --prompt, else of --data, else embedded examples: two a category, one of them a near-miss."""
    import polars as pl

    from data import PROMPT_COLUMNS, for_split, load_all

    texts = s.get("prompt", ())
    if texts:
        if any(not text.strip() for text in texts):
            raise UserError("--prompt is empty; pass a text")
        rows = [{"id": str(at), "prompt": text, "dataset": "prompt"} for at, text in enumerate(texts)]
        return pl.DataFrame(rows, schema=dict.fromkeys(PROMPT_COLUMNS, pl.String))
    if not s.get("data"):
        examples = for_split(load_all(["embedded"]), s.get("split", "test"))
        return (
            examples.group_by("category", "label", maintain_order=True)
            .head(1)
            .sort("category", "label", nulls_last=True)
            .select(PROMPT_COLUMNS)
            .head(s.get("limit", TRACED_AT_MOST))
        )
    prompts = for_split(load_prompts(s, limited=False), s.get("split", "test"))
    if prompts.is_empty():
        raise UserError(f"no prompt in split {s.get('split', 'test')!r}: pass --split or other --data")
    if prompts.height > TRACED_AT_MOST and s.get("limit") is None:
        warn(f"tracing the first {TRACED_AT_MOST} of {prompts.height} prompts; --limit N traces more")
    return prompts.head(s.get("limit", TRACED_AT_MOST))


def single_arm(s: Settings, model: "Model", steering: "SteeringVectors") -> "Arm":
    """The arm of --layer, --category, --strength, --strength-unit and --scope, and of trace's one --arm."""
    from interventions.arms import DEFAULT_SCOPE, DEFAULT_STRENGTH, DEFAULT_UNIT, Arm, parse_arms

    layer = s.get("layer")
    if layer is not None and layer >= model.n_layers:
        raise UserError(f"layer {layer}: model {model.name!r} has layers 0 to {model.n_layers - 1}")
    if layer is None:
        layer = min(steering.layers, key=lambda at: abs(at - model.default_layer()))
    arm = Arm("fixed", "fixed", layer, s.get("category", "mean"), s.get("strength", DEFAULT_STRENGTH),
              s.get("strength_unit", DEFAULT_UNIT), s.get("scope", DEFAULT_SCOPE))  # fmt: skip
    if s.command == "trace" and s.get("arm"):
        arms = [a for a in parse_arms(s.get("arm"), arm) if a.kind != "baseline"]
        if len(arms) != 1:
            raise UserError("trace shows one steered arm beside the unsteered model: pass one --arm fixed:…")
        arm = arms[0]
    return arm


def fitted_texts(s: Settings) -> set[str]:
    """Texts of the prompts that the vectors rest on."""
    import polars as pl

    from data import for_split
    from interventions.rundir import records
    from reports.scoring import same_text

    path, record = s.run / f"{ACTIVATIONS}.parquet", records(s.run).get(VECTORS)
    if record is None or not path.exists():
        return set()
    rows = for_split(pl.read_parquet(path), record["key"]["split"])
    benign, harmful = pl.col("label") == "benign", (pl.col("label") == "harmful") & pl.col("category").is_not_null()
    return {same_text(text) for text in rows.filter(benign | harmful)["prompt"]}


def fingerprint_of(prompts: "pl.DataFrame") -> str:
    """Data fingerprint of prompts."""
    from data import fingerprint

    return fingerprint(prompts)


# What people and scripts see.


def trace_table(table: "pl.DataFrame") -> "pl.DataFrame":
    """One line a prompt: divergence and most probable next token, without and with steering."""
    import polars as pl

    def best(column: str) -> list[str]:
        return [f"{row[0]['token']!r} {row[0]['probability']:.2f}" for row in table[column]]

    shown: dict[str, Any] = {"prompt": table["prompt"], "KL": table["kl"].round(4), "next": best("top_unsteered")}
    shown["next, steered"] = best("top_steered")
    if table["text_unsteered"].drop_nulls().len():
        shown |= {"text": table["text_unsteered"], "text, steered": table["text_steered"]}
    return pl.DataFrame(shown)


def emit(name: str, summary: dict[str, Any], as_json: bool) -> None:
    """A command's summary on stdout, for people or as one JSON object."""
    if as_json:
        plain = {k: v.to_dicts() if hasattr(v, "to_dicts") else v for k, v in summary.items()}
        click.echo(json.dumps({"command": name, **plain}, ensure_ascii=False, default=str))
        return
    table = summary.pop("table", None)
    if table is not None:
        click.echo(as_text(table))
    wrote = summary.pop("wrote")
    click.echo(f"{name}: {', '.join(f'{key} {_shown(value)}' for key, value in summary.items())} -> {wrote}")


def emit_progress(summary: dict[str, Any]) -> None:
    """A line on stderr for an input that was made on the way."""
    warn(f"made {summary['wrote']}")


def as_text(table: "pl.DataFrame") -> str:
    """A table for a terminal; control characters of generated text are shown, not sent."""
    import polars as pl

    safe = table.with_columns(
        pl.col(pl.String).map_elements(_printable, return_dtype=pl.String) if pl.String in table.dtypes else []
    )
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True,
                   fmt_str_lengths=60, tbl_width_chars=160, float_precision=3):  # fmt: skip
        return str(safe)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def warn(message: str) -> None:
    """One line on stderr."""
    click.echo(message, err=True)


def main() -> None:
    """Run, and turn every failure into one line and the exit status of the contract."""
    debug = "--debug" in sys.argv
    logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR, stream=sys.stderr, format="%(message)s")
    logging.getLogger("interventions").setLevel(logging.DEBUG if debug else logging.WARNING)
    try:
        cli.main(standalone_mode=False)
        code = 0
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.UsageError as error:
        error.show()
        code = 2
    except (KeyboardInterrupt, click.Abort):
        warn("interrupted; finished batches are kept: run the same command again to go on")
        code = 130
    except Exception as error:
        if debug:
            raise
        warn(f"error: {one_line(error)}")
        code = 1
    sys.exit(code)


def one_line(error: Exception) -> str:
    """What is wrong, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (UserError, click.ClickException)):
        return text
    if isinstance(error, OSError):
        return f"{text}; check the path, its permissions and the free space"
    return f"{type(error).__name__}: {text[:300]} (--debug shows where)"


if __name__ == "__main__":
    main()
