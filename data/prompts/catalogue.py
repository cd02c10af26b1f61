"""The data sets this tool knows: where each lies on the hub, and what its rows mean here.

One `DataSet` a config. Names are `NAME` or `NAME:CONFIG`; a part of one is `NAME[:CONFIG]/PART`, where PART is a split of
the hub, `harmful` or `benign` (XSTest also calls them `unsafe` and `safe`).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from data.errors import UserError
from data.prompts import sample as embedded
from data.prompts.hub import fetch

log = logging.getLogger(__name__)

TAXONOMY = (
    "Humanizing requests",
    "Incomplete requests",
    "Indeterminate requests",
    "Requests with safety concerns",
    "Unsupported requests",
)

ROW, SPLIT = "row number", "hub split"  # columns that `_rows` adds; no set has columns of these names
NONE, HARMFUL, BENIGN = pl.lit(None, pl.String), pl.lit("harmful"), pl.lit("benign")
TRAIN_TEST = {"train": "train", "test": "test"}


@dataclass(frozen=True, eq=False)
class DataSet:
    """One config of one set on the hub, and how to read a row of it; columns are polars expressions over the set's own.

    Attributes:
        name: Short name, `NAME` or `NAME:CONFIG`; the `dataset` column.
        hub: Id on the hub.
        config: The hub's name of the config; None for a set's only one.
        splits: The hub's splits that are read, each with the `split` its rows get (None: they serve all).
        rows: How many rows the hub's splits give, after `keep`.
        origin: Its paper, or where its authors keep it.
        revision: The commit that is loaded, where one is known.
        id: The set's own id; None takes the row number, led by the split where there are several.
        keep: Which rows are read.
        theme: Which rows are siblings: what a bootstrap should draw together.
        parts: Names of `label` values after the `/`, beside `harmful` and `benign`.
        csv: Options of the reader, where the files are CSV or TSV.
    """

    name: str
    hub: str
    licence: str
    rows: int
    origin: str
    prompt: pl.Expr
    label: pl.Expr
    splits: Mapping[str, str | None]
    config: str | None = None
    revision: str | None = None
    gated: bool = False
    id: pl.Expr | None = None
    keep: pl.Expr | None = None
    category: pl.Expr = NONE
    theme: pl.Expr = NONE
    parts: Mapping[str, str] = field(default_factory=dict)
    csv: Mapping[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """The set's own columns that it is read from."""
        read = [self.prompt, self.label, self.category, self.theme, self.id, self.keep]
        names = {name for expression in read if expression is not None for name in expression.meta.root_names()}
        return sorted(names - {ROW, SPLIT})

    @property
    def has_themes(self) -> bool:
        """Whether it says which of its rows are siblings."""
        return self.theme is not NONE


def _coconot(config: str, rows: int, splits: Mapping[str, str | None], label: pl.Expr) -> DataSet:
    names = {name.lower(): name for name in TAXONOMY}
    category = pl.col("category").str.strip_chars()
    return DataSet(
        f"coconot:{config}", "allenai/coconot", "ODC-BY", rows, "https://arxiv.org/abs/2407.12043",
        prompt=pl.col("prompt"), label=label, splits=splits, config=config,
        revision="3e9839f59dbfcc4a20d7891ed33d191d1d2bfaa4", id=pl.col("id"),
        category=category.str.to_lowercase().replace_strict(names, default=category), theme=pl.col("subcategory"),
    )  # fmt: skip


def _or_bench(config: str, rows: int, label: pl.Expr) -> DataSet:
    # Of a sample of its "benign" prompts people judged about half to be toxic (arXiv 2508.11222): its over-refusal is an upper bound.
    return DataSet(
        f"or-bench:{config}", "bench-llm/or-bench", "CC-BY-4.0", rows, "https://arxiv.org/abs/2405.20947",
        prompt=pl.col("prompt"), label=label, splits={"train": None}, config=f"or-bench-{config}",
        revision="e36d8b80e81837c8a8f264bbb2a49f1b32c7e272", category=pl.col("category"), theme=pl.col("category"),
    )  # fmt: skip


def _wildguard(split: str, rows: int) -> DataSet:
    harmful = pl.col("prompt_harm_label") == "harmful"
    return DataSet(
        f"wildguard:{split}", "allenai/wildguardmix", "ODC-BY", rows, "https://arxiv.org/abs/2406.18495",
        prompt=pl.col("prompt"), label=pl.when(harmful).then(HARMFUL).otherwise(BENIGN), splits={split: split},
        config=f"wildguard{split}", revision="d29c47f41c8b51348b5c8e8c81c039b3132b66d1", gated=True,
        # Rows on whose harm the annotators did not agree have no label: the papers leave them out too (945 + 754).
        keep=pl.col("prompt_harm_label").is_in(["harmful", "unharmful"]),
        category=pl.when(harmful).then(pl.col("subcategory")), theme=pl.col("subcategory"),
    )  # fmt: skip


def _harmbench(config: str, rows: int, prompt: pl.Expr, category: pl.Expr = NONE) -> DataSet:
    return DataSet(
        f"harmbench:{config}", "walledai/HarmBench", "MIT", rows, "https://arxiv.org/abs/2402.04249",
        prompt=prompt, label=HARMFUL, splits={"train": None}, config=config,
        revision="fb6c2afd5a2a943d701d6db3efab87d077e81be5", gated=True, category=category, theme=category,
    )  # fmt: skip


CATALOGUE: tuple[DataSet, ...] = (
    _coconot("original", 12_478, TRAIN_TEST, HARMFUL),
    _coconot("contrast", 379, {"test": "test"}, BENIGN),
    _coconot("pref", 927, {"train": "train"}, BENIGN),
    DataSet(
        "xstest", "walledai/XSTest", "CC-BY-4.0", 450, "https://arxiv.org/abs/2308.01263",
        prompt=pl.col("prompt"), splits={"test": None}, revision="f1d713187c61b6ae64e602d74f0b3d812cc2e8e8", gated=True,
        label=pl.col("label").replace_strict({"safe": "benign", "unsafe": "harmful"}, default=None),
        theme=pl.col("type"), parts={"safe": "benign", "unsafe": "harmful"},
    ),
    _or_bench("hard-1k", 1_319, BENIGN),
    _or_bench("80k", 80_359, BENIGN),
    _or_bench("toxic", 655, HARMFUL),
    DataSet(
        "falsereject", "AmazonScience/FalseReject", "CC-BY-NC-4.0", 1_187, "https://arxiv.org/abs/2505.08054",
        prompt=pl.col("prompt"), label=BENIGN, splits={"test": None}, theme=pl.col("category_text"),
    ),
    DataSet(
        "phtest", "furonghuang-lab/PHTest", "MIT", 2_069, "https://arxiv.org/abs/2409.00598",
        prompt=pl.col("Request"), label=BENIGN, splits={"train": None}, id=pl.col("ID"),
        keep=pl.col("Harmfulness") == "harmless",  # the others are controversial: people differ on whether they do harm
    ),
    # A mirror of the one column that the authors' repository has; it says nothing of a licence.
    DataSet(
        "orfuzzset", "jkminder/orfuzz", "none stated", 1_855, "https://arxiv.org/abs/2508.11222",
        prompt=pl.col("input"), label=BENIGN, splits={"train": None},
    ),
    _wildguard("test", 1_699),
    _wildguard("train", 86_759),
    DataSet(
        "wildjailbreak", "allenai/wildjailbreak", "ODC-BY", 2_210, "https://arxiv.org/abs/2406.18510",
        prompt=pl.col("adversarial"), splits={"train": None}, config="eval",
        revision="254c59ec8aff3f333ca8f2e28be94d8b2ff4098f", gated=True,
        label=pl.col("data_type").replace_strict(
            {"adversarial_harmful": "harmful", "adversarial_benign": "benign"}, default=None
        ),
        csv={"delimiter": "\t", "keep_default_na": False},
    ),
    DataSet(
        "sorry-bench", "sorry-bench/sorry-bench-202503", "its own (research only)", 440, "https://arxiv.org/abs/2406.14598",
        prompt=pl.col("turns").list.first(), label=HARMFUL, splits={"train": None},
        revision="612a4e1f45db8adf884fa62318ddf9fa1c6e75e9", gated=True, id=pl.col("question_id"),
        keep=pl.col("prompt_style") == "base",  # the others are the same requests reworded, encoded or translated
        theme=pl.col("category").cast(pl.String),  # a number from 1 to 44
    ),
    DataSet(
        "advbench", "walledai/AdvBench", "MIT", 520, "https://arxiv.org/abs/2307.15043",
        prompt=pl.col("prompt"), label=HARMFUL, splits={"train": None},
        revision="9d4730540082fa4017450b65ca1c0e1d8d30446e", gated=True,
    ),
    DataSet(
        "harmfulqa", "declare-lab/HarmfulQA", "Apache-2.0", 1_960, "https://arxiv.org/abs/2308.09662",
        prompt=pl.col("question"), label=HARMFUL, splits={"train": None},
        revision="6f1a78aed47d16c0695e4595d0159abc38197bfd", category=pl.col("topic"), theme=pl.col("subtopic"),
    ),
    DataSet(
        "do-not-answer", "LibrAI/do-not-answer", "CC-BY-NC-SA-4.0 (hub card: Apache-2.0)", 939, "https://arxiv.org/abs/2308.13387",
        prompt=pl.col("question"), label=HARMFUL, splits={"train": None}, id=pl.col("id"),
        revision="74e74f2e4507ef256fe536f78a776f4a1ff67955", category=pl.col("risk_area"), theme=pl.col("types_of_harm"),
    ),
    DataSet(
        "jbb", "JailbreakBench/JBB-Behaviors", "MIT", 200, "https://arxiv.org/abs/2404.01318",
        prompt=pl.col("Goal"), label=pl.col(SPLIT), splits={"harmful": None, "benign": None}, config="behaviors",
        revision="886acc352a31533ffbcf4ef22c744658688086fc", id=pl.format("{}-{}", SPLIT, "Index"),
        category=pl.col("Category"), theme=pl.col("Behavior"),  # a behaviour's harmful and benign row go together
    ),
    _harmbench("standard", 200, pl.col("prompt"), pl.col("category")),
    # As HarmBench itself joins a behaviour to its context.
    _harmbench("contextual", 100, pl.format("{}\n\n---\n\n{}", "context", "prompt"), pl.col("category")),
    _harmbench("copyright", 100, pl.col("prompt")),
    DataSet(
        "strongreject", "walledai/StrongREJECT", "MIT", 313, "https://arxiv.org/abs/2402.10260",
        prompt=pl.col("prompt"), label=HARMFUL, splits={"train": None},
        revision="df54272b395ce9e584d2f8140519935425d8549f", gated=True,
        category=pl.col("category"), theme=pl.col("category"),
    ),
    DataSet(
        "maliciousinstruct", "walledai/MaliciousInstruct", "CC-BY-SA-4.0", 100,
        "https://arxiv.org/abs/2310.06987", prompt=pl.col("prompt"), label=HARMFUL,
        splits={"train": None}, revision="4669349f48fea45dbacec02aaa9aca4fd7ac1c15",
    ),
    DataSet(
        "alpaca", "tatsu-lab/alpaca", "CC-BY-NC-4.0", 52_002, "https://github.com/tatsu-lab/stanford_alpaca",
        prompt=pl.when(pl.col("input").fill_null("").str.strip_chars() == "").then(pl.col("instruction")).otherwise(
            pl.format("{}\n\n{}", "instruction", "input")
        ),
        label=BENIGN, splits={"train": None}, revision="dce01c9b08f87459cf36a430d809084718273017",
    ),
    DataSet(
        "gsm8k", "openai/gsm8k", "MIT", 8_792, "https://arxiv.org/abs/2110.14168",
        prompt=pl.col("question"), label=BENIGN, splits=TRAIN_TEST, config="main",
        revision="e53f048856ff4f594e959d75785d2c2d37b678ee",
    ),
    DataSet(
        "mmlu", "cais/mmlu", "MIT", 15_573, "https://arxiv.org/abs/2009.03300",
        prompt=pl.concat_str("question", *(pl.format(f"\n{letter}. {{}}", pl.col("choices").list.get(at))
                                           for at, letter in enumerate("ABCD"))),
        label=BENIGN, splits={"validation": "validation", "test": "test"}, config="all",
        revision="c30699e8356da336a370243923dbaf21066bb9fe", theme=pl.col("subject"),
    ),
    DataSet(
        "truthfulqa", "truthfulqa/truthful_qa", "Apache-2.0", 817, "https://arxiv.org/abs/2109.07958",
        prompt=pl.col("question"), label=BENIGN, splits={"validation": None}, config="generation",
        revision="741b8276f2d1982aa3d5b832d3ee81ed3b896490", theme=pl.col("category"),
    ),
)  # fmt: skip


def table() -> pl.DataFrame:
    """Every known data set, one row a config: what its parts are, how large it is, its terms, and where it comes from.

    `rows` counts what is read of the hub's set; a mirror may hold less. `parts` are the splits that can be named after a
    `/`, beside `harmful` and `benign`.
    """
    text = ("name", "hub", "config", "licence", "revision", "origin")
    rows = [
        {"name": name, "parts": sorted(own["split"].unique()), "rows": own.height, "licence": "Apache-2.0",
         "gated": False, "origin": "this project"}
        for name, own in ((name, embedded.read(name)) for name in embedded.FILES)
    ]  # fmt: skip
    for known in CATALOGUE:
        own = {name: getattr(known, name) for name in (*text, "rows", "gated")}
        rows.append(own | {"parts": [*known.splits, *known.parts]})
    schema = dict.fromkeys(text, pl.String) | {"parts": pl.List(pl.String), "rows": pl.Int64, "gated": pl.Boolean}
    order = ("name", "hub", "config", "parts", "rows", "licence", "gated", "revision", "origin")
    return pl.DataFrame(rows, schema={column: schema[column] for column in order})


def find(source: str) -> tuple[DataSet, str | None] | None:
    """The known data set that a source names, by its short name or its hub id, and the part asked for.

    Raises:
        UserError: The name is known, but not with that config.
    """
    for depth in (2, 1):  # OWNER/NAME[:CONFIG][/PART], then NAME[:CONFIG][/PART]: an owner may be called as a set is
        words = source.split("/", depth)
        name, _, config = "/".join(words[:depth]).partition(":")
        configs = [known for known in CATALOGUE if name in (known.name.partition(":")[0], known.hub)]
        if not configs:
            continue
        for known in configs:
            if config in ("", known.name.partition(":")[2], known.config):
                return known, words[depth] if len(words) > depth else None
        if depth == 1:
            named = ", ".join(known.name for known in configs)
            raise UserError(f"{name} has no config {config!r}; there is {named}")
    return None


def read(known: DataSet, part: str | None = None, mirror: Path | None = None, *, partly: bool = False) -> pl.DataFrame:
    """Rows of a known data set: `id`, `prompt`, `category`, `label`, `dataset`, `split`, and `theme`.

    Args:
        known: The data set.
        part: One of its splits, or a label; None for all of it.
        mirror: Folder with hub data sets under their own names, used instead of the hub.
        partly: A mirror that holds only some of the splits is as good, and nothing is said of it.

    Raises:
        UserError: It has no such part, is not what it was, or `data.prompts.hub.fetch` can't get it.
    """
    labels = {"harmful": "harmful", "benign": "benign", **known.parts}
    if part is not None and part not in known.splits and part not in labels:
        raise UserError(
            f"{known.name} has no part {part!r}; it has {', '.join(dict.fromkeys([*known.splits, *labels]))}"
        )
    named = part if part in known.splits else None
    wanted = list(known.splits) if named is None else [named]
    fetched = fetch(
        known.hub, known.config, columns=known.columns, revision=known.revision, mirror=mirror, csv=known.csv
    )
    here = [split for split in wanted if split in fetched]
    if not here:
        raise UserError(f"{known.name}: no split {' or '.join(map(repr, wanted))}; there is {', '.join(fetched)}")
    if len(here) < len(wanted) and not partly:
        log.warning("%s: only %s, of %s", known.name, ", ".join(here), ", ".join(wanted))
    try:
        rows = pl.concat([_rows(known, split, fetched[split]) for split in here])
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{known.name}: columns of another kind than expected: {str(error).splitlines()[0]}") from None
    if rows["label"].null_count():
        raise UserError(f"{known.name}: {rows['label'].null_count()} rows have a label that this version does not know")
    rows = rows if part == named else rows.filter(pl.col("label") == labels[part or ""])
    if rows.is_empty():
        raise UserError(f"{known.name}: no rows{f' in {part}' if part else ''}")
    return rows


def _rows(known: DataSet, split: str, frame: pl.DataFrame) -> pl.DataFrame:
    number = pl.format("{}-{}", SPLIT, ROW) if len(known.splits) > 1 else pl.col(ROW)
    frame = frame.with_row_index(ROW).with_columns(pl.lit(split).alias(SPLIT))
    if known.keep is not None:
        frame = frame.filter(known.keep)
    return frame.select(
        (number if known.id is None else known.id).cast(pl.String).alias("id"),
        known.prompt.alias("prompt"),
        known.category.cast(pl.String).alias("category"),
        known.label.cast(pl.String).alias("label"),
        pl.lit(known.name).alias("dataset"),
        pl.lit(known.splits[split], pl.String).alias("split"),
        known.theme.cast(pl.String).alias("theme"),
    ).filter(pl.col("prompt").str.strip_chars() != "")  # nothing to ask; and the user can't mend the hub's set
