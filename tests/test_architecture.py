"""The house stands: imports go down only, and heavy packages wait until they are needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "distconv"

FLOORS = (
    ("__main__",),
    ("cli",),
    ("__init__",),
    ("conversion",),
    ("finished",),
    ("verification", "tokenization", "checking", "downloading", "pushing", "speaking"),
    ("proof",),
    ("resuming", "timeline"),
    ("identity",),
    ("assembly",),
    ("survey",),
    ("remarks",),
    ("moving", "target"),
    ("planning",),
    ("families",),
    ("remote",),
    ("source",),
    ("formats",),
    ("ownership", "digests"),
    ("local",),
    (
        "storage",
        "fencing",
        "pinning",
        "holders",
        "space",
        "memory",
        "tensors",
        "tables",
        "progress",
        "errors",
        "version",
    ),
)
"""From the roof to the ground; rooms on one floor do not know each other, but for what is named here."""
BESIDE = {
    ("storage", "errors"),
    ("storage", "space"),
    ("storage", "fencing"),
    ("storage", "pinning"),
    ("fencing", "errors"),
    ("tensors", "errors"),
    ("progress", "errors"),
}


def room(module: str) -> str:
    """Give the room of a module of the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> set[str]:
    """Give all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def modules() -> list[tuple[str, Path]]:
    """Give all modules with their files."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found.append((".".join(parts), path))
    return found


MODULES = modules()


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[module for module, _path in MODULES])
def test_imports_go_down_only(module: str, path: Path) -> None:
    floors = {name: number for number, names in enumerate(FLOORS) for name in names}
    mine = room(module)
    assert mine in floors, f"{module}: no floor for {mine}"
    for imported in imports(path):
        if imported.split(".")[0] != "distconv":
            continue
        other = room(imported)
        allowed = floors[other] > floors[mine] or other == mine or (mine, other) in BESIDE
        assert allowed, f"{module} imports {imported}"


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[module for module, _path in MODULES])
def test_only_the_ray_room_imports_ray_and_only_the_command_line_prints(module: str, path: Path) -> None:
    names = {name.split(".")[0] for name in imports(path)}
    assert "ray" not in names or module.startswith("distconv.moving.ray.")
    assert "click" not in names or module.startswith("distconv.cli")
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls)


@pytest.mark.parametrize("module", ["planning", "families", "formats"])
def test_plans_families_and_formats_touch_no_storage(module: str) -> None:
    for path in (PACKAGE / module).rglob("*.py"):
        assert not {"os", "io", "pathlib", "distconv.storage", "distconv.local"} & imports(path), path


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[module for module, _path in MODULES])
def test_a_module_answers_one_question_in_fewer_than_400_lines(module: str, path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 400, module
    assert lines[0].startswith(('"""', 'r"""')), module


@pytest.mark.parametrize(
    "asked",
    [
        "import distconv",
        "import distconv.cli",
        "import distconv; distconv.inspect",
        "import distconv; distconv.plan",
        "import distconv; distconv.verify",
        "import distconv; distconv.convert",
    ],
)
def test_heavy_packages_are_imported_only_where_they_are_used(asked: str) -> None:
    heavy = "{'torch', 'transformers', 'ray', 'numpy', 'accelerate'}"
    code = (
        f"import sys; {asked}; found = {heavy} & set(sys.modules); sys.exit(' '.join(found) if found else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
