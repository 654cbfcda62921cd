"""README's `impruver demo` in an empty home: the four real commands, and what was trained answers what was held out."""

import os
import re
import signal
import string
import subprocess
import unicodedata

from support.cli import script, wait_for
from support.jsonl import read_jsonl


def normal(text: str) -> str:
    """Case, blanks and final punctuation do not count."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(string.punctuation + " ")


def answers(folder, conversations: list[list[dict]]) -> list[str]:
    """Greedy answers, in batches padded on the left."""
    import torch
    from impruver_core import encode_prompt
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [encode_prompt(tokenizer, messages) for messages in conversations]
    given = []
    for start in range(0, len(prompts), 64):
        batch = prompts[start : start + 64]
        width = max(map(len, batch))
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in batch])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
        out = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=48, pad_token_id=tokenizer.pad_token_id
        )
        given += tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    return given


def stopped_in_training(tmp_path):
    """Starts the demo and stops it with SIGTERM when train has begun; train ends with it."""
    command = [script("impruver"), "demo", "there"]
    environment = os.environ | {"HOME": str(tmp_path / "home")}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True) as demo:
        wait_for((tmp_path / "there/models/quickstart_tiny_full/metrics.jsonl").exists, demo, 600)
        demo.send_signal(signal.SIGTERM)
        _, err = demo.communicate(timeout=120)
    assert demo.returncode == 143, err
    assert "stopped by SIGTERM" in err
    assert not (tmp_path / "there/models/quickstart_tiny_full/impruver.json").exists()


def test_demo(run, tmp_path):
    stopped_in_training(tmp_path)
    done = run("impruver", "demo", "there", timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    for program in ("compose", "train", "gguf", "chat"):
        assert f"$ impruver-{program} --config quickstart/tiny_full" in done.stdout
    shares = re.findall(r"(the model|its q8_0 GGUF): (\d+) of (\d+) held-out questions right", done.stdout)
    assert [name for name, _, _ in shares] == ["the model", "its q8_0 GGUF"]
    assert all(int(right) >= 0.8 * int(asked) >= 40 for _, right, asked in shares)
    assert {path.name for path in tmp_path.iterdir()} <= {"there", "home"}
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    check_answers(tmp_path / "there", int(shares[0][1]))


def check_answers(folder, right):
    """Transformers' own greedy answers are as often right as impruver-chat's."""
    rows = read_jsonl(folder / "val.quickstart_tiny.jsonl")
    given = answers(folder / "models/quickstart_tiny_full", [row["messages"][:-1] for row in rows])
    matches = [
        normal(row["messages"][-1]["content"]) == normal(answer) for row, answer in zip(rows, given, strict=True)
    ]
    assert abs(sum(matches) - right) <= 1
    assert sum(matches) >= 0.8 * len(rows)


def test_a_folder_with_something_else_is_left_alone(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/work.txt").write_text("mine")
    done = run("impruver", "demo", "mine")
    assert done.returncode == 2
    assert "holds something else" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["work.txt"]
