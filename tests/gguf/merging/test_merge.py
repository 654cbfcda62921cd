"""The file is llama.cpp's, byte for byte; with an adapter its tensors are those of peft's merge in fp32."""

import json
import shutil

import numpy as np
import pytest
from support.gguf_cases import EXACT, GEMMA3
from support.gguf_families.hybrids import FALCON_H1, MAMBA
from support.models import (
    QUICKSTART,
    edit_json,
    edit_weights,
    make_gpt2,
    make_llama,
    make_model,
    merge_with_peft,
    save_adapter,
)
from support.recipes import write_adapter_recipe

LARGE = {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 512}


def exported(gguf, folder, tmp_path, outtype="f16", base=None):
    """The file of a folder, whatever stands in it, made with its folder's name."""
    place = tmp_path / "out" / folder.name
    place.parent.mkdir(exist_ok=True)
    shutil.copytree(folder, place)
    recipe = tmp_path / "export.yaml"
    content = {"gguf": {"outtype": outtype, "quantization_levels": []}, "model": {"name": base and str(base)}}
    recipe.write_text(json.dumps(content), encoding="utf-8")
    code, _, told = gguf("--config", recipe, "--output_dir", place)
    assert code == 0, told
    return place / "gguf" / f"model-{outtype}.gguf"


@pytest.mark.parametrize(("name", "outtype"), EXACT)
def test_the_file_is_llama_cpps(name, outtype, oracle, cases, gguf, tmp_path):
    ours = exported(gguf, cases[name], tmp_path, outtype).read_bytes()
    theirs = oracle[name, outtype].read_bytes()
    assert len(ours) == len(theirs)
    assert ours == theirs


@pytest.mark.parametrize("name", ["gemma3-sp", "phi-sp"])
def test_added_tokens_are_those_of_tokenizer_json_too(name, oracle, case, gguf, tmp_path):
    """transformers 5 names them nowhere else; llama.cpp's script would take them for usual text, or for nothing."""
    folder = case(name)
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder=None)
    (folder / "added_tokens.json").unlink()
    assert exported(gguf, folder, tmp_path).read_bytes() == oracle[name, "f16"].read_bytes()


def tensors(path):
    from gguf import GGUFReader

    return {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}


def assert_same_but_for_rounding(ours, theirs):
    """At most one f16 ulp on at most 1e-5 of the values (and, of 32-bit tensors, what that is in them)."""
    assert ours.keys() == theirs.keys()
    moved = total = 0
    for name, values in theirs.items():
        mine = ours[name]
        assert mine.shape == values.shape, name
        assert mine.dtype == values.dtype, name
        off = mine != values
        if values.dtype == np.float16:
            assert np.all(np.abs(mine.view(np.int16)[off].astype(int) - values.view(np.int16)[off]) <= 1), name
        else:
            assert np.allclose(mine, values, rtol=1e-6, atol=1e-7), name
        moved, total = moved + int(off.sum()), total + values.size
    assert moved <= 1e-5 * total


ADAPTERS = {
    "plain": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    "rslora": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 8},
        "alpha_pattern": {"v_proj": 3},
    },
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved norms": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "new tokens": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [3, *range(2048, 2052)]},
        "grown_to": 2052,
    },
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_merge_is_pefts(kind, gguf, tmp_path):
    make_llama(tmp_path / "base", QUICKSTART, "bfloat16", tie_word_embeddings=True, **LARGE)
    compare_with_peft(ADAPTERS[kind], gguf, tmp_path)


ALL_LINEAR = {"target_modules": "all-linear"}
# Name → family, its configuration, the adapter's.
OTHER_BASES = {
    "dora": ("Llama", {}, ALL_LINEAR | {"use_dora": True}),
    "dora with rslora": ("Qwen3", {"head_dim": 50}, ALL_LINEAR | {"use_dora": True, "use_rslora": True}),
    "dora on embeddings": ("Llama", {}, {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "all biases": ("Llama", {"attention_bias": True, "mlp_bias": True}, ALL_LINEAR | {"bias": "all"}),
    "biases of lora's modules": ("Qwen2", {}, {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "biases of B": ("Qwen2", {}, {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "embeddings": ("Llama", {}, {"target_modules": ["embed_tokens", "lm_head"]}),
    "tied embeddings": ("Qwen2", {"tie_word_embeddings": True}, {"target_modules": ["embed_tokens", "q_proj"]}),
    "fused modules": (
        "Phi3",
        {},
        {
            "target_modules": ["qkv_proj", "gate_up_proj"],
            "rank_pattern": {"qkv_proj": 8},
            "alpha_pattern": {"gate_up_proj": 3},
        },
    ),
    "norms": (
        "Gemma3",
        GEMMA3,
        {"target_modules": ["q_proj"], "modules_to_save": ["norm", "q_norm", "input_layernorm"]},
    ),
    "norms of a base in float16": ("Gemma3", GEMMA3 | {"dtype": "float16"}, {"target_modules": ["q_proj"]}),
    "saved with the embeddings": (
        "Llama",
        {"tie_word_embeddings": True},
        {"target_modules": ["q_proj"], "grown_to": 2060, "save_embedding_layers": True},
    ),
    "trained rows of both ends": (
        "SmolLM3",
        {"tie_word_embeddings": False},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [7]}},
    ),
    "mamba beside attention": (
        "FalconH1",
        FALCON_H1 | {"head_dim": 50},
        {"target_modules": ["in_proj", "q_proj", "o_proj", "gate_proj", "down_proj", "lm_head"]},
    ),
    "mamba and a shared expert": (
        "GraniteMoeHybrid",
        MAMBA | {"layer_types": ["mamba", "attention"], "num_local_experts": 4, "shared_intermediate_size": 40},
        ALL_LINEAR | {"use_dora": True},
    ),
    "short convolutions": ("Lfm2", {"full_attn_idxs": [1], "tie_word_embeddings": True}, ALL_LINEAR),
    "queries by head": ("GPTNeoX", {}, ALL_LINEAR | {"use_dora": True, "modules_to_save": ["lm_head"]}),
    "biases by head": ("GPTNeoX", {"rotary_pct": 1.0}, ALL_LINEAR | {"bias": "all"}),
    "rows of an output with another name": (
        "GPTNeoX",
        {},
        {"target_modules": ["query_key_value"], "trainable_token_indices": {"embed_in": [3], "lm_head": [7]}},
    ),
    "new tokens of both ends": (
        "Cohere2",
        {},
        {
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [3, *range(2050, 2054)]},
            "grown_to": 2054,
        },
    ),
    "norms of all heads": ("Olmo3", {}, ALL_LINEAR | {"modules_to_save": ["q_norm"]}),
    "gaussian": (
        "Mistral",
        {},
        {
            "target_modules": ["q_proj"],
            "init_lora_weights": "gaussian",
            "rank_pattern": {"layers.1.self_attn.q_proj": 2},
        },
    ),
}


@pytest.mark.parametrize("kind", OTHER_BASES)
def test_a_merge_is_pefts_on_each_family(kind, cases, gguf, tmp_path):
    family, config, settings = OTHER_BASES[kind]
    sizes = {"vocab_size": 2050, "hidden_size": 200, "intermediate_size": 300}
    make_model(family, tmp_path / "base", cases["qwen2"], **sizes | config)
    compare_with_peft(settings, gguf, tmp_path)


@pytest.mark.parametrize("kind", ["untied", "gpt2", "gpt2 without prefix", "gpt2 with dora"])
def test_a_merge_is_pefts_on_other_bases(kind, gguf, tmp_path):
    base = tmp_path / "base"
    if kind == "untied":
        make_llama(base, QUICKSTART, "float16", **LARGE)
        return compare_with_peft({"target_modules": ["q_proj", "lm_head"]}, gguf, tmp_path)
    make_gpt2(base, QUICKSTART, vocab_size=2048, n_embd=256)
    settings = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
    settings["use_dora"] = kind == "gpt2 with dora"
    if kind == "gpt2 without prefix":
        edit_weights(base / "model.safetensors", bare)
    return compare_with_peft(settings, gguf, tmp_path)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_updates_larger_than_the_weights_are_merged_as_in_peft(kind, gguf, tmp_path):
    """What is left where they cancel the weights shows each rounding of the sums: numpy's BLAS was off by steps."""
    base = tmp_path / "base"
    if kind == "llama":
        make_llama(base, QUICKSTART, "bfloat16", **LARGE)
        settings = {"target_modules": "all-linear", "r": 16, "lora_alpha": 1000}
    else:
        make_gpt2(base, QUICKSTART, vocab_size=2048, n_embd=256)
        settings = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True, "r": 64, "lora_alpha": 4000}
    compare_with_peft(settings, gguf, tmp_path)


def test_an_adapter_that_was_trained_on_4_bits(tiny_base, gguf, tmp_path):
    """Only names tell: the base that the recipe names has 16 bits, and it is merged into that one."""
    save_adapter(tiny_base, tmp_path / "adapter", target_modules=["q_proj"])
    edit_json(tmp_path / "adapter/adapter_config.json", base_model_name_or_path=str(tiny_base))
    whole = tensors(exported(gguf, tmp_path / "adapter", tmp_path))
    shutil.rmtree(tmp_path / "out")
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    edit_json(tmp_path / "adapter/config.json", quantization_config=quantization)
    edit_json(tmp_path / "adapter/adapter_config.json", base_model_name_or_path="someone/tiny-bnb-4bit")
    merged = tensors(exported(gguf, tmp_path / "adapter", tmp_path, base=tiny_base))
    assert all(np.array_equal(merged[name], values) for name, values in whole.items())


@pytest.mark.parametrize("known_by", ["weights", "configuration"])
def test_a_base_in_4_bits_is_told_what_to_name(known_by, adapter, tiny_base, refused, tmp_path):
    base = tmp_path / "in-4-bits"
    shutil.copytree(tiny_base, base)
    if known_by == "weights":
        name = "model.layers.0.mlp.down_proj.weight"
        packed = np.zeros((3072, 1), np.uint8)
        edit_weights(base / "model.safetensors", lambda tensors: tensors.update({name: packed}))
        words = [f"{base}/model.safetensors: {name} holds U8"]
    else:
        for path in base.glob("model*"):
            path.unlink()
        edit_json(base / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
        words = [f"{base}/config.json: quantized with bitsandbytes"]
    for dry in ([], ["--dry_run"]):
        flags = ["--set", f"model.name={base}", *dry]
        refused(adapter, *words, "--set model.name=FOLDER (or a hub id)", "in 16 bits", flags=flags)


def compare_with_peft(settings, gguf, tmp_path):
    base = tmp_path / "base"
    save_adapter(base, tmp_path / "adapter", **settings)
    untied = "embed_tokens" in settings["target_modules"]
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(base))
    merge_with_peft(base, tmp_path / "adapter", tmp_path / "merged", settings.get("grown_to"), untied=untied)
    ours = tensors(exported(gguf, tmp_path / "adapter", tmp_path))
    shutil.rmtree(tmp_path / "out")
    assert_same_but_for_rounding(ours, tensors(exported(gguf, tmp_path / "merged", tmp_path)))


def bare(tensors):
    """The file of a bare model, as OpenAI's GPT-2 is published."""
    for name in list(tensors):
        tensors[name.removeprefix("transformer.")] = tensors.pop(name)


def test_padding_and_truncation_are_no_part_of_the_vocabulary(gguf, tiny, tmp_path):
    from tokenizers import Tokenizer

    plain = exported(gguf, tiny, tmp_path).read_bytes()
    shutil.rmtree(tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    tokenizer.enable_padding(length=16, pad_id=1, pad_token=tokenizer.id_to_token(1))
    tokenizer.enable_truncation(8)
    tokenizer.save(str(tiny / "tokenizer.json"))
    assert exported(gguf, tiny, tmp_path).read_bytes() == plain


EMBEDDINGS = "model.embed_tokens.weight"
COPIES = {  # what is trained of a base whose file holds its tied output as a copy; the adapter's settings
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 5]}},
    "saved and grown": {"target_modules": ["q_proj"], "grown_to": 2060, "save_embedding_layers": True},
    "saved as one": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
}


@pytest.mark.parametrize("copied", [True, False])
def test_lora_on_tied_embeddings_alone_leaves_the_output(copied, gguf, tmp_path):
    """As the adapted model computes: peft's own merge would change what both ends share."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_llama(base, QUICKSTART, "float16", tie_word_embeddings=True, **LARGE)
    if copied:
        edit_weights(base / "model.safetensors", lambda tensors: with_head(tensors, tensors[EMBEDDINGS]))
    save_adapter(base, adapter, target_modules=["embed_tokens", "q_proj"])
    found = tensors(exported(gguf, adapter, tmp_path, "f32", base=base))
    embedded, head = read_ends(base, adapter)
    assert np.allclose(found["token_embd.weight"], embedded, atol=1e-6)
    assert np.array_equal(found["output.weight"], head)
    assert not np.allclose(embedded, head, atol=1e-2)


@pytest.mark.parametrize("targets", [["embed_tokens"], ["embed_tokens", "lm_head", "q_proj"]])
def test_lora_that_ties_both_ends_stays_one_matrix(targets, gguf, tmp_path):
    """As the adapted model computes; peft's own merge would add the update twice."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_llama(base, QUICKSTART, "float16", tie_word_embeddings=True, **LARGE)
    save_adapter(base, adapter, target_modules=targets, ensure_weight_tying=True)
    found = tensors(exported(gguf, adapter, tmp_path, "f32", base=base))
    assert "output.weight" not in found
    embedded, head = read_ends(base, adapter)
    assert np.allclose(found["token_embd.weight"], embedded, atol=1e-6)
    assert np.allclose(found["token_embd.weight"], head, atol=1e-6)


def load_adapted(base, adapter):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)


def read_ends(base, adapter):
    """What an adapted model's embeddings and its output compute, as matrices (vocabulary, width)."""
    import torch

    adapted = load_adapted(base, adapter)
    with torch.no_grad():
        embedded = adapted.get_input_embeddings()(torch.arange(LARGE["vocab_size"])).numpy()
        head = adapted.get_output_embeddings()(torch.eye(LARGE["hidden_size"])).T.numpy()
    return embedded, head


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("kind", COPIES)
def test_tied_embeddings_stay_one_matrix(kind, copied, gguf, tmp_path):
    base = tmp_path / "base"
    make_llama(base, QUICKSTART, "float16", tie_word_embeddings=True, **LARGE)
    if copied:
        edit_weights(base / "model.safetensors", lambda tensors: with_head(tensors, tensors[EMBEDDINGS]))
    compare_with_peft(COPIES[kind], gguf, tmp_path)


def with_head(tensors, values):
    tensors["lm_head.weight"] = values.copy()


def test_a_head_of_its_own_stays_whatever_the_config_says(gguf, tmp_path):
    base = tmp_path / "base"
    make_llama(base, QUICKSTART, "float16", tie_word_embeddings=True, **LARGE)
    edit_weights(base / "model.safetensors", lambda tensors: with_head(tensors, tensors[EMBEDDINGS][::-1]))
    compare_with_peft({"target_modules": ["embed_tokens", "q_proj"]}, gguf, tmp_path)


def test_an_output_that_llama_cpp_has_no_place_for(gguf, cases, tmp_path):
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    save_adapter(cases["command-r"], tmp_path / "adapter", **settings)
    write_adapter_recipe(tmp_path / "adapter", cases["command-r"])
    code, _, told = gguf("--output_dir", tmp_path / "adapter")
    assert code == 2
    assert "command-r has one matrix for both" in told


def test_rows_of_a_tied_output_alone_untie_it(gguf, tmp_path):
    """As the adapted model computes: the embeddings stay. peft's own merge would change both ends."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_llama(base, QUICKSTART, "float16", tie_word_embeddings=True, **LARGE)
    save_adapter(base, adapter, target_modules=["q_proj"], trainable_token_indices={"lm_head": [1, 5]})
    found = tensors(exported(gguf, adapter, tmp_path, base=base))
    changed = np.flatnonzero((found["output.weight"] != found["token_embd.weight"]).any(axis=1))
    assert changed.tolist() == [1, 5]
