"""What is trained: masks, lengths, plain text cut and joined again, what val rows carry."""

import json

import pytest

BARE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}"


def test_the_assistants_turns_are_learned_to_the_token(composed, files, learned):
    files.write("data.jsonl", [files.chat("один и два?", "три", "и ещё?", " яблоко 🍎", system="будь краток")])
    (row,) = composed().train
    assert learned(row) == ["три<|im_end|>", " яблоко 🍎<|im_end|>"]
    assert set(row) == {"input_ids", "labels"}


def test_function_calls_are_learned_and_results_are_not(composed, files, learned):
    said = [
        ("human", "rain?"),
        ("function_call", '{"name": "f", "arguments": {}}'),
        ("observation", "no"),
        ("gpt", "dry"),
    ]
    files.write("data.jsonl", [{"conversations": [{"from": who, "value": text} for who, text in said]}])
    (row,) = composed().train
    assert learned(row)[-1] == "dry<|im_end|>"
    assert '{"name": "f", "arguments": {}}<|im_end|>' in "".join(learned(row))
    assert "no" not in "".join(learned(row))


def test_a_turn_with_train_false_is_not_learned(composed, files, learned):
    row = files.chat("a", "first", "b", "second")
    row["messages"][1]["train"] = False
    only = files.chat("c", "never")
    only["messages"][1]["train"] = False
    files.write("data.jsonl", [row, only])
    done = composed()
    assert [learned(row) for row in done.train] == [["second<|im_end|>"]]
    assert [(line["row"], line["reason"]) for line in done.dropped] == [(1, "nothing_to_learn")]


def test_only_target_loss_false_learns_everything(composed, files, texts, learned):
    files.write("data.jsonl", [files.chat("hi", "yo")])
    done = composed(data={"only_target_loss": False})
    assert learned(done.train[0]) == texts(done.train)


ENDS = {
    "both": ({}, "<s>", "</s>"),
    "no bos": ({"add_global_bos": False}, "", "</s>"),
    "no eos": ({"add_global_eos": False}, "<s>", ""),
    "neither": ({"add_global_bos": False, "add_global_eos": False}, "", ""),
}


@pytest.mark.parametrize("case", ENDS)
def test_the_ends_of_a_row(case, composed, files, texts, learned):
    section, bos, eos = ENDS[case]
    files.write("chat.jsonl", [files.chat("hi", "yo")])
    files.write("text.jsonl", [{"text": "the river"}])
    sections = [{"name": name, **section} for name in ("chat.jsonl", "text.jsonl")]
    done = composed(datasets=sections, tokenizer={"chat_template": BARE})
    said = {f"{bos}<|im_start|>user\nhi<|im_start|>assistant\nyo{eos}", f"{bos}the river{eos}"}
    assert set(texts(done.train)) == said
    assert sorted(learned(row)[0] for row in done.train) == ["the river" + eos, "yo" + eos]


def test_an_end_of_turn_makes_an_eos_needless(composed, files, texts):
    files.write("data.jsonl", [files.chat("hi", "yo")])
    assert texts(composed().train) == [files.rendered(("user", "hi"), ("assistant", "yo"))]


def test_ends_are_never_doubled_in_plain_text(composed, files, texts):
    files.write("data.jsonl", [{"text": "<s>the river</s>"}])
    assert texts(composed().train) == ["<s>the river</s>"]


@pytest.mark.parametrize("where", ["data set", "tokenizer"])
def test_too_long(where, composed, files, tokenizer):
    rows = [files.chat("a", "b"), files.chat("a longer question", "river " * 30)]
    files.write("data.jsonl", rows)
    keys = {"data": {"max_tokens_count": 30}} if where == "data set" else {"tokenizer": {"max_tokens_count": 30}}
    done = composed(**keys)
    assert len(done.train) == 1
    (line,) = done.dropped
    length = len(tokenizer.apply_chat_template(rows[1]["messages"], return_dict=False)) + 1  # and BOS
    assert (line["row"], line["reason"]) == (1, "too_long")
    assert line["detail"] == f"{length} tokens, at most 30 (max_tokens_count)"


def test_a_row_of_just_the_limit_stays(composed, files, tokenizer):
    row = files.chat("a", "b c d")
    length = len(tokenizer.apply_chat_template(row["messages"], return_dict=False)) + 1
    files.write("data.jsonl", [row])
    assert composed(data={"max_tokens_count": length}).dropped == []
    files.write("data.jsonl", [row, files.chat("a", "b")])
    assert len(composed(data={"max_tokens_count": length - 1}).dropped) == 1


def test_the_models_limit_counts_where_none_is_given(composed, files, tmp_path, monkeypatch):
    files.write("data.jsonl", [files.chat("a", "b"), files.chat("c", "river " * 40)])
    done = composed(model={"config_class": "transformers.LlamaConfig", "config": {"max_position_embeddings": 32}})
    assert [line["reason"] for line in done.dropped] == ["too_long"]
    assert done.manifest["max_tokens_count"] == 32
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text('{"n_positions": 1024}')
    assert composed(model={"name": "base"}).manifest["max_tokens_count"] == 1024
    monkeypatch.chdir(tmp_path / "base")  # what is beside the recipe counts before the working folder
    places = {"train_path": str(tmp_path / "out/train.jsonl"), "val_path": str(tmp_path / "out/val.jsonl")}
    assert composed(model={"name": "./base"}, **places).manifest["max_tokens_count"] == 1024
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base/config.json").write_text("{not json")
    assert composed(model={"name": "base"}).manifest["max_tokens_count"] is None


@pytest.mark.parametrize("limit", [2, 7, 16, 4096])
def test_plain_text_is_cut_and_nothing_is_lost(limit, composed, files, tokenizer):
    text = "the river and the stone, столица страны 🍎🍏, " * 3
    files.write("data.jsonl", [{"text": text}])
    done = composed(data={"max_tokens_count": limit})
    (train,) = [done.train]
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    lengths = [len(row["input_ids"]) for row in train]
    assert sum(lengths) == len(plain) + 2
    assert max(lengths) <= limit
    assert len(train) == -(-(len(plain) + 2) // limit)
    pieces = done.folder / "out/train.jsonl"
    assert pieces.read_text().count("\n") == len(train)
    learned_ids = [label for row in train for label in row["labels"] if label != -100]
    assert learned_ids == [*plain, tokenizer.eos_token_id]
    assert train[0]["input_ids"][0] == tokenizer.bos_token_id


def test_a_document_in_single_tokens_teaches_nothing(refused, composed, files):
    files.write("data.jsonl", [{"text": "the river and the stone"}, {"text": "a"}])
    assert "nothing_to_learn" in refused(data={"max_tokens_count": 1})
    (line,) = composed(data={"add_global_bos": False, "add_global_eos": False}).dropped
    assert (line["row"], line["reason"]) == (1, "nothing_to_learn")


def test_pieces_of_a_document_carry_its_text_in_val(composed, files):
    text = "the river and the stone, столица страны 🍎🍏 end"
    files.write("data.jsonl", [{"text": text}, {"text": "another one"}])
    val = next(
        done.val
        for seed in range(20)
        if len((done := composed(seed=seed, data={"max_tokens_count": 5}, split={"val_rows": 1})).val) > 3
    )
    assert "".join(row["text"] for row in val) == text
    assert all(set(row) == {"input_ids", "labels", "text"} for row in val)


def test_val_rows_carry_what_they_were_made_of(composed, files):
    rows = files.unlike(3)
    rows[0] |= {"chat_template_kwargs": {"date_string": "2024-01-01"}}
    files.write("data.jsonl", rows)
    done = composed(split={"val_rows": 2})
    assert all(set(row) == {"input_ids", "labels"} for row in done.train)
    given = {row["messages"][0]["content"]: row for row in rows}
    for row in done.val:
        carried = {key: value for key, value in row.items() if key not in ("input_ids", "labels")}
        assert carried == given[row["messages"][0]["content"]]


def test_val_rows_are_read_back(composed, files, tmp_path):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    files.write("data.jsonl", [row | {"tools": tools} for row in files.unlike(6)])
    composed(split={"val_rows": 4})
    (tmp_path / "out/val.jsonl").rename(tmp_path / "data.jsonl")
    again = composed("--overwrite", split={"val_rows": 0})
    assert sorted(row["input_ids"] for row in again.train) == sorted(
        row["input_ids"] for row in files.read("data.jsonl")
    )
    assert len(again.train) == 4


def test_template_arguments_of_the_recipe_and_of_the_row(composed, files, texts):
    template = (
        "{{ mood }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    files.write("data.jsonl", [files.chat("a", "b"), files.chat("c", "d") | {"chat_template_kwargs": {"mood": "sad"}}])
    done = composed(tokenizer={"chat_template": template, "chat_template_kwargs": {"mood": "glad"}})
    assert sorted(text.partition("<|im")[0] for text in texts(done.train)) == ["<s>glad", "<s>sad"]


def test_lone_surrogates_and_huge_rows(composed, files, tmp_path):
    good = json.dumps(files.chat("a", "b"))
    big = json.dumps(files.chat("a", "river stone " * 20000))
    broken = '{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "x"}]}'
    (tmp_path / "data.jsonl").write_text(f"{good}\n{big}\n")
    assert len(composed().train) == 2
    (tmp_path / "data.jsonl").write_text(f"{good}\n{broken}\n")
    done = composed("--overwrite")
    assert [line["reason"] for line in done.dropped] == ["bad_row"]


def test_the_last_piece_of_a_document_is_no_single_token(composed, files, tokenizer):
    text = " ".join(str(number) for number in range(40))
    files.write("data.jsonl", [{"text": text}])
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    limit = next(limit for limit in range(3, len(ids)) if len(ids) % limit == 1)
    done = composed(data={"max_tokens_count": limit})
    pieces = sorted(len(row["input_ids"]) for row in done.train)
    assert sum(pieces) == len(ids)
    assert pieces[0] == 2
    assert pieces[-1] <= limit
    assert done.manifest["gate"][0]["ended"] == 1  # EOS is learned
