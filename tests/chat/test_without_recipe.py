"""A model alone, without a recipe: a GGUF file, a plain folder; its own template, generation parameters and limits."""

import json
import shutil

import pytest
from impruver_core import encode_prompt
from support.chat_models import OTHER_WORDS, WORDS
from support.gguf_files import GgufFile, pack_value
from support.jsonl import read_jsonl
from support.messages import user
from support.models import edit_json


@pytest.fixture
def tiny(tmp_path):
    """A GGUF file of a model that knows bytes, with sampling parameters of its own."""
    file = GgufFile()
    file.keys |= {
        "general.sampling.temp": pack_value("f32", 0.25),
        "general.sampling.top_p": pack_value("f32", 0.5),
        "general.sampling.top_k": pack_value("i32", 9),
        "general.sampling.penalty_repeat": pack_value("f32", 1.5),
    }
    return file.write(tmp_path / "tiny.gguf")


def test_a_gguf_file_needs_nothing_else(as_process, smollm2_gguf, tiny, tmp_path):
    place = tmp_path / "empty"
    place.mkdir()
    # A penalty and draws: the calls of llama.cpp's bindings that differ between their versions.
    flags = ("--gguf", smollm2_gguf, "--top_k", "1", "--repetition_penalty", "1.01", "--max_new_tokens", "30")
    done = as_process(*flags, input=b"Hi\n", cwd=place)
    assert (done.returncode, done.stdout.decode()) == (0, "Hello! How can I assist you today?\n"), done.stderr
    done = as_process("--gguf", tiny, "--dry_run", cwd=place)
    told = done.stdout.decode()
    assert "generation: temperature 0.25, top_p 0.5, top_k 9, repetition_penalty 1.5, at most 200 new tokens" in told
    assert not list(place.iterdir())


def test_what_a_gguf_file_says_of_sampling_is_checked_and_flags_go_before(chat, refused, tiny, tmp_path):
    code, out, _ = chat("--gguf", tiny, "--dry_run", "--temperature", "0", "--set", "chat.max_new_tokens=7")
    assert (code, "the likeliest token each time, repetition_penalty 1.5, at most 7 new tokens" in out) == (0, True)
    for kind, value, told in (("f32", -2.0, "must be 0, or from 0.0001"), ("text", "hot", "is no number")):
        file = GgufFile()
        file.keys["general.sampling.temp"] = pack_value(kind, value)
        message = refused("--gguf", file.write(tmp_path / "tiny.gguf"), "--dry_run")
        assert f"--gguf: {tmp_path / 'tiny.gguf'}: general.sampling.temp {told}" in message


def test_a_plain_folder(talk_to, models, given, tmp_path):
    from transformers import AutoTokenizer

    folder = shutil.copytree(models / "full", tmp_path / "plain")
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 4, "do_sample": False}))
    edit_json(folder / "config.json", max_position_embeddings=60)
    out, err = talk_to(folder, "red", "blue " * 80)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert given == [encode_prompt(tokenizer, [user("red")])]
    assert WORDS["red"].startswith(out.strip())
    assert "at most 4 new tokens" in err
    assert "(cut off after 4 tokens; /set max_new_tokens NUMBER allows more)" in err
    assert "and the model's context is 60" in err
    out, _ = talk_to(models / "adapter", "red", flags=("--temperature", "0", "--repetition_penalty", "1"))
    assert out == f"{OTHER_WORDS['red']}\n"


@pytest.fixture
def talk_to(pipe):
    """Talks to a folder through a pipe, in fp32, without a recipe; (stdout, stderr)."""
    fp32 = ("--set", "model.dtype=fp32")
    return lambda folder, *lines, flags=(): pipe(lines, "--output_dir", folder, *fp32, *flags)


def test_a_plain_folder_answers_a_file(chat, models, write_jsonl, tmp_path):
    paths = ["--input", write_jsonl([{"prompt": "red"}]), "--output", tmp_path / "a.jsonl"]
    code, _, err = chat("--output_dir", models / "full", *paths)
    assert code == 0, err
    assert read_jsonl(tmp_path / "a.jsonl")[0]["messages"][-1]["content"] == WORDS["red"]
    manifest = json.loads((tmp_path / "a.jsonl.manifest.json").read_text())
    assert manifest["recipe"]["output_dir"] == str(models / "full")


def test_a_plain_folder_runs_no_code_of_its_own(refused, models, tmp_path):
    folder = shutil.copytree(models / "full", tmp_path / "plain")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit_json(folder / "config.json", model_type="evil", auto_map=auto)
    refused("--output_dir", folder)
    assert "--trust_remote_code" in refused("--output_dir", folder, "--set", "model.trust_remote_code=true")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_model_is_told(refused, tmp_path):
    assert "--output_dir FOLDER or --gguf FILE of a model will do" in refused()
    (tmp_path / "other").mkdir()
    message = refused("--output_dir", tmp_path / "other")
    assert f"--output_dir: {tmp_path / 'other'} holds neither recipe.yaml nor a model" in message
    (tmp_path / "other/model-q8_0.gguf").write_bytes(b"GGUF")
    message = refused("--output_dir", tmp_path / "other")
    assert "name a GGUF file in it with --gguf (model-q8_0.gguf)" in message
    assert f"--output_dir: {tmp_path / 'none'} is not there" in refused("--output_dir", tmp_path / "none")
