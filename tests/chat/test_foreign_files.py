"""Folders from strangers: their recipes run no code, their journals touch nothing, their links are not followed."""

import json
import shutil
import sys

import pytest
from support.attacks import place_journals
from support.models import edit_json
from support.recipes import write_recipe

CODE = "from pathlib import Path\nPath({ran!r}).touch()\nclass Model: pass\n"
FOREIGN = {
    "the model's class": ({"model": {"class": "evil.Model"}}, "model.class: evil.Model"),
    "a class of another package": ({"model": {"class": "yaml.SafeLoader"}}, "model.class: yaml.SafeLoader"),
    "the tokenizer's class": ({"tokenizer": {"class": "evil.Model"}}, "tokenizer.class: evil.Model"),
    "a kernel of a repository": (
        {"model": {"attn_implementation": "evil/kernel"}},
        "model.attn_implementation: evil/kernel",
    ),
    "the model's code": ({"model": {"trust_remote_code": True}}, "model.trust_remote_code: true"),
    "the tokenizer's code": ({"tokenizer": {"trust_remote_code": True}}, "tokenizer.trust_remote_code: true"),
}


@pytest.fixture
def folder(copy, tmp_path):
    """A model's folder with a module that leaves a file where it is run."""
    folder = copy("full")
    (folder / "evil.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    return folder


@pytest.mark.parametrize("what", FOREIGN)
def test_a_recipe_in_the_models_folder_runs_no_code(what, folder, chat, write_jsonl, tmp_path, monkeypatch):
    keys, named = FOREIGN[what]
    write_recipe(folder / "recipe.yaml", {"output_dir": str(folder)} | keys)
    monkeypatch.chdir(folder)
    flags = ["--input", write_jsonl([{"prompt": "one"}]), "--output", tmp_path / "answers.jsonl"]
    code, _, err = chat("--output_dir", folder, *flags)
    assert code == 2, err
    assert f"recipe.yaml: {named} would run code that came with this folder" in err
    assert "--trust_remote_code" in err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "answers.jsonl").exists()


def test_keys_that_chat_does_not_use_are_ignored(folder, chat, write_jsonl, tmp_path):
    keys = {"datasets": [{"name": "x.jsonl", "converter": "evil.Model"}], "trainer": {"class": "evil.Model"}}
    write_recipe(folder / "recipe.yaml", {"output_dir": str(folder), "model": {"dtype": "fp32"}} | keys)
    flags = ["--input", write_jsonl([{"prompt": "one"}]), "--output", tmp_path / "answers.jsonl"]
    code, _, err = chat("--output_dir", folder, *flags)
    assert code == 0, err
    assert not (tmp_path / "ran").exists()


def test_the_user_may_allow_it(folder, chat, write_jsonl, tmp_path):
    write_recipe(folder / "recipe.yaml", {"output_dir": str(folder), "model": {"class": "evil.Model"}})
    flags = ["--input", write_jsonl([{"prompt": "one"}]), "--output", tmp_path / "answers.jsonl"]
    for allowed in (["--trust_remote_code"], ["--config", folder / "recipe.yaml"]):
        chat("--output_dir", folder, *allowed, *flags)
        assert (tmp_path / "ran").exists()
        (tmp_path / "ran").unlink()
        del sys.modules["evil"]  # else it would not run again


def test_forged_journals_are_refused(chat, recipe, write_jsonl, tmp_path):
    config, questions = recipe(), write_jsonl([{"prompt": "one"}])
    for what, place in place_journals(tmp_path, "a.jsonl.manifest.json", "a.jsonl", tmp_path / "home/profile"):
        code, _, err = chat("--config", config, "--input", questions, "--output", place / "a.jsonl", "--overwrite")
        assert (what, code) == (what, 2), err
        assert "a.jsonl.manifest.json.pending: Impruver did not write this" in err


def test_links_in_place_of_files_are_replaced_and_not_followed(chat, recipe, write_jsonl, tmp_path):
    victim, output = tmp_path / "profile", tmp_path / "answers.jsonl"
    victim.write_text("mine")
    for name in (".answers.jsonl.staged", ".answers.jsonl.partial", "answers.jsonl.manifest.json"):
        (tmp_path / name).symlink_to(victim)
    flags = ["--input", write_jsonl([{"prompt": "one"}]), "--output", output, "--overwrite"]
    code, _, err = chat("--config", recipe(), *flags)
    assert code == 0, err
    assert victim.read_text() == "mine"
    assert json.loads((tmp_path / "answers.jsonl.manifest.json").read_text())["tool"] == "impruver-chat"


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 2000}
HARM = {
    "layers without end": ("full", "config.json", {"num_hidden_layers": 100_000}),
    "a matrix that fills any memory": ("full", "config.json", {"intermediate_size": 10**9}),
    "a normalizer that fills any memory": (
        "full",
        "tokenizer.json",
        {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 4}},
    ),
    "a regular expression of the tokenizer": (
        "full",
        "tokenizer.json",
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}},
    ),
    "layers of a kind that the model has not": ("full", "config.json", {"layer_types": ["linear_attention"] * 2}),
    "an output of another form": ("full", "config.json", {"return_dict": False}),
    "an encoder that is not there": ("full", "config.json", {"is_encoder_decoder": True}),
    "a bias that there is not": ("adapter", "adapter_config.json", {"bias": "zz"}),
    "a regular expression of the adapter": ("adapter", "adapter_config.json", {"target_modules": r"([a-z_.0-9]+)+!"}),
    "a regular expression of what is saved": (
        "adapter",
        "adapter_config.json",
        {"modules_to_save": ["([a-z_.0-9]+)+!"]},
    ),
    "names of modules without end": (
        "adapter",
        "adapter_config.json",
        {"target_modules": [f"x{n}" for n in range(99999)]},
    ),
    "weights that are not quantized": (
        "full",
        "config.json",
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    ),
}


@pytest.mark.parametrize("what", HARM)
def test_a_folder_that_would_take_all_time_or_memory_is_refused(what, copy, recipe, chat, write_jsonl, tmp_path):
    kind, name, keys = HARM[what]
    folder = copy(kind)
    edit_json(folder / name, **keys)
    base = {"model": {"dtype": "fp32"}} if kind == "full" else {}
    flags = ["--input", write_jsonl([{"prompt": "one"}]), "--output", tmp_path / "answers.jsonl"]
    code, _, err = chat("--config", recipe(str(folder), **base), "--output_dir", folder, *flags)
    assert code == 2, err
    assert str(folder) in err
    assert name in err
    assert "Traceback" not in err
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_link_out_of_a_base_that_the_adapter_names_is_refused(copy, models, recipe, chat, write_jsonl, tmp_path):
    adapter, base = copy("adapter"), shutil.copytree(models / "full", tmp_path / "base")
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").symlink_to(models / "full" / "model.safetensors")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    flags = ["--input", write_jsonl([{"prompt": "one"}]), "--output", tmp_path / "answers.jsonl"]
    code, _, err = chat("--config", recipe(str(adapter)), *flags)
    assert code == 2, err
    assert f"{base}/model.safetensors: is a link to" in err
    code, _, err = chat("--config", recipe(str(adapter)), "--set", f"model.name={base}", *flags)
    assert code == 0, err
