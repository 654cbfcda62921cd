"""Gemma 4's layers of several widths: what is refused, what an adapter and the plan before training make of them."""

import pytest
from gguf import GGUFReader
from support.gguf_cases import assert_same_tensors, export_tensors
from support.models import edit_json, edit_weights, merge_with_peft, save_adapter
from support.recipes import write_adapter_recipe

SLIDING, FULL = "sliding_attention", "full_attention"
ROPE = {FULL: {"rope_type": "default", "rope_theta": 1e6}, SLIDING: {"rope_type": "default", "rope_theta": 1e4}}
REFUSED = {
    "other RoPE": ({"rope_parameters": ROPE}, "rope_type default of full_attention"),
    "bidirectional": ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention all"),
    "biases": ({"attention_bias": True}, "attention_bias"),
    "activation": ({"hidden_activation": "silu"}, "hidden_act silu"),
    "keys of other layers": ({"num_kv_shared_layers": 1}, "keys and values shared from layer 5 on"),
    "a layer's own width": ({"per_layer_config": {"1": {"head_dim": 32}, "0": {"head_dim": 8}}}, "per_layer_config"),
    "a smaller table": ({"vocab_size_per_layer_input": 600}, "vocab_size_per_layer_input"),
    "no layer with keys": ({"num_kv_shared_layers": 6}, "num_kv_shared_layers 6 are all layers"),
    "an unknown type": ({"layer_types": [SLIDING] * 5 + ["chunked_attention"]}, "chunked_attention"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(kind, case, refused):
    changes, words = REFUSED[kind]
    folder = case("gemma4-e")
    edit_json(folder / "config.json", **changes)
    refused(folder, words)


def test_a_tokenizer_that_splits_otherwise_is_refused(case, refused):
    folder = case("gemma4-e")
    edit_json(folder / "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    refused(folder, "splits text otherwise than Gemma 4's")


def test_a_layer_without_its_keys_is_not_whole(case, refused):
    folder = case("gemma4-unused-keys")
    edit_weights(folder / "model.safetensors", lambda tensors: tensors.pop("model.layers.3.self_attn.k_norm.weight"))
    refused(folder, "layer 3 of 6 has no attn_k_norm.weight")


@pytest.mark.parametrize("name", ["gemma4-e", "gemma4-moe"])
def test_the_plan_before_training_counts_all_parameters(name, case, gguf, tmp_path):
    folder = case(name)
    _, told = export_tensors(gguf, folder, "f16")
    count = next(line for line in told.splitlines() if line.startswith("gemma4, ")).split(" parameters")[0]
    for path in folder.glob("*.safetensors"):
        path.unlink()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{name: {folder}}}\noutput_dir: {tmp_path / 'out'}\n", encoding="utf-8")
    code, out, told = gguf("--config", recipe, "--dry_run")
    assert code == 0, told
    whole, planned = (int(text.split()[-1].replace(",", "")) for text in (count, out.split(" parameters")[0]))
    assert planned == whole - 6  # less a number for each layer, which not every checkpoint has


def test_an_adapter_on_all_its_layers(case, gguf, tmp_path):
    base = case("gemma4-e")
    save_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    merge_with_peft(base, tmp_path / "adapter", tmp_path / "merged")
    write_adapter_recipe(tmp_path / "adapter", base)
    (tmp_path / "merged/recipe.yaml").touch()
    ours, _ = export_tensors(gguf, tmp_path / "adapter")
    theirs, _ = export_tensors(gguf, tmp_path / "merged")
    assert_same_tensors(ours, theirs)


def test_types_of_tokens(case, gguf):
    """What transformers lists as special are control tokens, but for those of tools, which are rendered."""
    folder = case("gemma4-e")
    export_tensors(gguf, folder, "f16")
    fields = GGUFReader(folder / "gguf/model-f16.gguf").fields
    tokens, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    by_text = dict(zip(tokens, types, strict=True))
    wanted = {"<s>": 3, "<ctl>": 3, "<|tool_call>": 4, "<more>": 4, "<0x0A>": 6, "\u2581\u2581": 1}
    assert {text: by_text[text] for text in wanted} == wanted
