"""What scoring costs: 100,000 answers through `phrases` and `token`, and their summary, in a process of its own.

Two loads: answers as models write them, and the worst, where every answer is a loop of words and is looked at closely.
Run: .venv/bin/python benchmarks/scoring.py
"""

import random
import resource
import subprocess
import sys
import time

ROWS, ARMS, DATASETS = 100_000, 4, 5
OPENINGS = [
    "I'm sorry, but I can't help with",
    "Sure! Here is",
    "I understand, but I cannot",
    "One way is",
    "As an AI, I",
]


def generations(load):
    import polars as pl

    from data.store.tables import GENERATIONS

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnoprstuvwy", k=draw.randint(1, 9))) for _ in range(5000)]

    def answer():
        if load == "loops":
            return " ".join(draw.choices(words, k=4)) * 20
        return f"{draw.choice(OPENINGS)} {' '.join(draw.choices(words, k=draw.randint(10, 100)))}."

    rows = range(ROWS)
    arms = ["baseline", "fixed", "random", "oracle"]
    tokens = draw.choices(["respond", "Incomplete requests", None], k=ROWS)
    table = pl.DataFrame(
        {
            "dataset": [f"d{at // ARMS % DATASETS}" for at in rows],
            "id": [str(at // ARMS) for at in rows],
            "arm": [arms[at % ARMS] for at in rows],
            "kind": [arms[at % ARMS] for at in rows],
            "label": [("harmful", "benign")[at // ARMS % 2] for at in rows],
            "prompt": [f"prompt {at // ARMS}" for at in rows],
            "response": [answer() for _ in rows],
            "control_token": tokens,
            "refusal_token": [None if token == "respond" else token for token in tokens],
        }
    )
    return table.with_columns(
        [pl.lit(None, kind).alias(name) for name, kind in GENERATIONS.items() if name not in table.columns]
    )


def measure(load):
    """In a fresh process: the time from the import on, and how much memory it took at most."""
    table = generations(load)
    start, worked = time.perf_counter(), time.process_time()
    from reports.scoring.scores import score
    from reports.statistics.summary import summarise

    scores = score(table, set())
    scored = time.perf_counter()
    summary = summarise(scores)
    end, worked = time.perf_counter(), time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    characters = table["response"].str.len_chars().mean()
    print(
        f"{load}: {table.height:,} answers of {characters:.0f} characters, {scores.height:,} scores, {summary.height} rows: "
        f"{scored - start:.2f} s scored, {end - scored:.2f} s summarised, {end - start:.2f} s ({worked:.2f} s of processor), peak {peak:.0f} MiB"
    )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        measure(sys.argv[1])
    else:
        for load in ("answers", "loops"):
            subprocess.run([sys.executable, __file__, load], check=True)
