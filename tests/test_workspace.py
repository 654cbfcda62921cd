"""The house rules that a script can see: bounds between siblings, imports one way, light installs."""

import ast
import graphlib
import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from support import ROOT
from support.kinds import KINDS
from support.oracles import report_missing, require_program

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


def graph_of_imports() -> dict[str, set[str]]:
    """The modules of our packages, each with those of ours that it imports anywhere, inside functions too."""
    names = {
        ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): path
        for source in [ROOT / "core/src", *ROOT.glob("packages/*/src")]
        for path in source.rglob("*.py")
    }
    graph = {name: set() for name in names}
    for name, path in names.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: a relative import"
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [target if target in names else node.module for target in targets]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                continue
            graph[name].update(target for target in targets if target in names and target != name)
    return graph


def grouped(graph: dict[str, set[str]], depth: int) -> dict[str, set[str]]:
    """The graph between folders up to `depth` below a package; a module at a package's root stands for itself."""

    def group(name: str) -> str:
        parts = name.split(".")
        return ".".join(parts[: 1 + depth] if len(parts) - 2 >= depth else parts[:-1] if len(parts) > 2 else parts)

    groups = {group(name): set() for name in graph}
    for name, targets in graph.items():
        groups[group(name)].update(group(target) for target in targets)
    return {name: targets - {name} for name, targets in groups.items()}


@pytest.mark.parametrize("depth", [None, 1, 2, 3], ids=["modules", "folders", "folders in folders", "third level"])
def test_imports_form_no_cycle(depth):
    graph = graph_of_imports()
    assert len(graph) > 150
    try:
        list(graphlib.TopologicalSorter(graph if depth is None else grouped(graph, depth)).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_folder_holds_few_modules_and_each_name_says_something():
    sources = [*ROOT.glob("core/src/**/*.py"), *ROOT.glob("packages/*/src/**/*.py")]
    vague = {"utils", "util", "helpers", "helper", "common", "manager", "handler", "misc"}
    assert not [path for path in sources if {path.stem, path.parent.name} & vague]
    counts = Counter(path.parent for path in sources if path.name not in ("__init__.py", "__main__.py"))
    assert not {str(folder): count for folder, count in counts.items() if count > 16}


@pytest.mark.parametrize(
    ("package", "without"),
    [("impruver-compose", set()), ("impruver-core", {"transformers"}), ("impruver-gguf", {"transformers"})],
)
def test_no_torch_is_asked_for(package, without):
    options = ["--no-dev", "--no-hashes", "--no-emit-workspace", "--no-annotate", "--no-header", "--frozen"]
    listed = subprocess.run(
        [require_program("uv"), "export", "--package", package, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line.partition("==")[0] for line in listed.stdout.splitlines()}
    assert "pyyaml" in names
    assert not names & ({"torch", "peft", "bitsandbytes", "triton"} | without)


def test_kinds_of_tests_name_files_and_tests_that_are_there():
    for name in filter(None, KINDS):
        path, _, function = name.partition("::")
        assert (ROOT / "tests" / path).exists(), name
        assert f"def {function}" in (ROOT / "tests" / path).read_text(encoding="utf-8") if function else True, name


@pytest.mark.parametrize(("strict", "ends"), [("1", pytest.fail.Exception), ("0", pytest.skip.Exception)])
def test_a_missing_oracle_fails_where_oracles_are_required(strict, ends, monkeypatch):
    monkeypatch.setenv("STRICT_ORACLES", strict)
    with pytest.raises(ends, match="no such program"):
        report_missing("no such program")
