"""Teach a model refusal tokens: each answer opens with `[respond]` or the name of a reason not to comply.

Method: arXiv 2412.06748. A LoRA on every linear layer of the decoder blocks is trained together with the control
tokens' own rows of the vocabulary; out come a bare adapter and the merged model.
"""

import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from data.contract import (
    ANSWER_TOKENS,
    BALANCE,
    BASE_MODEL,
    EPOCHS,
    LEARNING_RATE,
    RANK,
    RESPOND,
    STEP_TOKENS,
    TOKEN_WEIGHT,
)
from data.errors import UserError, cause_of
from data.store.rundir import appearing, writing
from interventions.model.adapter import grow, merge, save_adapter
from interventions.model.blocks import decoder_path
from interventions.model.embedded import ALIASES, HUB_ID, embedded_folder
from interventions.model.foreign.checkpoint import check_files, every_weight, folder_revision
from interventions.model.foreign.rendering import check_template
from interventions.model.formats.named import answer_template
from interventions.model.tokenizer_files import RECORD_FILE, write_tokenizer
from interventions.model.vocabulary import ControlToken, place_control_tokens
from interventions.reading.batches import pad_id
from interventions.tuning.card import card
from interventions.tuning.examples import Example, make_examples, split_rows, target_tokens
from interventions.tuning.loop import Checkpoint, Epoch, Plan, train

logger = logging.getLogger(__name__)
READ_SPLITS = ("train", "validation")
ADAPTER = "adapter"  # the bare adapter's folder inside the model's


@dataclass(frozen=True)
class Report:
    """What `finetune` did.

    Attributes:
        folder: The merged model; the bare adapter is in its subfolder `adapter`.
        control_tokens: The control tokens, with their ids and the unused tokens whose place they took.
        resized: Whether the vocabulary had to grow.
        epochs: One by one.
        kept: Number of the epoch whose weights were kept.
        train_rows: Rows learned from.
        validation_rows: Rows measured after each epoch.
        left_out: Rows of those splits that taught nothing: no label, or a prompt of `max_tokens` and more.
        seconds: Training time, that of a killed run included.
        resumed: Whether a killed run was taken up.
    """

    folder: Path
    control_tokens: tuple[ControlToken, ...]
    resized: bool
    epochs: tuple[Epoch, ...]
    kept: int
    train_rows: int
    validation_rows: int
    left_out: int
    seconds: float
    resumed: bool


def finetune(
    base: str,
    rows: pl.DataFrame,
    out: Path,
    *,
    rank: int = RANK,
    learning_rate: float = LEARNING_RATE,
    epochs: int = EPOCHS,
    batch_tokens: int = STEP_TOKENS,
    max_tokens: int = ANSWER_TOKENS,
    token_weight: float = TOKEN_WEIGHT,
    balance: float = BALANCE,
    template: str | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    checkpoint_seconds: float = 60.0,
) -> Report:
    """Train a refusal-token adapter, keep its best epoch, and write it and the merged model to `out`.

    It has as many parameters as the command of this name has options: each is one of them, by its own name.

    A run that was killed goes on from its last checkpoint when it is started again with the same arguments; on a CPU
    it ends with the adapter of an undisturbed run, byte for byte, as does a second run.

    Args:
        base: Alias, hub id or folder of a Llama.
        rows: `data.prompts.answers.TRAINING_COLUMNS`. Benign rows open with `[respond]`, harmful ones with `[category]`, or
            `[refuse]` without a category. Split `train` is learned from, `validation` chooses the epoch, others are
            not read; rows without a split are learned from, a tenth of them held out if there is no validation
            split. A row without a response teaches its control token alone.
        out: The model folder to make. It appears whole, by rename, and takes the place of an earlier one.
        rank: Rank of the LoRA; alpha is twice that.
        learning_rate: Of AdamW, at its peak.
        epochs: Passes over the training rows.
        batch_tokens: Padded tokens a step.
        max_tokens: Answers are cut there; rows whose prompt alone is longer are left out.
        token_weight: Weight of the control token's loss against the mean loss of the answer's tokens.
        balance: 0 counts every row's control token the same, 1 every category; see `examples.class_weights`.
        template: Chat template (Jinja); default the base's own without a default system prompt, or a simple one.
        seed: Of the initial weights and the order of rows.
        device: torch device; default CUDA if there is any, else the CPU.
        dtype: What the frozen base computes in: `float32`, `bfloat16`; default float32 on a CPU, bfloat16 elsewhere.
            What is trained is float32; the merged model has the checkpoint's own type.
        checkpoint_seconds: Time between checkpoints.

    Raises:
        UserError: No such model, rows that teach nothing, a category whose name can't be a token, or an `out` that
            holds something else.
    """
    check_out(out)
    source = str(embedded_folder(base)) if base in ALIASES else base
    labelled = rows.filter(pl.Series([name is not None for name in target_tokens(rows)], dtype=pl.Boolean))
    parts = split_rows(labelled)
    names = _control_names(parts[0])
    work = out.parent / f".{out.name}.training"
    plan = Plan(learning_rate, epochs, batch_tokens, token_weight, balance, seed)
    with writing(work):
        tokenizer, control_tokens, chat = _tokenizer(source, base, names, template, work / "tokenizer")
        examples, held = (make_examples(tokenizer, control_tokens, part, max_tokens) for part in parts)
        if not examples or not held:
            raise UserError("nothing to learn: no training, or no validation row is labelled and short enough")
        module, resized = _adapted(
            module_of(source, device, dtype), base, control_tokens, examples, tokenizer, rank, seed
        )
        used = rows.select("prompt", "category", "label", "split", "response")
        key = {
            "base": [base, _identity(source, module)],
            "options": asdict(plan) | {"rank": rank, "max_tokens": max_tokens},
            "dtype": str(module.dtype),
            "rows": hashlib.sha256(used.write_json().encode()).hexdigest(),
            "template": chat,
            "slots": [asdict(token) for token in control_tokens],
        }
        done = train(
            module,
            examples,
            held,
            plan,
            names={token.id: token.name for token in control_tokens},
            pad=pad_id(tokenizer),
            checkpoint=Checkpoint(work / "state.safetensors", key, checkpoint_seconds),
        )
        read = rows.filter(pl.col("split").is_null() | pl.col("split").is_in(READ_SPLITS)).height
        report = Report(out, control_tokens, resized, tuple(done.epochs), done.kept, len(examples), len(held),
                        read - len(examples) - len(held), done.seconds, done.resumed)  # fmt: skip
        with appearing(out, replace=True) as folder:
            name = HUB_ID if base == BASE_MODEL else base
            _write_adapter(folder / ADAPTER, name, module, chat, report, key["options"])
            del module
            merge(source, folder / ADAPTER, folder)
    shutil.rmtree(work, ignore_errors=True)
    return report


def _write_adapter(adapter: Path, name: str, module: Any, chat: str, report: Report, options: dict[str, Any]) -> None:
    """The bare adapter and its card."""
    adapter.mkdir()
    save_adapter(module, report.control_tokens, chat, name, adapter)
    counts = (report.train_rows, report.validation_rows)
    text = card(name, report.control_tokens, report.resized, report.epochs, report.kept, counts, options)
    (adapter / "README.md").write_text(text, "utf-8")


def check_out(out: Path) -> None:
    """Refuse to replace a folder that is none of ours.

    Raises:
        UserError: It is a file, or holds something else.
    """
    if out.exists() and not (out / ADAPTER / RECORD_FILE).exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out} is there already and is no folder of `finetune`; pass another --out")


def _control_names(train: pl.DataFrame) -> list[str]:
    """Categories of the harmful training rows, sorted, then `respond`: the published order.

    Raises:
        UserError: There is nothing to tell apart.
    """
    names = {name for name in target_tokens(train) if name}
    if RESPOND not in names or len(names) < 2:
        missing = "benign" if RESPOND not in names else "harmful"
        raise UserError(f"no {missing} training rows: a model learns refusal tokens from both kinds")
    if train.filter((pl.col("label") == "harmful") & (pl.col("category") == RESPOND)).height:
        raise UserError(f"category {RESPOND!r} is the token of benign answers; rename it in the data")
    return [*sorted(names - {RESPOND}), RESPOND]


def _tokenizer(
    source: str, base: str, names: list[str], template: str | None, folder: Path
) -> tuple[Any, tuple[ControlToken, ...], str]:
    """The base's tokenizer with control tokens and template, as it will be saved."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        check_template(tokenizer, base)
    except (OSError, ValueError) as error:
        raise UserError(f"model {base!r} can't be opened: {cause_of(error)}") from error
    control_tokens = place_control_tokens(tokenizer, names)
    chat = template if template is not None else answer_template(tokenizer)
    shutil.rmtree(folder, ignore_errors=True)
    write_tokenizer(tokenizer, control_tokens, chat, folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False), control_tokens, chat


def module_of(source: str, device: str | None, dtype: str | None) -> Any:
    """The base, on its device and in the type it computes in."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = getattr(torch, dtype or ("float32" if device == "cpu" else "bfloat16"))
    if Path(source).is_dir():
        check_files(Path(source))
    with every_weight(source):
        module: Any = AutoModelForCausalLM.from_pretrained(source, dtype=kind, trust_remote_code=False)
    return module.to(device)


def _adapted(
    module: Any,
    base: str,
    control_tokens: tuple[ControlToken, ...],
    examples: Sequence[Example],
    tokenizer: Any,
    rank: int,
    seed: int,
) -> tuple[Any, bool]:
    """The base with a fresh LoRA and trainable rows for its control tokens, all of it float32."""
    from peft import LoraConfig, get_peft_model

    width = module.config.get_text_config().hidden_size
    if rank > width:
        raise UserError(f"--rank {rank}: the model is {width} wide, and a LoRA of more takes memory for nothing")
    resized = grow(module, control_tokens)
    ids = [token.id for token in control_tokens]
    tables = {_name_of(module, module.get_input_embeddings()): ids}
    if not module.config.tie_word_embeddings:
        tables[_name_of(module, module.get_output_embeddings())] = ids
    blocks = module.get_submodule(decoder_path(module, base))
    linear = trained_layers(blocks, base)
    turned = any(isinstance(part, Conv1D) for part in blocks.modules())
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=linear, trainable_token_indices=tables, fan_in_fan_out=turned
    )
    _first_rows(module, control_tokens, examples, tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(module, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted, resized


def trained_layers(blocks: Any, base: str) -> list[str]:
    """Names of the layers in a model's blocks that get a LoRA: all that are linear. A line says which these are, and which
    matrices stay as they are, such as those that hold all experts in one.

    Raises:
        UserError: There is none.
    """
    kinds = (torch.nn.Linear, Conv1D)
    linear = sorted({name.rpartition(".")[2] for name, part in blocks.named_modules() if isinstance(part, kinds)})
    if not linear:
        raise UserError(f"{base}: its blocks have no linear layer that a LoRA could be put on; pass another --model")
    left = sorted({f"{name.rpartition('.')[2] or 'block'}.{own}" for name, part in blocks.named_modules() if not isinstance(part, kinds)
                   for own, weight in part.named_parameters(recurse=False) if weight.ndim > 1})  # fmt: skip
    more = f"; {', '.join(left)} stay as they are" if left else ""
    logger.warning("%s: a LoRA trains %s%s", base, ", ".join(linear), more)
    return linear


@torch.no_grad()
def _first_rows(
    module: Any, control_tokens: tuple[ControlToken, ...], examples: Sequence[Example], tokenizer: Any
) -> None:
    """Start a control token as the mean of what it stands before, so that it is likely from the first step on.

    That is the first tokens of the answers that it opens, else the tokens of its name. A control token that the base
    has already stays as it is.
    """
    for table in (module.get_input_embeddings(), module.get_output_embeddings()):
        rows = table.weight.float()
        for token in control_tokens:
            answers = [
                example.ids[example.opening + 1] for example in examples if example.name == token.name and example.text
            ]
            near = answers or tokenizer(token.name, add_special_tokens=False)["input_ids"]
            if near and token.replaces != token.token:
                table.weight[token.id] = rows[near].mean(0).to(table.weight.dtype)


def _name_of(module: Any, part: Any) -> str:
    return next(name for name, child in module.named_modules() if child is part)


def _identity(source: str, module: Any) -> str | None:
    """What tells one base from another of the same name: the folder's content, or the hub's commit."""
    return folder_revision(Path(source)) if Path(source).is_dir() else module.config._commit_hash
