"""Dotted paths: beside the recipe, the working folder, then packages."""

import json
import sys

import pytest
from impruver_core.dynamic_import import load_object
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
    assert load_object("json.decoder.JSONDecoder", "model.class") is json.JSONDecoder
    assert load_object("json.JSONDecoder.decode", "model.class") is json.JSONDecoder.decode


def test_beside_the_recipe_goes_before_the_working_folder(tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "our_converter.py").write_text("def convert(row, mapping): return 'recipe'\n")
    (tmp_path / "work" / "our_converter.py").write_text("def convert(row, mapping): return 'work'\n")
    assert load_object("our_converter.convert", "converter", tmp_path / "recipe")({}, {}) == "recipe"
    assert load_object("our_converter.convert", "converter", tmp_path)({}, {}) == "work"
    assert load_object("our_converter.convert", "converter")({}, {}) == "work"


def test_a_package_with_siblings_and_a_folder_without_init(tmp_path):
    folder = tmp_path / "work" / "our_custom" / "llama"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from .parts import Model\n")
    (folder / "parts.py").write_text("class Model: pass\n")
    assert load_object("our_custom.llama.Model", "model.class").__module__ == "our_custom.llama.parts"
    assert load_object("our_custom.llama.parts.Model", "model.class").__name__ == "Model"


def test_the_folder_is_searched_last_once_the_import_is_over(tmp_path):
    (tmp_path / "work" / "our_late.py").write_text("x = 1\n")
    load_object("our_late.x", "converter")
    assert sys.path[0] != str(tmp_path / "work")
    assert sys.path[-1] == str(tmp_path / "work")


def test_a_folder_of_a_packages_name_does_not_hide_it(tmp_path):
    (tmp_path / "work" / "json").mkdir()
    assert load_object("json.JSONDecoder", "model.class") is json.JSONDecoder


def test_a_module_of_a_used_packages_name_is_refused(tmp_path):
    (tmp_path / "work" / "json.py").write_text("JSONDecoder = 1\n")
    with pytest.raises(ImpruverError, match="has the name of a package that is in use"):
        load_object("json.JSONDecoder", "model.class")
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("json.JSONDecode", "did you mean json.JSONDecoder?"),
        ("json.decoder.Nothing", "json.decoder has no Nothing"),
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
        load_object("our_broken.f", "converter")
    assert what in str(caught.value)
