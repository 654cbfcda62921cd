"""Packed rows: each has the loss it has alone, on every attention; models that would mix them are refused."""

import itertools
import json

import numpy
import pytest
from impruver_core.errors import ImpruverError
from impruver_train.data.token_files import TokenFiles
from support.jsonl import read_jsonl, write_jsonl

IGNORED = -100


def write_mixed(tiny, parts, path, count=40):
    """Rows of 3 to 60 tokens, every label a target; of some not the first."""
    rows = []
    for number in range(count):
        length = 3 + (number * 17) % 58
        ids = [3 + (number * 31 + place * 7) % 390 for place in range(length)]
        rows.append({"input_ids": ids, "labels": ids if number % 3 else [IGNORED, *ids[1:]]})
    return write_jsonl(path, rows)


def row_losses(model, batch):
    """Summed loss of each row in a batch, by its own tokens."""
    import torch

    losses = {}
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False).logits
    for ids, labels, said, starts in zip(
        batch["input_ids"], batch["labels"], logits, batch.get("position_ids", batch["input_ids"] * 0), strict=True
    ):
        each = torch.nn.functional.cross_entropy(said[:-1].float(), labels[1:], ignore_index=IGNORED, reduction="none")
        bounds = [*(starts == 0).nonzero().flatten().tolist(), len(ids)] if "position_ids" in batch else [0, len(ids)]
        for start, end in itertools.pairwise(bounds):
            targets = labels[start:end] != IGNORED
            if targets.any():
                key = tuple(ids[start:end][: int(targets.nonzero().max()) + 1].tolist())
                losses[key] = float(each[start : end - 1].sum())
    return losses


@pytest.fixture
def packed(parts, tmp_path, tiny):
    """(rows, packs of 64 tokens) of mixed rows, and the collator over the tiny tokenizer."""
    from impruver_train.data import packing, token_dataset
    from impruver_train.data.collator import make_collator
    from transformers import AutoTokenizer

    mixed = write_mixed(tiny, parts, tmp_path / "mixed.jsonl")
    _, rows = token_dataset.load_token_dataset(TokenFiles(mixed, (mixed,)))
    layout = packing.plan_packing(token_dataset.get_row_lengths(rows), True, 64, 0)
    return rows, layout.build_dataset(rows), make_collator(AutoTokenizer.from_pretrained(parts / "base"))


def model_of(kind, attention, parts, lora=False):
    import torch
    from impruver_train.modeling.packed_attention import enable_rowwise_attention
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 400}
    more = {
        "llama": {"intermediate_size": 64, "num_key_value_heads": 2},
        "qwen3": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
        "mistral": {"intermediate_size": 64, "num_key_value_heads": 2, "sliding_window": 16},
        "gpt2": {},
        "gemma3_text": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16},
    }[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes, **more)
    by_row = attention == "row by row"
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa" if by_row else attention)
    if by_row:
        enable_rowwise_attention(model)
    for weight in model.parameters():  # fresh norms and small weights would hide a leak
        weight.data += torch.randn_like(weight) * 0.2
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False))
    return model.eval()


@pytest.mark.parametrize("attention", ["sdpa", "row by row", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma3_text", "gpt2"])
def test_each_row_has_the_loss_that_it_has_alone(kind, attention, packed, parts):
    rows, packs, collate = packed
    model = model_of(kind, attention, parts, lora=kind == "llama")
    together = {}
    for start in range(0, len(packs), 3):
        together |= row_losses(model, collate([packs[i] for i in range(start, min(start + 3, len(packs)))]))
    alone = {}
    for row in rows:
        alone |= row_losses(model, collate([row]))
    assert len(alone) == len(rows)
    assert together.keys() == alone.keys()
    assert max(abs(together[key] - alone[key]) / len(key) for key in alone) < 1e-4
    assert max(len(packs.packs.bounds[i : i + 2]) for i in range(len(packs))) > 1


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "gpt2"])
def test_gradients_row_by_row_are_those_under_the_mask(kind, packed, parts):
    import torch

    _, packs, collate = packed
    batch = collate([packs[0], packs[1]])
    gradients = {}
    for attention in ("sdpa", "row by row"):
        model = model_of(kind, attention, parts)
        model(**batch, use_cache=False).loss.backward()
        gradients[attention] = {name: weight.grad for name, weight in model.named_parameters()}
    for name, under_mask in gradients["sdpa"].items():
        assert torch.allclose(gradients["row by row"][name], under_mask, rtol=1e-3, atol=1e-5), name


def test_a_row_in_a_pack_is_attended_to_by_itself(packed, parts, monkeypatch):
    """No score between rows is computed: transformers' own function gets one row at a time."""
    from transformers.integrations import sdpa_attention

    _, packs, collate = packed
    model = model_of("llama", "row by row", parts)
    asked, plain = [], sdpa_attention.sdpa_attention_forward

    def counted(module, query, *more, **words):
        asked.append(query.shape[2])
        return plain(module, query, *more, **words)

    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", counted)
    batch = collate([packs[0]])
    model(**batch, use_cache=False)
    starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), len(batch["input_ids"][0])]
    assert asked == [end - start for start, end in itertools.pairwise(starts)] * 2  # layers


def test_packs_hold_every_row_once_and_little_else(tmp_path):
    from impruver_train.data.packing import plan_packing

    lengths = numpy.random.default_rng(0).lognormal(5, 0.8, 5000).clip(8, 1024).astype(numpy.int32)
    layout = plan_packing(lengths, True, 1024, 7)
    assert sorted(layout.packs.order) == list(range(5000))
    assert layout.sizes.max() <= 1024
    assert layout.sizes.sum() == lengths.sum()
    assert 1 - lengths.sum() / (len(layout.sizes) * 1024) < 0.01
    again, other = plan_packing(lengths, True, 1024, 7), plan_packing(lengths, True, 1024, 8)
    assert (again.packs.order == layout.packs.order).all()
    assert not (other.packs.order == layout.packs.order).all()


def test_flash_attention_gets_one_sequence(packed, parts):
    from impruver_train.data.collator import collate_packs

    _, packs, _ = packed
    batch = collate_packs([packs[0], packs[1]], 0, flat=True)
    assert len(batch["input_ids"]) == 1
    bounds = (batch["position_ids"][0] == 0).sum()
    assert bounds >= packs.packs.bounds[2]
    assert (batch["labels"][0][batch["position_ids"][0] == 0] == IGNORED).all()


def test_packs_longer_than_the_positions_a_model_has():
    """A batch of one full pack and one that is nearly empty: padding has positions that rows have."""
    from impruver_train.data.collator import collate_packs

    full = {"input_ids": [5] * 40, "labels": [5] * 40, "position_ids": [*range(10)] * 4}
    short = {"input_ids": [5, 6], "labels": [5, 6], "position_ids": [0, 1]}
    batch = collate_packs([full, short], 0, flat=False)
    assert batch["position_ids"][1].tolist() == [0, 1, *[*range(10)] * 3, *range(8)]


def test_mixed_rows_are_seen_with_a_vocabulary_of_six_tokens(monkeypatch):
    import torch
    from impruver_train.modeling.packed_attention import require_row_isolation
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=6, initializer_range=0.5)
    )
    require_row_isolation(model)
    forward = model.forward

    def mix(position_ids, **inputs):
        return forward(position_ids=torch.arange(position_ids.shape[1])[None], **inputs)  # as one row

    monkeypatch.setattr(model, "forward", mix)
    with pytest.raises(ImpruverError, match="packed rows see each other"):
        require_row_isolation(model)


VARIANTS = {
    "full": {"lora": None},
    "lora, eager, checkpointing": {
        "model": {"attn_implementation": "eager"},
        "trainer": {"gradient_checkpointing": True},
    },
    "lora, sdpa, checkpointing": {"trainer": {"gradient_checkpointing": True}},
    "lora, workers": {"trainer": {"dataloader_num_workers": 2}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_one_step_over_everything_is_the_step_without_packing(name, recipe, impruver_train, parts, tmp_path, tiny):
    """Loss (a mean over target tokens), gradient norm and the loss after the step: the same, packed or not."""
    data = write_mixed(tiny, parts, tmp_path / "mixed.jsonl")
    keys = VARIANTS[name]
    said = {}
    for packing in (True, False):
        trainer = keys.get("trainer", {}) | {"packing": packing, "eval_strategy": "steps", "eval_steps": 1}
        trainer |= {"max_steps": 2, "per_device_train_batch_size": 40, "learning_rate": 1e-3}
        out = str(tmp_path / f"out{packing}")
        path = recipe(**keys | {"trainer": trainer}, train_path=str(data), output_dir=out, val_path=str(data))
        code, _, err = impruver_train(path)
        assert code == 0, err
        assert ("packs:" in err) == packing
        said[packing] = read_jsonl(tmp_path / f"out{packing}" / "metrics.jsonl")
    assert len(said[True]) == 4
    for packed, plain in zip(said[True], said[False], strict=True):
        assert {key: value for key, value in packed.items() if key != "epoch"} == pytest.approx(
            {key: value for key, value in plain.items() if key != "epoch"}, abs=1e-4
        )


MIXING = {
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}, "state"),
    "rwkv": ({"hidden_size": 32, "num_hidden_layers": 1, "attention_hidden_size": 32}, "state"),
    "bloom": ({"hidden_size": 32, "n_layer": 1, "n_head": 4}, "position_ids"),
    "lfm2": (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        | {"layer_types": ["conv", "full_attention"]},
        "conv",
    ),
}


@pytest.mark.parametrize("kind", MIXING)
def test_models_that_mix_rows_are_refused_before_weights(kind, recipe, impruver_train, parts, tmp_path):
    from transformers import CONFIG_MAPPING

    config, why = MIXING[kind]
    model = {
        "name": None,
        "class": "transformers.AutoModelForCausalLM",
        "config_class": f"transformers.{CONFIG_MAPPING[kind].__name__}",
        "config": config,
    }
    path = recipe(lora=None, model=model, tokenizer={"name": str(parts / "base")}, trainer={"packing": True})
    code, stdout, err = impruver_train(path, "--dry_run")
    assert (code, stdout) == (2, ""), err
    assert "trainer.packing" in err
    assert why in err[err.index("trainer.packing") :]
    assert impruver_train(recipe(lora=None, model=model, tokenizer={"name": str(parts / "base")}), "--dry_run")[0] == 0


def test_an_unforeseen_leak_is_found_in_the_loaded_model(recipe, impruver_train, tmp_path):
    """A custom class whose forward mixes neighbours passes every rule, and not the trial of two rows."""
    (tmp_path / "leaky.py").write_text(
        "from transformers import LlamaForCausalLM\n"
        "from transformers.masking_utils import create_causal_mask\n"
        "class Leaky(LlamaForCausalLM):\n"
        "    def forward(self, input_ids=None, inputs_embeds=None, **more):\n"
        "        embedded = self.get_input_embeddings()(input_ids)\n"
        "        return super().forward(inputs_embeds=embedded + embedded.roll(1, 1).cumsum(1) / 9, **more)\n"
    )
    code, _, err = impruver_train(recipe(lora=None, model={"class": "leaky.Leaky"}, trainer={"packing": True}))
    assert code == 2, err
    assert "packed rows see each other" in err
    assert not (tmp_path / "out").exists()


def test_rows_whose_mask_hides_tokens_are_not_packed(recipe, impruver_train, tiny, tmp_path):
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7], "attention_mask": [1, 1, part]} for part in (1, 0)]
    data = write_jsonl(tmp_path / "masked.jsonl", rows)
    code, _, err = impruver_train(recipe(train_path=str(data), trainer={"packing": True}), "--dry_run")
    assert code == 2
    assert "line 2" in err
    assert impruver_train(recipe(train_path=str(data)), "--dry_run")[0] == 0


def test_packs_count_in_the_steps(recipe, impruver_train, parts, tmp_path, tiny):
    data = write_mixed(tiny, parts, tmp_path / "mixed.jsonl")
    trainer = {"packing": True, "max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 2}
    path = recipe(train_path=str(data), trainer=trainer, tokenizer={"max_tokens_count": 64})
    _, dry, _ = impruver_train(path, "--dry_run")
    assert "tokenizer.max_tokens_count" in dry
    assert impruver_train(path)[0] == 0
    done = json.loads((tmp_path / "out" / "impruver.json").read_text())["counts"]["steps"]
    assert f"{done:,} in all" in dry


def test_the_lines_of_packed_rows_are_found(parts, tiny):
    from impruver_train.data.collator import make_collator
    from impruver_train.training.callbacks.nan_guard import find_lines
    from transformers import AutoTokenizer

    rows = read_jsonl(parts / "train.jsonl")
    packs = [
        {"input_ids": [*one["input_ids"], *other["input_ids"]], "labels": [*one["labels"], *other["labels"]]}
        | {"position_ids": [*range(len(one["input_ids"])), *range(len(other["input_ids"]))]}
        for one, other in ((rows[30], rows[4]), (rows[11], rows[2]))
    ]
    batch = make_collator(AutoTokenizer.from_pretrained(parts / "base"))(packs)
    train = parts / "train.jsonl"
    assert find_lines(TokenFiles(train, (train,)), [batch]) == {train: [3, 5, 12, 31]}
