"""The house rules that a script can see: bounds between siblings, imports one way, light installs."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MEMBERS = {
    path.parent.name: path.parent for path in [*ROOT.glob("*/pyproject.toml"), *ROOT.glob("packages/*/pyproject.toml")]
}
PROJECTS = {name: tomllib.loads((folder / "pyproject.toml").read_text())["project"] for name, folder in MEMBERS.items()}
SIBLINGS = {project["name"]: project["version"] for project in PROJECTS.values()}
HEAVY = {"torch", "transformers", "peft", "datasets", "bitsandbytes", "accelerate", "wandb"}


def requirements(project: dict) -> list[str]:
    extras = project.get("optional-dependencies", {}).values()
    return [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_is_whole(name):
    for file in ("README.md", "CHANGELOG.md", "LICENSE"):
        assert (MEMBERS[name] / file).stat().st_size > 100
    assert PROJECTS[name]["requires-python"] == ">=3.11"
    assert PROJECTS[name]["license"] == "MIT"


@pytest.mark.parametrize("name", MEMBERS)
def test_siblings_are_bounded_and_the_bounds_hold(name):
    for requirement in requirements(PROJECTS[name]):
        sibling = re.match(r"[a-z-]+", requirement)[0]
        if sibling not in SIBLINGS or sibling == PROJECTS[name]["name"]:
            continue
        low, high = re.search(r">=(\d+\.\d+),<(\d+\.\d+)$", requirement).groups()
        version = tuple(map(int, SIBLINGS[sibling].split(".")))
        assert tuple(map(int, low.split("."))) <= version < tuple(map(int, high.split("."))), requirement


def imports(path: Path):
    """(module, at the top of the file?) of each absolute import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0], node in tree.body


def test_imports_go_one_way_and_heavy_ones_stand_inside_functions():
    sources = [*ROOT.glob("core/src/**/*.py"), *ROOT.glob("packages/*/src/**/*.py")]
    assert len(sources) > 50
    tools = {path.parent.name for path in ROOT.glob("packages/*/src/*/cli.py")}
    for path in sources:
        own = next(part for part in path.parts if part.startswith("impruver_"))
        for module, at_top in imports(path):
            assert module not in tools - {own}, f"{path} imports the tool {module}"
            assert not (at_top and module in HEAVY), f"{path} imports {module} at its top"


@pytest.mark.parametrize(
    ("package", "without"),
    [("impruver-compose", set()), ("impruver-core", {"transformers"}), ("impruver-gguf", {"transformers"})],
)
def test_no_torch_is_asked_for(package, without):
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        pytest.skip("uv is not on PATH")
    options = ["--no-dev", "--no-hashes", "--no-emit-workspace", "--no-annotate", "--no-header", "--frozen"]
    listed = subprocess.run(
        [uv, "export", "--package", package, *options], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = {line.partition("==")[0] for line in listed.stdout.splitlines()}
    assert "pyyaml" in names
    assert not names & ({"torch", "peft", "bitsandbytes", "triton"} | without)
