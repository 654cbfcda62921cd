"""Multimodal checkpoints: the text model is converted, whatever its tensors are called, and the rest is named once."""

import json
import shutil

import pytest
from support.gguf_cases import GEMMA3, SMALL, assert_same_tensors, export_tensors, train_sentencepiece
from support.models import (
    BLOCKS,
    copy_tokenizer,
    edit_json,
    edit_weights,
    make_multimodal,
    merge_with_peft,
    save_adapter,
)
from support.recipes import write_adapter_recipe

TEXT = SMALL | BLOCKS | GEMMA3 | {"num_key_value_heads": 2, "tie_word_embeddings": False}
FORMS = {  # where `language_model` stands → a text model's name under that form
    "hub": lambda name: f"language_model.{name}",
    "saved by transformers 4.52": lambda name: name.replace("model.", "model.language_model.", 1),
    "bare": lambda name: name if name.startswith("lm_head") else name.replace("model.", "language_model.", 1),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multimodal")
    tokenizer = train_sentencepiece(folder / "pieces")
    make_multimodal("Gemma3", folder / "model", tokenizer, "float32", TEXT, tie_word_embeddings=False)
    return folder / "model"


def copy_text_model(base, folder):
    """The text model alone, as Gemma3ForCausalLM has it."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    edit_json(folder / "config.json", text_config=None, vision_config=None, architectures=["Gemma3ForCausalLM"])
    edit_json(folder / "config.json", **config["text_config"] | {"tie_word_embeddings": False})
    edit_weights(folder / "model.safetensors", lambda tensors: rename(tensors, lambda name: name))


def rename(tensors: dict, change, *, rest: bool = False) -> None:
    """Calls the text model's tensors otherwise; the rest goes unless it is to stay."""
    for name in list(tensors):
        tensor = tensors.pop(name)
        if name.startswith("language_model."):
            tensors[change(name.removeprefix("language_model."))] = tensor
        elif rest:
            tensors[name] = tensor


@pytest.mark.parametrize("form", FORMS)
def test_a_text_model_under_each_of_its_names(form, base, gguf, tmp_path):
    copy_text_model(base, tmp_path / "text")
    shutil.copytree(base, tmp_path / "whole")
    edit_weights(tmp_path / "whole/model.safetensors", lambda tensors: rename(tensors, FORMS[form], rest=True))
    for name in ("text", "whole"):
        (tmp_path / name / "recipe.yaml").touch()
    text, told = export_tensors(gguf, tmp_path / "text")
    assert "text model alone" not in told
    whole, told = export_tensors(gguf, tmp_path / "whole")
    assert told.count("the GGUF is of the text model alone, without multi_modal_projector, vision_tower") == 1
    assert_same_tensors(whole, text)


def test_the_head_that_both_names_hold_is_of_two_models(base, refused, tmp_path):
    folder = shutil.copytree(base, tmp_path / "model")
    (folder / "recipe.yaml").touch()
    edit_weights(
        folder / "model.safetensors",
        lambda tensors: tensors.update({"lm_head.weight": tensors["language_model.lm_head.weight"]}),
    )
    refused(folder, "lm_head.weight is there twice")


def test_a_dry_run_before_training_warns_too(base, gguf, tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    copy_tokenizer(base, folder)
    shutil.copyfile(base / "config.json", folder / "config.json")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{name: {folder}}}\noutput_dir: {tmp_path / 'out'}\n", encoding="utf-8")
    code, out, told = gguf("--config", recipe, "--dry_run")
    assert code == 0, told
    assert "gemma3" in out
    assert told.count("the GGUF is of the text model alone, without vision_config") == 1


SETTINGS = {
    "all linear": {"target_modules": "all-linear"},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "lm_head"],
        "rank_pattern": {"model.language_model.layers.0.self_attn.q_proj": 8},
        "alpha_pattern": {"lm_head": 3},
    },
    "saved embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize(("kind", "tied"), [("all linear", True), ("patterns", False), ("saved embeddings", True)])
def test_an_adapter_of_the_whole_model(kind, tied, base, gguf, tmp_path):
    whole = base
    if tied:
        whole = shutil.copytree(base, tmp_path / "tied")
        edit_json(whole / "config.json", tie_word_embeddings=True)
        edit_weights(whole / "model.safetensors", lambda tensors: tensors.pop("language_model.lm_head.weight"))
    save_adapter(whole, tmp_path / "adapter", **SETTINGS[kind])
    merge_with_peft(whole, tmp_path / "adapter", tmp_path / "merged")
    (tmp_path / "merged/recipe.yaml").touch()
    write_adapter_recipe(tmp_path / "adapter", whole)
    ours, told = export_tensors(gguf, tmp_path / "adapter")
    assert told.count("text model alone") == 1
    theirs, _ = export_tensors(gguf, tmp_path / "merged")
    assert_same_tensors(ours, theirs)
