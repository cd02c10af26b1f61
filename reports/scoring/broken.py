"""Is a text an answer at all? Empty, wordless and repetitive text is `broken`, and never counts as a cure.

One rule throughout: a text is broken when more than half of it is repetition, be it of characters, of runs of words or
of whole sentences. Fluent nonsense is not seen here; perplexity shows that.
"""

import re
from collections.abc import Sequence

import polars as pl

# Scripts that set no blanks between words are read character by character, in longer runs.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
TOKEN = rf"[{UNSPACED}]|[\w--[{UNSPACED}_]]{{1,24}}"  # what has no blanks for long ("lalala…") is cut into pieces
RUN, UNSPACED_RUN = 3, 8
FEWEST_TOKENS = 12
SHORTEST, FEW_WORDS = 6, 2  # a text of fewer tokens, but no fewer than six, is looked at if two words are all it has
SENTENCE = r"[^.!?。！？\n]+"
NUMBERING = r"^[\s\W]*(?:\d+\s*[):\]-]?)*[\s\W]*"
FEWEST_SENTENCES = 5
# Twenty of one character in a row; digits (10^30) and what draws lines, blanks to fill in and tables are no repetition.
SAME = re.compile(r"([^\s\d\-_=*.#|~+/\\:<>^─━═┄·•–—])\1{19,}")
CHUNK = 20_000  # rows that are taken apart at once, which bounds memory


def strip_thinking(texts: pl.Series) -> pl.Series:
    """Without `<think>` blocks, also those that were opened in the prompt or never closed."""
    if not texts.str.contains(r"(?i)</?think>").any():
        return texts
    closed = texts.str.replace_all(r"(?is)<think>.*?(?:</think>|\z)", " ")
    return closed.str.replace(r"(?is)\A.*</think>", " ")


def broken(texts: pl.Series) -> pl.Series:
    """Which texts are no answer; null is none either. Booleans, in order."""
    parts = [_broken(texts.slice(at, CHUNK)) for at in range(0, max(len(texts), 1), CHUNK)]
    return pl.concat(parts).rename("broken")


def are_broken(texts: Sequence[str]) -> list[bool]:
    """`broken` of texts that stand in no table."""
    return broken(pl.Series(texts, dtype=pl.String)).to_list()


def _broken(texts: pl.Series) -> pl.Series:
    texts = strip_thinking(texts.cast(pl.String).fill_null("")).str.to_lowercase()
    wordless = ~texts.str.contains(r"[\p{L}\p{N}]")
    return wordless | _repeats_characters(texts) | _repeats_runs(texts) | _repeats_sentences(texts)


def _repeats_characters(texts: pl.Series) -> pl.Series:
    def mostly_one(text: str) -> bool:
        return 2 * sum(len(run.group()) for run in SAME.finditer(text)) > len("".join(text.split()))

    suspects = texts.str.contains(r"\S{20}")  # polars' expressions know no back-references, and Python's are slow
    found = [suspect and mostly_one(text) for suspect, text in zip(suspects, texts, strict=True)]
    return pl.Series(found, dtype=pl.Boolean)


def _repeats_runs(texts: pl.Series) -> pl.Series:
    """Under half of the runs of three words (of eight characters in scripts without blanks) are distinct.

    Short texts say something twice for good reason ("No, no, no."; "True, false, true"; rows of numbers), so of those
    only what has next to no other word is looked at.
    """
    tokens = pl.DataFrame({"token": texts.str.extract_all(TOKEN), "text": texts}).with_row_index("row")
    count, distinct = pl.col("token").list.len(), pl.col("token").list.n_unique()
    # A text of n tokens with d distinct runs of length r has at most d + r − 1 distinct tokens: most rows are cleared here.
    long = (count >= FEWEST_TOKENS) & (2 * distinct < count + UNSPACED_RUN - 1)
    short = count.is_between(SHORTEST, FEWEST_TOKENS - 1) & (distinct <= FEW_WORDS)
    suspects = tokens.filter(long | (short & pl.col("text").str.contains(r"\p{L}"))).drop("text").explode("token")
    unspaced = pl.col("token").str.contains(rf"^[{UNSPACED}]$").mean().over("row") > 0.5
    suspects = suspects.select("row", pl.col("token").hash(), unspaced.alias("unspaced"))
    found = []
    for length, part in ((RUN, ~pl.col("unspaced")), (UNSPACED_RUN, pl.col("unspaced"))):
        run = pl.struct([pl.col("token").shift(-at).alias(str(at)) for at in range(length)]).hash()
        within = pl.col("row") == pl.col("row").shift(-(length - 1))
        runs = suspects.filter(part).select("row", run.alias("run"), within.alias("within")).filter("within")
        found.append(runs.group_by("row").agg((2 * pl.col("run").n_unique() < pl.len()).alias("repeats")))
    return _by_row(pl.concat(found), len(texts))


def _repeats_sentences(texts: pl.Series) -> pl.Series:
    """Under half of the sentences or lines of three words and more are distinct, numbering aside."""
    sentences = (
        pl.DataFrame({"sentence": texts.str.extract_all(SENTENCE)})
        .with_row_index("row")
        .filter(pl.col("sentence").list.len() >= FEWEST_SENTENCES)
        .explode("sentence")
        .with_columns(pl.col("sentence").str.replace(NUMBERING, "").str.strip_chars())
        .filter(pl.col("sentence").str.contains(r"\w\W+\w+\W+\w"))
    )
    repeats = (pl.len() >= FEWEST_SENTENCES) & (2 * pl.col("sentence").n_unique() < pl.len())
    return _by_row(sentences.group_by("row").agg(repeats.alias("repeats")), len(texts))


def _by_row(found: pl.DataFrame, rows: int) -> pl.Series:
    """`repeats` of the rows that are there, false for the others."""
    every = pl.DataFrame({"row": pl.Series(range(rows), dtype=pl.UInt32)})
    return every.join(found, on="row", how="left", maintain_order="left")["repeats"].fill_null(False)
