"""Data sets for train or for val alone: no row on the other side, none that repeats one or has its prompt."""

import pytest


def texts_of(rows):
    return [row["messages"][0]["content"] for row in rows]


def origin(dataset_index, row, names="abc"):
    return {"dataset": f"{names[dataset_index]}.jsonl", "dataset_index": dataset_index, "row": row, "part": 0}


@pytest.fixture
def sets(files):
    """Three data sets of 20 rows each, none like another; the recipe's `datasets` with these uses."""

    def write(*uses):
        for n, name in enumerate("abc"[: len(uses)]):
            files.write(f"{name}.jsonl", files.unlike(20, 20 * n))
        return [
            {"name": f"{name}.jsonl", **({"use": use} if use else {})} for name, use in zip("abc", uses, strict=False)
        ]

    return write


def test_rows_stay_on_their_side_and_the_split_divides_the_others(sets, composed, files, texts):
    done = composed(datasets=sets("train", "val", "both"), split={"val_rows": 6})
    counts = [(each["train"], each["val"]) for each in done.manifest["counts"]]
    assert counts == [(20, 0), (0, 20), (14, 6)]
    in_val = set(texts_of(done.val))
    assert in_val >= {row["messages"][0]["content"] for row in files.read("b.jsonl")}
    assert not in_val & {row["messages"][0]["content"] for row in files.read("a.jsonl")}
    said = texts(done.train)
    assert not any(f"user\n{asked}<|im_end|>" in text for text in said for asked in in_val)
    ratio = composed(datasets=sets("train", "val", "both"), split={"val_ratio": 0.1})
    assert [each["val"] for each in ratio.manifest["counts"]] == [0, 20, 2]
    assert done.manifest["recipe"]["datasets"][1]["use"] == "val"


def test_both_is_the_default(sets, composed):
    done = composed(datasets=sets(None, None), split={"val_rows": 7})
    again = composed("--overwrite", datasets=sets("both", "both"), split={"val_rows": 7})
    assert (done.train, done.val) == (again.train, again.val)


def test_without_rows_to_divide_nothing_is_said_of_the_split(sets, composed):
    done = composed(datasets=sets("train", "val"), split=None)
    assert (len(done.train), len(done.val)) == (20, 20)
    assert "val_path gets no row" not in done.err


LONG = " ".join(str(number * number) for number in range(60))


@pytest.mark.parametrize("uses", [("train", "val"), ("both", "val"), ("val", "train"), ("val", None)])
@pytest.mark.parametrize("kind", ["exact", "near"])
def test_train_loses_what_repeats_a_row_of_val(uses, kind, composed, files):
    row, near = files.chat(LONG, f"{LONG} one"), files.chat(f"{LONG} so", f"{LONG} one")
    own = {"train": near if kind == "near" else row, None: near if kind == "near" else row}
    own |= {"both": own["train"], "val": row}
    for n, (name, use) in enumerate(zip("ab", uses, strict=True)):
        files.write(f"{name}.jsonl", [*files.unlike(3, 10 * n), own[use]])
    datasets = [{"name": f"{name}.jsonl"} | ({"use": use} if use else {}) for name, use in zip("ab", uses, strict=True)]
    done = composed(datasets=datasets, split={"val_rows": 0})
    val = uses.index("val")
    (line,) = done.dropped
    assert line["reason"] == f"{kind}_duplicate"
    assert (line["dataset_index"], line["row"]) == (1 - val, 3)
    assert line["kept"] == origin(val, 3)
    assert [each["val"] for each in done.manifest["counts"]][val] == 4


def test_within_each_side_the_first_is_kept(composed, files):
    files.write("a.jsonl", [files.chat("x", "y"), files.chat("x", "y")])
    files.write("b.jsonl", [files.chat("v", "w"), files.chat("v", "w")])
    done = composed(datasets=[{"name": "a.jsonl", "use": "train"}, {"name": "b.jsonl", "use": "val"}])
    assert [(each["dataset_index"], each["row"], each["kept"]["row"]) for each in done.dropped] == [
        (0, 1, 0),
        (1, 1, 0),
    ]


@pytest.mark.parametrize("method", ["none", "exact", "minhash"])
@pytest.mark.parametrize("use", ["train", "both"])
def test_the_prompt_of_a_row_of_val_stands_in_no_other_row(use, method, composed, files):
    files.write("a.jsonl", [*files.unlike(4), files.chat("the same question", "one answer")])
    files.write("b.jsonl", [files.chat("the same question", "quite another", system="be kind"), *files.unlike(4, 50)])
    datasets = [{"name": "a.jsonl", "use": use}, {"name": "b.jsonl", "use": "val"}]
    keys = {"datasets": datasets, "dedup": {"method": method}, "split": {"val_rows": 2 if use == "both" else 0}}
    done = composed(**keys)
    (line,) = done.dropped
    assert (line["reason"], line["dataset_index"], line["row"]) == ("prompt_in_val", 0, 4)
    assert line["kept"] == origin(1, 0)
    counts = done.manifest["counts"]
    assert counts[0]["dropped"] == {"prompt_in_val": 1}
    assert [each["val"] for each in counts] == [2 if use == "both" else 0, 5]
    out = composed("--explain", "0:4", **keys).out
    assert "dropped, prompt_in_val\nkept was data set 1 (b.jsonl), row 0" in out
    assert "  0:4:0 has its prompt" in composed("--explain", "1:0", **keys).out


def test_a_prompt_of_train_keeps_the_others_out_of_val(composed, files):
    files.write("a.jsonl", [files.chat(f"question {n} so", f"one {n}") for n in range(10)])
    files.write("b.jsonl", [files.chat(f"question {n} so", f"two {n}") for n in range(12)])
    datasets = [{"name": "a.jsonl", "use": "train"}, {"name": "b.jsonl"}]
    done = composed(datasets=datasets, dedup={"method": "none"}, split={"val_ratio": 0.9})
    assert sorted(texts_of(done.val)) == ["question 10 so", "question 11 so"]
    files.write("b.jsonl", [files.chat(f"question {n} so", f"two {n}") for n in range(10)])
    done = composed(datasets=datasets, dedup={"method": "none"}, split={"val_rows": 5})
    assert "val_path gets no row" in done.err
    assert len(done.train) == 20


def test_a_benchmark_may_be_what_is_validated_on(composed, files):
    asked = "which old bridge over the river was rebuilt by the town after the great flood"
    files.write("a.jsonl", [files.chat(f"so, {asked}?", "one"), files.chat("clean", "row")])
    files.write("bench.jsonl", [{"question": f"{asked}?", "answer": "the stone bridge"}])
    datasets = [{"name": "a.jsonl"}, {"name": "bench.jsonl", "use": "val"}]
    done = composed(datasets=datasets, decontaminate=[{"name": "bench.jsonl"}])
    assert [(each["reason"], each["dataset_index"]) for each in done.dropped] == [("contaminated", 0)]
    assert texts_of(done.val) == [f"{asked}?"]


def test_a_leak_that_was_not_dropped_is_warned_of(composed, files):
    files.write("a.jsonl", [files.chat(f"{LONG} so", f"{LONG} one"), files.chat("a", "b")])
    files.write("b.jsonl", [files.chat(LONG, f"{LONG} one")])
    datasets = [{"name": "a.jsonl", "use": "train"}, {"name": "b.jsonl", "use": "val"}]
    done = composed(datasets=datasets, dedup={"method": "exact"})
    assert "1 of 1 conversations in val have a near-duplicate in train, the first 1:0 is like 0:0" in done.err


def test_what_can_not_be(refused, files):
    files.write("a.jsonl", files.unlike(3))
    files.write("b.jsonl", files.unlike(3))
    assert "all have use: val" in refused(datasets=[{"name": "a.jsonl", "use": "val"}])
    weighted = refused(datasets=[{"name": "a.jsonl"}, {"name": "b.jsonl", "use": "val", "weight": 2}])
    assert "datasets.1.weight: is about rows of train_path" in weighted
    assert "did you mean train" in refused(datasets=[{"name": "a.jsonl", "use": "trian"}])
    message = refused(datasets=[{"name": "a.jsonl"}, {"name": "b.jsonl", "use": "val"}])
    assert "no usable rows are left of 6" in message  # those of train repeat those of val
    assert "exact_duplicate" in message
