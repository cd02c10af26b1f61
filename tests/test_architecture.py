"""Which room may know which: `commands → {interventions, reports} → data`, and the floors within."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from tests import ROOT

# Room -> what it may import beside itself. The longest name that fits a module is its room.
MAY = {
    "data": (),
    "interventions": ("interventions", "data"),
    "interventions.traced": (),
    "interventions.backends": ("data",),
    "interventions.vllm": ("interventions.backends", "interventions.traced", "data"),
    "interventions.model": ("interventions.vllm", "interventions.backends", "interventions.traced", "data"),
    "interventions.reading": ("interventions.model", "interventions.backends", "interventions.traced", "data"),
    "interventions.fitting": ("data",),
    "interventions.methods": ("interventions.fitting", "interventions.reading", "interventions.model",
                              "interventions.backends", "interventions.traced", "data"),
    "interventions.gates": ("interventions.fitting", "interventions.reading", "interventions.model",
                            "interventions.backends", "interventions.traced", "data"),
    "interventions.steering": ("interventions.methods", "interventions.gates", "interventions.fitting", "interventions.reading",
                               "interventions.model", "interventions.backends", "interventions.traced", "data"),
    "interventions.tuning": ("interventions",),
    "interventions.carried": ("interventions", "data"),
    "reports": ("data",),
    "reports.scoring": ("data",),
    "reports.statistics": ("reports.scoring", "data"),
    "reports.page": ("reports.statistics", "reports.scoring", "data"),
    "serving": ("interventions", "reports", "data"),
    "commands.framework": ("interventions", "reports", "data"),
    "commands": ("commands.framework", "refusal_steering", "serving", "interventions", "reports", "data"),
    "refusal_steering": ("commands.framework", "interventions", "reports", "data"),
}  # fmt: skip
MAY["interventions.tuning"] = ("interventions.steering", *MAY["interventions.steering"])
MAY["interventions.carried"] = ("interventions.steering", *MAY["interventions.steering"])
OWN = ("commands", "data", "interventions", "refusal_steering", "reports", "serving")


def said_in(path: Path) -> set[str]:
    """Every module that a file imports anywhere, and every name it takes from one."""
    said: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            said |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            said |= {alias.name for alias in node.names}
    return said


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, set[str]]:
    """Every module and the project's modules that it imports anywhere, those for type checkers aside."""
    paths = {name_of(path): path for own in OWN for path in (ROOT / own).rglob("*.py")}
    found = {}
    for name, path in paths.items():
        tree = ast.parse(path.read_text("utf-8"))
        typing = {id(part) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
                  for part in ast.walk(node)}  # fmt: skip
        said: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in typing and node.module:
                said |= {f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in paths else node.module
                         for alias in node.names}  # fmt: skip
            elif isinstance(node, ast.Import) and id(node) not in typing:
                said |= {alias.name for alias in node.names}
        found[name] = {module for module in said if module.partition(".")[0] in OWN}
    return found


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def room_of(module: str) -> str:
    return max((room for room in MAY if inside(module, room)), key=len)


def test_no_arrow_points_upward():
    odd = [f"{name} imports {other}" for name, others in modules().items() for other in others
           if not any(inside(other, room) for room in (room_of(name), *MAY[room_of(name)]))]  # fmt: skip
    assert not odd, "\n".join(sorted(odd))


def test_no_files_import_one_another_in_a_circle():
    arrows = {name: others - {name} for name, others in modules().items() if not name.count("__init__")}
    packages = {name_of(path) for own in OWN for path in (ROOT / own).rglob("__init__.py")}
    graph = {
        name: {other for other in others if other not in packages}
        for name, others in arrows.items()
        if name not in packages
    }
    assert list(TopologicalSorter(graph).static_order())


def test_what_ships_to_a_server_imports_nothing_else_of_the_project():
    allowed = {"torch", "transformers", "nnsight", "typing", "collections", "math"}
    for path in (ROOT / "interventions" / "traced").glob("*.py"):
        odd = {
            name
            for name in said_in(path)
            if name.partition(".")[0] not in allowed and not inside(name, "interventions.traced")
        }
        assert not odd, f"{path.name} imports {odd}"


def test_no_folder_is_crowded():
    for own in OWN:
        for folder in [ROOT / own, *(path for path in (ROOT / own).rglob("*") if path.is_dir())]:
            files = [path.name for path in folder.glob("*.py")]
            if folder != ROOT / "commands":  # where a file is a command, and the commands are what they are
                assert len(files) <= 14, (folder, files)
    assert (
        len([path for path in (ROOT / "interventions").iterdir() if path.is_dir() and path.name != "__pycache__"]) <= 10
    )


def test_an_oracle_is_not_the_code_under_test():
    assert not [name for name in said_in(ROOT / "tests" / "oracles.py") if name.partition(".")[0] in {*OWN, "cli"}]


def test_every_test_file_stands_alone():
    """What two of them need is in `oracles`, `made` or `faults`, and fixtures in `conftest` come by their names."""
    odd = [f"{path.relative_to(ROOT)} imports {name}" for path in (ROOT / "tests").rglob("*.py") for name in said_in(path)
           if name.startswith("tests.") and any(part.startswith(("test_", "conftest")) for part in name.split(".")[1:])]  # fmt: skip
    assert not odd, "\n".join(sorted(odd))
