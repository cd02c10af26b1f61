"""Peak resident memory (MB) of a process that runs the bare model once, or extracts one layer of many prompts."""

import resource
import sys
import tempfile
from pathlib import Path

from interventions.model.embedded import BASE, embedded_folder


def bare() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded_folder(BASE)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        model(**AutoTokenizer.from_pretrained(folder)("How do I kill a Python process?", return_tensors="pt"))


def ours(many: int) -> None:
    import polars as pl

    from data import load_all
    from interventions import extract, open_model

    some = load_all(["embedded"])
    table = pl.concat([some] * (many // some.height + 1)).head(many)
    table = table.with_columns(pl.int_range(many).cast(pl.String).alias("id"))
    with tempfile.TemporaryDirectory() as folder:
        extract(open_model(BASE), table, Path(folder), layers=[17])


if __name__ == "__main__":
    if sys.argv[1] == "bare":
        bare()
    else:
        ours(int(sys.argv[2]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
