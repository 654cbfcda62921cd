"""Trains for real on a tiny Llama: every method, what output_dir holds, precision, repeatability."""

import json

import pytest
from support.jsonl import read_jsonl, write_jsonl
from support.trainers import put_beside_recipe

SCRATCH = {"name": None, "class": "transformers.LlamaForCausalLM", "config_class": "transformers.LlamaConfig"}
METHODS = {
    "lora": {},
    "lora-4bit": {"model": {"load_in_4bit": True}},
    "lora-8bit": {"model": {"load_in_8bit": True}},
    "full": {"lora": None},
}


@pytest.fixture
def probed(recipe, impruver_train, tmp_path, monkeypatch):
    """Trains with the probe as Trainer; (output_dir, what the probe kept)."""

    import torch

    def run(*flags, trainer=None, **keys):
        put_beside_recipe("probe", tmp_path)
        monkeypatch.setenv("PROBE", str(tmp_path / "probe.pt"))
        config = recipe(trainer={"class": "probe.ProbeTrainer"} | (trainer or {}), **keys)
        code, _, err = impruver_train(config, *flags)
        assert code == 0, err
        return tmp_path / "out", torch.load(tmp_path / "probe.pt")

    return run


def reload(out, parts, **options):
    """The model that `out` holds, by transformers' and peft's own loading."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if not (out / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(out, **options)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(parts / "base", **options), out)


def says(model, tokens):
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


def tokens():
    import torch

    return torch.arange(3, 43).reshape(1, 40)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_saved_says_what_was_trained(method, probed, parts):
    import torch

    out, kept = probed(**METHODS[method])
    assert kept["moved"]
    assert torch.equal(says(reload(out, parts), tokens()), kept["logits"])


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_base_trains_and_its_adapter_loads(bits, probed, parts):
    import torch
    from impruver_core.modeling.loading import disable_cpu_4bit_repacking
    from transformers import BitsAndBytesConfig

    out, kept = probed(**METHODS[f"lora-{bits}bit"])
    assert kept["moved"]
    assert {kind for kind, trained in kept["dtypes"].values() if trained} == {"torch.float32"}
    held = {kind for name, (kind, _) in kept["dtypes"].items() if "q_proj.base_layer" in name}
    assert held == {"torch.uint8" if bits == 4 else "torch.int8"}
    if bits == 4:
        settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    else:
        settings = BitsAndBytesConfig(load_in_8bit=True)
    model = reload(out, parts, quantization_config=settings, dtype=torch.float32)
    disable_cpu_4bit_repacking(model)
    assert torch.allclose(says(model, tokens()), kept["logits"], atol=1e-5)


def test_an_evaluation_changes_nothing_of_a_4_bit_training(recipe, impruver_train, parts, tmp_path, tiny):
    # bitsandbytes rewrites 4-bit weights at an evaluation where the CPU has bf16 instructions
    def losses(name, **trainer):
        config = recipe(
            f"{name}.yaml",
            output_dir=str(tmp_path / name),
            val_path=str(parts / "val.jsonl"),
            model={"load_in_4bit": True},
            trainer=trainer,
        )
        code, _, err = impruver_train(config)
        assert code == 0, err
        return [row["loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl") if "loss" in row]

    assert losses("evaluated", eval_strategy="steps", eval_steps=2) == losses("not")


def test_output_dir_of_an_adapter(recipe, impruver_train, parts, tmp_path, tiny):
    from transformers import AutoTokenizer

    (parts / "base" / "tokenizer.model").write_bytes(b"a vocabulary")
    try:
        code, stdout, _ = impruver_train(recipe(val_path=str(parts / "val.jsonl")))
    finally:
        (parts / "base" / "tokenizer.model").unlink()
    out = tmp_path / "out"
    assert code == 0
    following = f"impruver-chat --output_dir {out}, impruver-gguf --output_dir {out}"
    assert stdout == f"wrote the adapter to {out}; next: {following}\n"
    assert {path.name for path in out.iterdir()} == {
        *("recipe.yaml", "impruver.json", "metrics.jsonl", "speed.jsonl", "report.html", "heldout.jsonl"),
        *("adapter_config.json", "adapter_model.safetensors", "config.json", "generation_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model"),
    }
    assert (out / "tokenizer.model").read_bytes() == b"a vocabulary"
    assert read_jsonl(out / "heldout.jsonl") == read_jsonl(parts / "val.jsonl")
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [5, 2]  # <|end|>, then </s>
    assert json.loads((out / "config.json").read_text())["use_cache"] is True
    assert (
        AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(parts / "base").chat_template
    )
    modes = {path.stat().st_mode & 0o777 for path in out.glob("*.safetensors")}
    assert modes == {(out / "config.json").stat().st_mode & 0o777}


def test_manifest_and_recipe(recipe, impruver_train, parts, tmp_path, monkeypatch):
    from hashlib import sha256

    from impruver_core.recipe.loading import load_recipe
    from impruver_core.tokenizer import compute_fingerprint
    from transformers import AutoTokenizer

    monkeypatch.chdir(tmp_path)
    assert impruver_train(recipe(output_dir="out"))[0] == 0
    manifest = json.loads((tmp_path / "out" / "impruver.json").read_text())
    assert (manifest["impruver"], manifest["tool"]) == (1, "impruver-train")
    assert manifest["tokenizer"]["fingerprint"] == compute_fingerprint(AutoTokenizer.from_pretrained(tmp_path / "out"))
    train_input = manifest["inputs"][0]
    assert train_input["sha256"] == sha256((parts / "train.jsonl").read_bytes()).hexdigest()
    assert train_input["rows"] == manifest["counts"]["rows"] == 48
    assert manifest["counts"]["steps"] == 4
    saved = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert saved.model.name == str(parts / "base")
    assert saved.trainer["max_steps"] == 4


def test_metrics_have_every_step_whatever_logging_steps_says(recipe, impruver_train, parts, tmp_path, tiny):
    trainer = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 3}
    assert impruver_train(recipe(val_path=str(parts / "val.jsonl"), trainer=trainer))[0] == 0
    rows = read_jsonl(tmp_path / "out" / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all(set(row) == {"step", "loss", "epoch", "learning_rate", "grad_norm"} for row in steps)
    assert [row["learning_rate"] for row in steps] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    evaluations = [row for row in rows if "eval_loss" in row]
    assert [row["step"] for row in evaluations] == [2, 4]
    assert all(set(row) == {"step", "eval_loss"} for row in evaluations)


def test_first_loss_is_the_models_own(recipe, impruver_train, parts, tmp_path, tiny):
    """Loss of step 1 over a whole-file batch: the mean over target tokens, computed here without Trainer."""
    import torch
    from transformers import AutoModelForCausalLM

    rows = read_jsonl(parts / "train.jsonl")
    assert impruver_train(recipe(lora=None, trainer={"per_device_train_batch_size": len(rows), "max_steps": 1}))[0] == 0
    model = AutoModelForCausalLM.from_pretrained(parts / "base")
    lost, targets = 0.0, 0
    for row in rows:
        logits = says(model, torch.tensor([row["input_ids"]]))[0, :-1]
        labels = torch.tensor(row["labels"])[1:]
        lost += torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100).item()
        targets += int((labels != -100).sum())
    assert read_jsonl(tmp_path / "out" / "metrics.jsonl")[0]["loss"] == pytest.approx(lost / targets, abs=1e-5)


def test_from_scratch_takes_the_tokenizers_vocabulary(recipe, impruver_train, parts, tmp_path, tiny):
    config = tiny.llama | {"torch_dtype": "float16", "made_up": 1}
    code, _, err = impruver_train(
        recipe(lora=None, model=SCRATCH | {"config": config}, tokenizer={"name": str(parts / "base")})
    )
    assert code == 0, err
    assert "model.config.made_up" in err
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["vocab_size"], written["eos_token_id"], written["pad_token_id"]) == (400, 2, 0)
    assert written["dtype"] == "float32"


def test_two_runs_have_equal_losses(recipe, impruver_train, tmp_path, tiny):
    trainer = {"gradient_accumulation_steps": 2, "max_steps": 6}
    for name in ("a", "b", "c"):
        seed = ["--seed", "7"] if name == "c" else []
        path = recipe(output_dir=str(tmp_path / name), lora={"lora_dropout": 0.1}, trainer=trainer)
        assert impruver_train(path, *seed)[0] == 0
    losses = {name: [row["loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl")] for name in "abc"}
    assert losses["a"] == losses["b"]
    assert losses["a"] != losses["c"]
    same = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab"]
    assert same[0] == same[1]


PRECISIONS = [
    ({"dtype": "auto"}, {}, None, ("torch.float32", "torch.float32"), "no"),
    ({"dtype": "bf16"}, {}, None, ("torch.float32", "torch.float32"), "bf16"),
    ({"dtype": "bf16"}, {}, {"r": 4, "target_modules": ["q_proj"]}, ("torch.float32", "torch.bfloat16"), "bf16"),
    ({"dtype": "bf16"}, {"bf16": False}, None, ("torch.bfloat16", "torch.bfloat16"), "no"),
    ({"dtype": "auto"}, {"bf16": True}, None, ("torch.float32", "torch.float32"), "bf16"),
]


@pytest.mark.parametrize(("model", "trainer", "lora", "held", "autocast"), PRECISIONS)
def test_precision(model, trainer, lora, held, autocast, probed, monkeypatch):
    monkeypatch.setattr(
        "impruver_core.modeling.loading.has_bf16", lambda device: False
    )  # this machine's answer, on any machine
    _, kept = probed(model=model, trainer=trainer | {"max_steps": 1}, lora=lora)
    kinds = {True: set(), False: set()}
    for kind, trained in kept["dtypes"].values():
        kinds[trained].add(kind)
    assert kinds[True] == {held[0]}
    assert kinds[False] <= {held[1]}
    assert kept["autocast"] == autocast


def test_new_special_tokens_are_trained_and_saved(probed, parts, tmp_path, tiny):
    import torch
    from impruver_core.modeling.loading import load_adapter
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = read_jsonl(parts / "train.jsonl")
    rows = [{"input_ids": row["input_ids"] + [400], "labels": row["labels"] + [400]} for row in rows]
    data = write_jsonl(tmp_path / "new.jsonl", rows)
    special = {"additional_special_tokens": ["<|stop|>"]}
    out, kept = probed(train_path=str(data), tokenizer={"special_tokens": special})
    assert any("trainable_tokens" in name for name in kept["moved"])
    assert AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("<|stop|>") == 400
    shapes = [tuple(weight.shape) for weight in load_file(out / "adapter_model.safetensors").values()]
    assert (401, 32) not in shapes  # the new rows alone, not whole matrices
    base = AutoModelForCausalLM.from_pretrained(parts / "base")
    model = load_adapter(base, out, vocabulary=401)
    assert torch.allclose(says(model, tokens())[..., :401], kept["logits"], atol=1e-6)


def test_the_best_checkpoint_is_left(probed, parts, tmp_path, tiny):
    import torch

    trainer = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 6,
        "load_best_model_at_end": True,
        "learning_rate": 3.0,  # it soon gets worse
        "lr_scheduler_type": "constant",
    }
    out, _ = probed(lora=None, val_path=str(parts / "val.jsonl"), trainer=trainer)
    losses = {row["step"]: row["eval_loss"] for row in read_jsonl(out / "metrics.jsonl") if "eval_loss" in row}
    best = min(losses, key=losses.get)
    assert best != 6
    assert torch.equal(says(reload(out, parts), tokens()), says(reload(out / f"checkpoint-{best}", parts), tokens()))


def test_gradient_checkpointing_under_lora_gives_the_same_losses(recipe, impruver_train, tmp_path, tiny):
    for name, on in (("a", False), ("b", True)):
        path = recipe(output_dir=str(tmp_path / name), trainer={"gradient_checkpointing": on})
        assert impruver_train(path)[0] == 0
    losses = [[row["loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl")] for name in "ab"]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_the_default_template_is_saved_with_a_bare_tokenizer(recipe, impruver_train, tmp_path, tiny):
    from impruver_core.chat_template.selection import DEFAULT_TEMPLATE
    from transformers import AutoTokenizer

    tiny.make_tokenizer(tmp_path / "bare", template=None)
    code, _, err = impruver_train(recipe(tokenizer={"name": str(tmp_path / "bare")}))
    assert code == 0, err
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == DEFAULT_TEMPLATE
    eos = json.loads((tmp_path / "out/generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    assert eos in (2, [2])


def test_padding_stays_within_the_positions_a_model_has(recipe, impruver_train, parts, tmp_path, tiny):
    """61 positions are no multiple of 8, and GPT-2 learns each of its own."""
    data = write_jsonl(tmp_path / "long.jsonl", [{"input_ids": [5] * 60, "labels": [6] * 60}] * 4)
    config = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "n_positions": 61}
    model = {"name": None, "class": "transformers.GPT2LMHeadModel", "config_class": "transformers.GPT2Config"}
    keys = {"model": model | {"config": config}, "tokenizer": {"name": str(parts / "base")}, "lora": None}
    code, _, err = impruver_train(recipe(train_path=str(data), **keys))
    assert code == 0, err
