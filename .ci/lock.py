"""Write requirements.txt anew: the newest hashes of every platform for the versions that stand there, or for others.

    python .ci/lock.py [NAME==VERSION …]

Needs `uv` on the path (`make audit` installs it into build/tools). What torch needs on Linux for CUDA goes into
requirements-cuda.txt; torch itself, which there are several builds of, stands in requirements-torch.txt by its version alone.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALL, CUDA, TORCH = (ROOT / f"requirements{of}.txt" for of in ("", "-cuda", "-torch"))
PIN = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^\s;\\]+)(?P<marker>[ \t]*;[^\\\n]*)?", re.MULTILINE)
OF_CUDA = re.compile(r"nvidia-|cuda-|triton$")
HEADS = {
    ALL: """# Exact versions of everything but torch, development tools included, with the SHA-256 of every file that the package index has of
# them, for all platforms; all that each of them needs is here, but for CUDA's libraries. Made by .ci/lock.py.
""",
    CUDA: """# What the torch of the package index needs on Linux, beside requirements.txt: CUDA's libraries. Made by .ci/lock.py.
""",
}  # fmt: skip


def blocks(text: str) -> list[str]:
    """Each pin with its hashes."""
    return [block for block in re.split(r"(?m)^(?=[A-Za-z0-9])", text) if PIN.match(block)]


def main() -> None:
    """Resolve, split, write."""
    was = ALL.read_text() + TORCH.read_text()
    pins = {
        found["name"].lower().replace("_", "-"): found["version"] + (found["marker"] or "")
        for found in PIN.finditer(was)
    }
    pins |= {name.lower().replace("_", "-"): version for name, version in (word.split("==") for word in sys.argv[1:])}
    command = [
        "uv",
        "pip",
        "compile",
        "-",
        "--universal",
        "--generate-hashes",
        "--no-annotate",
        "--no-header",
        "--python-version",
        "3.11",
    ]
    found = subprocess.run(
        command, input="\n".join(f"{name}=={version}" for name, version in pins.items()), stdout=subprocess.PIPE, text=True, check=True
    ).stdout  # fmt: skip
    parts = {ALL: "", CUDA: ""}
    for block in blocks(found):
        name = PIN.match(block)["name"]
        if name != "torch":
            parts[CUDA if OF_CUDA.match(name) else ALL] += block.rstrip() + "\n"
    for path, text in parts.items():
        path.write_text(HEADS[path] + text)


if __name__ == "__main__":
    main()
