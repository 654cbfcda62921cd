"""Dotted paths: beside the recipe, then packages; which recipe may name what."""

import sys

import pytest
import yaml
from impruver_core.dynamic_import import allow_remote_code, load_object, set_foreign_recipe
from impruver_core.errors import ImpruverError


@pytest.fixture(autouse=True)
def restored(monkeypatch, tmp_path):
    """Each test has its own working folder and leaves sys.path as it was."""
    before = list(sys.path)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield
    sys.path[:] = before


def test_from_a_package():
    assert load_object("yaml.loader.SafeLoader", "model.class") is yaml.SafeLoader
    assert load_object("yaml.SafeLoader.get_data", "model.class") is yaml.SafeLoader.get_data


def test_beside_the_recipe_and_never_in_the_working_folder(tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "our_converter.py").write_text("def convert(row, mapping): return 'recipe'\n")
    (tmp_path / "work" / "our_working.py").write_text("def convert(row, mapping): return 'work'\n")
    assert load_object("our_converter.convert", "converter", tmp_path / "recipe")({}, {}) == "recipe"
    for folder in (None, tmp_path):
        with pytest.raises(ImpruverError, match="there is no module our_working beside the recipe or installed"):
            load_object("our_working.convert", "converter", folder)


def test_a_package_with_siblings_and_a_folder_without_init(tmp_path):
    folder = tmp_path / "work" / "our_custom" / "llama"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from .parts import Model\n")
    (folder / "parts.py").write_text("class Model: pass\n")
    assert (
        load_object("our_custom.llama.Model", "model.class", tmp_path / "work").__module__ == "our_custom.llama.parts"
    )
    assert load_object("our_custom.llama.parts.Model", "model.class", tmp_path / "work").__name__ == "Model"


def test_the_folder_is_searched_last_once_the_import_is_over(tmp_path):
    (tmp_path / "work" / "our_late.py").write_text("x = 1\n")
    load_object("our_late.x", "converter", tmp_path / "work")
    assert sys.path[0] != str(tmp_path / "work")
    assert sys.path[-1] == str(tmp_path / "work")


def test_a_folder_of_a_packages_name_does_not_hide_it(tmp_path):
    (tmp_path / "work" / "yaml").mkdir()
    assert load_object("yaml.SafeLoader", "model.class", tmp_path / "work") is yaml.SafeLoader


def test_a_module_of_a_used_packages_name_is_refused(tmp_path):
    (tmp_path / "work" / "yaml.py").write_text("SafeLoader = 1\n")
    with pytest.raises(ImpruverError, match="has the name of a package that is in use"):
        load_object("yaml.SafeLoader", "model.class", tmp_path / "work")
    assert sys.modules["yaml"] is yaml


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("yaml.SafeLoade", "did you mean yaml.SafeLoader?"),
        ("yaml.loader.Nothing", "yaml.loader has no Nothing"),
        ("subprocess.call", "is of Python's own library"),
        ("builtins.eval", "is of Python's own library"),
        ("os.path.join", "is of Python's own library"),
        ("yaml.reader.codecs.encode", "is of Python's own library"),
        ("no_such_package.Thing", "there is no module no_such_package beside the recipe"),
        ("AutoModel", "is no dotted path, such as transformers."),
        ("json..x", "is no dotted path"),
        ("json.x-y", "is no dotted path"),
        ("", "is no dotted path"),
    ],
)
def test_what_is_not_there(path, what):
    with pytest.raises(ImpruverError, match=r"^model\.class: ") as caught:
        load_object(path, "model.class")
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("import no_such_thing\n", "needs the module no_such_thing, which is not installed"),
        ("def f(:\n", "our_broken.py:1"),
        ("1/0\n", "our_broken can't be imported: ZeroDivisionError"),
    ],
)
def test_a_module_that_fails_is_told_with_its_reason(tmp_path, content, what):
    (tmp_path / "work" / "our_broken.py").write_text(content)
    with pytest.raises(ImpruverError) as caught:
        load_object("our_broken.f", "converter", tmp_path / "work")
    assert what in str(caught.value)


@pytest.fixture
def foreign(tmp_path):
    """A recipe that came with a folder, which has modules of its own."""
    folder = tmp_path / "model"
    (folder / "transformers").mkdir(parents=True)
    for name in ("evil.py", "transformers/__init__.py"):
        (folder / name).write_text(
            "from pathlib import Path\nPath('ran').touch()\nclass Model: pass\nAutoTokenizer = Model\n"
        )
    set_foreign_recipe(folder / "recipe.yaml")
    yield folder
    set_foreign_recipe(None)


@pytest.mark.parametrize(
    "path",
    [
        "evil.Model",
        "yaml.SafeLoader",
        "subprocess.Popen",
        "transformersx.Model",
        "transformers.utils.logging.threading.Thread",
        "transformers.utils.hub.os.system",
        "transformers.utils.logging.get_logger",
        "transformers.utils.logging",
    ],
)
def test_a_recipe_that_came_with_a_folder_names_classes_of_transformers_alone(path, foreign, tmp_path):
    with pytest.raises(ImpruverError) as caught:
        load_object(path, "model.class", foreign)
    assert "--trust_remote_code" in str(caught.value) or "Python's own library" in str(caught.value)
    assert not list(tmp_path.rglob("ran"))


def test_a_folders_own_package_never_stands_in_for_transformers(foreign, tmp_path):
    found = load_object("transformers.AutoTokenizer", "tokenizer.class", foreign)
    assert found.__module__.startswith("transformers.models.")
    set_foreign_recipe(None)  # nor beside a recipe that the user named: it names them by default
    assert load_object("transformers.AutoTokenizer", "tokenizer.class", foreign) is found
    assert not list(tmp_path.rglob("ran"))


def test_remote_code_is_the_users_to_allow(foreign):
    assert allow_remote_code(False, "model.trust_remote_code") is False
    with pytest.raises(ImpruverError, match=r"recipe\.yaml: model\.trust_remote_code: true .*--trust_remote_code, or"):
        allow_remote_code(True, "model.trust_remote_code")
    set_foreign_recipe(None)
    assert allow_remote_code(True, "model.trust_remote_code") is True
