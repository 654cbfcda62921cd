"""GGUF files from strangers: a header that lies, or that llama.cpp would end the process over, is one message."""

import struct

import pytest
from support.gguf_files import TOKENS, GgufFile

FORGED = {
    "overlapping": (lambda file: setattr(file.tensors[1], "offset", 0), "overlaps the tensor before it"),
    "not a number": (lambda file: file.set("llama.rope.freq_base", "f32", float("nan")), "llama.rope.freq_base is nan"),
    "no layers": (lambda file: file.set("llama.block_count", "u32", 0), "llama.cpp fails on what its header says"),
    "a float": (lambda file: file.set("llama.block_count", "f32", 1.0), "can't be loaded by llama.cpp"),
    "twice the same token": (
        lambda file: file.set("tokenizer.ggml.tokens", "[text]", [*TOKENS[:-1], "<s>"]),
        "llama.cpp fails on what its header says",
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_file_is_refused(what, refused, recipe, write_jsonl, tmp_path):
    change, words = FORGED[what]
    file = GgufFile()
    change(file)
    path, questions = file.write(tmp_path / "x.gguf"), write_jsonl([{"prompt": "one"}])
    config = recipe(tmp_path / "no_model_needed")
    message = refused("--config", config, "--gguf", path, "--input", questions, "--output", tmp_path / "answers.jsonl")
    assert f"error: --gguf: {path}" in message
    assert words in message
    assert len(message.splitlines()) == 1


def test_weights_that_compute_nan_give_no_answer(chat, recipe, write_jsonl, tmp_path):
    file = GgufFile()
    file.tensors[1].data = struct.pack("<32f", *[float("nan")] * 32)
    path, questions = file.write(tmp_path / "x.gguf"), write_jsonl([{"prompt": "one"}, {"prompt": "two"}])
    config = recipe(tmp_path / "no_model_needed")
    code, out, err = chat("--config", config, "--gguf", path, "--input", questions, "--output", tmp_path / "a.jsonl")
    assert (code, out) == (3, "")
    assert "--gguf: the model computes NaN" in err
    assert not (tmp_path / "a.jsonl").exists()


def test_the_same_file_unforged_answers(answers, recipe, tmp_path):
    path = GgufFile().write(tmp_path / "x.gguf")
    rows, _, _ = answers(recipe(tmp_path / "no_model_needed"), [{"prompt": "one"}], "--gguf", path)
    assert "error" not in rows[0]
