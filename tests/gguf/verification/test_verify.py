"""The proof of what was made: what it measures, what it keeps, and that it fails on a file that is wrong."""

import json
import os
import re
import struct
import sys

import pytest
from support.gguf_cases import read_quality
from support.jsonl import write_jsonl
from support.messages import conversation
from support.models import QUICKSTART, edit_json, make_llama, save_adapter
from support.oracles import write_program
from support.recipes import write_adapter_recipe

FIELDS = ["level", "bytes", "bits_per_weight", "ids_equal", "perplexity", "kl", "top1", "stops", "recommended"]
FIELDS += ["imatrix"]
CHATS = [("What is 2 + 2?", "It is four."), ("Say “hi”.", "hi\n\n  there"), ("Столица?", "Москва.")]


def swap(path, one: bytes, other: bytes, after: bytes = b"") -> None:
    """Swaps two texts of one length in a file's header, each as GGUF writes it: with its length before it."""
    content = path.read_bytes()
    pieces = [struct.pack("<Q", len(text)) + text for text in (one, other)]
    assert len(one) == len(other)
    head, tail = content[: content.index(after)], content[content.index(after) :]
    for text, where in zip(pieces, [tail.index(piece) for piece in reversed(pieces)], strict=True):
        tail = tail[:where] + text + tail[where + len(text) :]
    path.write_bytes(head + tail)


def test_every_level_is_measured_and_kept(tiny, proven):
    write_jsonl(tiny / "heldout.jsonl", [conversation(*pair) for pair in CHATS])
    code, out, told = proven("--output_dir", tiny, "--quantization_levels", "q8_0", "q4_0")
    assert code == 0, told
    assert f"3 rows of {tiny / 'heldout.jsonl'}" in told
    rows = read_quality(tiny)
    assert list(rows) == ["f16", "q8_0", "q4_0"]
    assert all(list(row) == FIELDS for row in rows.values())
    assert all(row["ids_equal"] is True for row in rows.values())
    assert all(row["bytes"] == (tiny / f"gguf/model-{level}.gguf").stat().st_size for level, row in rows.items())
    assert (rows["f16"]["kl"], rows["f16"]["top1"]) == (0.0, 1.0)
    assert 0 < rows["q8_0"]["kl"] < rows["q4_0"]["kl"]
    assert 16 < rows["f16"]["bits_per_weight"] < 17
    assert 8.5 < rows["q8_0"]["bits_per_weight"] < 9
    assert "PERPLEXITY" in out
    manifest = json.loads((tiny / "gguf/impruver.json").read_text(encoding="utf-8"))
    assert manifest["outputs"][-1]["path"] == "quality.jsonl"
    again, _, told = proven("--output_dir", tiny, "--quantization_levels", "q8_0")
    assert again == 0, told
    assert "q8_0: there already" in told
    assert list(read_quality(tiny)) == ["f16", "q8_0"]


def test_the_figures_are_those_of_transformers(tiny, proven):
    """Perplexity, KL and top tokens on the same labels, of the model and of the level as transformers reads it."""
    import torch
    from impruver_gguf.verification.heldout import read_heldout
    from impruver_gguf.vocab.saved_tokenizer import SavedTokenizer
    from transformers import AutoModelForCausalLM

    write_jsonl(tiny / "heldout.jsonl", [conversation(*pair) for pair in CHATS])
    assert proven("--output_dir", tiny, "--quantization_levels", "q4_0")[0] == 0
    held = read_heldout(tiny, SavedTokenizer(tiny), {}, None).measured
    labels = torch.tensor([token for row in held for token in row.target_ids])

    def logs(**file):
        model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32, **file)
        with torch.no_grad():
            return torch.cat(
                [model(torch.tensor([row.ids])).logits[0, row.target_positions].log_softmax(-1) for row in held]
            )

    exact, level = logs(), logs(gguf_file="gguf/model-q4_0.gguf")
    rows = read_quality(tiny)
    for name, found in (("f16", exact), ("q4_0", level)):
        perplexity = (-found.gather(1, labels[:, None]).mean()).exp().item()
        assert rows[name]["perplexity"] == pytest.approx(perplexity, rel=5e-3)
    divergence = (exact.exp() * (exact - level)).sum(-1).mean().item()
    assert rows["q4_0"]["kl"] == pytest.approx(divergence, rel=0.2)
    assert rows["q4_0"]["top1"] == pytest.approx((exact.argmax(-1) == level.argmax(-1)).float().mean().item(), abs=0.1)


def test_the_built_in_set_stands_in(tiny, proven):
    (tiny / "recipe.yaml").write_text("gguf: {quantization_levels: [], limits: {kl: 0.5}}\n", encoding="utf-8")
    code, out, told = proven("--output_dir", tiny)
    assert code == 0, told
    assert "the built-in set" in told
    assert read_quality(tiny)["f16"]["recommended"] is True
    assert "recommended: f16" in out


def test_a_proof_can_be_left_out_and_an_old_one_goes(tiny, proven):
    assert proven("--output_dir", tiny)[0] == 0
    assert (tiny / "gguf/quality.jsonl").is_file()
    code, out, told = proven("--output_dir", tiny, "--verify", "false")
    assert code == 0, told
    assert "PERPLEXITY" not in out
    assert not (tiny / "gguf/quality.jsonl").exists()


def test_limits_pick_the_recommended_level(tiny, proven):
    levels = ("--quantization_levels", "q8_0", "q4_0")
    assert proven("--output_dir", tiny, *levels)[0] == 0
    between = read_quality(tiny)["q8_0"]["kl"] * 1.01
    for kl, best in ((0, "f16"), (between, "q8_0"), (9, "q4_0")):
        flags = ("--set", f"gguf.limits.kl={kl}", "--set", "gguf.limits.top1=0")
        code, out, told = proven("--output_dir", tiny, *levels, *flags)
        assert code == 0, told
        assert f"recommended: {best}" in out
        assert [level for level, row in read_quality(tiny).items() if row["recommended"]] == [best]
        assert f"Modelfile.{best}" in out.splitlines()[-1]


@pytest.mark.parametrize("limits", ["{kl: -1}", "{top1: 2}", "{top_1: 0.5}", "{kl: high}"])
def test_limits_that_are_none(limits, tiny, proven):
    code, _, told = proven("--output_dir", tiny, "--set", f"gguf.limits={limits}")
    assert code == 2
    assert "limits" in told


def test_plain_text_and_a_model_without_a_template(tiny, proven):
    edit_json(tiny / "tokenizer_config.json", chat_template=None)
    (tiny / "chat_template.jinja").unlink(missing_ok=True)
    write_jsonl(tiny / "heldout.jsonl", [{"text": "The river was wide. Nobody crossed it."}, {"text": "Ещё строка."}])
    code, _, told = proven("--output_dir", tiny)
    assert code == 0, told
    row = read_quality(tiny)["q8_0"]
    assert row["ids_equal"] is True
    assert row["perplexity"] > 1
    assert row["stops"] is None


def test_rows_without_target_tokens_are_said(tiny, proven):
    write_jsonl(tiny / "heldout.jsonl", [conversation("Hi", "Ho") | {"input_ids": [5, 6, 7], "labels": [-100] * 3}])
    code, out, told = proven("--output_dir", tiny)
    assert code == 0, told
    assert "no row has a target token" in told
    assert read_quality(tiny)["q8_0"]["kl"] is None
    assert "nothing could be measured" in out
    assert "within KL" not in out


def test_half_a_character_is_told(tiny, proven):
    (tiny / "heldout.jsonl").write_text('{"text": "a\\ud800"}\n', encoding="utf-8")
    code, _, told = proven("--output_dir", tiny)
    assert code == 2
    assert "line 1: half a character" in told


def test_a_template_that_refuses_all_proves_no_ids(tiny, proven):
    edit_json(tiny / "tokenizer_config.json", chat_template="{{ raise_exception('no') }}")
    (tiny / "chat_template.jinja").unlink(missing_ok=True)
    code, out, told = proven("--output_dir", tiny, "--quantization_levels")
    assert code == 0, told
    assert read_quality(tiny)["f16"]["ids_equal"] is None
    assert "nothing could be measured" in out


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": 3}, "no row can be used"),
        ({"messages": "abc"}, "no row can be used"),
        ({"messages": []}, "no row can be used"),
        ({"foo": 1}, "it has no messages and no text"),
        ({"text": "a", "input_ids": [1, 2], "labels": [1, "2"]}, "labels must be a list, each item a whole number"),
        ({"text": "a", "input_ids": [1, 2], "labels": [1, 99999]}, "not this tokenizer's"),
        ({"messages": [{"role": "user", "content": "a"}], "input_ids": [99999], "labels": [1]}, "not this tokenizer's"),
        ({"text": 3}, "text must be a text, not 3"),
        ({"text": None}, "it has no messages and no text"),
        ({"text": "a", "input_ids": {}, "labels": []}, "input_ids must be a list"),
        ({"text": "a", "chat_template_kwargs": [1]}, "chat_template_kwargs must be an object"),
        ({"text": "a", "tools": "b"}, "tools must be a list"),
        ({"text": "a", "input_ids": [1, 2], "labels": [1]}, "of two lengths"),
    ],
)
def test_rows_that_can_not_be_used(row, words, tiny, proven):
    write_jsonl(tiny / "heldout.jsonl", [row])
    code, _, told = proven("--output_dir", tiny)
    assert "Traceback" not in told
    assert code == 2
    assert f"{tiny / 'heldout.jsonl'}, line 1" in told
    assert words in told
    assert not (tiny / "gguf").exists()


def test_other_tokens_fail(tiny, proven, gguf):
    write_jsonl(tiny / "heldout.jsonl", [conversation("the end and the start", "the and the")])
    assert gguf("--output_dir", tiny, "--quantization_levels")[0] == 0
    swap(tiny / "gguf/model-f16.gguf", " the".replace(" ", "Ġ").encode(), " and".replace(" ", "Ġ").encode())
    code, out, told = proven("--output_dir", tiny, "--only_quantize")
    assert code == 3, told
    assert "llama.cpp's token ids are not the tokenizer's" in told
    assert "heldout.jsonl, line 1" in told
    assert "the end and the start" in told
    assert "FAILED" in out
    assert read_quality(tiny)["q8_0"]["ids_equal"] is False
    assert not any(row["recommended"] for row in read_quality(tiny).values())


def test_another_template_fails(tiny, proven, gguf):
    assert gguf("--output_dir", tiny, "--quantization_levels")[0] == 0
    path = tiny / "gguf/model-f16.gguf"
    content = path.read_bytes()
    start = content.index(b"tokenizer.chat_template")
    changed = content[start:].replace(b"assistant", b"assistent", 1)
    path.write_bytes(content[:start] + changed)
    assert path.read_bytes() != content
    code, _, told = proven("--output_dir", tiny, "--only_quantize")
    assert code == 3, told
    assert "is not the tokenizer's own" in told
    assert "assistent" in told


def test_a_disk_that_is_full_while_proving(tiny, proven, gguf, small_disk, free_room):
    (tiny / "gguf").symlink_to(small_disk(1.6))
    free_room(10**9)
    code, _, told = proven("--output_dir", tiny)
    assert code == 2, told
    assert "make room, or leave the proof out with --verify false" in told
    assert "Traceback" not in told
    assert not (tiny / "gguf/quality.jsonl").exists()
    assert (tiny / "gguf/model-q8_0.gguf").is_file()


BREAKS = """
import subprocess, sys
from pathlib import Path
source, target, level, threads = sys.argv[1:]
program = "impruver_gguf.quantization.quantize"
subprocess.run([sys.executable, "-m", program, source, threads, "7", target], check=True)
path, how = Path(target), sys.argv[0].rpartition(".")[2]
content = bytearray(path.read_bytes())
if how == "cut":
    del content[-5000:]
else:
    content[-34 * 400 :] = b"\\xff" * 34 * 400  # scales of NaN
path.write_bytes(content)
"""


@pytest.mark.parametrize("how", ["cut", "nan"])
def test_a_level_that_is_broken_fails(how, tiny, proven, tmp_path):
    program = tmp_path / f"llama-quantize.{how}"
    write_program(program, f"#!{sys.executable}{BREAKS}")
    code, out, told = proven("--output_dir", tiny, "--llama_cpp_quantize_bin", program)
    assert code == 3, told
    assert "1 of 2 files failed the proof" in told
    assert "model-q8_0.gguf: llama.cpp" in told
    assert "Traceback" not in told
    rows = read_quality(tiny)
    assert rows["f16"]["ids_equal"] is True
    assert rows["q8_0"]["ids_equal"] is None
    assert rows["f16"]["recommended"] is True
    assert json.loads((tiny / "gguf/impruver.json").read_text(encoding="utf-8"))["failed"] == ["q8_0"]
    assert "ollama create" not in out


def test_the_file_is_compared_with_the_merged_model(adapter, tiny, compared, gguf):
    write_jsonl(adapter / "heldout.jsonl", [conversation(*pair) for pair in CHATS])
    (adapter / "transformers.py").write_text("open('ran', 'w')\n")  # a stranger's: no code of a folder runs
    code, _, told = compared("--output_dir", adapter)
    assert code == 0, told
    (counts,) = re.findall(
        r"in transformers: (\d+) of (\d+) greedy tokens are its likeliest; logits at (\d+) pos", told
    )
    same, tokens, positions = map(int, counts)
    assert 0 < same <= tokens < positions
    assert not os.path.exists("ran")
    assert gguf("--output_dir", tiny, "--quantization_levels")[0] == 0
    (tiny / "gguf/model-f16.gguf").replace(adapter / "gguf/model-f16.gguf")  # the base: the adapter was lost
    code, out, told = compared("--output_dir", adapter, "--only_quantize")
    assert code == 3, told
    assert "its weights are not that model's" in told
    assert "recommended" not in out


@pytest.mark.parametrize("ends", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("as_one", [True, False])
def test_trained_tied_embeddings_equal_the_model_in_training(ends, as_one, compared, tmp_path):
    base, folder = tmp_path / "base", tmp_path / "adapter"
    make_llama(base, QUICKSTART, vocab_size=2048, tie_word_embeddings=True)
    save_adapter(base, folder, target_modules=ends, ensure_weight_tying=as_one)
    write_adapter_recipe(folder, base)
    write_jsonl(folder / "heldout.jsonl", [conversation(*pair) for pair in CHATS])
    code, _, told = compared("--output_dir", folder)
    assert code == 0, told
    assert "as the merged model in transformers" in told
