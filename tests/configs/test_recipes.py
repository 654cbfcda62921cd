"""Every recipe, and the first impruver's spelling, through the real command line of every tool."""

from importlib import import_module

import pytest
from impruver_core.cli.runner import run_tool
from impruver_core.recipe.loading import resolve_recipe
from impruver_core.recipe.paths import find_recipes_root
from support import ROOT

RECIPES = sorted(
    str(path.relative_to(find_recipes_root()).with_suffix("")) for path in find_recipes_root().rglob("*.yaml")
)
TOOLS = sorted(path.parent.name for path in ROOT.glob("packages/*/src/*/cli.py"))
KEYS = ("output_dir", "train_path", "val_path", "datasets", "model", "lora", "tokenizer", "trainer")


def parsed(tool: str, config: str):
    """The recipe as the tool's main function gets it, from its real parser."""
    got = []
    flags = import_module(f"{tool}.cli").Flags
    assert run_tool(tool.replace("_", "-"), flags, lambda recipe, flags: got.append(recipe), ["--config", config]) == 0
    return got[0]


def test_there_are_recipes_and_tools():
    assert len(RECIPES) >= 26
    assert {"impruver_compose", "impruver_train"} <= set(TOOLS)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_in_every_tool(name):
    for tool in TOOLS:
        recipe = parsed(tool, name)
        assert recipe.datasets
        assert recipe.train_path
        assert recipe.val_path
        assert recipe.output_dir
        assert recipe.model.name or recipe.model.config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_what_it_is_and_only_what_differs(name):
    text = (find_recipes_root() / f"{name}.yaml").read_text(encoding="utf-8")
    head = text[: text.index("\noutput_dir:")]
    assert f"impruver-compose --config {name}" in head
    assert f"impruver-train --config {name}" in head
    assert "--set" in head
    assert "Hardware:" in head
    keys = [line.partition(":")[0] for line in text.splitlines() if line and line[0] not in " #"]
    assert keys == [key for key in KEYS if key in keys]
    assert "seed" not in keys
    assert "load_in_8bit: false" not in text


FIRST = """
output_dir: ./models/first
train_path: ./train.first.jsonl
val_path: ./val.first.jsonl

datasets:
  - name: some/instructions
    converter: impruver.instruction_to_messages
    split: train
    add_global_bos: false
    add_global_eos: false
    only_target_loss: false
    mapping:
      instruction: _
      system: instruction
      output: response

model:
  class: transformers.GPT2LMHeadModel
  dtype: bf16
  load_in_4bit: false
  config_class: transformers.GPT2Config
  config:
    torch_dtype: float16
    n_layer: 2
    n_inner: null
    n_ctx: 256
    _attn_implementation: eager
    layer_norm_epsilon: 0.00001

tokenizer:
  class: transformers.AutoTokenizer
  name: some/model
  max_tokens_count: 256
  special_tokens:
    pad_token_id: 0
    pad_token: <pad>
    bos_token_id: 1
    bos_token: <s>
  chat_template: >
    {% for message in messages -%}
        {{ message['role'] + additional_special_tokens[0] + message['content'] -}}
    {%- endfor %}

lora:
  r: 8
  lora_alpha: 32
  target_modules: [ c_attn, 'c_proj' ]
  task_type: CAUSAL_LM

trainer:
  class: transformers.Trainer
  evaluation_strategy: steps
  eval_steps: 10
  save_safetensors: true
  overwrite_output_dir: true
  warmup_ratio: 0.1
  learning_rate: 0.000005
  optim: adamw_8bit
  max_grad_norm: 1.0
  torch_compile: false
  seed: 7

ddp:
  ddp_find_unused_parameters: false
"""


def test_the_first_impruvers_spelling_loads(tmp_path):
    path = tmp_path / "first.yaml"
    path.write_text(FIRST, encoding="utf-8")
    for tool in TOOLS:
        recipe = parsed(tool, str(path))
        assert recipe.model.class_ == "transformers.GPT2LMHeadModel"
        assert recipe.model.config["n_inner"] is None
        assert recipe.datasets[0].mapping["instruction"] == "_"
        assert recipe.tokenizer.chat_template.startswith("{% for message in messages -%}")
        assert recipe.tokenizer.special_tokens["pad_token_id"] == 0
        assert recipe.trainer["learning_rate"] == 5e-6
        assert recipe.trainer["seed"] == 7
        assert recipe.ddp == {"ddp_find_unused_parameters": False}
        assert resolve_recipe(recipe)["lora"]["target_modules"] == ["c_attn", "c_proj"]
