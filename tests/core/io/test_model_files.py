"""What is read of a model's folder without torch: safetensors headers, context length, refused pickles."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from impruver_core.errors import ImpruverError
from impruver_core.io.model_files import (
    check_ordinary_files,
    check_shards,
    check_weight_links,
    get_context_length,
    read_safetensors_header,
    read_weight_map,
    refuse_pickled_weights,
)
from impruver_core.modeling.peft_methods import find_unmergeable
from safetensors.numpy import save_file


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"b": np.ones((2, 3), np.float32), "a": np.arange(4, dtype=np.float16)}, path, {"format": "pt"})
    return path


def test_header(weights):
    entries = read_safetensors_header(weights)
    assert [(name, entry.dtype, entry.shape) for name, entry in entries.items()] == [
        ("a", "F16", (4,)),
        ("b", "F32", (2, 3)),
    ]
    content = weights.read_bytes()
    assert content[entries["a"].start : entries["a"].stop] == np.arange(4, dtype=np.float16).tobytes()
    assert max(entry.stop for entry in entries.values()) == len(content)


@pytest.mark.parametrize("size", [0, 5, 30, -1])
def test_a_file_that_is_cut_off(size, weights):
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(ImpruverError, match=r"model.safetensors: cut off.*; train it again"):
        read_safetensors_header(weights, "train it again")


@pytest.mark.parametrize(
    "header", [b"no JSON", b"[1]", b'{"a": {}}', b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}']
)
def test_a_header_that_is_none(header, weights):
    weights.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(ImpruverError, match="no safetensors file"):
        read_safetensors_header(weights)


def test_a_pointer_of_git_lfs(weights):
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ImpruverError, match="git lfs pull"):
        read_safetensors_header(weights)


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "training_args.bin").touch()
    refuse_pickled_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ImpruverError, match=r"model.name: .*pytorch_model.bin: pickled.* run code.*; leave them"):
        refuse_pickled_weights(tmp_path, "leave them", "model.name")


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({}, None),
        ({"max_position_embeddings": 2048, "n_ctx": 5}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 77}}, 77),
        ({"max_position_embeddings": "x", "text_config": 5}, None),
        ({"max_position_embeddings": 0}, None),
    ],
    ids=json.dumps,
)
def test_context_length(config, length):
    assert get_context_length(config) == length


def test_context_length_of_a_configuration():
    text = SimpleNamespace(max_position_embeddings=512)
    assert get_context_length(SimpleNamespace(get_text_config=lambda: text)) == 512
    assert get_context_length(SimpleNamespace(get_text_config=SimpleNamespace)) is None


@pytest.mark.parametrize(
    ("config", "faults"),
    [
        ({}, {}),
        ({"peft_type": "lora", "init_lora_weights": True, "use_rslora": True, "use_dora": True}, {}),
        ({"init_lora_weights": "gaussian", "layer_replication": None, "target_parameters": []}, {}),
        ({"init_lora_weights": "pissa"}, {"init_lora_weights": "pissa (it changes the base too)"}),
        ({"init_lora_weights": ["x"]}, {"init_lora_weights": "['x'] (it changes the base too)"}),
        ({"peft_type": "IA3", "use_qalora": True}, {"peft_type": "IA3", "use_qalora": ""}),
    ],
    ids=str,
)
def test_unmergeable_methods(config, faults):
    assert find_unmergeable(config) == faults


def write_header(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(start, stop, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


FORGED = {
    "tensors that overlap": {"a": entry(0, 8), "b": entry(4, 12)},
    "a tensor twice": {"a": entry(0, 8), "b": entry(0, 8), "c": entry(8, 12)},
    "bytes between tensors": {"a": entry(0, 4), "b": entry(8, 12)},
    "bytes behind the last": {"a": entry(0, 8)},
    "bytes before the first": {"a": entry(4, 12)},
    "a name twice": b'{"a": %(a)s, "a": %(a)s}' % {b"a": json.dumps(entry(0, 12)).encode()},
    "floats for offsets": {"a": entry(0, 12) | {"data_offsets": [0.0, 12.0]}},
    "floats for a shape": {"a": entry(0, 12, [3.0])},
    "a shape below zero": {"a": entry(0, 12, [-3, -1])},
    "a shape of many": {"a": entry(0, 12, [1] * 1000 + [3])},
    "offsets the wrong way": {"a": entry(12, 0, [3])},
    "offsets below zero": {"a": entry(-4, 8, [3])},
    "three offsets": {"a": entry(0, 12) | {"data_offsets": [0, 4, 12]}},
    "nesting": b'{"a":' * 100_000,
    "a number of many digits": b'{"a": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("what", FORGED)
def test_a_header_that_lies(what, tmp_path):
    path = tmp_path / "model.safetensors"
    write_header(path, FORGED[what], bytes(12))
    with pytest.raises(ImpruverError, match=r"model\.safetensors: (no safetensors file|cut off)"):
        read_safetensors_header(path)


def test_a_header_of_tensors_without_values(tmp_path):
    path = tmp_path / "model.safetensors"
    write_header(path, {"a": entry(0, 12), "b": entry(0, 0, [0, 5]), "c": entry(12, 12, [0])}, bytes(12))
    assert list(read_safetensors_header(path)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/model.safetensors", "a/model.safetensors", "..", ""]
)
def test_an_index_that_leads_out_of_its_folder(name, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert read_weight_map(index) == {"a": "model-1.safetensors"}
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": name}}))
    with pytest.raises(ImpruverError, match=r"index\.json: names .*, but weights are read from its own folder alone"):
        read_weight_map(index)


@pytest.mark.parametrize("name", ["w.bin", "weights", "w.SAFETENSORS", "model.safetensors.bin"])
def test_an_index_that_names_other_files(name, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ImpruverError, match=r"index\.json: names .*, and weights are read from \*\.safetensors alone"):
        read_weight_map(index)


def test_a_tensor_in_two_shards(weights, tmp_path):
    shutil.copyfile(weights, tmp_path / "other.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "other.safetensors"}}))
    with pytest.raises(ImpruverError, match=r"other\.safetensors: holds a, as model\.safetensors does"):
        check_shards(index)
    save_file({"c": np.ones(3, np.float32)}, tmp_path / "other.safetensors")
    check_shards(index)


@pytest.mark.parametrize("name", ["model.safetensors", "w.bin", "weights", "config.json", "loop", "folder"])
def test_links_out_of_a_folder(name, tmp_path):
    folder, elsewhere = tmp_path / "base", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "inside").symlink_to(".")
    (folder / name).symlink_to(name if name == "loop" else elsewhere)
    if name == "loop":
        check_weight_links(folder)
        return
    with pytest.raises(ImpruverError, match=r"is a link to .*elsewhere, out of the folder"):
        check_weight_links(folder)


def test_pipes_in_a_models_folder(tmp_path):
    for name in (".git", "additional_chat_templates"):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / "x.jinja")
    with pytest.raises(ImpruverError, match=r"additional_chat_templates/x\.jinja: a pipe or device"):
        check_ordinary_files(tmp_path)
    (tmp_path / "additional_chat_templates" / "x.jinja").unlink()
    check_ordinary_files(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_an_index_that_is_none(content, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(ImpruverError, match="has no weight_map that can be read"):
        read_weight_map(index)
