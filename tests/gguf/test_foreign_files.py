"""Folders from strangers whose configuration would take all time or memory are refused with one message."""

import json
import os
import shutil

import pytest
from support.attacks import list_tree
from support.models import edit_json

REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 2000}
HARM = {
    "layers without end": ("config.json", {"num_hidden_layers": 100_000}, "layer 2 of 100000 has no"),
    "a normalizer that fills any memory": (
        "tokenizer.json",
        {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 4}},
        "tokenizer.json: loading it, or encoding a few words, takes more time or memory",
    ),
}
ADAPTER_HARM = {
    "target_modules": r"([a-z_.0-9]+)+!",
    "rank_pattern": {r"([a-z_.0-9]+)+!": 8},
    "alpha_pattern": {f"x{number}": 8 for number in range(50_000)},
    "exclude_modules": "(" * 500 + ")" * 500,
    "r": 10**9,
}


@pytest.mark.parametrize("what", HARM)
def test_a_model_that_would_take_all_time_or_memory_is_refused(what, tiny, refused):
    name, keys, told = HARM[what]
    edit_json(tiny / name, **keys)
    refused(tiny, told)


@pytest.mark.parametrize("key", ADAPTER_HARM)
def test_an_adapter_that_would_take_all_time_or_memory_is_refused(key, adapter, refused):
    edit_json(adapter / "adapter_config.json", **{key: ADAPTER_HARM[key]})
    refused(adapter, str(adapter / "adapter_config.json"), key)


@pytest.fixture
def linked(tiny, tmp_path):
    """A base whose weights are a link to a file elsewhere."""
    (tiny / "model.safetensors").rename(tmp_path / "private.safetensors")
    (tiny / "model.safetensors").symlink_to(tmp_path / "private.safetensors")
    return tiny


def test_a_link_out_of_a_base_that_the_adapter_names_is_refused(linked, adapter, refused, gguf):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(linked))
    (adapter / "recipe.yaml").write_text("gguf: {quantization_levels: [q8_0]}\n")
    refused(adapter, f"{linked}/model.safetensors: is a link to", "set model.name to it where you trust it")
    (linked / "model.safetensors").rename(linked / "w.bin")  # a name that no search for weights finds
    index = linked / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "w.bin"}}))
    refused(adapter, f"{linked}/w.bin: is a link to")
    index.unlink()
    (linked / "w.bin").rename(linked / "model.safetensors")
    code, _, told = gguf("--output_dir", adapter, "--config", adapter / "recipe.yaml", "--set", f"model.name={linked}")
    assert code == 0, told


def test_links_within_the_hubs_cache_are_followed(linked, adapter, gguf, tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    snapshot, blobs = cache / "models--some--base" / "snapshots" / "abc", cache / "models--some--base" / "blobs"
    blobs.mkdir(parents=True)
    linked.rename(snapshot.parent.parent / "moved")
    snapshot.parent.mkdir()
    (snapshot.parent.parent / "moved").rename(snapshot)
    (snapshot / "model.safetensors").unlink()
    (tmp_path / "private.safetensors").rename(blobs / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(snapshot))
    (adapter / "recipe.yaml").write_text("gguf: {quantization_levels: [q8_0]}\n")
    code, _, told = gguf("--output_dir", adapter)
    assert code == 0, told


def test_the_output_folder_is_no_link_and_no_other_tools(tiny, adapter, refused, gguf, tmp_path):
    """Before anything is touched: a link may lead to a folder that the user trained into."""
    (adapter / "impruver.json").write_text('{"impruver": 1, "tool": "impruver-train"}')
    (adapter / ".merged.1").mkdir()
    before = list_tree(adapter)
    for target in (adapter, tmp_path / "nowhere", "."):
        (tiny / "gguf").symlink_to(target)
        for flags in ((), ("--overwrite",)):
            code, _, err = gguf("--output_dir", tiny, *flags)
            assert (code, "gguf: is a link to" in err) == (2, True), err
        (tiny / "gguf").unlink()
    assert list_tree(adapter) == before
    (tiny / "gguf").mkdir()
    (tiny / "gguf" / "impruver.json").write_text('{"impruver": 1, "tool": "impruver-train"}')
    for flags in ((), ("--overwrite",)):
        code, _, err = gguf("--output_dir", tiny, *flags)
        assert (code, "is a manifest of impruver-train, which impruver-gguf does not replace" in err) == (2, True), err
    assert "impruver-train" in (tiny / "gguf" / "impruver.json").read_text()


def test_pipes_hang_nothing(tiny, refused, gguf):
    (tiny / "additional_chat_templates").mkdir()
    os.mkfifo(tiny / "additional_chat_templates" / "x.jinja")
    refused(tiny, f"{tiny}/additional_chat_templates/x.jinja: a pipe or device")
    shutil.rmtree(tiny / "additional_chat_templates")
    (tiny / "model.safetensors").rename(tiny / "kept")
    for name in ("model.safetensors", "model.safetensors.index.json"):
        os.mkfifo(tiny / name)
        code, _, err = gguf("--output_dir", tiny)
        assert code == 2, err
        (tiny / name).unlink()
    (tiny / "kept").rename(tiny / "model.safetensors")
    (tiny / "gguf").mkdir()
    os.mkfifo(tiny / "gguf" / ".impruver.json.1.part")
    code, _, err = gguf("--output_dir", tiny)
    assert code == 0, err
