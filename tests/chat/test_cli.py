"""The command: its start, --output_dir alone, --dry_run, `impruver run chat`."""

import json
import shutil

import pytest
from support.cli import run_as_process, run_watching_imports, script


def test_help_and_faults_import_nothing_heavy(recipe, tmp_path):
    heavy = {"torch", "transformers", "peft", "cyllama", "numpy", "rich", "prompt_toolkit", "markdown_it"}

    def run(*flags):
        return run_watching_imports("impruver_chat.cli", heavy, *flags)

    assert run("--help")[0] == "[] 0"
    ended, told = run("--temprature", "1")
    assert ended == "[] 2"
    assert "did you mean --temperature?" in told
    assert run("--config", recipe(), "--top_p", "2")[0] == "[] 2"
    assert run("--config", recipe(), "--dry_run")[0] == "[] 0"
    assert run("--config", recipe(tmp_path / "absent"))[0] == "[] 2"


def test_dry_run_says_what_would_be_done_and_writes_nothing(chat, recipe, models, write_jsonl, tmp_path):
    path = write_jsonl([{"prompt": "red"}])
    flags = ["--config", recipe("adapter"), "--input", path, "--output", tmp_path / "new" / "a.jsonl", "--dry_run"]
    before = sorted(tmp_path.rglob("*"))
    code, out, err = chat(*flags)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"would load the adapter in {models / 'adapter'} on its base {models / 'full'} (dtype fp32)",
        f"1 questions of {path}, answers to {tmp_path / 'new' / 'a.jsonl'}",
        "generation: the likeliest token each time, at most 200 new tokens",
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_dry_run_before_training_is_a_note(chat, recipe, tmp_path):
    code, out, err = chat("--config", recipe(tmp_path / "later"), "--dry_run")
    assert code == 0
    assert "note: output_dir:" in err
    assert "impruver-train makes it" in err
    assert out.startswith("generation: temperature 0.5")


def test_output_dir_alone_and_moved(chat, models, tmp_path, write_jsonl):
    folder = shutil.copytree(models / "full", tmp_path / "moved")
    recipe = {"output_dir": "/somewhere/else", "model": {"dtype": "fp32"}, "chat": {"max_new_tokens": 3}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    code, out, err = chat("--output_dir", folder, "--dry_run")
    assert code == 0, err
    assert f"would load the model in {folder} (dtype fp32)" in out
    assert "at most 3 new tokens" in out
    assert "its training has not finished" in err


@pytest.mark.parametrize("program", [["impruver", "run", "chat"], ["impruver-chat"]])
def test_programs(program, recipe):
    done = run_as_process(script(program[0]), *program[1:], "--config", recipe(), "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "would load the model" in done.stdout


def test_bos_is_as_the_rows_had_it():
    from impruver_chat.backends.chat_tokenizer import has_bos

    assert has_bos(None)
    assert has_bos([{"name": "a"}, {"name": "b", "add_global_bos": False}])
    assert not has_bos([{"name": "a", "add_global_bos": False}])
