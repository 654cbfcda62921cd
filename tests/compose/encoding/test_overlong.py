"""Conversations far beyond the longest row are known by their first part, and give what a whole look would."""

import shutil

import pytest
from impruver_compose.encoding import overlong
from impruver_core.io.jsonl import format_row
from support.messages import conversation

LONGEST = 64  # tokens
WORDS = "the river and the stone "


def talk(turns, text=WORDS):
    said = [text if number % 2 else f"what of {number}?" for number in range(2 * turns)]
    return conversation(*said)


@pytest.fixture
def looks(monkeypatch):
    """How many characters were tokenized at once, at most."""
    seen = []
    encode = overlong.encode_chats

    def count(tokenizer, conversations, *options, **named):
        seen.append(sum(len(format_row({"messages": messages})) for messages in conversations))
        return encode(tokenizer, conversations, *options, **named)

    monkeypatch.setattr(overlong, "encode_chats", count)
    return seen


@pytest.mark.parametrize(
    "row",
    [
        talk(20_000),
        talk(1, WORDS * 100_000),
        {"messages": [{"role": "system", "content": WORDS * 50_000}, *talk(3)["messages"]]},
        {
            "messages": [
                *talk(2)["messages"],
                {"role": "user", "content": "more?"},
                *talk(1, WORDS * 50_000)["messages"],
            ]
        },
    ],
    ids=["many turns", "a long answer", "a long system prompt", "a long end"],
)
def test_what_is_far_too_long_is_dropped_by_its_first_part(row, composed, files, looks):
    files.write("data.jsonl", [files.chat("a", "b"), row, files.chat("c", "d")])
    done = composed(datasets=[{"name": "data.jsonl", "max_tokens_count": LONGEST}])
    assert len(done.train) == 2
    (dropped,) = done.dropped
    assert (dropped["row"], dropped["reason"]) == (1, "too_long")
    assert dropped["detail"].startswith("more than ")
    assert dropped["detail"].endswith(f"tokens, at most {LONGEST} (max_tokens_count)")
    assert looks
    assert max(looks) < 20_000


@pytest.mark.parametrize("turns", ["all", "each", "last"])
def test_trimmed_to_the_same_as_by_a_whole_look(turns, composed, files, looks, monkeypatch):
    files.write("data.jsonl", [talk(60), files.chat("c", "d")])
    monkeypatch.setattr(overlong, "SMALL", 1000)
    section = {"name": "data.jsonl", "max_tokens_count": LONGEST, "on_overflow": "trim_turns", "turns": turns}
    cut = composed(datasets=[section])
    assert looks
    monkeypatch.setattr(overlong, "SMALL", 1 << 30)
    shutil.rmtree("cache")
    whole = composed("--overwrite", datasets=[section])
    assert cut.train == whole.train
    assert len(cut.train) > 1
    assert cut.manifest["counts"] == whole.manifest["counts"]


def test_a_long_row_that_fits_is_looked_at_whole(composed, files, looks):
    text = "ab" * 40_000
    files.write("data.jsonl", [files.chat("a", text)])
    done = composed(datasets=[{"name": "data.jsonl", "max_tokens_count": 90_000}])
    assert len(done.train) == 1
    assert looks == []


def test_take_first_part_keeps_whole_messages_and_cuts_the_next():
    messages = conversation("a" * 10, "b" * 1000, "c")["messages"]
    count, part = overlong.take_first_part(messages, 100)
    assert count == 1
    assert part[0] == messages[0]
    assert set(part[1]["content"]) == {"b"}
    assert len(part[1]["content"]) < 100
    assert overlong.take_first_part(messages, 10_000) == (3, messages)
