"""Bad input: exit code 2, one message that names file, line or key, nothing half-written."""

import errno
import os

import pytest

CONVERSATION = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}

RECIPES = {
    "datasets missing": ({"datasets": None}, ["recipe.yaml", "datasets is missing"]),
    "datasets empty": ({"datasets": []}, ["recipe.yaml", "datasets is missing"]),
    "no train_path": ({"train_path": None}, ["recipe.yaml", "train_path"]),
    "neither path": ({"train_path": None, "val_path": None}, ["train_path and val_path"]),
    "equal paths": ({"val_path": "out/train.jsonl"}, ["recipe.yaml:1: val_path", "where train_path goes"]),
    "the working folder": ({"train_path": "."}, ["recipe.yaml:1: train_path: . is a folder: name a file in it"]),
    "the folder above": ({"val_path": ".."}, ["val_path: .. is a folder: name a file in it"]),
    "equal paths, spelt otherwise": ({"val_path": "./x/../out/train.jsonl"}, ["val_path", "where train_path goes"]),
    "val over the ledger": ({"val_path": "out/train.dropped.jsonl"}, ["val_path", "the ledger"]),
    "val over the manifest": ({"val_path": "out/train.jsonl.manifest.json"}, ["val_path", "the manifest"]),
    "unknown method": ({"dedup": {"method": "simhash"}}, ["dedup.method", "minhash"]),
    "threshold": ({"dedup": {"threshold": 1.5}}, ["dedup", "threshold", "1.5"]),
    "num_perm": ({"dedup": {"num_perm": 8}}, ["dedup", "num_perm", "16"]),
    "val_rows": ({"split": {"val_rows": -1}}, ["split", "val_rows"]),
    "max_tokens_count": ({"data": {"max_tokens_count": 0}}, ["datasets.0", "max_tokens_count"]),
    "mapping's type": ({"data": {"mapping": "output"}}, ["datasets.0.mapping"]),
    "template does not parse": (
        {"tokenizer": {"chat_template": "{% for m in %}"}},
        ["template", "does not parse", "line 1"],
    ),
    "tokenizer missing": ({"tokenizer": {"name": "./gone"}}, ["tokenizer.name", "./gone"]),
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipes(case, refused, files):
    keys, told = RECIPES[case]
    files.write("data.jsonl", [CONVERSATION])
    message = refused(**keys)
    assert all(part in message for part in told), message


def test_neither_template_nor_ends(refused, files, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({letter: at for at, letter in enumerate("abc")}, []))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "bare")
    files.write("data.jsonl", [CONVERSATION])
    message = refused(tokenizer={"name": "bare"})
    told = ("chat template", "bos_token", "eos_token", "tokenizer.special_tokens")
    assert all(part in message for part in told), message


def test_without_usable_rows_the_first_of_each_reason_is_named(refused, files, tmp_path):
    (tmp_path / "mine.py").write_text("def turns(row, mapping):\n    return list(row['messages'])\n")
    files.write("data.jsonl", [{"messages": []}, {"messages": [{"role": "user", "content": "a"}]}, {"x": 1}] * 3)
    message = refused(data={"converter": "mine.turns"})
    assert "no usable rows are left of 9" in message
    told = {line.split()[2]: line.split(maxsplit=4)[3:] for line in message.splitlines() if " data.jsonl " in line}
    assert told == {
        "bad_row": ["3", "row 0: messages is empty"],
        "converter_failed": ["3", "row 2: turns: TypeError: 'NoneType' object is not iterable"],
        "nothing_to_learn": ["3", "row 1: no assistant's turn is trained on (roles: user)"],
    }


def test_a_file_in_place_of_the_folder(compose, files, tmp_path):
    files.write("data.jsonl", [CONVERSATION])
    (tmp_path / "out").write_text("a file")
    for flags in ((), ("--dry_run",)):
        for folder in ("out", "out/deeper"):
            done = compose("--train_path", f"{folder}/train.jsonl", *flags)
            assert done.code == 2
            assert "Traceback" not in done.err
            assert "out is a file, not a folder" in done.err
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(refused, files, tmp_path):
    files.write("data.jsonl", [CONVERSATION])
    (tmp_path / "out").mkdir(mode=0o500)
    assert "no right to write" in refused()
    assert "no right to write" in refused("--dry_run")


def test_a_folder_in_place_of_a_file(compose, files, tmp_path):
    files.write("data.jsonl", [CONVERSATION])
    (tmp_path / "out/val.jsonl").mkdir(parents=True)
    for flags in ((), ("--overwrite",)):
        done = compose(*flags)
        assert done.code == 2
        assert "out/val.jsonl is a folder" in done.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["val.jsonl"]


def test_a_full_disk_leaves_nothing(refused, files, monkeypatch):
    from impruver_compose import output

    def full(file, rows):
        raise OSError(errno.ENOSPC, "No space left on device")

    files.write("data.jsonl", [CONVERSATION])
    monkeypatch.setattr(output, "write_rows", full)
    assert "the disk is full; about" in refused()


def test_a_template_whose_mask_can_not_be_found_stops_the_run(refused, files):
    """It says every content twice: which of the two is learned can't be told."""
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] * 2 }}<|im_end|>\n{% endfor %}"
    files.write("data.jsonl", [CONVERSATION] * 3)
    for flags in ((), ("--dry_run",)):
        message = refused(*flags, tokenizer={"chat_template": template}, code=3)
        assert "data set 0 (data.jsonl), row 0, conversation 0: " in message
        assert '"content": "hi"' in message


def test_a_template_that_gives_no_mask_at_all_stops_the_run(refused, files):
    """Neither a row nor a built-in conversation: what it makes of one is shown."""
    files.write("data.jsonl", [CONVERSATION])
    for template, reason in (
        ("{{ messages | length }}", "template_lost_text"),
        ("{{ raise_exception('never') }}", "template_refused: never"),
    ):
        for flags in ((), ("--dry_run",)):
            message = refused(*flags, tokenizer={"chat_template": template}, code=3)
            assert "neither for a row of data set 0 (data.jsonl) nor for the plainest conversation" in message
            assert reason in message
            assert '"content": "What is two and two?"' in message
            assert ("rendered: '2'" in message) == ("lost" in reason)


def test_a_template_of_documents_alone_is_not_probed(composed, files):
    files.write("data.jsonl", [{"text": "the river and the stone"}])
    assert len(composed(tokenizer={"chat_template": "{{ raise_exception('never') }}"}).train) == 1


def test_a_template_for_rows_unlike_the_built_in_conversations(composed, files):
    """It wants a tool in each: the rows' own mask counts."""
    needy = "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}" + files.chatml
    files.write("data.jsonl", [CONVERSATION | {"tools": [{"name": "f", "parameters": {}}]}])
    assert len(composed(tokenizer={"chat_template": needy}).train) == 1


@pytest.mark.parametrize("flags", [(), ("--dry_run",), ("--show", "1")])
def test_a_slow_tokenizer(flags, refused, files):
    files.write("data.jsonl", [CONVERSATION])
    assert "ByT5Tokenizer is a slow tokenizer" in refused(*flags, tokenizer={"class": "transformers.ByT5Tokenizer"})


@pytest.mark.parametrize("name", ["train_path", "val_path"])
def test_rows_are_not_written_compressed(name, refused, files):
    files.write("data.jsonl", [CONVERSATION])
    assert f"{name}: rows are written as they are" in refused(**{name: "out/rows.jsonl.gz"})
