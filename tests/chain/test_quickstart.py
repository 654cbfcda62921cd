"""README's quickstart with the real commands: the trained model answers what it was not trained on."""

import json
import string
import unicodedata


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


def test_quickstart(run, tmp_path):
    composed = run("impruver-compose", "--config", "quickstart/tiny_full")
    assert composed.returncode == 0, composed.stderr
    assert "near_duplicate" in composed.stderr
    trained = run("impruver-train", "--config", "quickstart/tiny_full")
    assert trained.returncode == 0, trained.stderr
    rows = [
        json.loads(line) for line in (tmp_path / "val.quickstart_tiny.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) >= 50
    given = answers(tmp_path / "models/quickstart_tiny_full", [row["messages"][:-1] for row in rows])
    right = [normal(row["messages"][-1]["content"]) == normal(answer) for row, answer in zip(rows, given, strict=True)]
    assert sum(right) >= 0.8 * len(rows), [a for a, good in zip(given, right, strict=True) if not good][:10]
    prompts = {json.dumps(row["messages"][:-1]) for row in rows}
    source = [
        json.loads(line) for line in (tmp_path / "train.quickstart_tiny.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert all(set(row) == {"input_ids", "labels"} for row in source)
    assert len(prompts) <= len(rows)
