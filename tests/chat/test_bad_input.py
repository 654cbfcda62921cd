"""Bad input: exit code 2, one message that names what and where, no traceback, nothing half-written."""

import json

import pytest
from support.chat_models import make_model


def test_no_model_in_output_dir(recipe, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("absent", "empty"):
        message = refused("--config", recipe(tmp_path / folder))
        assert str(tmp_path / folder) in message
        assert "impruver-train" in message


@pytest.mark.parametrize("name", ["adapter", "full"])
def test_no_weights(name, recipe, refused, copy):
    folder = copy(name)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert "holds no weights" in refused("--config", recipe(folder))


def test_tokenizer_files_missing(recipe, refused, copy):
    folder = copy("full")
    (folder / "tokenizer.json").unlink()
    message = refused("--config", recipe(folder))
    assert "tokenizer.json" in message
    assert str(folder) in message


def test_adapter_whose_base_is_missing(recipe, refused, copy, models):
    folder = copy("adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "/nowhere/base"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    message = refused("--config", recipe(folder))
    assert "/nowhere/base" in message
    assert "--set model.name=FOLDER" in message
    message = refused("--config", recipe(folder, model={"name": str(folder / "base")}))
    assert str(folder / "base") in message
    settings["base_model_name_or_path"] = None
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    assert "set model.name" in refused("--config", recipe(folder))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": 32}, ["[8, 64]", "[8, 32]", "q_proj"]),
        ({"num_hidden_layers": 3}, ["also has", "layers.2", "(8, 128)"]),
        ({"num_hidden_layers": 1}, ["no place for", "layers.1", "(8, 128)"]),
    ],
    ids=["wider", "deeper", "flatter"],
)
def test_adapter_of_another_base(changes, told, recipe, refused, tmp_path):
    make_model(**changes).save_pretrained(tmp_path / "other")
    message = refused("--config", recipe("adapter", model={"name": str(tmp_path / "other"), "dtype": "fp32"}))
    assert "another base" in message
    assert all(part in message for part in told), message


@pytest.mark.parametrize("model", ["full", "adapter"])
def test_truncated_weights(model, recipe, refused, copy):
    folder = copy(model)
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    message = refused("--config", recipe(folder))
    assert str(path) in message
    assert "cut off" in message


@pytest.mark.parametrize(("model", "name"), [("full", "pytorch_model.bin"), ("adapter", "adapter_model.bin")])
def test_pickled_weights(model, name, recipe, refused, copy):
    import torch

    folder = copy(model)
    next(folder.glob("*.safetensors")).unlink()
    torch.save({}, folder / name)
    message = refused("--config", recipe(folder))
    assert name in message
    assert "run code" in message


@pytest.mark.parametrize(
    ("flag", "value", "wanted"),
    [
        ("top_p", "2", "above 0 and at most 1, not 2"),
        ("top_p", "0", "above 0 and at most 1"),
        ("temperature", "-1", "must be 0, or from 0.0001"),
        ("temperature", "nan", "to 10000, not nan"),
        ("top_k", "-1", "from 0 to 2147483647, not -1"),
        ("max_new_tokens", "0", "from 1 to"),
        ("top_k", "99999999999999", "2147483647, not 99999999999999"),
        ("temperature", "1e-40", "not 1e-40"),
        ("repetition_penalty", "1e-40", "not 1e-40"),
        ("system_prompt", "\udcff", "no UTF-8"),
        ("repetition_penalty", "0", "from 0.0001 to 10000"),
        ("history_limit", "-1", "from 0 to"),
    ],
)
def test_values_out_of_range(flag, value, wanted, recipe, refused):
    message = refused("--config", recipe(), f"--{flag}", value)
    assert f"--{flag}" in message
    assert f"chat.{flag}" in message
    assert wanted in message


def test_values_out_of_range_in_the_recipe(recipe, refused):
    assert "recipe.yaml:1: chat.top_p: must be above 0" in refused("--config", recipe(chat={"top_p": 2}))
    assert "did you mean top_k?" in refused("--config", recipe(chat={"topk": 2}))


BAD_FILES = {
    "invalid UTF-8": (b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "line 2: not UTF-8"),
    "no JSON": (b'{"prompt": "a"}\n{"prompt": \n', "line 2, column"),
    "no object": (b"[1]\n", "line 1: a row must be"),
    "half a surrogate pair": (b'{"prompt": "\\ud800"}\n', "line 1: half of a surrogate"),
    "nothing": (b"\n", "no rows"),
    "not a number": (b'{"prompt": "a", "x": NaN}\n', "line 1: not JSON: NaN"),
    "infinite": (b'{"prompt": "a"}\n{"x": [-1e999]}\n', "line 2: not JSON: NaN or Infinity"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_questions(name, recipe, refused, tmp_path):
    content, wanted = BAD_FILES[name]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    for more in ([], ["--dry_run"]):
        message = refused("--config", recipe(), "--input", path, "--output", tmp_path / "a.jsonl", *more)
        assert f"{path}" in message
        assert wanted in message


@pytest.mark.parametrize("row", [{"id": 1}, {"prompt": "x " * 5000}], ids=["no messages", "too long"])
def test_strict_stops_at_a_row_that_cant_be_asked(row, recipe, refused, write_jsonl, tmp_path):
    path = write_jsonl([{"prompt": "red"}, row])
    message = refused("--config", recipe(), "--input", path, "--output", tmp_path / "a.jsonl", "--strict")
    assert f"{path}, line 2: " in message


def test_places_that_cant_be_written(recipe, refused, write_jsonl, tmp_path):
    path = write_jsonl([{"prompt": "red"}])
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    config = recipe()
    assert "is a folder" in refused("--config", config, "--input", path, "--output", tmp_path / "folder")
    assert "is a file" in refused("--config", config, "--input", path, "--output", tmp_path / "file" / "a.jsonl")
    assert "did not make it" in refused("--config", config, "--input", path, "--output", tmp_path / "file")
    assert "--input itself" in refused("--config", config, "--input", path, "--output", path, "--overwrite")
    assert "no such file" in refused("--config", config, "--input", tmp_path / "x.jsonl", "--output", tmp_path / "y")


def test_an_empty_flag_is_no_flag_left_out(recipe, refused, tmp_path):
    for flag in ("gguf", "input", "output"):
        assert f"--{flag} is empty: name a file" in refused("--config", recipe(), f"--{flag}", "")


def test_a_seed_out_of_range_is_one_fault(chat, recipe):
    code, _, err = chat("--config", recipe(), "--seed", "-1")
    assert (code, err.splitlines()[0]) == (
        2,
        "impruver-chat: error: argument --seed: expected 0 to 4294967295, found -1",
    )


def test_flags_that_go_together(recipe, refused, write_jsonl, tmp_path):
    path = write_jsonl([{"prompt": "red"}])
    assert "go together" in refused("--config", recipe(), "--input", path)
    assert "go together" in refused("--config", recipe(), "--output", path)
    assert "for --input" in refused("--config", recipe(), "--expect")
    output = tmp_path / "a.jsonl"
    assert "has a reference" in refused("--config", recipe(), "--input", path, "--output", output, "--expect")


def test_where_the_recipe_is(refused, tmp_path, recipe):
    assert "--config is missing" in refused()
    assert "recipe.yaml" in refused("--output_dir", tmp_path)
    assert "output_dir is not set" in refused("--config", recipe(output_dir=None))


def test_gguf(recipe, refused, tmp_path, monkeypatch):
    (tmp_path / "text.gguf").write_text("no GGUF")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(40))
    assert "is not there" in refused("--config", recipe(), "--gguf", tmp_path / "none.gguf")
    message = refused("--config", recipe(), "--gguf", tmp_path)
    assert "is a folder: name a GGUF file in it (cut.gguf, text.gguf)" in message
    assert "is no GGUF file" in refused("--config", recipe(), "--gguf", tmp_path / "text.gguf")
    message = refused("--config", recipe(), "--gguf", tmp_path / "cut.gguf")
    assert f"--gguf: {tmp_path / 'cut.gguf'}: no GGUF file: 16 bytes follow its end" in message
    monkeypatch.setattr("impruver_core.llama_cpp.find_spec", lambda name: None)
    message = refused("--config", recipe(), "--gguf", tmp_path / "cut.gguf")
    assert 'pip install "impruver-chat[gguf]"' in message
