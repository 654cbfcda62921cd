"""A recipe against its sections: every fault at once, each with its place and the nearest valid key."""

# ruff: noqa: RUF009  (key() copies its default)
import re
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from impruver_core.errors import ImpruverError, RecipeError
from impruver_core.recipe.loading import load_recipe
from impruver_core.recipe.schema import REQUIRED, key, list_of, open_mapping
from impruver_core.recipe.sections import OWNERS, SECTIONS


@dataclass(frozen=True)
class Item:
    name: str = key(REQUIRED, "what to load")
    split: str = key("train", "its split")
    mapping: dict[str, str] = key({}, "columns")
    weight: float = key(1.0, "how often")
    limit: int | None = key(None, "at most")
    files: list[str] = key([], "several")
    source: str | dict = key("", "text or a mapping")
    turns: Literal["all", "last"] = key("all", "which")
    anything: Any = key(None, "whatever")


@dataclass(frozen=True)
class Dedup:
    method: str = key("minhash", "how", choices=("minhash", "exact", "none"))
    threshold: float = key(0.8, "from which similarity")
    on: bool = key(True, "whether")

    def __post_init__(self):
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], not {self.threshold}")
        if self.method == "none" and not self.on:
            raise ValueError("must be true without a method", "on")


def check_trainer(mapping):
    return [(name, "no such argument") for name in mapping if name.startswith("lerning")]


OTHERS = {
    "datasets": list_of(Item, "where rows come from"),
    "dedup": Dedup,
    "lora": open_mapping("any field", optional=True),
    "trainer": open_mapping("any argument", check=check_trainer),
}


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides, **kwargs):
        path = tmp_path / "r.yaml"
        path.write_text(text)
        return load_recipe(path, overrides, **{"sections": OTHERS, **kwargs})

    return load


def faults_of(load, text, *overrides, **kwargs):
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides, **kwargs)
    return [re.sub(r"^/.*/r\.yaml", "r.yaml", fault) for fault in caught.value.faults]


def test_an_empty_recipe_is_all_defaults(load):
    recipe = load("")
    assert recipe.seed == 42
    assert recipe.output_dir is None
    assert recipe.tokenizer.class_ == "transformers.AutoTokenizer"
    assert recipe.model.dtype == "auto"
    assert recipe.datasets == []
    assert recipe.dedup == Dedup()
    assert recipe.lora is None
    assert recipe.trainer == {"seed": 42}
    assert recipe.chat is None


def test_every_top_level_key_is_an_attribute(load):
    recipe = load("")
    assert all(hasattr(recipe, name) for name in OWNERS)
    with pytest.raises(AttributeError):
        recipe.seed = 1


def test_all_faults_at_once_each_with_its_place(load):
    text = """\
seeed: 1
tokenizer:
  max_tokens_cout: 5
model:
  dtype: bf15
  load_in_4bit: 3
datasets:
  - name: a
    spllit: x
  - split: train
dedup: {threshold: high}
trainer: {lerning_rate: 1}
val_path: [1]
"""
    assert faults_of(load, text) == [
        "r.yaml:1: seeed: no such key; did you mean seed?",
        "r.yaml:13: val_path: expected text or a list or a mapping, found a list",
        "r.yaml:3: tokenizer.max_tokens_cout: no such key; did you mean max_tokens_count?",
        "r.yaml:5: model.dtype: 'bf15' is none of auto, bf16, fp16, fp32; did you mean bf16?",
        "r.yaml:6: model.load_in_4bit: expected true or false, found the number 3",
        "r.yaml:9: datasets.0.spllit: no such key; did you mean split?",
        "r.yaml:10: datasets.1.name: is missing",
        "r.yaml:11: dedup.threshold: expected a number, found the text 'high'",
        "r.yaml:12: trainer.lerning_rate: no such argument",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("datasets: {name: a}", "datasets: expected a list, found a mapping"),
        ("datasets: [a]", "datasets.0: expected a mapping, found the text 'a'"),
        ("trainer: 5", "trainer: expected a mapping, found the number 5"),
        ("output_dir: 5", "output_dir: expected text, found the number 5; put it in quotes"),
        ("output_dir: true", "output_dir: expected text, found true; put it in quotes"),
        ("seed: abc", "seed: expected a whole number, found the text 'abc'"),
        ("seed: 1.5", "seed: expected a whole number, found the number 1.5"),
        ("seed: true", "seed: expected a whole number, found true"),
        ("tokenizer: {max_tokens_count: 0}", "tokenizer.max_tokens_count: must be at least 1, not 0"),
        ("dedup: {method: none, on: false}", "dedup.on: must be true without a method"),
        ("model: {load_in_4bit: true, load_in_8bit: true}", "model: load_in_4bit and load_in_8bit exclude each other"),
        (
            "datasets: [{name: a, mapping: {output: 1}}]",
            "datasets.0.mapping.output: expected text, found the number 1; p",
        ),
        ("datasets: [{name: a, files: x}]", "datasets.0.files: expected a list, found the text 'x'; write [x]"),
        ("datasets: [{name: a, source: 1}]", "datasets.0.source: expected text or a mapping, found the number 1"),
        ("datasets: [{name: a, turns: some}]", "datasets.0.turns: 'some' is none of all, last"),
        ("datasets: [{name: null}]", "datasets.0.name: is missing"),
        ("dedup: {threshold: 2}", "dedup: threshold must be in (0, 1], not 2.0"),
        ("learning_rate: 1", "learning_rate: no such key (valid: output_dir"),
        ("max_tokens_count: 1", "max_tokens_count: no such key; did you mean tokenizer.max_tokens_count?"),
        ("split_: 1", "split_: no such key; did you mean split?"),
        ("1: a", "1: no such key"),
    ],
)
def test_a_single_fault(load, text, fault):
    (told,) = faults_of(load, text)
    assert told.startswith(f"r.yaml:1: {fault}")


def test_what_is_accepted(load):
    text = """\
datasets:
  - {name: a, weight: 2, limit: 1e3, source: {x: 1}, files: [b, c], anything: [1, {y: 2}], turns: last}
dedup: {on: yes, threshold: 1}
lora: {}
trainer:
split:
"""
    recipe = load(text)
    item = recipe.datasets[0]
    assert (item.weight, item.limit, item.source) == (2.0, 1000, {"x": 1})
    assert type(item.weight) is float
    assert type(item.limit) is int
    assert item.files == ["b", "c"]
    assert item.anything == [1, {"y": 2}]
    assert recipe.dedup.on is True
    assert recipe.dedup.threshold == 1.0
    assert recipe.lora == {}
    assert recipe.trainer == {"seed": 42}


def test_strategy_no_stays_text_in_an_open_mapping(load):
    assert load("trainer: {eval_strategy: no, bf16: false, n: null}").trainer == {
        "eval_strategy": "no",
        "bf16": False,
        "n": None,
        "seed": 42,
    }


def test_an_absent_tools_section_is_carried_along_unread(load):
    recipe = load("chat: {hystory: 1, list: [2e-4]}\ngguf: 7\n")
    assert recipe.chat == {"hystory": 1, "list": [2e-4]}
    assert recipe.gguf == 7


def test_each_tool_alone_is_strict_about_its_own_section(load):
    text = "dedup: {methood: x}\nlora: {rr: 1}\n"
    assert load(text, sections={"lora": OTHERS["lora"]}).dedup == {"methood": "x"}
    assert faults_of(load, text) == ["r.yaml:1: dedup.methood: no such key; did you mean method?"]


@pytest.mark.parametrize("text", ["- a\n", "just text\n", "5\n"])
def test_a_recipe_that_is_no_mapping(load, text):
    (told,) = faults_of(load, text)
    assert "a recipe is a mapping of keys" in told


def test_faults_of_form_and_of_content_are_told_together(load):
    assert faults_of(load, "seed: 1\nseed: 2\nmodle: {}\n") == [
        "r.yaml:2: seed: repeated: it also stands in line 1",
        "r.yaml:3: modle: no such key; did you mean model?",
    ]


def test_recipe_error_is_exit_code_2(load):
    with pytest.raises(ImpruverError) as caught:
        load("x: 1\ny: 2\n")
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 2


def test_where_begins_a_message_of_a_tool(load):
    recipe = load("seed: 1\ntrainer:\n  optim: x\n", "trainer.bf16=true")
    assert recipe.locate("trainer.optim").endswith("r.yaml:3: trainer.optim")
    assert recipe.locate("trainer.bf16") == "--set trainer.bf16=true: trainer.bf16"


def test_every_declared_key_has_a_help():
    from dataclasses import fields

    for section in SECTIONS.values():
        helps = [field.metadata["help"] for field in fields(section)] if isinstance(section, type) else [section.help]
        assert all(helps)
