"""defaults < recipe < --set < named flags."""

from dataclasses import dataclass

import pytest
from impruver_core.errors import RecipeError
from impruver_core.recipe.loading import load_recipe
from impruver_core.recipe.schema import REQUIRED, key, list_of, open_mapping


@dataclass(frozen=True)
class Source:
    name: str = key(REQUIRED, "what to load")
    split: str = key("train", "its split")
    weight: float = key(1.0, "how often")


SECTIONS = {
    "datasets": list_of(Source),
    "lora": open_mapping(optional=True),
    "trainer": open_mapping(),
}
TEXT = """\
seed: 7
datasets:
  - name: a
  - name: b
    split: test
model: {name: m, config: {n_inner: 3, n_head: 2}}
lora: {r: 8, target_modules: [q, v]}
trainer: {learning_rate: 2e-4, seed: 5}
"""


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(TEXT)
    return lambda *overrides, named=(): load_recipe(path, overrides, named=named, sections=SECTIONS)


def faults_of(load, *overrides, **kwargs):
    with pytest.raises(RecipeError) as caught:
        load(*overrides, **kwargs)
    return caught.value.faults


def test_values_are_yaml_and_split_at_the_first_equals_sign(load):
    recipe = load(
        "trainer.learning_rate=5e-6",
        "trainer.run_name=a=b",
        "tokenizer.special_tokens={pad_token: '<pad>'}",
        "lora.target_modules=[x]",
        "output_dir=10:30",
        "trainer.eval_strategy=no",
        "train_path=",
    )
    assert recipe.trainer["learning_rate"] == 5e-6
    assert recipe.trainer["run_name"] == "a=b"
    assert recipe.tokenizer.special_tokens == {"pad_token": "<pad>"}
    assert recipe.lora == {"r": 8, "target_modules": ["x"]}
    assert recipe.output_dir == "10:30"
    assert recipe.trainer["eval_strategy"] == "no"
    assert recipe.train_path is None


def test_list_items_go_by_number(load):
    recipe = load("datasets.1.split=train[:5]", "datasets.2.name=c", "datasets.2.weight=2", "lora.target_modules.0=k")
    assert [(each.name, each.split) for each in recipe.datasets] == [("a", "train"), ("b", "train[:5]"), ("c", "train")]
    assert recipe.datasets[2].weight == 2.0
    assert recipe.lora["target_modules"] == ["k", "v"]


def test_removing_an_item_keeps_the_numbers_of_the_recipe(load):
    recipe = load("datasets.0=null", "datasets.1.split=x")
    assert [(each.name, each.split) for each in recipe.datasets] == [("b", "x")]


def test_null_removes(load):
    recipe = load("lora=null", "model.config.n_inner=null", "trainer.seed=~", "model.name=", "datasets.1.split=null")
    assert recipe.lora is None
    assert recipe.model.config == {"n_head": 2}
    assert recipe.model.name is None
    assert recipe.trainer == {"learning_rate": 2e-4, "seed": 7}
    assert recipe.datasets[1].split == "train"


def test_removing_what_is_not_there_is_still_checked(load):
    assert load("trainer.bf16=null").trainer == {"learning_rate": 2e-4, "seed": 5}
    (fault,) = faults_of(load, "tokenizer.nam=null")
    assert fault == "--set tokenizer.nam=null: tokenizer.nam: no such key; did you mean name?"


def test_missing_sections_are_made_and_later_wins(load):
    recipe = load("ddp.x.y=1", "lora=null", "lora.r=2", "seed=1", "seed=2", "dedup.0.x=1")
    assert recipe.ddp == {"x": {"y": 1}}
    assert recipe.lora == {"r": 2}
    assert recipe.seed == 2
    assert recipe.dedup == [{"x": 1}]


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("trainer.optim", "expected KEY=VALUE"),
        ("=5", "expected KEY=VALUE"),
        ("a..b=5", "expected KEY=VALUE"),
        ("trainer.x=[1", "not valid YAML"),
        ("trainer.x={a: 1, a: 2}", "repeated"),
        ("tokenizer.chat_template={{ x }}", "needs quotes"),
        ("datasets.name=x", "datasets: is a list; its items go by number, as in datasets.0.name"),
        ("datasets.5.name=x", "datasets: has 2 items, numbered from 0"),
        ("seed.x=1", "seed: holds no keys, it is the number 7"),
        ("seed=x", "seed: expected a whole number, found the text 'x'"),
        ("nonsense=1", "nonsense: no such key"),
        ("lora.target_modules.x=1", "lora.target_modules: is a list"),
    ],
)
def test_a_bad_override_is_told_as_it_was_given(load, override, what):
    (fault,) = faults_of(load, override)
    assert fault.startswith(f"--set {override}: ")
    assert what in fault


def test_all_bad_overrides_are_told_at_once(load):
    assert len(faults_of(load, "x=1", "seed=a", "trainer.y=[")) == 3


def test_named_flags_win_and_seed_sets_both(load):
    recipe = load("output_dir=set", "seed=1", named=[("output_dir", "flag", "--output_dir"), ("seed", 9, "--seed")])
    assert recipe.output_dir == "flag"
    assert recipe.seed == 9
    assert recipe.trainer["seed"] == 9


def test_the_recipes_own_trainer_seed_stays_without_the_flag(load):
    assert load("seed=1").trainer["seed"] == 5


def test_a_flag_reaches_into_an_open_mapping(load):
    assert load(named=[("trainer.report_to", "wandb", "--report_to")]).trainer["report_to"] == "wandb"


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_does_not_take(load, seed):
    (fault,) = faults_of(load, f"seed={seed}")
    assert fault == f"--set seed={seed}: seed: expected 0 to 4294967295, found {seed}"


def test_bytes_that_are_no_text(load):
    (fault,) = faults_of(load, "output_dir=\udcff")
    assert fault.startswith("--set output_dir=\udcff: not valid YAML")


def test_a_wrong_value_of_a_flag_is_told_by_its_flag(load):
    (fault,) = faults_of(load, named=[("model.dtype", "bf15", "--dtype")])
    assert fault.startswith("--dtype: model.dtype: 'bf15' is none of")


def test_a_misspelt_section_on_the_command_line_is_told_as_such(load):
    with pytest.raises(RecipeError, match=r"^--set trainr\.seed=3: trainr: no such key; did you mean trainer\?$"):
        load("trainr.seed=3")
