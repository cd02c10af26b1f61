"""Write requirements.txt anew: the newest hashes of every platform for the versions that stand there, or for others.

    python .ci/lock.py [NAME==VERSION …]

Needs `uv` on the path (`make audit` installs it into build/tools). What torch needs on Linux for CUDA goes into
requirements-cuda.txt; torch itself, which there are several builds of, stands in requirements-torch.txt by its version alone. What vLLM
needs besides, or in another version, stands in requirements-vllm.txt, and gets new hashes for the versions there.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALL, CUDA, TORCH, VLLM = (ROOT / f"requirements{of}.txt" for of in ("", "-cuda", "-torch", "-vllm"))
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


def compiled(pins: Iterable[str], *options: str) -> str:
    """What `uv` makes of pins: they and what they need, with hashes."""
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
    return subprocess.run(
        [*command, *options], input="\n".join(pins), stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def main() -> None:
    """Resolve, split, write."""
    was = ALL.read_text() + TORCH.read_text()
    pins = {
        found["name"].lower().replace("_", "-"): found["version"] + (found["marker"] or "")
        for found in PIN.finditer(was)
    }
    pins |= {name.lower().replace("_", "-"): version for name, version in (word.split("==") for word in sys.argv[1:])}
    found = compiled(f"{name}=={version}" for name, version in pins.items())
    parts = {ALL: "", CUDA: ""}
    for block in blocks(found):
        name = PIN.match(block)["name"]
        if name != "torch":
            parts[CUDA if OF_CUDA.match(name) else ALL] += block.rstrip() + "\n"
    for path, text in parts.items():
        path.write_text(HEADS[path] + text)
    head = "".join(line for line in VLLM.read_text().splitlines(keepends=True) if line.startswith("#"))
    beside = [f"{found['name']}=={found['version']}" for found in PIN.finditer(VLLM.read_text())]
    VLLM.write_text(head + compiled(beside, "--no-deps"))


if __name__ == "__main__":
    main()
