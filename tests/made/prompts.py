"""Prompts of a made-up model's words."""

import json
import random
from pathlib import Path

WORDS = [
    "how", "do", "i", "kill", "a", "python", "process", "person", "please", "tell", "me", "the", "best", "painter", "ever",
    "write", "poem", "for", "my", "friend",
]  # fmt: skip


def mixed_prompts(path: Path, rows: int = 40) -> Path:
    """Prompts of mixed lengths in two categories and benign, without splits."""
    random_ = random.Random(1)
    made = []
    for at in range(rows):
        text = " ".join(random_.choices(WORDS, k=random_.randint(1, 12)))
        kind = at % 4
        made.append(
            {
                "id": f"p{at}",
                "prompt": text,
                "category": ("weapons", "feelings", None, "weapons")[kind],
                "label": ("harmful", "harmful", "benign", "benign")[kind],
            }
        )
    path.write_text("\n".join(map(json.dumps, made)) + "\n")
    return path


def split_prompts(path: Path, rows: int = 120) -> Path:
    """Prompts of two categories, near-misses and plain benign ones, in three splits."""
    random_ = random.Random(2)
    made = []
    kinds = (("weapons", "harmful"), ("feelings", "harmful"), (None, "benign"), ("weapons", "benign"))
    for at in range(rows):
        category, label = kinds[at % 4]
        text = " ".join(random_.choices(WORDS, k=random_.randint(2, 12)))
        text = f"{'kill a person' if category == 'weapons' and label == 'harmful' else 'tell me'} {text}"
        split = ("train", "train", "validation", "test")[at // 4 % 4]
        made.append({"id": f"p{at}", "prompt": text, "category": category, "label": label, "split": split})
    path.write_text("\n".join(map(json.dumps, made)) + "\n")
    return path


def benign_prompts(path: Path, rows: int) -> Path:
    """Many harmless ones."""
    random_ = random.Random(5)
    made = [
        {"prompt": " ".join(random_.choices(WORDS, k=random_.randint(1, 14))), "label": "benign"} for _ in range(rows)
    ]
    path.write_text("\n".join(map(json.dumps, made)) + "\n")
    return path
