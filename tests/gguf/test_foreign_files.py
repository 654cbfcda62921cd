"""Folders from strangers whose configuration would take all time or memory are refused with one message."""

import json

import pytest

REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 2000}
HARM = {
    "layers without end": ("config.json", {"num_hidden_layers": 100_000}),
    "a normalizer that fills any memory": (
        "tokenizer.json",
        {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 4}},
    ),
}
ADAPTER_HARM = {
    "target_modules": r"([a-z_.0-9]+)+!",
    "rank_pattern": {r"([a-z_.0-9]+)+!": 8},
    "r": 10**9,
}


@pytest.mark.parametrize("what", HARM)
def test_a_model_that_would_take_all_time_or_memory_is_refused(what, tiny, refused):
    name, keys = HARM[what]
    change(tiny / name, keys)
    refused(tiny, str(tiny / name))


@pytest.mark.parametrize("key", ADAPTER_HARM)
def test_an_adapter_that_would_take_all_time_or_memory_is_refused(key, adapter, refused):
    change(adapter / "adapter_config.json", {key: ADAPTER_HARM[key]})
    refused(adapter, str(adapter / "adapter_config.json"), key)


def change(path, keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
