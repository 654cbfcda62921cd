"""What a run leaves behind: counts that add up, the same bytes again, nothing of others replaced."""

import hashlib
import json
import os
from pathlib import Path

import pytest

OUTPUTS = ("train.jsonl", "val.jsonl", "train.dropped.jsonl", "train.report.html")
PLACES = ("dataset", "dataset_index", "row", "part")


@pytest.fixture
def mixed(files, tmp_path):
    """Three data sets with every common reason to drop a row; the sections of a recipe."""
    (tmp_path / "mine.py").write_text(
        "def several(row):\n"
        "    n = row['n']\n"
        "    if n % 5 == 0: return None\n"
        "    if n % 7 == 0: raise ValueError(n)\n"
        "    said = [(f'n {n} part {p}', f'{n} {n ** 3 + p} {p * 99}') for p in range(n % 3)]\n"
        "    roles = 'user', 'assistant'\n"
        "    return [[{'role': r, 'content': t} for r, t in zip(roles, pair)] for pair in said]\n"
    )
    rows = files.unlike(30)
    rows += [rows[3], files.chat("long", "river " * 200), files.chat("only a question"), {"messages": []}]
    files.write("a.jsonl", rows)
    files.write("b.jsonl", [{"n": number} for number in range(40)])
    files.write(
        "c.jsonl", [{"text": f"a document of {number} words {number**5}"} for number in range(10)] + [{"text": ""}]
    )
    return [
        {"name": "a.jsonl", "max_tokens_count": 150},
        {"name": "b.jsonl", "converter": "mine.several"},
        {"name": "c.jsonl"},
    ]


def test_both_sums_hold_for_every_data_set(mixed, composed):
    done = composed(datasets=mixed, split={"val_ratio": 0.2})
    rows_dropped = ("bad_row", "converter_skipped", "converter_failed")
    counts = done.manifest["counts"]
    assert [each["rows"] for each in counts] == [34, 40, 11]
    for index, each in enumerate(counts):
        lines = [line for line in done.dropped if line["dataset_index"] == index]
        assert each["rows"] == each["converted"] + sum(each["rows_dropped"].values())
        assert each["conversations"] == each["train"] + each["val"] + sum(each["dropped"].values())
        assert len(lines) == sum(each["rows_dropped"].values()) + sum(each["dropped"].values())
        for reason in {line["reason"] for line in lines}:
            told = sum(line["reason"] == reason for line in lines)
            assert told == each["rows_dropped"].get(reason, 0) + each["dropped"].get(reason, 0)
        assert set(each["rows_dropped"]) <= set(rows_dropped)
    assert sum(each["train"] for each in counts) == len(done.train)
    assert sum(each["val"] for each in counts) == len(done.val) > 5
    everything = done.train + done.val
    assert sum(each["tokens"] for each in counts) == sum(len(row["input_ids"]) for row in everything)
    learned = sum(label != -100 for row in everything for label in row["labels"])
    assert sum(each["learned"] for each in counts) == learned
    reasons = {"too_long", "exact_duplicate", "nothing_to_learn", "bad_row", "converter_skipped", "converter_failed"}
    assert {line["reason"] for line in done.dropped} >= reasons


def test_the_ledger_is_in_the_order_of_the_data(mixed, composed):
    lines = composed(datasets=mixed).dropped
    places = [tuple(line[key] for key in PLACES[1:]) for line in lines]
    assert places == sorted(places)
    assert all(list(line)[:6] == [*PLACES, "reason", "detail"] for line in lines)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_two_runs_are_byte_identical_and_another_seed_is_not(mixed, composed, tmp_path, monkeypatch):
    keys = {"datasets": mixed, "split": {"val_ratio": 0.2}}
    composed(**keys)
    first = contents("out")
    assert set(first) == {*OUTPUTS, "train.jsonl.manifest.json"}
    composed(**keys)
    assert contents("out") == first
    monkeypatch.setenv("IMPRUVER_CACHE", str(tmp_path / "another cache"))
    composed("--overwrite", **keys)
    assert contents("out") == first
    composed("--seed", 7, **keys)
    other = contents("out")
    assert other["train.dropped.jsonl"] == first["train.dropped.jsonl"]
    assert other["train.jsonl"] != first["train.jsonl"]
    assert other["val.jsonl"] != first["val.jsonl"]


def test_the_manifest_describes_what_is_there(composed, files, tokenizer, tmp_path):
    from impruver_core.tokenizer import compute_fingerprint, compute_template_fingerprint

    data = files.write("data.jsonl", files.unlike(20))
    done = composed(split={"val_rows": 4}, tokenizer={"max_tokens_count": 300})
    manifest = done.manifest
    assert (manifest["impruver"], manifest["tool"], manifest["max_tokens_count"]) == (1, "impruver-compose", 300)
    assert manifest["tokenizer"] == {"fingerprint": compute_fingerprint(tokenizer), "vocab_size": len(tokenizer)}
    assert manifest["template"] == {"fingerprint": compute_template_fingerprint(tokenizer)}
    assert manifest["end_of_turn"] == ["<|im_end|>"]
    assert manifest["recipe"]["split"] == {"val_ratio": 0.05, "val_rows": 4}
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    assert manifest["inputs"] == [{"path": str(data), "bytes": data.stat().st_size, "sha256": digest}]
    assert [entry["path"] for entry in manifest["outputs"]] == list(OUTPUTS)
    for entry, rows in zip(manifest["outputs"], (16, 4, 0, None), strict=True):
        path = tmp_path / "out" / entry["path"]
        assert (entry.get("rows"), entry["bytes"]) == (rows, path.stat().st_size)
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_last_line_says_what_was_written_and_what_comes_next(composed, files):
    files.write("data.jsonl", [*files.unlike(5), files.chat("no answer")])
    done = composed(split={"val_rows": 2})
    for part in (
        "out/train.jsonl: 3",
        "out/val.jsonl: 2",
        "1 dropped",
        "out/train.dropped.jsonl",
        "out/train.report.html",
        "impruver-train",
    ):
        assert part in done.out
    assert done.out.count("\n") == 1
    assert "nothing_to_learn" in done.err


def test_quiet_says_the_result_alone(composed, files):
    files.write("data.jsonl", files.unlike(5))
    done = composed("--quiet")
    assert done.err == ""
    assert done.out.count("\n") == 1


def test_dry_run_writes_nothing(composed, compose, files, tmp_path):
    files.write("data.jsonl", [*files.unlike(300), files.chat("no answer")])
    done = composed("--dry_run")
    assert "nothing was written" in done.out
    assert "nothing_to_learn" not in done.err  # the first rows tell of the whole
    assert not (tmp_path / "out").exists()
    files.write("data.jsonl", [files.chat("no answer")])
    done = compose("--dry_run")
    assert done.code == 2
    assert "nothing_to_learn" in done.err
    assert not (tmp_path / "out").exists()


def test_dry_run_says_that_a_file_stands_in_the_way(compose, files, tmp_path):
    files.write("data.jsonl", files.unlike(3))
    files.write("out/train.jsonl", [{"precious": True}])
    done = compose("--dry_run")
    assert done.code == 2
    assert "Impruver did not make it" in done.err


def test_paths_from_flags_and_a_val_path_elsewhere(composed, files):
    files.write("data.jsonl", files.unlike(5))
    for _ in range(2):
        composed("--train-path", "x/t.jsonl", "--val_path", "y/v.jsonl", split={"val_rows": 1})
    assert len(files.read("x/t.jsonl")) == 4
    assert len(files.read("y/v.jsonl")) == 1
    manifest = json.loads(Path("x/t.jsonl.manifest.json").read_text())
    assert [entry["path"] for entry in manifest["outputs"]] == [
        "t.jsonl",
        "../y/v.jsonl",
        "t.dropped.jsonl",
        "t.report.html",
    ]


def test_own_files_are_replaced(composed, files):
    files.write("data.jsonl", files.unlike(3))
    composed()
    files.write("data.jsonl", files.unlike(5))
    assert len(composed().train) == 5
    os.remove("out/val.jsonl")
    assert len(composed().train) == 5


@pytest.mark.parametrize("name", OUTPUTS)
def test_files_of_others_are_not(name, compose, composed, files, tmp_path):
    files.write("data.jsonl", files.unlike(3))
    precious = files.write(f"out/{name}", [{"precious": True}]).read_bytes()
    done = compose()
    assert done.code == 2
    assert f"out/{name} is there and Impruver did not make it" in done.err
    assert "--overwrite" in done.err
    assert contents("out") == {name: precious}
    assert len(composed("--overwrite").train) == 3


def test_own_files_that_were_changed_are_not(compose, composed, files):
    files.write("data.jsonl", files.unlike(3))
    composed()
    before = contents("out")
    lines = Path("out/train.jsonl").read_text().splitlines(keepends=True)
    Path("out/train.jsonl").write_text("".join(reversed(lines)))  # of the same length
    done = compose()
    assert done.code == 2
    assert "out/train.jsonl was changed since Impruver made it" in done.err
    assert Path("out/train.jsonl").read_text() == "".join(reversed(lines))
    composed("--overwrite")
    assert contents("out") == before


def test_a_failed_run_leaves_the_outputs_of_the_run_before(compose, composed, files):
    files.write("data.jsonl", files.unlike(3))
    composed()
    before = contents("out")
    for rows in ([files.chat("no answer")], []):
        files.write("data.jsonl", rows)
        assert compose().code == 2
        assert contents("out") == before


def test_a_recipe_of_the_first_impruver(composed, files, texts):
    """Its own spelling: the keys that compose reads, those of the other tools, ids of special tokens."""
    files.write("data.jsonl", [{"messages": {"role": ["user", "bot"], "content": ["hi", "yo"]}}])
    folded = (
        "{% set loop_messages = messages %} {% for message in loop_messages %} "
        "{% set content = message['role'] + '\n' + message['content'] | trim %} "
        "{{ bos_token + content + eos_token }} {% endfor %}"
    )
    section = {
        "name": "data.jsonl",
        "converter": "impruver.dialog_to_messages",
        "add_global_bos": False,
        "add_global_eos": False,
        "only_target_loss": True,
    }
    done = composed(
        output_dir="./models/old",
        datasets=[section],
        split=None,
        tokenizer={
            "class": "transformers.AutoTokenizer",
            "max_tokens_count": 1024,
            "special_tokens": {"pad_token_id": 0, "pad_token": "<pad>", "bos_token_id": 9, "bos_token": "<s>"},
            "chat_template": folded,
        },
        model={"class": "transformers.AutoModelForCausalLM", "load_in_4bit": False, "dtype": "bf16"},
        lora={"r": 8, "target_modules": ["q_proj"]},
        ddp={"ddp_find_unused_parameters": False},
        trainer={"eval_strategy": "steps", "learning_rate": 2e-4, "report_to": "wandb"},
    )
    (text,) = texts(done.train)
    assert "<s>user\nhi</s>" in text
    assert "<s>assistant\nyo</s>" in text
    assert "bos_token_id" in done.err


def test_a_second_run_with_nothing_changed_writes_nothing(composed, files, tmp_path):
    files.write("data.jsonl", files.unlike(20))
    composed(split={"val_rows": 3})

    def times():
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}

    before = times()
    first = composed(split={"val_rows": 3})
    assert times() == before
    assert "17 rows" in first.out
    (tmp_path / "out/val.jsonl").unlink()
    composed(split={"val_rows": 3})
    assert set(times()) == set(before)
    before = times()
    composed(split={"val_rows": 4})
    assert times()["train.jsonl"] != before["train.jsonl"]


@pytest.mark.parametrize("kind", ["list", "mapping"])
def test_of_several_validation_files_the_first_is_written(kind, files, composed, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n")
    files.write("rows.jsonl", files.unlike(20))
    paths = [str(tmp_path / "mine.jsonl"), str(other)]
    named = paths if kind == "list" else {"mine": paths[0], "other": paths[1]}
    composed(datasets=[{"name": "rows.jsonl"}], val_path=named, split={"val_rows": 3})
    assert len((tmp_path / "mine.jsonl").read_text().splitlines()) == 3
    assert other.read_text() == "{}\n"
