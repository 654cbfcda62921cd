"""model.name: FOLDER of an adapter goes on training it, on its own base."""

import json
import shutil

import pytest
from support.recipes import write_recipe

SPECIAL = {"additional_special_tokens": ["<|tool|>"]}


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    """The folder of an adapter that was trained for 2 steps, with a new token's rows."""
    from impruver_train.cli import main

    folder = tmp_path_factory.mktemp("trained")
    recipe = {
        "output_dir": str(folder / "adapter"),
        "train_path": str(parts / "train.jsonl"),
        "model": {"name": str(parts / "base"), "dtype": "fp32"},
        "tokenizer": {"special_tokens": SPECIAL},
        "lora": {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "use_dora": True},
        "trainer": {"max_steps": 2, "learning_rate": 0.01, "save_strategy": "no", "use_cpu": True},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRUVER_CACHE", str(folder / "cache"))
        assert main(["--config", str(write_recipe(folder / "recipe.yaml", recipe))]) == 0
    return folder / "adapter"


@pytest.fixture
def continuing(recipe, trained):
    """Writes a recipe that goes on with that adapter."""

    def write(**keys):
        return recipe(**({"model": {"name": str(trained)}, "lora": None} | keys))

    return write


def load_tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_an_adapter_goes_on_from_its_weights_on_its_own_base(continuing, trained, impruver_train, parts, tmp_path):
    still = {"learning_rate": 0.0, "weight_decay": 0.0, "max_steps": 2}
    code, _, err = impruver_train(continuing(trainer=still))
    assert code == 0, err
    before, after = load_tensors(trained), load_tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in (trained, tmp_path / "out")]
    assert configs[0] == configs[1]
    assert configs[1]["base_model_name_or_path"] == str(parts / "base")
    manifest = json.loads((tmp_path / "out/impruver.json").read_text())
    roles = {entry["role"]: entry["path"] for entry in manifest["inputs"]}
    assert (roles["base"], roles["adapter"]) == (str(parts / "base"), str(trained))
    assert manifest["recipe"]["lora"]["r"] == 4
    code, out, err = impruver_train(tmp_path / "out/recipe.yaml", "--set", f"output_dir={tmp_path / 'out'}")
    assert code == 0, err
    assert "finished: nothing to do" in out


def test_training_goes_on_and_the_next_tools_find_the_base(continuing, trained, impruver_train, tmp_path, capfd):
    from impruver_gguf.cli import main

    config = continuing(trainer={"max_steps": 2})
    code, _, err = impruver_train(config)
    assert code == 0, err
    before, after = load_tensors(trained), load_tensors(tmp_path / "out")
    assert not all(before[name].equal(after[name]) for name in before)
    code = main(["--config", str(config), "--quantization_levels", "q8_0", "--verify", "false"])
    assert code == 0, capfd.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.gguf")) == ["model-f16.gguf", "model-q8_0.gguf"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lora": {"r": 8, "target_modules": "all-linear"}}, "lora."),
        ({"lora": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj"], "use_dora": True}}, "lora.target_modules"),
        ({"tokenizer": {"special_tokens": {"additional_special_tokens": ["<|tool|>", "<|new|>"]}}}, "can't learn new"),
        ({"output_dir": "ADAPTER"}, "holds the base"),
    ],
)
def test_what_does_not_agree_is_refused(keys, message, continuing, trained, impruver_train):
    keys = {name: str(trained) if value == "ADAPTER" else value for name, value in keys.items()}
    code, _, err = impruver_train(continuing(**keys), "--dry_run", "--overwrite")
    assert code == 2, err
    assert message in err


def test_a_lora_section_that_agrees_is_accepted(continuing, impruver_train):
    lora = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "use_dora": True}
    keys = {"lora": lora, "tokenizer": {"special_tokens": SPECIAL}}
    code, _, err = impruver_train(continuing(**keys), "--dry_run")
    assert code == 0, err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "is an adapter of kind LOHA; LoRA alone is trained on here"),
        ({"base_model_name_or_path": "./gone"}, "its base ./gone is not there: set base_model_name_or_path in"),
        ({"base_model_name_or_path": None}, "is not there: set base_model_name_or_path in"),
        ({"r": "four"}, "adapter_config.json: r: 'four' is not of type int"),
        ({"target_modules": r"((\w+\.?)+)+!"}, "takes more than"),
        ({"target_modules": "("}, "adapter_config.json: target_modules: '(' is no regular expression"),
        ({"rank_pattern": {"(": 3}}, "adapter_config.json: rank_pattern"),
        ({"trainable_token_indices": 5}, "adapter_config.json: trainable_token_indices: 5 is no list of token ids"),
        ({"target_modules": None}, "adapter_config.json: target_modules: it names no modules"),
    ],
)
def test_an_adapter_that_can_not_go_on_is_refused(change, message, continuing, trained, impruver_train, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "broken")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    code, out, err = impruver_train(continuing(model={"name": str(folder)}), "--dry_run")
    assert (code, out) == (2, ""), err
    assert message in err
