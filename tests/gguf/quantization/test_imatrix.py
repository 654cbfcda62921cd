"""Exports with an importance matrix: the better file of each level stays, and what can't be used is refused."""

import json
import shutil

import gguf
import numpy as np
import pytest
from impruver_gguf.quantization.imatrix_file import Imatrix, ImatrixEntry, read_imatrix, write_imatrix
from support.gguf_cases import read_quality
from support.jsonl import write_jsonl
from support.messages import conversation
from support.models import QUICKSTART, make_llama
from support.quantizer_models import quantize_with_llama_cpp

pytestmark = pytest.mark.integration
LEVELS = ("q4_0", "iq2_s")
SIZES = {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 256}


@pytest.fixture(scope="module")
def wide_once(tmp_path_factory):
    """A Llama whose inputs are far from equal in size, with the matrix that training would have left."""
    import torch
    from impruver_train.saving.imatrix import collect_imatrix
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("wide") / "model"
    make_llama(folder, QUICKSTART, tie_word_embeddings=True, **SIZES)
    tensors = load_file(folder / "model.safetensors")
    for name, weight in tensors.items():
        if "norm" in name:
            weight.copy_(torch.logspace(-2, 1, len(weight)))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = [list(range(start, start + 40)) for start in range(3, 300, 40)]
    save_file(collect_imatrix(model, rows, None, None), folder / "imatrix.safetensors", {"format": "pt"})
    write_jsonl(folder / "heldout.jsonl", [conversation("What is 2 + 2?", "It is four.")])
    return folder


@pytest.fixture
def wide(wide_once, tmp_path):
    folder = shutil.copytree(wide_once, tmp_path / "wide")
    (folder / "recipe.yaml").write_text(f"gguf: {{quantization_levels: [{', '.join(LEVELS)}]}}\n", encoding="utf-8")
    return folder


def test_the_better_of_both_is_written(wide, proven, tmp_path):
    code, out, told = proven("--output_dir", wide)
    assert code == 0, told + out
    rows, folder = read_quality(wide), wide / "gguf"
    entries = {entry["path"]: entry for entry in json.loads((folder / "impruver.json").read_text())["outputs"]}
    assert {level: row["imatrix"] for level, row in rows.items()} == {
        level: entries[f"model-{level}.gguf"].get("with_imatrix", False) for level in ("f16", *LEVELS)
    }
    assert rows["iq2_s"]["imatrix"] is True
    assert f"written {'with' if rows['q4_0']['imatrix'] else 'without'} it" in told
    assert "imatrix.gguf" in entries
    assert not [*folder.glob("*.imatrix.gguf"), *folder.glob(".*.part")]
    matrix = read_imatrix(folder / "imatrix.gguf")
    assert "token_embd.weight" in matrix.entries  # the output, which is tied
    for level, number in zip(LEVELS, (2, 28), strict=True):
        used = matrix if rows[level]["imatrix"] else None
        quantize_with_llama_cpp(folder / "model-f16.gguf", tmp_path / "theirs.gguf", number, used)
        ours, theirs = (
            gguf.GGUFReader(path).tensors for path in (folder / f"model-{level}.gguf", tmp_path / "theirs.gguf")
        )
        for one, other in zip(ours, theirs, strict=True):
            assert (one.name, one.tensor_type) == (other.name, other.tensor_type)
            assert np.array_equal(one.data, other.data), one.name
    again, _, told = proven("--output_dir", wide)
    assert again == 0, told
    assert "q4_0, iq2_s: there already" in told
    assert {level: row["imatrix"] for level, row in read_quality(wide).items()} == {
        level: row["imatrix"] for level, row in rows.items()
    }
    again, _, told = proven("--output_dir", wide, "--set", "gguf.imatrix=none", "--quantization_levels", "q4_0")
    assert again == 0, told
    assert ("there already, made" in told) is False  # with another matrix it is another file
    assert read_quality(wide)["q4_0"]["imatrix"] is False


def test_without_the_proof_the_matrix_is_taken_as_it_is(wide, gguf, tmp_path):
    code, _, told = gguf("--output_dir", wide, "--quantization_levels", "q4_0")
    assert code == 0, told
    entries = json.loads((wide / "gguf/impruver.json").read_text(encoding="utf-8"))["outputs"]
    assert next(entry for entry in entries if entry["path"] == "model-q4_0.gguf")["with_imatrix"] is True
    file = wide / "gguf/imatrix.gguf"
    named = file.rename(tmp_path / "mine.gguf")
    before = (wide / "gguf/model-q4_0.gguf").read_bytes()
    code, _, told = gguf("--output_dir", wide, "--quantization_levels", "q4_0", "--set", f"gguf.imatrix={named}")
    assert code == 0, told
    assert (wide / "gguf/model-q4_0.gguf").read_bytes()[-1000:] == before[-1000:]


def test_refusals(tiny, wide, gguf, tmp_path):
    def refused(folder, *flags, words):
        code, _, told = gguf("--output_dir", folder, *flags)
        assert code == 2, told
        assert told.count("error: ") == 1
        for word in words:
            assert word in told, told

    refused(tiny, "--quantization_levels", "iq1_s", words=["iq1_s", "importance matrix", "--imatrix_only"])
    refused(tiny, "--quantization_levels", "iq1_s", "--set", "gguf.imatrix=none", words=["iq1_s", "imatrix is none"])
    refused(tiny, "--set", "gguf.imatrix=yes", words=["imatrix: 'yes'", "auto, none"])
    refused(tiny, "--set", "gguf.imatrix=gone.gguf", words=["gone.gguf is not there"])
    assert gguf("--output_dir", tiny, "--quantization_levels")[0] == 0
    model = tiny / "gguf/model-f16.gguf"
    refused(tiny, "--set", f"gguf.imatrix={model}", words=["no importance matrix"])
    entry = ImatrixEntry(np.ones((1, 4), np.float32), np.ones(1))
    write_imatrix(tmp_path / "other.gguf", Imatrix({"blk.0.attn_q.weight": entry}, [], 1, 1))
    refused(tiny, "--set", f"gguf.imatrix={tmp_path / 'other.gguf'}", words=["attn_q", "of another model"])
    damaged = wide / "imatrix.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    refused(wide, words=["imatrix.safetensors", "cut off"])
