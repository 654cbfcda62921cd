"""What can't be exported: exit code 2, one message that says what to do, no traceback, nothing written."""

import json
import shutil

import pytest
from support.gguf_cases import train_sentencepiece
from support.models import edit_json, edit_weights, make_llama

CONFIG = "adapter_config.json"


def test_no_model_in_output_dir(tiny, refused):
    (tiny / "model.safetensors").unlink()
    refused(tiny, "holds neither a model nor an adapter")


def test_no_output_dir(tmp_path, gguf):
    code, _, told = gguf("--output_dir", tmp_path / "nowhere")
    assert code == 2
    assert "holds no recipe.yaml" in told
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 1\n", encoding="utf-8")
    code, _, told = gguf("--config", recipe)
    assert code == 2
    assert "output_dir is not set" in told


@pytest.mark.parametrize(
    ("name", "word"),
    [("./gone", "is not there"), ("/a/b/gone", "is not there"), ("someone/gone-1B", "nor to be had from the hub")],
)
def test_an_adapter_whose_base_is_missing(name, word, adapter, refused):
    (adapter / "recipe.yaml").write_text(json.dumps({"model": {"name": name}}), encoding="utf-8")
    refused(adapter, name, word, "--set model.name=FOLDER")


def test_the_adapters_own_base_is_used_without_one_in_the_recipe(adapter, tiny_base, gguf):
    (adapter / "recipe.yaml").write_text("gguf: {quantization_levels: []}", encoding="utf-8")
    assert json.loads((adapter / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"] == str(tiny_base)
    assert gguf("--output_dir", adapter)[0] == 0


def test_an_adapter_of_another_base_names_the_shapes(adapter, refused):
    def narrow(tensors):
        for name in tensors:
            if name.endswith("q_proj.lora_A.weight"):
                tensors[name] = tensors[name][:, :48].copy()

    edit_weights(adapter / "adapter_model.safetensors", narrow)
    refused(adapter, "q_proj", "[64, 4] x [4, 48]", "[64, 64]", "another base")


def test_an_adapter_for_layers_that_the_base_has_not(adapter, refused):
    def deeper(tensors):
        for name in list(tensors):
            tensors[name.replace("layers.1.", "layers.7.")] = tensors.pop(name)

    edit_weights(adapter / "adapter_model.safetensors", deeper)
    refused(adapter, "model.layers.7.self_attn", "does not have")


def test_truncated_weights(tiny, refused):
    path = tiny / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused(tiny, "model.safetensors: cut off")


def test_a_truncated_adapter(adapter, refused):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused(adapter, "adapter_model.safetensors: cut off within")


def test_a_header_that_lies(tiny, refused):
    path = tiny / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"shape":[2048,64]', b'"shape":[2048,65]'))
    refused(tiny, "does not hold what its shape")


def test_a_shard_that_is_missing(tiny, refused):
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (tiny / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    refused(tiny, "model-00002-of-00002.safetensors is not there")


def test_two_models_in_one_folder(tiny, refused):
    shutil.copyfile(tiny / "model.safetensors", tiny / "model-copy.safetensors")
    refused(tiny, "model.safetensors: holds lm_head.weight, as another file does")
    index = {"weight_map": {"lm_head.weight": "model-copy.safetensors"}}
    (tiny / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    refused(tiny, "two models; move one away")


@pytest.mark.parametrize("flags", [(), ("--dry_run",)])
def test_an_output_dir_that_is_a_file(flags, tiny, gguf):
    path = tiny / "config.json"
    code, _, told = gguf("--config", tiny / "recipe.yaml", "--output_dir", path, *flags)
    assert code == 2
    assert f"output_dir: {path} is a file" in told


def test_pickled_weights(tiny, adapter, refused):
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")
    refused(tiny, "pytorch_model.bin", "pickled", "save_pretrained")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refused(adapter, "adapter_model.bin", "pickled")


def test_weights_in_four_bits(tiny, refused):
    path = tiny / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"dtype":"F32"', b'"dtype":"U8" ', 1))
    refused(tiny, "U8", "in 16 bits")


def test_a_tensor_that_is_missing(tiny, refused):
    edit_weights(tiny / "model.safetensors", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    refused(tiny, "layer 1 of 2 has no ffn_up.weight")


def test_unknown_level_names_the_nearest(tiny, refused):
    refused(tiny, "q4_k", "did you mean q4_k_", flags=("--quantization_levels", "q4_k"))
    refused(tiny, "did you mean q8_0?", flags=("--set", "gguf.quantization_levels=[Q80]"))
    refused(tiny, "outtype", "f16", flags=("--set", "gguf.outtype=q9"))


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_file_that_is_missing(name, tiny, refused):
    (tiny / name).unlink()
    refused(tiny, f"{name} is not there")


def test_a_broken_tokenizer(tiny, refused):
    edit_json(tiny / "tokenizer.json", post_processor={"type": "Unheard"})
    refused(tiny, "tokenizer.json can't be loaded")
    (tiny / "tokenizer.json").write_text("{", encoding="utf-8")
    refused(tiny, "tokenizer.json: not JSON")


def test_sentencepiece_without_its_model(tmp_path, tiny, refused, gguf):
    """As transformers 5 leaves a folder; with the base's model it is converted."""
    pieces = train_sentencepiece(tmp_path / "pieces")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(pieces / name, tiny / name)
    refused(tiny, "tokenizer.json: no byte-level BPE but a SentencePiece vocabulary", "copy the base's tokenizer.model")
    (tiny / "tokenizer.model").write_bytes(b"no such thing")
    refused(tiny, "tokenizer.model: no SentencePiece model")
    shutil.copyfile(pieces / "tokenizer.model", tiny / "tokenizer.model")
    assert gguf("--output_dir", tiny, "--dry_run")[0] == 0
    content = json.loads((pieces / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = dict(
        zip(vocab, [*list(vocab.values())[:300], *reversed(list(vocab.values())[300:])], strict=True)
    )
    (tiny / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    refused(tiny, "tokenizer.json has other ids for 300 of its 600 pieces")


def test_pieces_and_added_tokens_beyond_the_model(tmp_path, refused):
    folder = tmp_path / "llama"
    make_llama(folder, train_sentencepiece(tmp_path / "pieces"), vocab_size=601)
    (folder / "recipe.yaml").write_text("seed: 1\n", encoding="utf-8")
    refused(folder, "ids up to 601, the model 601 embedding rows")


@pytest.mark.parametrize("affix", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_an_affix_that_llama_cpp_does_not_know(affix, tiny, refused):
    model = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    edit_json(tiny / "tokenizer.json", model=model | {affix: "</w>"})
    refused(tiny, f"tokenizer.json: model.{affix} is '</w>'", "it would give other ids, so no GGUF is written")


UNMERGED = [  # methods that can't be merged exactly, and what names them
    ({"use_qalora": True}, "use_qalora"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights pissa"),
    ({"init_lora_weights": "olora"}, "init_lora_weights olora"),
    ({"init_lora_weights": "corda"}, "init_lora_weights corda"),
    ({"kasa_config": {}}, "kasa_config"),
    ({"peft_type": "LOHA"}, "peft_type LOHA"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
]
SPLIT = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
ROWS = "lm_head.weight is [2048, 64], and should be [2050, 64]"
CHANGED = {  # what is changed → fixture, file, its keys, what is told
    "a splitting unknown": ("tiny", "tokenizer.json", {"pre_tokenizer": SPLIT}, ["no pre-tokenizer that splits text"]),
    "a larger tokenizer": (
        "tiny",
        "tokenizer_config.json",
        {"cls_token": "<new>"},
        ["ids up to 2048, the model 2048 embedding rows"],
    ),
    "rows not saved": ("adapter", "config.json", {"vocab_size": 2050}, [ROWS, "vocab_size"]),
    "dora without lengths": ("adapter", CONFIG, {"use_dora": True}, ["q_proj", "no lora_magnitude_vector"]),
    **{word: ("adapter", CONFIG, change, [word, "merge_and_unload"]) for change, word in UNMERGED},
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_file_that_was_changed(what, request, refused):
    fixture, name, change, words = CHANGED[what]
    folder = request.getfixturevalue(fixture)
    edit_json(folder / name, **change)
    refused(folder, *words)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("lora_mystery", "nothing that can be merged exactly"),
        ("lora_embedding_A", "only one of lora_A and lora_B"),
    ],
)
def test_an_unknown_part_of_an_adapter(part, words, adapter, refused):
    def more(tensors):
        tensors[f"base_model.model.model.embed_tokens.{part}"] = next(iter(tensors.values())).copy()

    edit_weights(adapter / "adapter_model.safetensors", more)
    refused(adapter, "embed_tokens", words)


def test_an_adapter_on_an_adapter(adapter, adapter_once, tmp_path, tiny_base, refused):
    nested = tmp_path / "nested"
    shutil.copytree(adapter_once, nested)
    shutil.copyfile(tiny_base / "model.safetensors", nested / "model.safetensors")
    (adapter / "recipe.yaml").write_text(json.dumps({"model": {"name": str(nested)}}), encoding="utf-8")
    refused(adapter, "an adapter itself")


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["Starcoder2ForCausalLM"]},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        {"hidden_act": "gelu"},
    ],
)
def test_another_architecture_without_llama_cpp(change, tiny, refused, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path / "tiny")
    edit_json(tiny / "config.json", **change)
    refused(tiny, "LlamaForCausalLM", "GPT2LMHeadModel", "pip download", "--llama_cpp")
    refused(tiny, "--llama_cpp_convert_script", "is not there", flags=("--llama_cpp_convert_script", "gone.py"))


YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}
FAMILY = [
    ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1, "layer_types": None}),
    ("qwen2", {"head_dim": 32}),
    ("qwen3", {"attention_bias": True}),
    ("qwen3", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    ("qwen3-yarn", {"rope_parameters": YARN | {"attention_factor": 0.5}}),
    ("qwen3-yarn", {"rope_parameters": YARN | {"truncate": False}}),
    ("qwen3-yarn", {"rope_parameters": YARN | {"beta_fast": 8}}),
    ("gpt2-small", {"scale_attn_weights": False}),
    ("smollm3", {"mlp_bias": True}),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 1]}),
    ("phi-long", {"hidden_act": "gelu"}),
    ("gemma3-sp", {"layer_types": ["full_attention"] * 7}),
    ("gemma3-sp", {"query_pre_attn_scalar": 256}),
    ("olmo2", {"sliding_window": 64}),
    ("olmo2", {"tie_word_embeddings": True}),
    ("olmo3", {"rope_parameters": {"sliding_attention": {"rope_theta": 1e4}}}),
    ("olmo3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}),
    ("command-r", {"use_qk_norm": True}),
    ("command-r-plus", {"use_qk_norm": False}),
    ("command-r", {"tie_word_embeddings": False}),
    ("command-r", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    ("command-a", {"layer_types": ["sliding_attention"] * 5}),
    ("command-a", {"rotary_pct": 0.5}),
    ("command-a", {"attention_bias": True}),
    ("pythia", {"rope_parameters": {"rope_theta": 1e6}}),
    ("pythia", {"hidden_act": "silu"}),
    ("pythia", {"attention_bias": False}),
]


@pytest.mark.parametrize(("name", "change"), FAMILY)
def test_what_llama_cpp_would_compute_otherwise(name, change, case, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = case(name)
    edit_json(folder / "config.json", **change)
    refused(folder, "with ", "is not converted here", "pip download")


def test_long_rope_that_does_not_fit(case, refused):
    folder = case("phi-long")
    edit_json(folder / "config.json", num_attention_heads=2)
    refused(folder, "long_factor holds 6 factors, and should hold 12")


def test_llama_cpps_script_that_fails(tiny, gguf, tmp_path):
    edit_json(tiny / "config.json", architectures=["NewForCausalLM"])
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("raise SystemExit('this model is new to me')", encoding="utf-8")
    code, _, told = gguf("--output_dir", tiny, "--llama_cpp_convert_script", script)
    assert code == 2
    assert "this model is new to me" in told
    assert not list((tiny / "gguf").glob("*"))


def test_an_adapter_that_is_not_whole(adapter, refused):
    def less(tensors):
        for name in [name for name in tensors if "layers.1.self_attn.q_proj" in name]:
            del tensors[name]

    edit_weights(adapter / "adapter_model.safetensors", less)
    refused(adapter, "has nothing for", "layers.1.self_attn.q_proj", "not whole")
    edit_weights(adapter / "adapter_model.safetensors", dict.clear)
    refused(adapter, "holds no tensors")


def test_a_level_that_no_type_can_stand_in_for(tiny, refused):
    flags = ("--quantization_levels", "q1_0")
    refused(tiny, "q1_0 wants rows of a multiple of 128", "leave q1_0 out", flags=flags)
