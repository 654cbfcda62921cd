"""What training leaves loads in transformers 4.57, too, and says the same there."""

import json
import shutil
import subprocess
import sys

import pytest
from support.cli import run_as_process
from support.oracles import require_transformers_4

MESSAGES = [{"role": "user", "content": "the colour of a hedgehog, ёж 🦔"}]
SHAPE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
THETA = {"rope_type": "default", "rope_theta": 500000.0}
FAMILIES = {
    "Llama": {"rope_parameters": THETA},
    "Llama, scaled": {
        "rope_parameters": {
            **THETA,
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "Phi3": {"rope_parameters": THETA | {"partial_rotary_factor": 0.5}},
    "Qwen3": {"head_dim": 8, "rope_parameters": THETA},
    "Gemma3Text": {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
}
ASK = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
for case in json.load(open(sys.argv[1])):
    tokenizer = AutoTokenizer.from_pretrained(case["out"])
    model = AutoModelForCausalLM.from_pretrained(case["base"] or case["out"], dtype=torch.float32)
    if case["base"]:
        model = PeftModel.from_pretrained(model, case["out"])
    text = tokenizer.apply_chat_template(case["messages"], add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text).input_ids
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([ids + list(range(3, 43))])).logits
    torch.save({"ids": ids, "special": sorted(tokenizer.all_special_tokens), "logits": logits,
                "ends": model.generation_config.eos_token_id}, case["said"] + sys.argv[2])
"""


@pytest.fixture
def transformers_4():
    """Runs Python with transformers 4.57, in an environment of its own."""
    command = require_transformers_4()
    return lambda *words: run_as_process(*command, *words, environment={"HF_HUB_OFFLINE": "1"})


def test_transformers_4_57_loads_it_and_says_the_same(transformers_4, recipe, impruver_train, parts, tmp_path):
    import torch
    import transformers

    special = {"special_tokens": {"additional_special_tokens": ["<|user|>", "<|assistant|>"]}}
    cases = []

    def train(name, base, **keys):
        out = tmp_path / f"out {name}"
        code, _, err = impruver_train(recipe(output_dir=str(out), model={"name": str(base)}, tokenizer=special, **keys))
        assert code == 0, err
        adapter = (out / "adapter_config.json").exists()
        said = {"messages": MESSAGES, "said": str(tmp_path / name), "base": str(base) if adapter else None}
        cases.append(said | {"out": str(out)})

    train("adapter", parts / "base")
    for name, values in FAMILIES.items():
        kind = getattr(transformers, f"{name.partition(',')[0]}Config")
        shape = {"vocab_size": 400} if name == "GPT2" else SHAPE
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(kind(**shape, **values))
        shutil.copytree(parts / "base", tmp_path / name)
        model.save_pretrained(tmp_path / name)
        train(name, tmp_path / name, lora=None, trainer={"max_steps": 1, "learning_rate": 1e-3})
    todo, script = tmp_path / "cases.json", tmp_path / "ask.py"
    todo.write_text(json.dumps(cases), encoding="utf-8")
    script.write_text(ASK, encoding="utf-8")
    run = transformers_4(script, todo, ".older")
    assert run.returncode == 0, run.stderr
    run = subprocess.run([sys.executable, script, todo, ".newer"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for case in cases:
        then, now = (torch.load(case["said"] + suffix) for suffix in (".older", ".newer"))
        assert {name: then[name] for name in ("ids", "special", "ends")} == {
            name: now[name] for name in ("ids", "special", "ends")
        }
        assert torch.allclose(then["logits"], now["logits"], atol=1e-5), case["out"]


def test_a_config_that_refuses_the_older_names_stays_as_it_is(tmp_path):
    """Gemma 4 wants no theta of all layers: a run of it would end in a traceback, trained and unsaid."""
    from impruver_train.saving.transformers4_compat import widen_config
    from transformers import AutoConfig, Gemma4TextConfig

    Gemma4TextConfig(**SHAPE, head_dim=8).save_pretrained(tmp_path)
    saved = (tmp_path / "config.json").read_text(encoding="utf-8")
    widen_config(tmp_path / "config.json", Gemma4TextConfig)
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == saved
    assert AutoConfig.from_pretrained(tmp_path).hidden_size == SHAPE["hidden_size"]
