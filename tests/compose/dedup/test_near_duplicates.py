"""What is said twice: exactly and nearly, checked against datasketch and against planted pairs."""

import random

import numpy as np
import pytest
from impruver_compose.dedup.shingles import compute_all_shingles, compute_jaccard, compute_shingles
from impruver_compose.dedup.signatures import WEIGHTS, choose_bands, compute_band_keys, compute_signatures


def ids(count, seed=0):
    return np.random.default_rng(seed).integers(0, 50000, count).astype(np.uint32)


@pytest.mark.parametrize("num_perm", [16, 128, 200])
def test_signatures_are_datasketchs(num_perm):
    from datasketch import MinHash

    texts = [ids(count, count) for count in (5, 1, 40, 4, 5, 3000, 6, 2)]
    ours = compute_signatures(texts, num_perm)
    assert ours.dtype == np.uint32
    for text, own in zip(texts, ours, strict=True):
        theirs = MinHash(num_perm, hashfunc=int, scheme="affine32")
        for hash_ in compute_shingles(text).astype(np.uint32):
            theirs.update(int(hash_))
        assert np.array_equal(own, theirs.hashvalues)


def test_shingles_in_bulk_are_those_of_each():
    texts = [ids(count, count) for count in (3, 5, 9, 1, 5, 200)]
    texts.append(np.concatenate([texts[2], texts[2]]))
    hashes, starts = compute_all_shingles(texts)
    for text, part in zip(texts, np.split(hashes, starts[1:]), strict=True):
        assert np.array_equal(np.unique(part), compute_shingles(text))


def test_datasketchs_own_default_gives_the_same_signatures():
    from datasketch import MinHash

    text = ids(60)
    theirs = MinHash(128, hashfunc=int)
    for hash_ in compute_shingles(text).astype(np.uint32):
        theirs.update(int(hash_))
    assert np.array_equal(compute_signatures([text], 128)[0], theirs.hashvalues)


@pytest.mark.parametrize(("threshold", "num_perm"), [(0.8, 128), (0.5, 128), (0.9, 64), (0.95, 16), (0.7, 200)])
def test_bands_are_those_of_minhashlsh(threshold, num_perm):
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=num_perm, weights=WEIGHTS)
    assert choose_bands(threshold, num_perm) == (index.b, index.r)
    assert index.b * index.r <= num_perm


@pytest.mark.parametrize("num_perm", [16, 128])
def test_any_threshold_has_bands(num_perm):
    for threshold in (0.01, 0.96, 0.99, 1.0):
        count, width = choose_bands(threshold, num_perm)
        assert 1 < count * width <= num_perm


def test_candidates_are_those_of_minhashlsh():
    from datasketch import MinHash, MinHashLSH

    base = ids(120)
    rows = [base]
    for changed in range(0, 60, 3):
        row = base.copy()
        row[:changed] = ids(120, changed + 1)[:changed]
        rows.append(row)
    count, width = choose_bands(0.8, 128)
    found = compute_signatures(rows, 128)
    index = MinHashLSH(num_perm=128, params=(count, width))
    for number, row in enumerate(rows):
        theirs = MinHash(128, hashfunc=int)
        for hash_ in compute_shingles(row).astype(np.uint32):
            theirs.update(int(hash_))
        index.insert(number, theirs)
        if number == 0:
            first = theirs
    keys = compute_band_keys(found, count, width)
    ours = {number for number in range(len(rows)) if (keys[number] == keys[0]).any()}
    assert ours == set(index.query(first))
    assert 1 < len(ours) < len(rows)


def test_shingles():
    words = ids(9)
    grams = {tuple(words[at : at + 5]) for at in range(5)}
    assert len(compute_shingles(words)) == len(grams)
    assert len(compute_shingles(np.concatenate([words, words[:4]]))) == 9
    assert list(compute_shingles(ids(3))) == list(compute_shingles(ids(3)))
    assert len(compute_shingles(ids(3))) == 1
    assert compute_shingles(ids(3)) != compute_shingles(ids(4)[:4])
    assert len(compute_shingles(ids(0))) == 0
    zeros = [compute_shingles(np.zeros(count, np.uint32))[0] for count in range(1, 6)]
    assert len(set(zeros)) == 5


def test_jaccard():
    one, other = np.array([1, 2, 3, 4], np.uint64), np.array([3, 4, 5, 6], np.uint64)
    assert compute_jaccard(one, other) == 2 / 6
    assert compute_jaccard(one, one) == 1.0
    assert compute_jaccard(one, np.zeros(0, np.uint64)) == 0.0
    assert compute_jaccard(one[:0], one[:0]) == 1.0


def test_exact_duplicates_and_their_ledger(composed, files):
    rows = [files.chat("one", "two"), files.chat("three", "four"), files.chat("one", "two")]
    files.write("a.jsonl", rows)
    files.write("b.jsonl", [files.chat("five", "six"), rows[1]])
    done = composed(datasets=[{"name": "a.jsonl"}, {"name": "./b.jsonl"}], dedup={"method": "exact"})
    assert len(done.train) == 3
    places = ("dataset", "dataset_index", "row", "part")
    lines = [
        ("a.jsonl", 0, 2, 0, ("a.jsonl", 0, 0, 0)),
        ("./b.jsonl", 1, 1, 0, ("a.jsonl", 0, 1, 0)),
    ]
    assert done.dropped == [
        dict(zip(places, place, strict=True))
        | {"reason": "exact_duplicate", "detail": "", "kept": dict(zip(places, kept, strict=True)), "similarity": 1.0}
        for *place, kept in lines
    ]


def test_another_system_prompt_is_no_exact_duplicate(composed, files):
    rows = [files.chat("is it so", "no", system="Is it English?"), files.chat("is it so", "no", system="Is it true?")]
    rows += [files.chat("is it", "so no", system="Is it true?")]  # the same words, otherwise shared out
    files.write("data.jsonl", rows)
    assert composed(dedup={"method": "exact"}).dropped == []


def test_dedup_none_keeps_all(composed, files):
    files.write("data.jsonl", [files.chat("one", "two")] * 3)
    assert len(composed(dedup={"method": "none"}).train) == 3


def test_the_parts_of_a_row_are_told_apart(composed, files, tmp_path):
    (tmp_path / "mine.py").write_text("def both(row):\n    return [row['messages'], row['messages']]\n")
    files.write("data.jsonl", [files.chat("one", "two")])
    (line,) = composed(data={"converter": "mine.both"}).dropped
    assert (line["row"], line["part"], line["kept"]["row"], line["kept"]["part"]) == (0, 1, 0, 0)


def test_on_prompt(composed, files):
    rows = [files.chat("the same question", text) for text in ("one", "two")]
    rows += [{"messages": [{"role": "assistant", "content": text}]} for text in ("alone", "and alone", "alone")]
    files.write("data.jsonl", rows)
    assert [line["row"] for line in composed().dropped] == [4]
    for method in ("exact", "minhash"):
        dropped = composed(dedup={"method": method, "on": "prompt"}).dropped
        assert [(line["row"], line["reason"]) for line in dropped] == [(1, "exact_duplicate"), (4, "exact_duplicate")]


def planted(seed=3, pairs=60):
    """(texts, pairs (first, second)): answers of 60 words, some repeated with a few words changed."""
    chance = random.Random(seed)
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("an", "er", "il", "om", "us", "ot")]
    texts, twins = [], []
    for _ in range(pairs):
        text = chance.choices(words, k=60)
        near = list(text)
        for at in chance.sample(range(60), chance.choice([0, 1, 2, 8, 20])):
            near[at] = chance.choice(words)
        twins.append((len(texts), len(texts) + 1))
        texts += [" ".join(text), " ".join(near)]
    return texts, twins


@pytest.mark.parametrize("threshold", [0.6, 0.8])
def test_planted_near_duplicates_are_found_and_unlike_rows_kept(threshold, composed, files, tokenizer):
    texts, twins = planted()
    files.write("data.jsonl", [files.chat(f"q{at}", text) for at, text in enumerate(texts)])
    done = composed(dedup={"threshold": threshold})
    # each as the tokens of its texts, without the template's
    said = [
        np.array(tokenizer(f"q{at}", add_special_tokens=False)["input_ids"]
                 + tokenizer(text, add_special_tokens=False)["input_ids"], np.uint32)
        for at, text in enumerate(texts)
    ]  # fmt: skip
    similar = {
        second: compute_jaccard(compute_shingles(said[first]), compute_shingles(said[second]))
        for first, second in twins
    }
    lines = {line["row"]: line for line in done.dropped}
    for row, line in lines.items():
        assert line["reason"] == "near_duplicate"
        assert line["kept"]["row"] == row - 1
        assert line["similarity"] == pytest.approx(similar[row], abs=1e-4)
        assert line["similarity"] >= threshold
    sure = [row for row, similarity in similar.items() if similarity >= threshold + 0.05]
    assert len(sure) > 20
    assert len([row for row in sure if row in lines]) >= 0.95 * len(sure)
    assert len(done.train) == len(texts) - len(lines)


def test_no_chain_of_neighbours_drags_unlike_rows_along(composed, files, tokenizer):
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("an", "er", "il", "om", "us")]
    texts = []
    for step in range(12):  # each is like the one before, the last unlike the first
        texts.append(" ".join([w + "x" if at < step * 4 else w for at, w in enumerate(words[:60])]))
    files.write("data.jsonl", [files.chat("q", text) for text in texts])
    done = composed()
    assert done.dropped
    said = [
        np.array(tokenizer("q", add_special_tokens=False)["input_ids"]
                 + tokenizer(text, add_special_tokens=False)["input_ids"], np.uint32)
        for text in texts
    ]  # fmt: skip
    gone = {line["row"] for line in done.dropped}
    for line in done.dropped:
        kept = line["kept"]["row"]
        assert kept not in gone
        assert compute_jaccard(compute_shingles(said[line["row"]]), compute_shingles(said[kept])) >= 0.8
    assert len(done.train) > 2


def test_template_and_system_text_do_not_make_rows_alike(composed, files):
    system = "You are a helpful assistant who answers every question briefly and politely. " * 10
    files.write(
        "data.jsonl", [files.chat(row["messages"][0]["content"], "yes", system=system) for row in files.unlike(20)]
    )
    assert composed().dropped == []
    files.write("data.jsonl", [files.chat("is the river deep?", "yes it is", system=s) for s in ("one", "two")])
    (line,) = composed().dropped
    assert (line["reason"], line["similarity"]) == ("near_duplicate", 1.0)


def test_documents_are_judged_too(composed, files):
    text = " ".join(row["messages"][0]["content"] for row in files.unlike(20))
    files.write("data.jsonl", [{"text": text}, {"text": text + " end"}, {"text": text}, {"text": "else"}])
    done = composed(data={"max_tokens_count": 50})
    assert [(line["row"], line["reason"]) for line in done.dropped] == [(1, "near_duplicate"), (2, "exact_duplicate")]
