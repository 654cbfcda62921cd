"""Recipes by name, and what a recipe names."""

import glob
from pathlib import Path

import pytest
from impruver_core.errors import ImpruverError
from impruver_core.recipe import paths
from impruver_core.recipe.paths import find_local, find_recipe, is_local_path, list_matches, list_recipes


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder of recipes in the place of the installed ones, so that the test does not hang on their names."""
    for name in ("Qwen3/0.6B_lora_saiga2", "Qwen3/4B_lora_saiga2", "quickstart/tiny_full"):
        path = tmp_path / "installed" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("seed: 1\n")
    (tmp_path / "installed" / "quickstart" / "rows.jsonl").write_text("{}\n")
    monkeypatch.setattr(paths, "find_recipes_root", lambda: tmp_path / "installed")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "installed"


def test_the_real_ones_are_found_by_their_listed_names():
    assert len(list_recipes()) > 10
    assert all(find_recipe(name).is_file() for name in list_recipes())


def test_names_are_sorted(installed):
    assert list_recipes() == ["quickstart/tiny_full", "Qwen3/0.6B_lora_saiga2", "Qwen3/4B_lora_saiga2"]


@pytest.mark.parametrize("name", ["quickstart/tiny_full", "quickstart/tiny_full.yaml"])
def test_by_name_with_and_without_suffix(installed, name):
    assert find_recipe(name) == installed / "quickstart" / "tiny_full.yaml"


def test_a_file_goes_before_a_name(installed):
    own = Path("quickstart/tiny_full")
    own.parent.mkdir()
    own.write_text("")
    assert find_recipe("quickstart/tiny_full") == own


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("quickstart/tiny_ful", "quickstart/tiny_full"),
        ("qwen3/0.6b_lora_saiga2", "Qwen3/0.6B_lora_saiga2"),
        ("tiny_full", "quickstart/tiny_full"),
        ("quickstart/tiny_ful.yaml", "quickstart/tiny_full"),
        ("Qwen3/4B_lora_saiga", "Qwen3/4B_lora_saiga2"),
    ],
)
def test_the_nearest_names_are_told(installed, name, near):
    with pytest.raises(ImpruverError, match=f"did you mean {near}") as caught:
        find_recipe(name)
    assert "impruver ls" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("../installed", "is a folder"),
        ("quickstart", "neither a file nor an installed recipe"),
        ("./absent.yaml", "no such file"),
        ("../../etc/passwd", "no such file"),
        ("", "is a folder"),
        ("a" * 5000, "neither"),
    ],
)
def test_what_is_no_recipe(installed, name, what):
    with pytest.raises(ImpruverError, match=what):
        find_recipe(name)


def test_recipes_are_looked_up_locally_before_the_installed_ones(installed, tmp_path):
    beside = tmp_path / "beside"
    beside.mkdir()
    assert find_local("quickstart/rows.jsonl", beside) == installed / "quickstart" / "rows.jsonl"
    here = tmp_path / "work" / "quickstart" / "rows.jsonl"
    here.parent.mkdir()
    here.write_text("")
    assert find_local("quickstart/rows.jsonl", beside) == here
    near = beside / "quickstart" / "rows.jsonl"
    near.parent.mkdir()
    near.write_text("")
    assert find_local("quickstart/rows.jsonl", beside) == near
    assert find_local("quickstart/rows.jsonl", None) == here
    assert find_local("./quickstart/../quickstart", beside) == near.parent
    assert find_local("quickstart/*.jsonl", beside) == near.parent / "*.jsonl"
    assert find_local(str(near), None) == near


@pytest.mark.parametrize("value", ["", "absent/x.jsonl", "*.nothing", "a\nb", "x" * 9000, "{% for [a] in b %}", "a\0b"])
def test_what_is_not_there(installed, value):
    assert find_local(value, None) is None


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text("")
    assert find_local("~/rows.jsonl", None) == tmp_path / "rows.jsonl"


@pytest.mark.parametrize(
    "value", ["./x", "../x", "/x", "~/x", "x.jsonl", "x.parquet", "data/x.JSON", "x/*.csv", ".", "t.jinja"]
)
def test_what_looks_local(value):
    assert is_local_path(value)


@pytest.mark.parametrize(
    "value", ["HuggingFaceTB/SmolLM2-135M-Instruct", "gpt2", "IlyaGusev/ru_turbo_alpaca", "a/b-v1.0"]
)
def test_what_may_be_a_hub_id(value):
    assert not is_local_path(value)


@pytest.fixture
def tree(tmp_path):
    """Files in folders, hidden ones, and links that loop."""
    for name in ("a.jsonl", "b/c.jsonl", "b/d/e.jsonl", "b/d/f.txt", ".hidden/g.jsonl", "b/.h.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    [
        "*.jsonl",
        "**/*.jsonl",
        "b/**/*.jsonl",
        "b/**",
        "**/d/*",
        "*/**/e*",
        "**/b/**/*.jsonl",
        "**/nothing",
        "**/.h*",
        "b/?.jsonl",
    ],
)
def test_globs_match_as_pythons_do(pattern, tree):
    found = [Path(name) for name in glob.glob(str(tree / pattern), recursive=True)]
    assert sorted(list_matches(tree / pattern)) == sorted(path for path in found if path.is_file())


def test_a_folder_is_visited_once_whatever_links_lead_to_it(tree):
    for number in range(8):
        (tree / f"loop{number}").symlink_to(tree, target_is_directory=True)
        (tree / f"b/up{number}").symlink_to(tree, target_is_directory=True)
    (tree / "other").symlink_to(tree / "b", target_is_directory=True)
    assert len(list(list_matches(tree / "**/*.jsonl"))) == 3
    own = [tree / name for name in ("a.jsonl", "b/.h.jsonl", "b/c.jsonl", "b/d/e.jsonl", ".hidden/g.jsonl")]
    assert sorted(list_matches(tree / "**/*.jsonl", hidden=True, links=False)) == sorted(own)


def test_a_folder_whose_name_is_a_pattern(tmp_path):
    (tmp_path / "part[1]").mkdir()
    (tmp_path / "part[1]" / "a.jsonl").write_text("{}")
    whole = Path(glob.escape(str(tmp_path / "part[1]")), "**", "*")
    assert list(list_matches(whole)) == [tmp_path / "part[1]" / "a.jsonl"]


def test_a_glob_that_looks_at_too_much_is_told(tree, monkeypatch):
    monkeypatch.setattr(paths, "MOST_ENTRIES", 4)
    with pytest.raises(ImpruverError, match="holds more than 4 files to look at: name a folder further down"):
        list(list_matches(tree / "**/nothing"))
