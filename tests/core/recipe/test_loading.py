"""Whole recipes: the first impruver's spelling, saving and loading again, local inputs, installed tools' sections."""

# ruff: noqa: RUF009  (key() copies its default)
import os
from dataclasses import dataclass

import pytest
from impruver_core.errors import ImpruverError
from impruver_core.recipe.credentials import list_credentials, names_credential
from impruver_core.recipe.loading import load_recipe, resolve_recipe, save_recipe
from impruver_core.recipe.registry import load_installed_sections
from impruver_core.recipe.schema import REQUIRED, key, list_of, open_mapping
from impruver_core.recipe.sections import OWNERS
from impruver_core.recipe.yaml_document import dump
from impruver_core.time_limit import limit_cpu_time
from support.cli import run_python


@dataclass(frozen=True)
class Source:
    name: str = key(REQUIRED, "what to load", local=True)
    converter: str | None = key(None, "how it becomes messages")
    mapping: dict[str, str] = key({}, "columns")
    add_global_bos: bool = key(True, "begin with BOS")
    only_target_loss: bool = key(True, "learn answers only")
    split: str = key("train", "which split")


@dataclass(frozen=True)
class Dedup:
    threshold: float = key(0.8, "from which similarity")


SECTIONS = {
    "datasets": list_of(Source),
    "dedup": Dedup,
    "lora": open_mapping(optional=True),
    "trainer": open_mapping(),
    "ddp": open_mapping(),
}

# In the first impruver's spelling, with all that its recipes use; values of our own.
FIRST = """\
# Training time
# - 1x RTX 4090 ~ 1h

output_dir: ./models/first
train_path: ./train.first.jsonl
val_path: ./val.first.jsonl

datasets:
  - name: someone/toxic
    converter: impruver.instruction_to_messages
    add_global_bos: false
    mapping:
      instruction: _
      system: instruction
      output: ответ
  - name: someone/calls
    split: train[:1000]
#  - name: someone/else

model:
  class: custom.llama.LlamaForCausalLM
  dtype: bf16
  load_in_4bit: true
  load_in_8bit: false
  attn_implementation: flash_attention_2
  config_class: transformers.GPT2Config
  config:
    torch_dtype: float16
    n_inner: null
    _attn_implementation: eager
    rms_norm_eps: 0.000001
    rope_theta: 10000.0
    n_layer: 6

lora:
  r: 8            # higher is more
  lora_dropout: 0.0
  bias: none
  target_modules: [ 'q_proj', v_proj ]
  task_type: CAUSAL_LM
  modules_to_save: [ lm_head ]

tokenizer:
  class: transformers.AutoTokenizer
  name: someone/tokenizer
  max_tokens_count: 1500
  special_tokens:
    pad_token_id: 1
    pad_token: <s>
    eos_token_id: 128001
    eos_token: <|message_sep|>
  chat_template: >
    {% for message in messages -%}
        {%- if message['role'] == 'user' -%}
            {{ message['content'] + additional_special_tokens[1] -}}
        {%- endif -%}
    {%- endfor %}

trainer:
  class: transformers.Trainer
  evaluation_strategy: steps
  learning_rate: 0.000005
  optim: adamw_torch_4bit
  seed: 42
  torch_compile: false

ddp:
  ddp_find_unused_parameters: false
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="r.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_first_impruvers_recipe_loads_unchanged(write):
    recipe = load_recipe(write(FIRST), sections=SECTIONS)
    assert recipe.output_dir == "./models/first"
    assert recipe.datasets[0].mapping == {"instruction": "_", "system": "instruction", "output": "ответ"}
    assert recipe.datasets[1].split == "train[:1000]"
    assert recipe.model.class_ == "custom.llama.LlamaForCausalLM"
    assert recipe.model.config["n_inner"] is None
    assert recipe.model.config["rms_norm_eps"] == 1e-6
    assert recipe.lora["target_modules"] == ["q_proj", "v_proj"]
    assert recipe.tokenizer.special_tokens["eos_token"] == "<|message_sep|>"
    assert recipe.tokenizer.chat_template.startswith("{% for message in messages -%}\n    {%- if")
    assert recipe.trainer["class"] == "transformers.Trainer"
    assert recipe.trainer["learning_rate"] == 5e-6
    assert recipe.ddp == {"ddp_find_unused_parameters": False}


def test_the_same_with_the_sections_of_the_tools_installed_here(write):
    recipe = load_recipe(write(FIRST))
    assert recipe.datasets[0].name == "someone/toxic"
    assert recipe.trainer["seed"] == 42


@pytest.mark.parametrize(
    "text", [FIRST, "", "lora: {}\nchat: {history_limit: 3}\n", "lora: {r: 2e-4, x: 'no'}\nddp: {}"]
)
def test_what_is_saved_loads_equal(write, tmp_path, text):
    recipe = load_recipe(write(text), sections=SECTIONS)
    save_recipe(recipe, tmp_path / "out.yaml")
    again = load_recipe(tmp_path / "out.yaml", sections=SECTIONS)
    assert again == recipe
    assert resolve_recipe(again) == resolve_recipe(recipe)
    save_recipe(again, tmp_path / "out2.yaml")
    assert (tmp_path / "out2.yaml").read_text() == (tmp_path / "out.yaml").read_text()


def test_resolved_holds_defaults_and_layers(write):
    mapping = resolve_recipe(load_recipe(write("lora: {r: 4}\n"), ["trainer.optim=x"], sections=SECTIONS))
    assert mapping["seed"] == 42
    assert mapping["model"]["class"] == "transformers.AutoModelForCausalLM"
    assert mapping["dedup"] == {"threshold": 0.8}
    assert mapping["trainer"] == {"optim": "x", "seed": 42}
    assert list(mapping) == [name for name in OWNERS if name in mapping]


def test_local_inputs_become_absolute(write, tmp_path, monkeypatch):
    write("x", "sub/template.jinja")
    write("{}", "sub/tok/tokenizer.json")
    write("{}", "sub/rows.jsonl")
    write("{}", "work/rows2.jsonl")
    (tmp_path / "work" / "base").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    text = "tokenizer: {name: ./tok, chat_template: template.jinja}\nmodel: {name: base}\noutput_dir: ./out\n"
    text += (
        "datasets: [{name: rows.jsonl}, {name: rows2.jsonl}, {name: '*.jsonl'}, {name: some/hub}, {name: ./absent}]\n"
    )
    recipe = load_recipe(write(text, "sub/r.yaml"), sections=SECTIONS)
    assert recipe.base_dir == tmp_path / "sub"
    assert recipe.tokenizer.name == str(tmp_path / "sub" / "tok")
    assert recipe.tokenizer.chat_template == str(tmp_path / "sub" / "template.jinja")
    assert recipe.model.name == str(tmp_path / "work" / "base")
    assert recipe.datasets[0].name == "rows.jsonl"
    names = [item["name"] for item in resolve_recipe(recipe, absolute=True)["datasets"]]
    assert names[:3] == [str(tmp_path / at) for at in ("sub/rows.jsonl", "work/rows2.jsonl", "sub/*.jsonl")]
    assert names[3:] == ["some/hub", "./absent"]
    assert resolve_recipe(recipe, absolute=True)["output_dir"] == "./out"


def test_loading_imports_nothing_heavy(write):
    path = write(FIRST + "modle: 1\n")
    code = (
        "import sys\nfrom impruver_core import load_recipe, RecipeError\n"
        f"try: load_recipe({str(path)!r})\n"
        "except RecipeError as error: print(error)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'numpy', 'tqdm', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    told = run_python(code, check=True).stdout
    assert told == f"{path}:{FIRST.count(chr(10)) + 1}: modle: no such key; did you mean model?\n"


def install(folder, package, sections):
    """Lays a package with sections beside a test, as pip would, for a child process with PYTHONPATH."""
    module = package.replace("-", "_")
    (folder / module).mkdir(parents=True)
    (folder / module / "__init__.py").touch()  # so that it comes before an installed one
    (folder / module / "sections.py").write_text(sections)
    info = folder / f"{module}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[impruver.sections]\nx = {module}.sections:SECTIONS\n")


def load_in_child(folder, path):
    code = f"from impruver_core import load_recipe\nprint(load_recipe({str(path)!r}).gguf)"
    folders = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return run_python(code, environment={"PYTHONPATH": folders})


def test_a_tool_brings_its_section_by_being_installed(write, tmp_path):
    sections = (
        "from dataclasses import dataclass\nfrom impruver_core.recipe.schema import key\n"
        "@dataclass(frozen=True)\nclass GgufSection:\n    outtype: str = key('f16', 'type')\n"
        "SECTIONS = {'gguf': GgufSection}\n"
    )
    install(tmp_path / "site", "impruver-gguf", sections)
    assert "GgufSection(outtype='f16')" in load_in_child(tmp_path / "site", write("seed: 1\n")).stdout
    assert "did you mean outtype?" in load_in_child(tmp_path / "site", write("gguf: {outype: q8_0}\n")).stderr


def test_a_broken_tool_is_named_with_what_mends_it(write, tmp_path):
    install(tmp_path / "site", "impruver-gguf", "import nowhere\n")
    told = load_in_child(tmp_path / "site", write("seed: 1\n")).stderr
    assert "impruver-gguf is installed, but its part of the recipe can't be read" in told
    assert "pip install --force-reinstall --no-deps impruver-gguf" in told


def test_installed_sections_belong_to_their_owners():
    for name in load_installed_sections():
        assert name in OWNERS


def test_no_such_recipe():
    with pytest.raises(ImpruverError, match="neither a file nor an installed recipe"):
        load_recipe("nonsense/of_a_name")


CREDENTIALS = [
    "trainer.hub_token",
    "trainer.push_to_hub_token",
    "trainer.HF_TOKEN",
    "ddp.hub_token",
    "trainer.deepspeed.wandb.api_key",
    "trainer.report.0.password",
    "gguf.access_token",
    "model.config.auth_token",
    "lora.secret",
    "trainer.aws_secret_access_key",
    "trainer.hubToken",
    "trainer.apiKey",
    "trainer.slack_token",
    "trainer.deploy-token",
    "model.config.mapping.x_api_key",
    "model.config.signing_key",
    "lora.Authorization",
    "trainer.cookies",
]


@pytest.mark.parametrize("name", CREDENTIALS)
def test_a_credential_is_refused_and_repeated_nowhere(name, tmp_path):
    value: object = "hf_mine"
    for part in reversed(name.split(".")):
        value = [value] if part == "0" else {part: value}
    path = tmp_path / "r.yaml"
    path.write_text(dump(value))
    plain = tmp_path / "plain.yaml"
    plain.write_text("seed: 1\ntrainer: {report: [{}]}\n")
    for where, overrides in ((path, []), (plain, [f"{name}=hf_mine"])):
        with pytest.raises(ImpruverError, match="a recipe is copied into output_dir; keep") as caught:
            load_recipe(where, overrides, sections=SECTIONS)
        assert "hf_mine" not in str(caught.value)


def test_names_of_tokens_are_no_credentials(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "tokenizer: {special_tokens: {pad_token: <p>, eos_token: </s>}, chat_template_kwargs: {password: x}}\n"
        "model: {config: {bos_token_id: 1, image_token: <i>, max_new_tokens: 3, boi_token: i, "
        "stop_tokens: [a], new_token: <n>, x_token: <x>, y_token: 7}}\n"
        "trainer: {hub_token: null, hub_private_repo: true}\n"
        "datasets: [{name: a, mapping: {user: secret}}]\n"
    )
    assert load_recipe(path, sections=SECTIONS).trainer["hub_private_repo"] is True


@pytest.mark.parametrize(
    "override",
    ["a." * 5_000 + "b=1", "datasets." + "9" * 5_000 + "=x", "seed=" + "9" * 5_000, "trainer.x=" + "[" * 50_000],
    ids=["a long path", "a number of a list", "a number", "nesting"],
)
def test_an_override_that_would_take_all_time_is_one_fault(override, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("seed: 1\ndatasets: [{name: a}]\n")
    with pytest.raises(ImpruverError):
        load_recipe(path, [override], sections=SECTIONS)


@pytest.mark.parametrize("text", ["a" * 300_000, "a://" * 100_000, "a+-." * 80_000 + "://", "a://" + "b" * 300_000])
def test_long_texts_are_looked_through_for_credentials_in_time(text):
    with limit_cpu_time(10, "too long"):
        assert list(list_credentials({"model": {"name": text}})) == []
        assert list(list_credentials({"model": {"name": f"{text} https://me:secret@host"}})) == [("model", "name")]
        assert not names_credential(text)
