"""push_to_hub by the real client, against a hub on loopback: what goes there, when, and what a refusal costs."""

import json
import os
from pathlib import Path

import pytest
import yaml
from impruver_core.io.integrity import describe_content
from support.cli import run_as_process, script
from support.hub_server import serving_hub

TOKEN = "hf_of_someone"
PUSH = {"push_to_hub": True, "hub_model_id": "tiny"}


@pytest.fixture
def hub(monkeypatch):
    """A hub that this process's client talks to, and somebody logged in to it."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with serving_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        yield hub


def files_of(hub, name="someone/tiny", branch="main"):
    return hub.repositories[name]["branches"][branch]


def test_two_processes_upload_the_finished_model_once_and_nothing_of_this_machine(
    recipe, parts, tmp_path, impruver_train, hub
):
    val = str(parts / "val.jsonl")
    trainer = PUSH | {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
    config = recipe(val_path=val, trainer=trainer | {"hub_private_repo": True, "hub_strategy": "every_save"})
    client = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    words = (script("impruver"), "run", "--nproc_per_node", "2", "finetune")
    run = run_as_process(*words, "--config", config, environment=client)
    assert run.returncode == 0, run.stderr
    out = tmp_path / "out"
    assert run.stdout.splitlines()[-1] == f"uploaded to {hub.endpoint}/someone/tiny"
    assert "trainer.hub_strategy is left out" in run.stderr
    assert hub.repositories["someone/tiny"]["commits"] == ["Upload a finished model"]
    assert hub.repositories["someone/tiny"]["private"] is True
    assert [each for each in hub.requests if "/commit/" in each] == ["POST /api/models/someone/tiny/commit/main"]
    files = files_of(hub)
    assert (out / "checkpoint-2").is_dir()
    assert set(files) == {path.name for path in out.iterdir() if path.is_file()} | {"README.md"}
    for name, content in files.items():
        for path in (tmp_path, parts, Path.home(), Path(os.environ["IMPRUVER_CACHE"])):
            assert str(path).encode() not in content, name
        assert TOKEN.encode() not in content
    assert TOKEN not in run.stdout + run.stderr
    for name in ("adapter_model.safetensors", "tokenizer.json", "heldout.jsonl", "metrics.jsonl"):
        assert files[name] == (out / name).read_bytes()
    uploaded = yaml.safe_load(files["recipe.yaml"])
    assert (uploaded["output_dir"], uploaded["model"]["name"]) == ("out", "base")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "base"
    manifest = json.loads(files["impruver.json"])
    assert manifest["recipe"] == uploaded
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for entry in manifest["outputs"]:
        (folder / entry["path"]).write_bytes(files[entry["path"]])
        assert describe_content(folder / entry["path"]) == {"bytes": entry["bytes"], "xxh3": entry["xxh3"]}
    check_card(files["README.md"].decode(), manifest)
    # in this process, the same command again: nothing is new to the hub
    code, stdout, err = impruver_train(config)
    assert code == 0, err
    assert stdout.splitlines()[-1] == f"uploaded to {hub.endpoint}/someone/tiny"
    assert len(hub.repositories["someone/tiny"]["commits"]) == 1


def check_card(card, manifest):
    front = yaml.safe_load(card.split("---")[1])
    tags = {
        "base_model": "base",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["impruver", "lora"],
    }
    assert front == tags
    counts = manifest["counts"]
    for words in ("train.jsonl (48 rows)", "val.jsonl (12 rows)", f"| target tokens | {counts['learned_tokens']} |"):
        assert words in card
    for words in ("| steps | 2 |", "| method | LoRA |", "training loss, first step", "chat template"):
        assert words in card
    assert "impruver-chat --output_dir tiny" in card
    assert "impruver-gguf --output_dir tiny" in card


def test_what_can_be_known_is_refused_before_anything_is_asked(recipe, impruver_train, tmp_path, hub, monkeypatch):
    from huggingface_hub import constants

    named = ["--set", "trainer.hub_model_id=someone/tiny"]
    cases = [
        ([], ["trainer.push_to_hub", "trainer.hub_model_id: USER/NAME"]),
        (["--set", "trainer.hub_model_id=a/b/c"], ["trainer.hub_model_id", "'a/b/c' is no repository's name"]),
        (["--set", "trainer.hub_model_id=someone/two words"], ["trainer.hub_model_id", "no repository's name"]),
        ([*named, "--set", "trainer.hub_revision=a..b"], ["trainer.hub_revision", "no branch's name"]),
    ]
    config = recipe(trainer={"push_to_hub": True})
    for flags, words in cases:
        for dry in ([], ["--dry_run"]):
            code, _, err = impruver_train(config, *flags, *dry)
            assert code == 2, err
            assert all(word in err for word in words), err
    code, stdout, _ = impruver_train(config, *named, "--dry_run")
    assert code == 0
    assert "hub: the finished model goes to someone/tiny" in stdout
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in impruver_train(config, *named, "--dry_run").err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    for dry in ([], ["--dry_run"]):
        code, _, err = impruver_train(config, *named, *dry)
        assert code == 2
        assert "nobody is logged in to the hub; run `hf auth login`" in err
    assert hub.requests == []
    assert not (tmp_path / "out").exists()


def test_a_hub_that_refuses_does_so_before_training(recipe, impruver_train, tmp_path, hub):
    config = recipe(trainer=PUSH)
    for path, status in (("/api/repos/create", 403), ("/auth-check/write", 403), ("/api/repos/create", 401)):
        hub.refused = {path: status}
        code, stdout, err = impruver_train(config)
        assert (code, stdout) == (2, ""), err
        assert "trainer.push_to_hub: tiny can't be uploaded to: " in err
        assert str(status) in err
    hub.refused = {}
    hub.create("someone/tiny", private=False)
    code, _, err = impruver_train(config, "--set", "trainer.hub_private_repo=true")
    assert code == 2
    assert "trainer.hub_private_repo: someone/tiny is there already, and public" in err
    assert not (tmp_path / "out").exists()


def test_an_upload_that_fails_keeps_the_model_and_the_same_command_uploads_it(recipe, impruver_train, tmp_path, hub):
    config, out = recipe(trainer=PUSH | {"hub_revision": "v1", "max_steps": 1}), tmp_path / "out"
    hub.refused = {"/commit/": 403, "/auth-check": 404}  # another hub may not know that question
    code, stdout, err = impruver_train(config)
    assert code == 2
    assert stdout.startswith(f"wrote the adapter to {out}")
    last = err.splitlines()[-1]
    assert "trainer.push_to_hub: the upload to someone/tiny failed: " in last
    assert last.endswith(f"the model is finished in {out}; the same command again uploads it")
    assert (out / "impruver.json").is_file()
    weights = (out / "adapter_model.safetensors").read_bytes()
    (out / "README.md").write_text(f"Mine, made in {out}/here.\n")
    (out / "notes.txt").write_text("not for others")
    hub.refused = {}
    code, stdout, err = impruver_train(config)
    assert code == 0, err
    files = files_of(hub, branch="v1")
    assert files["adapter_model.safetensors"] == weights == (out / "adapter_model.safetensors").read_bytes()
    assert files["README.md"] == b"Mine, made in out/here.\n"
    assert "notes.txt" not in files
    assert files_of(hub) == {}


def test_a_run_that_is_finished_is_uploaded_when_asked_later_by_the_first_process(
    recipe, impruver_train, hub, monkeypatch
):
    config = recipe(trainer={"max_steps": 1})
    assert impruver_train(config)[0] == 0
    flags = ["--set", "trainer.push_to_hub=true", "--set", "trainer.hub_model_id=tiny"]
    monkeypatch.setenv("RANK", "1")
    assert impruver_train(config, *flags)[0] == 0
    assert hub.repositories == {}
    monkeypatch.delenv("RANK")
    code, stdout, _ = impruver_train(config, *flags)
    assert code == 0
    assert "finished: nothing to do" in stdout
    assert "adapter_model.safetensors" in files_of(hub)
