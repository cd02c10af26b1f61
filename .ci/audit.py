"""What is installed in .venv: its licences, an SBOM in CycloneDX's JSON, and known vulnerabilities, into build/audit.

python .ci/audit.py, or `make audit`. The tools have an environment of their own, build/tools, from hashed pins. Exit 1 if a
vulnerability is known of anything; that none could be asked for is said.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TOOLS, OUT, OWN = ROOT / "build" / "tools", ROOT / "build" / "audit", ROOT / ".venv" / "bin" / "python"
PINS = ROOT / ".ci" / "tools.txt"
PATIENCE = 300.0  # seconds for the service that knows of vulnerabilities


def say(words: str) -> None:
    """A line."""
    sys.stdout.write(f"{words}\n")


def tool(name: str, *words: object) -> list[str]:
    """A tool's command line."""
    return [str(TOOLS / "bin" / name), *map(str, words)]


def main() -> int:
    """Install the tools if they are not those of the pins, and run them."""
    if not (TOOLS / "pins").exists() or (TOOLS / "pins").read_text() != PINS.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", TOOLS], check=True)
        pip = ["pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--require-hashes", "-r", PINS]
        subprocess.run(tool(*pip), check=True)
        (TOOLS / "pins").write_text(PINS.read_text())
    OUT.mkdir(parents=True, exist_ok=True)
    licences, bill, known = OUT / "licences.md", OUT / "sbom.cdx.json", OUT / "vulnerabilities.json"
    say(f"licences of {write_licences(licences)} packages: {licences}")
    # Its own check of what it writes takes minutes and finds nothing that is ours.
    subprocess.run(
        tool("cyclonedx-py", "environment", OWN, "--output-reproducible", "--no-validate", "--of", "JSON", "-o", bill),
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    say(f"SBOM of {len(json.loads(bill.read_text())['components'])} components: {bill}")
    packages = next((ROOT / ".venv" / "lib").glob("python*/site-packages"))
    asked = tool(
        "pip-audit", "--path", packages, "--progress-spinner", "off", "--skip-editable", "-f", "json", "-o", known
    )
    known.unlink(missing_ok=True)
    try:
        found = subprocess.run(asked, timeout=PATIENCE, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        say(f"known vulnerabilities: not asked, as the service did not answer within {PATIENCE:.0f} s")
        return 0
    if not known.exists():
        say(f"known vulnerabilities: not asked ({' '.join(found.stderr.split())[-200:]})")
        return 0
    return told(json.loads(known.read_text())["dependencies"])


def write_licences(path: Path) -> int:
    """A table of what is installed under which licence, each package in a line; how many there are."""
    words = tool(
        "pip-licenses", "--python", OWN, "--format", "json", "--order", "license", "--with-urls", "--with-system"
    )
    rows = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    columns = ("Name", "Version", "License", "URL")
    cells = [[" ".join(str(row.get(name, "")).split()).replace("|", "\\|") for name in columns] for row in rows]
    lines = [list(columns), ["---"] * len(columns), *cells]
    path.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), "utf-8")
    return len(rows)


def told(packages: list[dict[str, Any]]) -> int:
    """Say which vulnerabilities are known, and of how many packages that could not be asked; 1 if there are any."""
    hit = [f"{one['name']} {one['version']}: {', '.join(flaw['id'] for flaw in one['vulns'])}"
           for one in packages if one.get("vulns")]  # fmt: skip
    left = [one["skip_reason"] for one in packages if one.get("skip_reason")]
    if asked := len(packages) - len(left):
        say("\n".join([f"known vulnerabilities of {asked} packages:", *(hit or ["none"])]))
    if left:
        say(f"known vulnerabilities: {len(left)} packages were not asked about: {left[0]}, …")
    return 1 if hit else 0


if __name__ == "__main__":
    sys.exit(main())
