"""Opening a GGUF file with cyllama: what is unusual is tried in a process of its own first."""

import re

import pytest
from impruver_core import llama_bindings, llama_cpp, trial
from impruver_core.errors import ImpruverError
from impruver_core.io.gguf_families import LISTS, is_usual_model
from impruver_core.io.gguf_file import read_gguf_parts
from support import ROOT
from support.gguf_files import F16, I8, TOKENS, TYPES, GgufFile, Tensor


def is_usual(path):
    return is_usual_model(read_gguf_parts(path, LISTS))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPRUVER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "_passed", set())


@pytest.fixture
def tried(monkeypatch):
    """The files that are tried from now on."""
    paths, try_model = [], llama_cpp._try_model
    monkeypatch.setattr(llama_cpp, "_try_model", lambda path: paths.append(path) or try_model(path))
    return paths


def test_a_usual_model_is_loaded_at_once(tmp_path, tried, smollm2_gguf):
    path = GgufFile().write(tmp_path / "x.gguf")
    assert llama_cpp.load_gguf(path, n_gpu_layers=0).n_vocab == len(TOKENS)
    assert is_usual(smollm2_gguf)
    assert tried == []


def test_an_unusual_one_is_tried_first(tmp_path, tried):
    file = GgufFile()
    file.set("llama.attention.causal", "bool", 1)
    path = file.write(tmp_path / "x.gguf")
    for _ in range(2):
        assert llama_cpp.load_gguf(path, n_gpu_layers=0).n_vocab == len(TOKENS)
    assert tried == [path]  # once
    file.set("llama.attention.causal", "bool", 0)
    llama_cpp.load_gguf(file.write(path), n_gpu_layers=0)
    assert tried == [path, path]


UNUSUAL = {
    "no family": ("general.architecture", "text", "mamba"),
    "no layers": ("llama.block_count", "u32", 0),
    "a float for a number": ("llama.block_count", "f32", 1.0),
    "heads that do not divide": ("llama.attention.head_count_kv", "u32", 3),
    "odd pairs": ("llama.rope.dimension_count", "u32", 15),
    "more pairs than values": ("llama.rope.dimension_count", "u32", 32),
    "a negative epsilon": ("llama.attention.layer_norm_rms_epsilon", "f32", -1.0),
    "a key that is not known": ("llama.expert_count", "u32", 4),
    "another tokenizer": ("tokenizer.ggml.model", "text", "rwkv"),
    "a token twice": ("tokenizer.ggml.tokens", "[text]", [*TOKENS[:-1], TOKENS[0]]),
    "a token without text": ("tokenizer.ggml.tokens", "[text]", [*TOKENS[:-1], ""]),
    "a token that is no text": ("tokenizer.ggml.tokens", "[text]", [*TOKENS[:-1], b"\xff"]),
    "a byte without a token": ("tokenizer.ggml.tokens", "[text]", [*TOKENS[:108], "_0x69>", *TOKENS[109:]]),
    "a token too few": ("tokenizer.ggml.tokens", "[text]", TOKENS[:-1]),
    "tokens that are numbers": ("tokenizer.ggml.tokens", "[u32]", [1] * len(TOKENS)),
    "one token": ("tokenizer.ggml.tokens", "text", "a"),
    "a byte that is none": ("tokenizer.ggml.token_type", "[i32]", [*TYPES[:-1], 6]),
    "a type of tokens that is none": ("tokenizer.ggml.token_type", "[i32]", [*TYPES[:-1], -7]),
    "too few types": ("tokenizer.ggml.token_type", "[i32]", TYPES[:-1]),
    "too few scores": ("tokenizer.ggml.scores", "[f32]", [0.0]),
    "an end beyond the tokens": ("tokenizer.ggml.eos_token_id", "u32", len(TOKENS)),
    "templates that are a number": ("tokenizer.chat_template.tools", "u32", 1),
    "a part of several": ("split.count", "u16", 1),
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_what_is_unusual(what, tmp_path):
    file = GgufFile()
    file.set(*UNUSUAL[what])
    assert not is_usual(file.write(tmp_path / "x.gguf"))


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("output_norm.weight", [32], F16, bytes(64)),
        Tensor("token_embd.weight", [32, len(TOKENS)], I8, bytes(32 * len(TOKENS))),
        Tensor("token_embd.weight", [32, len(TOKENS), 2]),
        Tensor("token_embd.weight", [32, 100]),
    ],
)
def test_tensors_that_are_unusual(tensor, tmp_path):
    file = GgufFile()
    file.tensors = [tensor if each.name == tensor.name else each for each in file.tensors]
    assert not is_usual(file.write(tmp_path / "x.gguf"))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no layers", "fatal error|GGML_ASSERT"),
        ("a negative epsilon", "GGML_ASSERT.eps"),
        ("a token twice", "GGML_ASSERT"),
        ("a byte without a token", "_Map_base::at"),
        ("a token that is no text", "'utf-8' codec can't decode"),
    ],
)
def test_what_ends_llama_cpp_is_refused(what, words, tmp_path, capfd):
    file = GgufFile()
    file.set(*UNUSUAL[what])
    path = file.write(tmp_path / "x.gguf")
    with pytest.raises(ImpruverError, match=words) as refused:
        llama_cpp.load_gguf(path)
    assert str(refused.value).startswith(f"{path}: llama.cpp fails on what its header says (")
    assert len(str(refused.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_each_byte_is_tried():
    assert {*llama_cpp.TRIAL_TEXT.encode()} == {*range(1, 0xC0), *range(0xC2, 0xF5)}


def test_a_signal_has_its_name(tmp_path):
    file = GgufFile()
    file.tensors[3] = Tensor("blk.0.attn_q.weight", [32, 32], I8, bytes(1024))
    with pytest.raises(ImpruverError, match=r"llama.cpp fails on what its header says \(SIGSEGV\)"):
        llama_cpp.load_gguf(file.write(tmp_path / "x.gguf"))


def test_what_does_not_come_to_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "TRIAL_SECONDS", 0)
    file = GgufFile()
    file.set("llama.attention.causal", "bool", 1)
    with pytest.raises(ImpruverError, match=r"x.gguf: llama.cpp is not done with its header after 0 s"):
        llama_cpp.load_gguf(file.write(tmp_path / "x.gguf"))


def test_what_llama_cpp_does_not_load(tmp_path, capfd):
    file = GgufFile(tensors=[])
    with pytest.raises(ImpruverError, match=r"x.gguf can't be loaded by llama.cpp: it is cut off, or of a kind"):
        llama_cpp.load_gguf(file.write(tmp_path / "x.gguf"), n_gpu_layers=0, check_tensors=True)
    file = GgufFile(cut=1)
    with pytest.raises(ImpruverError, match=r"x.gguf: no GGUF file: it is cut off within"):
        llama_cpp.load_gguf(file.write(tmp_path / "x.gguf"))
    assert capfd.readouterr() == ("", "")


def test_cyllama_is_absent(monkeypatch):
    llama_cpp.check_cyllama_installed("--gguf", "impruver-chat")
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    with pytest.raises(ImpruverError, match=r'--gguf needs a further package: pip install "impruver-chat\[gguf\]"'):
        llama_cpp.check_cyllama_installed("--gguf", "impruver-chat")


@pytest.mark.parametrize("version", ["0.1.3", "0.2.17", "0.8", "1.0.0"])
def test_cyllama_of_a_version_that_is_not_known(version, monkeypatch):
    monkeypatch.setattr(llama_cpp, "get_installed_version", lambda name: version)
    with pytest.raises(ImpruverError, match=rf"from 0.2.18 on, below 0.8, and {version} is installed: pip install"):
        llama_cpp.check_cyllama_installed("--gguf", "impruver-chat")


def test_one_module_imports_cyllama_and_its_versions_are_those_that_are_asked_for():
    sources = [*ROOT.glob("core/src/**/*.py"), *ROOT.glob("packages/*/src/**/*.py")]
    importing = re.compile(r"^\s*(from|import) cyllama\b", re.MULTILINE)
    assert [path.stem for path in sources if importing.search(path.read_text("utf-8"))] == ["llama_bindings"]
    wanted = f'"cyllama>={llama_bindings.OLDEST},<{llama_bindings.BEYOND}"'
    for project in ("", "packages/impruver-chat", "packages/impruver-gguf"):
        assert wanted in (ROOT / project / "pyproject.toml").read_text("utf-8")
