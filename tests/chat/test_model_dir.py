"""A model's folder whose small files are broken or of another model: each file, key and way out is named."""

import json

import pytest
from support.chat_models import WORDS, make_model


def change(path, content):
    """Writes text, or changes keys of what is there."""
    if isinstance(content, dict):
        content = json.dumps((json.loads(path.read_text()) if path.exists() else {}) | content)
    path.write_text(content)


FILES = [
    ("config.json", {"vocab_size": 9999}, ["lm_head.weight is (290, 64)", "(9999, 64) by config.json"]),
    ("config.json", {"hidden_size": 128}, ["lm_head.weight is (290, 64)", "(290, 128)", "21 tensors do not fit"]),
    ("config.json", {"num_hidden_layers": 1}, ["no place for 9 tensors", "layers.1.input_layernorm", "fewer layers"]),
    ("config.json", {"num_hidden_layers": 3}, ["no weights for 9 tensors", "layers.2.input_layernorm", "at random"]),
    ("config.json", {"vocab_size": "x"}, ['config.json: vocab_size must be a whole number, not "x"']),
    (
        "config.json",
        {"architectures": "LlamaForCausalLM"},
        ["config.json: architectures must be a list", 'not "LlamaForCausalLM"'],
    ),
    ("config.json", {"text_config": 5}, ["config.json: text_config must be an object, not 5"]),
    ("config.json", {"tie_word_embeddings": "x"}, ["config.json: Validation error", "tie_word_embeddings", "got str"]),
    ("config.json", {"num_attention_heads": 0}, ["config.json: ZeroDivisionError"]),
    ("config.json", "{}", ["config.json: no model's", "model_type", "copy it"]),
    ("config.json", "[" * 9999, ["config.json: not JSON"]),
    ("generation_config.json", {"eos_token_id": ["a"]}, ["generation_config.json: eos_token_id must be", 'not ["a"]']),
    (
        "generation_config.json",
        {"eos_token_id": {}},
        ["eos_token_id must be a whole number or a list", "not {}"],
    ),
    ("generation_config.json", {"eos_token_id": 2.5}, ["eos_token_id must be", "not 2.5"]),
    (
        "generation_config.json",
        {"temperature": "hot"},
        ['generation_config.json: temperature must be a number, not "hot"'],
    ),
    ("generation_config.json", {"suppress_tokens": 5}, ["generation_config.json: TypeError", "not iterable"]),
    (
        "impruver.json",
        '{"impruver": 1, "end_of_turn": 5}',
        ["impruver.json: not a manifest", "end_of_turn is 5, not a list of texts"],
    ),
    ("impruver.json", '{"impruver": 1, "end_of_turn": [5]}', ["end_of_turn is [5]"]),
    ("impruver.json", '{"impruver": "x"}', ["impruver.json: not a manifest", "or remove it"]),
    ("impruver.json", "{", ["impruver.json: not JSON"]),
    ("tokenizer.json", "{}", ["tokenizer.json: Model missing", "copy it again"]),
    ("tokenizer.json", "", ["tokenizer.json: Expecting value", "copy it again"]),
    ("tokenizer.json", "[]", ["tokenizer.json: not a JSON object"]),
    ("tokenizer_config.json", "5", ["tokenizer_config.json: not a JSON object"]),
]


@pytest.mark.parametrize(("name", "content", "wanted"), FILES, ids=[f"{n} {str(c)[:40]}" for n, c, _ in FILES])
def test_a_model(name, content, wanted, recipe, refused, copy):
    folder = copy("full")
    change(folder / name, content)
    message = refused("--config", recipe(folder), "--temperature", "1")
    assert str(folder) in message
    assert "overwrite" not in message
    assert all(part in message for part in wanted), message


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({"base_model_name_or_path": 5}, "adapter_config.json: base_model_name_or_path must be a text, not 5"),
        ({"peft_type": "NOPE"}, "adapter_config.json: KeyError: 'NOPE'"),
        ({"r": "x"}, "adapter_config.json: TypeError"),
        ({"r": 4}, "adapter_config.json was changed: base_model.model.model.layers.0.self_attn.q_proj.lora_A"),
    ],
)
def test_an_adapter(content, wanted, recipe, refused, copy):
    folder = copy("adapter")
    change(folder / "adapter_config.json", content)
    message = refused("--config", recipe(folder))
    assert str(folder) in message
    assert wanted in message


def test_an_adapters_weights_alone(recipe, refused, copy):
    folder = copy("adapter")
    (folder / "adapter_config.json").unlink()
    assert f"{folder / 'adapter_model.safetensors'} is an adapter's weights" in refused("--config", recipe(folder))


def test_output_dir_is_a_file(recipe, refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert f"output_dir: {tmp_path / 'file'} is a file" in refused("--config", recipe(tmp_path / "file"))


def test_a_tensor_without_a_place_is_told_unless_it_does_no_harm(answers, recipe, refused, copy):
    import torch
    from safetensors.torch import load_file, save_file

    folder = copy("full")
    weights = load_file(folder / "model.safetensors")
    harmless = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8), "score.weight": torch.ones(2, 64)}
    save_file(weights | harmless, folder / "model.safetensors", {"format": "pt"})
    rows, _, _ = answers(recipe(folder), [{"prompt": "red"}])
    assert rows[0]["messages"][-1]["content"] == WORDS["red"]
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}
    save_file(weights | bias, folder / "model.safetensors", {"format": "pt"})
    assert "no place for 1 tensor (model.layers.0.self_attn.q_proj.bias)" in refused("--config", recipe(folder))


def test_a_head_that_is_saved_though_it_is_tied(answers, recipe, copy):
    from safetensors.torch import load_file, save_file

    folder = copy("babbler")
    make_model(tie_word_embeddings=True).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    plain, _, _ = answers(recipe(folder), [{"prompt": "red"}])
    tied = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    save_file(tied, folder / "model.safetensors", {"format": "pt"})
    assert answers(recipe(folder), [{"prompt": "red"}])[0] == plain


def test_a_model_that_computes_nan_fails(chat, recipe, copy, write_jsonl, tmp_path):
    folder = copy("full")
    model = make_model()
    model.lm_head.weight.data[5] = float("nan")
    model.save_pretrained(folder)
    paths = ["--input", write_jsonl([{"prompt": "red"}]), "--output", tmp_path / "a.jsonl"]
    code, out, err = chat("--config", recipe(folder), *paths)
    assert (code, out) == (3, "")
    assert "computes NaN" in err
    assert not (tmp_path / "a.jsonl").exists()


def test_a_template_that_renders_nothing(answers, recipe, copy):
    folder = copy("full")
    (folder / "chat_template.jinja").write_text("")
    rows, out, _ = answers(recipe(folder), [{"prompt": "red", "reference": "x"}], "--expect")
    assert rows == [{"prompt": "red", "reference": "x", "error": "the chat template makes an empty prompt of it"}]
    assert out.startswith("right: 0 of 0: no row with a reference could be asked\n")
