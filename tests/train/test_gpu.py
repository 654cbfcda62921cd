"""On a CUDA device: what a GPU is asked for trains, and learns what plain fp32 learns."""

from importlib.util import find_spec

import pytest
from support.jsonl import read_jsonl

pytestmark = pytest.mark.gpu
KINDS = {
    "bf16": {"model": {"dtype": "bf16"}},
    "flash attention": {"model": {"dtype": "bf16", "attn_implementation": "flash_attention_2"}},
    "liger": {"model": {"dtype": "bf16"}, "trainer": {"use_liger_kernel": True}},
    "liger, packed": {
        "model": {"dtype": "bf16"},
        "trainer": {"use_liger_kernel": True, "packing": True, "per_device_train_batch_size": 1},
        "tokenizer": {"max_tokens_count": 64},
    },
    "compiled": {"model": {"dtype": "bf16"}, "trainer": {"torch_compile": True}},
    "4 bit": {"model": {"dtype": "bf16", "load_in_4bit": True}},
    "8 bit": {"model": {"dtype": "bf16", "load_in_8bit": True}},
    "packed": {
        "model": {"dtype": "bf16"},
        "trainer": {"packing": True, "per_device_train_batch_size": 1},
        "tokenizer": {"max_tokens_count": 64},
    },
    "fp16": {"model": {"dtype": "fp16"}},
}
NEEDS = {"flash attention": "flash_attn", "liger": "liger_kernel", "liger, packed": "liger_kernel"}


@pytest.fixture(scope="module")
def cuda():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture
def losses(recipe, impruver_train, as_process, tmp_path, tiny):
    """The losses of a run with these keys, Liger's in a process of its own: it changes the model's class."""

    def run(name, **keys):
        keys["trainer"] = {"use_cpu": None, "max_steps": 12} | keys.get("trainer", {})
        path = recipe(f"{name}.yaml", output_dir=str(tmp_path / name), **keys)
        if keys["trainer"].get("use_liger_kernel"):
            done = as_process("--config", path)
            code, err = done.returncode, done.stderr
        else:
            code, _, err = impruver_train(path)
        assert code == 0, err
        return [row["loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl")]

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_as_fp32_does(kind, cuda, losses):
    if kind in NEEDS and find_spec(NEEDS[kind]) is None:
        pytest.skip(f"{NEEDS[kind]} is not installed")
    seen, plain = losses("kind", **KINDS[kind]), losses("plain")
    assert seen[0] == pytest.approx(plain[0], rel=0.05)
    assert seen[-1] < seen[0]
    assert seen[-1] == pytest.approx(plain[-1], rel=0.15)


@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_memory_is_told_within_a_quarter(dtype, more, cuda, recipe, as_process, parts, tiny, tmp_path):
    import re

    config = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
    model = {"config_class": "transformers.LlamaConfig", "config": config | {"vocab_size": 32000}, "name": None}
    trainer = {"use_cpu": None, "per_device_train_batch_size": 256, **more}
    tokenizer = {"name": str(parts / "base")}
    run = as_process(
        "--config",
        recipe(lora=None, model=model | {"dtype": dtype}, tokenizer=tokenizer, trainer=trainer),
        "--trial_steps",
        3,
    )
    assert run.returncode == 0, run.stderr
    told, taken = (
        float(re.search(r"([\d,]+) MiB at its peak", text)[1].replace(",", "")) for text in (run.stderr, run.stdout)
    )
    assert told == pytest.approx(taken, rel=0.25)
