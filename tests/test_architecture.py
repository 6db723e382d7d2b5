"""The house stands: imports go down only, and heavy packages wait until they are needed."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "distconv"

ROOMS = (
    "__main__",
    "cli",
    "__init__",
    "verbs",
    "output",
    "sidecars",
    "downloads",
    "moving",
    "planning",
    "families",
    "formats",
    "storage",
    "layout",
    "humanize",
    "errors",
    "version",
)
"""From the roof to the ground: each knows itself and what stands below it."""


def room(module: str) -> str:
    """Give the room of a module of the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@functools.cache
def parse(path: Path) -> ast.Module:
    """Parse a file once."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> set[str]:
    """Give all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(parse(path)):
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


def test_imports_go_down_only() -> None:
    assert {room(module) for module, _path in MODULES} <= set(ROOMS)
    assert not [
        f"{module} imports {imported}"
        for module, path in MODULES
        for imported in imports(path)
        if imported.split(".")[0] == "distconv" and ROOMS.index(room(imported)) < ROOMS.index(room(module))
    ]


def test_no_two_modules_import_each_other() -> None:
    """Neither at once nor through others: each can be read, and tested, after those that it imports."""
    names = {module for module, _path in MODULES}
    waiting = {module: {found for found in imports(path) if found in names} for module, path in MODULES}
    waiting.pop("distconv.__init__")
    while waiting:
        ready = {module for module, needed in waiting.items() if not needed & waiting.keys()}
        assert ready, f"a circle among {sorted(waiting)}"
        waiting = {module: needed for module, needed in waiting.items() if module not in ready}


def test_only_the_ray_room_imports_ray_and_only_the_command_line_prints() -> None:
    for module, path in MODULES:
        names = {name.split(".")[0] for name in imports(path)}
        assert "ray" not in names or module.startswith("distconv.moving.ray."), module
        assert "click" not in names or module.startswith("distconv.cli"), module
        calls = [node.func for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
        assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls), module


@pytest.mark.parametrize("module", ["planning", "families"])
def test_plans_and_families_touch_no_storage(module: str) -> None:
    for path in (PACKAGE / module).rglob("*.py"):
        assert not {"os", "io", "pathlib", "distconv.storage.base", "distconv.storage.local"} & imports(
            path
        ), path


def test_a_module_answers_one_question_in_fewer_than_400_lines() -> None:
    for module, path in MODULES:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) < 400, module
        assert lines[0].startswith(('"""', 'r"""')), module


def test_a_function_fits_on_a_screen() -> None:
    assert not [
        f"{module}.{node.name}"
        for module, path in MODULES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (node.end_lineno or 0) - node.lineno >= 40
    ]


def test_most_modules_are_short() -> None:
    lengths = sorted(len(path.read_text(encoding="utf-8").splitlines()) for _module, path in MODULES)
    assert lengths[len(lengths) // 2] <= 130


def test_the_rooms_are_described_in_their_order() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    described = re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)
    assert described == [name for name in ROOMS if (PACKAGE / name).is_dir()]


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "SECURITY.md"])
def test_files_that_documents_name_are_there(document: str) -> None:
    """By their path in the repository or in the package."""
    text = (PACKAGE.parent / document).read_text(encoding="utf-8")
    named = re.findall(r"`([\w./]+(?:\.(?:py|toml|txt|yaml|md)|/))`", text)
    assert len(named) > 10
    homes = (PACKAGE.parent, PACKAGE)
    made = {".peers/", ".mutants/layout/survivors.txt"}
    assert not [
        name for name in named if name not in made and not any((home / name).exists() for home in homes)
    ]
    targets = set(re.findall(r"^([a-z-]+):", (PACKAGE.parent / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`(?:[A-Z]+=\S+ )?make ([a-z-]+)", text)) <= targets


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


def test_files_and_tests_that_rooms_of_mutants_name_are_there() -> None:
    tests = PACKAGE.parent / "tests"
    for name, room in tomllib.loads((tests / "mutants.toml").read_text(encoding="utf-8"))["rooms"].items():
        for file in (*room["files"], *room.get("without", ())):
            assert (PACKAGE / file).exists(), f"{name}: {file}"
        for test in (*room["tests"], *room.get("without_tests", ())):
            file, _, function = test.partition("::")
            assert (tests / file).exists(), f"{name}: {test}"
            if function:
                defined = {getattr(node, "name", "") for node in parse(tests / file).body}
                assert function in defined, f"{name}: {test}"
