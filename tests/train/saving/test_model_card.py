"""Model cards of manifests: adapters, whole models, models from scratch."""

import pytest
import yaml
from impruver_train.saving.model_card import build_model_card, make_base_name

COUNTS = {"rows": 48, "learned_tokens": 1530, "steps": 4}
METRICS = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.5}]


def build(model, name, adapter, **recipe):
    manifest = {"tool": "impruver-train", "version": "1", "counts": COUNTS, "recipe": {"model": model} | recipe}
    card = build_model_card(manifest, make_base_name(name), adapter, "me/mine", METRICS)
    return yaml.safe_load(card.split("---")[1]), card


@pytest.mark.parametrize(
    ("model", "name", "adapter", "front", "words"),
    [
        ({"load_in_4bit": True, "name": "a/b"}, "a/b", True, {"base_model": "a/b", "library_name": "peft"}, "QLoRA"),
        ({"name": "a/b"}, "a/b", False, {"base_model": "a/b", "library_name": "transformers"}, "| method | full |"),
        ({"name": "x"}, "/home/u/x y", True, {"base_model": "x y", "library_name": "peft"}, "PATH/TO/x y"),
        ({"config_class": "t.LlamaConfig"}, None, False, {"library_name": "transformers"}, "from scratch"),
    ],
)
def test_a_card_says_what_was_trained(model, name, adapter, front, words):
    metadata, card = build(model, name, adapter, datasets=[{"name": "me/chats"}, {"name": "data/mine.jsonl"}])
    tags = ["impruver", "lora"] if adapter else ["impruver"]
    assert metadata == front | {"pipeline_tag": "text-generation", "tags": tags}
    assert words in card
    for fact in ("chats, mine.jsonl", "| target tokens | 1,530 |", "first step | 3 |", "validation loss, lowest | 2.5"):
        assert fact in card
    assert "hf download me/mine" in card
