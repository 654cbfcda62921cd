"""Files that contradict each other or hold what they can't: refused by file and key before anything is written."""

import json

import pytest
from support.models import QUICKSTART, edit_json, make_gpt2

CONFIG = "adapter_config.json"

WIDTHS = [
    ({"hidden_size": 128, "head_dim": 16}, "lm_head.weight is [2048, 64], and should be [2048, 128]"),
    ({"intermediate_size": 97}, "mlp.down_proj.weight is [64, 96], and should be [64, 97]"),
    ({"num_attention_heads": 8}, "o_proj.weight is [64, 64], and should be [64, 128]"),
    ({"num_attention_heads": 7}, "num_attention_heads 7 is no multiple of num_key_value_heads 2"),
    (
        {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": None},
        "64 is no multiple of num_attention_heads",
    ),
    ({"num_key_value_heads": 4}, "k_proj.weight is [32, 64], and should be [64, 64]"),
    ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
    ({"num_attention_heads": 64, "num_key_value_heads": 32, "head_dim": 1}, "head_dim 1 is odd"),
    ({"head_dim": 8}, "k_proj.weight is [32, 64], and should be [16, 64]"),
    ({"vocab_size": 4000}, "lm_head.weight is [2048, 64], and should be [4000, 64] (vocab_size, hidden_size)"),
    ({"vocab_size": 2000}, "lm_head.weight is [2048, 64], and should be [2000, 64]"),
    ({"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight is no tensor of a llama model of 1 layers"),
    ({"num_hidden_layers": 3}, "layer 2 of 3 has no attn_k.weight"),
    ({"num_hidden_layers": 2_000_000_000}, "layer 2 of 2000000000 has no"),
    ({"attention_bias": True}, "layer 0 of 2 has no attn_k.bias"),
]


@pytest.mark.parametrize(("change", "word"), WIDTHS)
def test_a_config_that_contradicts_the_weights(change, word, tiny, refused):
    edit_json(tiny / "config.json", **change)
    refused(tiny, "config.json", word)
    refused(tiny, word, flags=("--dry_run",))


GPT2 = [
    ({"n_embd": 128}, "c_attn.bias is [192], and should be [384]"),
    ({"n_inner": 100}, "c_fc.bias is [256], and should be [100] (n_inner)"),
    ({"n_head": 5}, "n_embd 64 is no multiple of n_head 5"),
    ({"n_ctx": 64, "n_positions": 64}, "wpe.weight is [128, 64], and should be [64, 64]"),
    ({"n_layer": 1}, "transformer.h.1.attn.c_attn.bias is no tensor"),
    ({"n_layer": 3}, "layer 2 of 3 has no attn_norm.bias"),
]


@pytest.mark.parametrize(("change", "word"), GPT2)
def test_a_gpt2_config_that_contradicts_the_weights(change, word, tmp_path, refused):
    folder = tmp_path / "gpt2"
    make_gpt2(folder, QUICKSTART, vocab_size=2048)
    (folder / "recipe.yaml").write_text("gguf: {quantization_levels: []}\n", encoding="utf-8")
    edit_json(folder / "config.json", **change)
    refused(folder, "config.json", word)


KINDS = [
    ("config.json", {"intermediate_size": "x"}, 'intermediate_size must be a whole number from 1, not "x"'),
    ("config.json", {"num_hidden_layers": 2.0}, "num_hidden_layers must be a whole number from 1, not 2.0"),
    ("config.json", {"rms_norm_eps": "a"}, "rms_norm_eps must be a number"),
    ("config.json", {"rope_parameters": {"factor": "2"}}, "rope_parameters.factor must be a number"),
    ("config.json", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "original_max_position_embeddings"),
    ("config.json", {"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
    ("config.json", {"architectures": "LlamaForCausalLM"}, "architectures must be a list"),
    ("config.json", {"architectures": []}, "architectures is not set"),
    ("config.json", {"bos_token_id": -1}, "invalid value for special token type bos"),
    ("generation_config.json", {"temperature": "hot"}, 'temperature must be a number, not "hot"'),
    ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder must be an object"),
    ("tokenizer_config.json", {"chat_template": 5}, "chat_template must be a text or"),
    ("tokenizer_config.json", {"bos_token": 5}, "bos_token must be a text or"),
    ("tokenizer.json", {"model": [1]}, "model must be an object"),
    ("tokenizer.json", {"model": None}, "holds no tokenizer"),
    ("tokenizer.json", {"added_tokens": [1]}, "added_tokens must be a list"),
]


@pytest.mark.parametrize(("name", "change", "word"), KINDS)
def test_a_value_of_another_kind_is_told_by_file_and_key(name, change, word, tiny, refused):
    edit_json(tiny / name, **change)
    refused(tiny, name, word)


FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", CONFIG]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"[]", "holds a list, not a JSON object"),
        (b"{", "not JSON"),
        (b"[" * 99999, "JSON"),
    ],
)
def test_a_file_that_is_no_json_object(name, content, word, adapter, refused):
    (adapter / name).write_bytes(content)
    refused(adapter, f"{name}: ", word)


def test_a_template_or_a_model_card_that_can_not_be_read(tiny, refused):
    (tiny / "README.md").write_text("---\nlicense: 5\n---\n", encoding="utf-8")
    refused(tiny, "README.md: general.license must be a text, not 5")
    (tiny / "README.md").write_text("---\na: b: {\n---\n", encoding="utf-8")
    refused(tiny, "README.md: its front matter can't be read")
    (tiny / "README.md").unlink()
    edit_json(tiny / "tokenizer_config.json", chat_template=None)
    (tiny / "chat_template.jinja").write_bytes(b"\xff")
    refused(tiny, "chat_template.jinja: not UTF-8")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"lora_alpha": "x"}, 'lora_alpha must be a number, not "x"'),
        ({"r": "4"}, "r must be a whole number from 1"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern must be an object, each name a text that is a regular expression"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern must be an object"),
        ({"target_modules": 5}, "target_modules must be a text"),
        ({"target_modules": [5]}, "target_modules must be a text"),
        ({"modules_to_save": "lm_head"}, "modules_to_save must be a list"),
        ({"trainable_token_indices": ["a"]}, "trainable_token_indices must be"),
        ({"r": 8}, "layers.0.self_attn.q_proj.lora_A.weight has rank 4, adapter_config.json says 8"),
        (
            {"rank_pattern": {"layers.1.self_attn.v_proj": 2}},
            "v_proj.lora_A.weight has rank 4, adapter_config.json says 2",
        ),
    ],
)
def test_an_adapter_config_that_is_wrong(change, word, adapter, refused):
    edit_json(adapter / CONFIG, **change)
    refused(adapter, str(adapter), word)


@pytest.mark.parametrize("flags", [(), ("--dry_run",)])
def test_a_quantizer_that_can_not_be_run_is_told_first(flags, tiny, refused, tmp_path):
    (tmp_path / "text").write_text("no program", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    for name, word in (("gone", "is not there"), ("text", "chmod +x"), ("folder", "is no file")):
        refused(
            tiny,
            f"--llama_cpp_quantize_bin: {tmp_path / name}",
            word,
            flags=("--llama_cpp_quantize_bin", tmp_path / name, *flags),
        )


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"impruver": 1, "outputs": [{}]}, "not a manifest"),
        ({"impruver": 1, "counts": {"longest_row": "x"}}, "counts.longest_row must be a whole number"),
        ({"impruver": 1, "recipe": {"chat": 5}}, "recipe.chat must be an object"),
    ],
)
def test_a_manifest_of_training_that_is_broken(content, word, tiny, refused):
    (tiny / "impruver.json").write_text(json.dumps(content), encoding="utf-8")
    refused(tiny, "impruver.json", word)
