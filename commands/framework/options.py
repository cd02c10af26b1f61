"""Every option, declared once: flag, help, type and default. `--help` states the default that then counts.

Where a command has another default or another word for it, it takes `OPTION.but(…)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from commands.framework import types
from commands.framework.types import COUNT, FILE, FOLDER
from data import contract as c
from data.errors import UserError

DEPTH = "round(18/32 · n_layers)"


class Option(click.Option):
    """click's, with the default aside: click must tell what was given from what was not."""

    def __init__(self, *args: Any, fallback: Any = None, **options: Any) -> None:
        """As click's, with `fallback`: the value where none is given."""
        super().__init__(*args, **options)
        self.fallback = fallback


@dataclass(frozen=True)
class Declared:
    """An option as it is declared; called with a function, it decorates it as click's do.

    Attributes:
        flag: With its dashes.
        help: What it is for.
        type: click's, or the words to choose from, or bool for a flag.
        default: The value where none is given; None where the command computes it, or there is none.
        shown: The default in words, where it says itself too little; empty to say nothing.
        name: The value's name, where it is not the flag's.
        value: What the flag stands for, of several flags with one `name`.
        multiple: Whether it may be repeated.
        check: click's callback.
    """

    flag: str
    help: str
    type: Any = None
    default: Any = None
    shown: str | None = None
    name: str | None = None
    value: str | None = None
    multiple: bool = False
    check: Callable[..., Any] | None = None

    def but(self, **changes: Any) -> "Declared":
        """The same with another default, help or type."""
        return replace(self, **changes)

    @property
    def key(self) -> str:
        """The value's name."""
        return self.name or self.flag.lstrip("-").replace("-", "_")

    def __call__(self, command: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate a function."""
        more: dict[str, Any] = {"fallback": () if self.multiple and self.default is None else self.default}
        if self.value is not None:
            more["flag_value"] = self.value
        elif self.type is bool:
            more |= {"is_flag": True, "default": None}
        else:
            kind = click.Choice(list(self.type)) if isinstance(self.type, (dict, tuple)) else self.type
            more |= {"type": kind, "multiple": self.multiple, "callback": self.check}
        return click.option(self.flag, self.key, cls=Option, help=self.help + self._default(), **more)(command)

    def _default(self) -> str:
        if self.value is not None:
            return "  [default]" if self.value == self.default else ""
        plain = {type(None): "none", bool: "off", float: "{:g}"}.get(type(self.default), "{}")
        value = ", ".join(map(str, self.default)) if isinstance(self.default, tuple) else self.default
        words = self.shown if self.shown is not None else plain.format(value)
        return f"  [default: {words}]" if words else ""


def shared(command: Callable[..., Any], own: Sequence[Declared] = ()) -> Callable[..., Any]:
    """Decorate with every shared option but those that the command declares itself."""
    taken = {option.key for option in own}
    for option in reversed(SHARED):
        if option.key not in taken:
            command = option(command)
    return command


def readable_arms(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Arms as they were typed, if they can be read: nothing runs otherwise."""
    if texts:
        from interventions.steering.arms import Arm, parse_arms

        try:
            parse_arms([text for text in texts if text != c.CHOSEN], Arm("fixed", "fixed", 0))
        except UserError as error:
            more = f", and {c.CHOSEN}, which sweep chose" if "unknown kind" in str(error) else ""
            raise click.BadParameter(f"{error}{more}") from None
    return texts


# A table: an option a line.
# fmt: off
RUN = Declared("--run", "Run directory.", FOLDER, Path("runs/default"))
MODEL = Declared("--model", f"Hub id, folder or alias ({c.TUNED_MODEL}, {c.BASE_MODEL}).", shown=c.TUNED_MODEL)
WHERE = tuple(
    Declared(f"--{where}", words, name="where", value=where, default="local")
    for where, words in zip(c.WHERES, ("Run here.", "Ship and rebuild each trace in-process first.", "Run on an NDIF server."), strict=True)
)
SANDBOX = Declared("--sandbox", "Run traces as NDIF runs an ordinary key's; with --simulate, what fails there fails here.", bool, False, shown="as the server says")
HOST = Declared("--host", "NDIF server's address.", shown="nnsight's configuration")
INSECURE = Declared("--insecure", "Let your NDIF key go to another machine over plain http, and results come from a store that NDIF does not name.", bool, False)
YES = Declared("--yes", f"Let more than {c.ASKED_BYTES / 1e9:g} GB of activations come back from a server.", bool, False)
SECONDS = Declared("--timeout", "Seconds a remote job may take.", types.Numbers(min=0, min_open=True), c.TIMEOUT)
IN_FLIGHT = Declared("--in-flight", "Remote jobs under way at once.", click.IntRange(1, 64), c.IN_FLIGHT)
ENGINE = Declared("--engine", "What runs the model: transformers, or vLLM with its continuous batching (`make vllm`).", c.ENGINES, c.ENGINES[0])
SERVE_AT = Declared("--serve", "Address of an nnsight-serve that holds the weights, for --engine vllm; its key in NDIF_API_KEY.", shown="none: weights are loaded here")
TENSOR_PARALLEL = Declared("--tensor-parallel", "GPUs that share each tensor, for --engine vllm.", COUNT, 1)
REQUESTS = Declared("--requests", "Requests under way at once, for --engine vllm.", COUNT, c.REQUESTS)
MOST_LENGTH = Declared("--max-model-len", "Tokens that a prompt with its answer may have, for --engine vllm.", COUNT, shown=f"the model's, up to {c.MOST_LENGTH}")
DEVICE = Declared("--device", "torch device.", shown="cuda if there is one, else cpu")
DEVICE_MAP = Declared("--device-map", "Instead of --device, weights over several: auto, balanced, balanced_low_0, sequential (accelerate's, GPUs first, then memory, then disk), a device, or a .json file, module -> device, cpu or disk.", shown="none: one device")
OFFLOAD = Declared("--offload-folder", "With --device-map: folder for weights on disk that can't be read from the checkpoint as they are.", FOLDER, shown="one in the cache folder, while the command runs")
QUANTIZE = Declared("--quantize", "Hold the weights of linear layers in fewer bits (bitsandbytes); numbers are others.", (c.UNQUANTISED, *c.QUANTISED), c.UNQUANTISED)
DTYPE = Declared("--dtype", "Type of the weights.", c.DTYPES, shown="float32 on a CPU, the checkpoint's elsewhere")
BATCH_TOKENS = Declared("--batch-tokens", "Padded tokens a batch.", COUNT, shown=f"{c.BATCH_TOKENS}; on a GPU what fits")
PROMPT_FORMAT = Declared("--prompt-format", "How prompts are put: tokenizer, its own template; a name of one (refusal-llama3, llama3, llama2, chatml, vicuna, alpaca, plain, or of several that a tokenizer has); none; or a pattern, such as 'Q: {prompt}\\nA:'.", shown="tokenizer")
SYSTEM = Declared("--system", "System message before every prompt.")
JINJA = Declared("--template", "Chat template, a Jinja file.", types.File(exists=True), shown="none: --prompt-format says")
THINKING = Declared("--thinking/--no-thinking", "Whether a template that knows it lets the model think.", bool, name="thinking", shown="the template's")
DATE = Declared("--date", "Date that a template writes which writes today's, such as 2024-07-26.", types.DATE, shown="the run's first day")
CONTROL = Declared("--control-tokens/--no-control-tokens", "Whether a control token in a prompt's text, such as <|im_end|> or [respond], counts as one; else it is its characters.", bool, name="control_tokens", shown="no")
FORMATTING = (PROMPT_FORMAT, SYSTEM, JINJA, THINKING, DATE, CONTROL)
SEED = Declared("--seed", "Seed of everything random.", types.SEED, 0)
LIMIT = Declared("--limit", "Only the first N prompts.", COUNT, shown="all")
DATA = Declared("--data", "A name that `datasets` lists, NAME[:CONFIG][/PART]; a hub id with a column prompt; or a .jsonl, .json, .csv, .tsv, .parquet or .xlsx file, or a .txt, one prompt a line, .gz and .zst too, with :prompt=COL,label=COL,harmful=VALUE where its columns are called otherwise and encoding=cp1252 where it is no UTF-8; repeatable.", default=("embedded",), multiple=True)
MIRROR = Declared("--data-mirror", "Folder with hub data sets under their own names, used instead of the hub.", FOLDER)
HOLDOUT = Declared("--holdout", "Share of rows without a split that nothing is fitted on, to choose on and to answer; none: every row serves all.", types.HOLDOUT, c.HOLDOUT)
SPLIT = Declared("--split", "Rows to use.", c.SPLITS, shown="train for vectors, test for generate and trace")
JSON = Declared("--json", "One JSON object a command on stdout.", bool, False, shown="", name="as_json")
NO_AUTO = Declared("--no-auto", "Don't make missing inputs; say which command does.", bool, False, shown="")
DEBUG = Declared("--debug", "Show tracebacks.", bool, False, shown="")
SHARED = (RUN, MODEL, *WHERE, SANDBOX, HOST, INSECURE, YES, SECONDS, IN_FLIGHT, ENGINE, SERVE_AT, TENSOR_PARALLEL, REQUESTS, MOST_LENGTH, DEVICE, DEVICE_MAP, OFFLOAD, QUANTIZE, DTYPE, *FORMATTING, BATCH_TOKENS, SEED, LIMIT, DATA, MIRROR, SPLIT, HOLDOUT, JSON, NO_AUTO, DEBUG)
TRAIN, VALIDATION, TEST = (SPLIT.but(default=split, shown=None) for split in c.SPLITS)

# Reading and fitting
LAYERS = Declared("--layers", "Blocks to read, such as 5, 0-9 or 3,5.", types.LAYERS, shown="all")
POSITION = Declared("--position", "last prompt token, mean over the user's tokens, or a suffix's last token.", c.POSITIONS, shown="last")
SUFFIX = Declared("--suffix", "Text after each rendered prompt; repeatable.", multiple=True)
SHOW_PROMPT = Declared("--show-prompt", "First show how the first prompt is put to the model, and each of its tokens, on stderr (with --json in the object); then go on.", bool, False)
BENIGN = Declared("--benign", "More prompts, all benign; repeatable.", multiple=True)
METHOD = Declared("--method", "How a vector is fitted.  " + "; ".join(f"{name}: {what}" for name, what in c.METHODS.items()) + ".  "
                  "For arms of these names: " + "; ".join(f"{name}: {what}" for name, what in c.EDITS.items()) + ".", (*c.METHODS, *c.EDITS), "mean")
TAU = Declared("--tau", "Set entries of a vector that are smaller than this to zero.", types.Numbers(min=0), shown="none; published: 1e-3")
TOP_K = Declared("--top-k", "Keep the K largest entries.", COUNT, shown="all; published: 200")
NORMALIZE = Declared("--normalize", "Scale to unit length.", bool, False)
FIT = Declared("--fit", "logistic: logistic regression, its penalty cross-validated; mass-mean: the difference in means over each dimension's variance, "
               "which carries over better to other data; published: as published, AdamW, 15 epochs.", c.FITS, "logistic")
PROBE_LAYER = Declared("--layer", "Block to read; auto: the one with the highest AUC on --threshold-split.", types.LAYER_OR_AUTO, shown=DEPTH)
GATE = Declared("--gate", "probe: of this run's activations; the others are fitted on --data of their own.  " + "; ".join(
                f"{name}: {what}" for name, what in c.GATES.items() if name != c.LABELLED_GATE) + f".  Several joined by {', '.join(c.JOINS)}: ridge+control.", types.GATE, "probe")
KEEP_REFUSAL = Declared("--keep-refusal", "Share of the unsteered refusals of harmful prompts that the threshold keeps, with 95 % confidence, "
                        "on prompts of other themes than those that are fitted on.", types.Numbers(0, 1, min_open=True, max_open=True), shown=f"Youden's J; without --data {c.GATE_KEPT:g}")
FPR = Declared("--fpr", "Share of benign rows that may pass for harmful.", types.Numbers(0, 1), shown="where the shares of harmful and of benign rows above the threshold differ most (Youden's J)")
THRESHOLD_SPLIT = Declared("--threshold-split", "Rows to choose the threshold on.", c.SPLITS, "validation")
MODE = Declared("--mode", "fixed: one vector, U z, for every row, as published; input: U Vᵀ(h − mean), which depends on the row.", c.MODES, "fixed")
BASIS = Declared("--basis", "Where U and V start: whitened with a shrunk covariance and mapped back; or as published, flaws included.", c.BASES, "shrunk")
EPOCHS = Declared("--epochs", "Passes through the prompts.", COUNT, c.LOWRANK_EPOCHS)
RATE = Declared("--rate", "Learning rate, as a share of each parameter's size.", types.Numbers(min=0, min_open=True), c.LOWRANK_RATE)

# Steering
LAYER = Declared("--layer", "Block to steer.", types.LAYER, shown=DEPTH)
CATEGORY = Declared("--category", "Whose vector to add.", default=c.MEAN, shown="the mean of all categories'")
STRENGTH = Declared("--strength", "How much of it: negative is away from refusal, positive towards it.", types.FINITE, c.DEFAULT_STRENGTH)
UNIT = Declared("--strength-unit", "What a strength of 1 is: raw, the vector as it is; unit, at length 1; residual, as long as the model's residual stream is on average at that layer.", c.UNITS, c.DEFAULT_UNIT)
SCOPE = Declared("--scope", "Positions to steer; generated: the last prompt token and each generated one.", c.SCOPES, c.DEFAULT_SCOPE)
ARM = Declared("--arm", f"KIND or KIND:KEY=VALUE,…, one way to answer, or {c.CHOSEN}, the setting that sweep chose, or without one that of the embedded model; repeatable; kinds and keys stand below.", multiple=True, check=readable_arms, shown="baseline, fixed, and what the run's probe, low-rank map and sweep and the model's tokens allow; trace: fixed")
STEERING = (LAYER, CATEGORY, STRENGTH, UNIT, SCOPE, ARM)
AGAINST_ENGINE = Declared("--against", "What the engine is held against: transformers, here and in float32, or a setting that parity ran for, such as vllm-float32.", default="transformers")
TOLERANCE = Declared("--tolerance", "Deviation of the residual stream, as a share of its length, that passes.", types.Numbers(min=0, min_open=True), shown="1e-5 in float32, else 0.1")
REPLACE = Declared("--replace", "Begin anew: what earlier commands made goes.", bool, False)
FOLLOW = Declared("--generation-config/--no-generation-config", "Whether answers follow what the model's generation_config asks of greedy decoding (repetition_penalty, suppress_tokens, …), as transformers' generate does; the tables' first-token figures are the model's own either way.", bool, False, shown="no", name="generation_config")
NEW_TOKENS = Declared("--max-new-tokens", "Tokens an answer.", COUNT, c.MAX_NEW_TOKENS)
WRAP = Declared("--wrap", "A text file with {prompt} in it: each prompt is put into it, beside the prompts as they are, to see whether a gate holds under other wordings.", types.File(exists=True), shown="none")
PROMPT = Declared("--prompt", "A prompt; repeatable.", multiple=True, shown="embedded examples")
STRENGTHS = Declared("--strengths", "Strengths to try, such as -0.1,-0.3.", types.NUMBERS, shown="the arm's own times 1/3, 2/3, 1, 4/3, 2")
BEST = Declared("--best", "Settings that generate, shortlisted by the first token.", COUNT, c.SWEEP_BEST)
METHODS = Declared("--methods", "Compare methods instead, each at the strength that costs harmless prompts --kl, with every gate of the run on their answers: all, or names; repeatable. Of more than 128 rows all answer 80, and the three best there the rest.", multiple=True, shown="none: layers and strengths of --arm")
KL = Declared("--kl", "With --methods: nats that steering may cost a harmless prompt (the 95th percentile over prompts of the mean over 20 tokens), such as 0.25,0.5,1.", types.NUMBERS, c.KL_BUDGETS, shown=", ".join(f"{budget:g}" for budget in c.KL_BUDGETS))
REFUSAL_LOSS = Declared("--refusal-loss", "How much refusal of harmful rows may be lost.", types.Numbers(0, 1), c.REFUSAL_LOSS)
EQUAL_KL = Declared("--kl", "Budget, in nats: KL to the unsteered model on harmless prompts, of whose answers' first 20 tokens the mean is taken, and of prompts the "
                    "95th percentile.", types.Numbers(min=0, min_open=True), 0.5)
RANDOMS = Declared("--random", "Random directions beside them.", click.IntRange(0, 10_000), 5)
PLAIN_TEXT = Declared("--text", "Plain text to measure perplexity on, its passages parted by blank lines.", FILE, shown="36 passages of our own")

# Scoring and showing
JUDGE_PROMPT = Declared("--judge-prompt", "What the judge is asked.  " + "; ".join(f"{name}: {what}" for name, what in c.JUDGE_PROMPTS.items()) + ".  Or a file of yours: a text "
                        "with {response} and, if it is to be shown, {prompt} in it, or TOML with system, user and [verdicts].", None, next(iter(c.JUDGE_PROMPTS)))
SCORING = (
    Declared("--scorer", "Who scores; repeatable.", c.SCORERS, multiple=True, shown="all that have what they need"),
    Declared("--judge-model", "Model of an OpenAI-compatible endpoint that judges; its key comes from REFUSAL_JUDGE_API_KEY or OPENAI_API_KEY."),
    Declared("--judge-url", f"The endpoint; {c.LOCAL_JUDGE}: --judge-model is a folder or hub id, and is opened here.", shown="OPENAI_BASE_URL, else OpenAI"),
    JUDGE_PROMPT,
    Declared("--judge-concurrency", "Questions at once.", click.IntRange(1, 256), c.JUDGE_CONCURRENCY),
    Declared("--judge-timeout", "Seconds that one question may take.", types.Numbers(min=0, min_open=True), c.JUDGE_TIMEOUT),
    Declared("--judge-retries", "How often a question that failed is asked again.", click.IntRange(0, 100), c.JUDGE_RETRIES),
    Declared("--classifier", f"Folder or hub id of a text classifier, or embedded: a small one for {c.TUNED_MODEL}.", shown=f"embedded for {c.TUNED_MODEL}, else none"),
    Declared("--classifier-labels", "CLASS=VERDICT,… where its names don't say it."),
    Declared("--hand", "CSV or JSONL of 100 answers to label by hand: written if it is missing, else read.", FILE),
    Declared("--difference", "Percentage points: the summary says how many prompts it would take to show such a difference.", types.Numbers(0, 100, min_open=True), c.DIFFERENCE),
)
LENGTHS = Declared("--lengths", "Also score every answer cut at so many tokens, such as 16,32,64: refusal against answer length, of one generation.", types.COUNTS, shown="none")
COHERENT = Declared("--coherence", "Also ask the unsteered model how probable each answer is: those below the 1st percentile of its own, at like length, are incoherent and no answers.", bool, False)
OUT = Declared("--out", "The file.", FILE)
ASSETS = Declared("--assets", "Also each chart as PNG and SVG, each table as CSV and parquet, into this folder.", FOLDER)
TABLES = Declared("--tables", "Also every table as a file in RUN/tables, with the page's own numbers and intervals: latex (booktabs), csv, parquet, markdown; repeatable.", c.TABLE_FORMATS, multiple=True, shown="none")
COMPARE = Declared("--compare", "Run directories to compare in place of one run's page: --compare A B.", FOLDER, multiple=True)
MAP = Declared("--map", "Map of activations.", c.MAPS, "pca", name="map_of_activations")
MANY = Declared("--prompts", "How long so many prompts take to answer in one arm, by what is measured here in a moment.", COUNT, shown="none: not said")
PROMPT_TOKENS = Declared("--prompt-tokens", "Tokens of a prompt, its template's among them.", COUNT, c.PROMPT_TOKENS)
JOBS = Declared("--jobs", "Also this run directory's jobs whose results are not here yet.", bool, False)
AGAINST = Declared("--against", "The model that --model was tuned from.", shown=f"{c.BASE_MODEL}, for {c.TUNED_MODEL}")
TEXT = Declared("--text", "tagged: at a [category] or [respond] behind the prompt; untagged: at the last prompt token.", c.TEXTS, shown="both")
MEANS = Declared("--means", "Cosines alone, without interval, ceiling and floor, which draw single rows: a server then adds up what cosines rest on.", bool, False)
OWN_SPLIT = Declared("--own-split", "As published: the base splits a tag in its own way, and is read at its `]`.", bool, False, shown="both models read the same token ids")

# lm-eval
TASK = Declared("--task", "lm-eval's name of a task, group or tag, or a task file (.yaml); repeatable.", default=("arc_easy",), multiple=True)
INCLUDE = Declared("--include-path", "Folder with more task files; a task file may run Python beside it; repeatable.", FOLDER, multiple=True)
FEWSHOT = Declared("--num-fewshot", "Examples before an item.", types.ANY_COUNT, shown="the task's")
CHAT = Declared("--chat-template", "Put items into the model's chat template.", bool, False, shown="off, as in lm-eval")
BATCH_SIZE = Declared("--batch-size", "Rows a batch, or auto.", types.ROWS, c.BATCH_SIZE)

# Serving
SERVED_TOKENS = NEW_TOKENS.but(help="Tokens of an answer where a request names no number.", default=256)
PORT = Declared("--port", "Port to listen on; 0: any that is free.", click.IntRange(0, 65_535), 8080)
LISTEN = Declared("--listen", "Address to listen on. One that others reach takes a token, which requests must bear: REFUSAL_SERVE_TOKEN, else one is made and shown.", shown="127.0.0.1, this machine alone")
ALLOW_HOST = Declared("--allow-host", "Another name that requests may call this server by; repeatable.", multiple=True)
ALLOW_ORIGIN = Declared("--allow-origin", "Pages of another site that may ask, such as http://localhost:3000; repeatable.", multiple=True)
ROWS = Declared("--rows", "Answers that decode at once.", click.IntRange(1, 1024), 32)
QUEUE = Declared("--queue", "Answers that may wait beside these; more are refused with 429.", click.IntRange(1, 100_000), 128)

# Teaching and carrying away
RANK = Declared("--rank", "Rank of the LoRA.", COUNT, c.RANK)
LEARNING_RATE = Declared("--learning-rate", "At its peak.", types.Numbers(0, 1, min_open=True), c.LEARNING_RATE)
ANSWER_TOKENS = Declared("--max-tokens", "Cut answers there; leave out longer prompts.", click.IntRange(8, types.MOST), c.ANSWER_TOKENS)
TOKEN_WEIGHT = Declared("--token-weight", "Weight of the control token's loss against the answer's.", types.FINITE, c.TOKEN_WEIGHT)
BALANCE = Declared("--balance", "0 weighs rows alike, 1 categories.", types.Numbers(0, 1), c.BALANCE)
TEMPLATE = Declared("--template", "Chat template, Jinja.", types.File(exists=True), shown="the model's own, without a default system prompt")
FORMAT = Declared("--format", "gguf: llama.cpp's --control-vector; lm-eval: its `steered` model; pt; safetensors; inspect: the run's answers as .eval logs.", (*c.FORMATS, c.ANSWERS_FORMAT), "safetensors")
OPERATION = (
    Declared("--add", "A bias that adds the vector at every position.", name="operation", value="add", default="add"),
    Declared("--ablate", "Weights that can't write the vector's direction.", name="operation", value="ablate", default="add"),
)
FOR = Declared("--for", "Only what this command rests on; repeatable.", c.CHECKED, multiple=True, shown="all commands", name="wanted")
# fmt: on
