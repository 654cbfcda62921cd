"""Conversations are saved as they go, and /resume brings them back; at a terminal and through a pipe."""

import json
import os
import re
import signal

import pytest
from impruver_core import encode_prompt
from support.chat_models import WORDS
from support.jsonl import read_jsonl
from support.messages import assistant, user

GREEDY = ("--temperature", "0", "--repetition_penalty", "1")


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """The folder of saved conversations, of this test alone."""
    monkeypatch.setenv("IMPRUVER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/conversations"


def read_saved(folder):
    """The messages of each file."""
    return [json.loads(path.read_text(encoding="utf-8"))["messages"] for path in sorted(folder.glob("*.json"))]


def test_at_a_terminal(terminal, talk, recipe, saved, tmp_path):
    """All that Ctrl+C, limits and names of commands have to say, killed amid an answer, then resumed."""
    config, cache = recipe("babbler"), {"IMPRUVER_CACHE": str(tmp_path / "cache"), "columns": 100}
    window = terminal("-m", "impruver_chat", "--config", config, *GREEDY, "--max_new_tokens", "3900", **cache)
    window.prompted(1)
    window.type("tell me a lot")
    window.until(lambda text: len(text.partition("> tell me a lot")[2].strip()) > 5)
    window.process.send("first line ahead\rsecond line ahead\rwhite")
    window.process.sendintr()
    window.until("(stopped)")
    window.until("> white")
    window.process.send("\x15")
    window.type("/set max_new_tokens 3")
    window.until("at most 3 new tokens")
    window.type("red")
    window.until("(cut off after 3 tokens; /set max_new_tokens NUMBER allows more)")
    for typed, meant in (("/exit", "/quit"), ("/clear", "/reset"), ("/regenerate", "/retry"), ("/load", "/resume")):
        window.type(typed)
        window.until(f"no command {typed}, did you mean {meant}?")
    window.type("/set max_new_tokens 3900")
    window.until("at most 3900 new tokens")
    window.type("blue")
    window.until(lambda text: len(text.partition("> blue")[2].strip()) > 5)
    os.kill(window.process.pid, signal.SIGKILL)
    assert "line ahead" not in window.text()
    (messages,) = read_saved(saved)
    assert [message["content"] for message in messages[::2]] == ["tell me a lot", "red", "blue"]
    assert [path.stat().st_mode & 0o777 for path in (saved, next(saved.glob("*.json")))] == [0o700, 0o600]

    _, err = talk(config, "/resume", "/retry", "exit", "not asked", flags=["--max_new_tokens", "3"])
    assert "> blue\nthe last question has no answer yet; /retry asks it\n(cut off after 3 tokens" in err
    (again,) = read_saved(saved)
    assert again[:-1] == messages
    assert again[-1]["role"] == "assistant"


def test_a_conversation_comes_back_whole_and_goes_on_in_place_of_its_file(talk, recipe, saved, given, tmp_path):
    from transformers import AutoTokenizer

    talk(recipe(chat={"system_prompt": "be brief"}), "red", "green", "/reset", "white")
    assert len(read_saved(saved)) == 2
    _, err = talk(recipe(), "/resume 9", "/resume x", "/resume 2", "blue", f"/save {tmp_path / 'a'}", "/resume list")
    assert "warning: there are 2 saved conversations" in err
    assert "warning: /resume, /resume NUMBER or /resume list" in err
    assert re.search(r"^1 +\S+ \S+ +white$", err, re.MULTILINE)
    whole = read_jsonl(tmp_path / "a")[0]["messages"]
    assert f"> green\n{whole[4]['content']}\n" in err
    assert whole[0] == {"role": "system", "content": "be brief"}
    assert [message["content"] for message in whole[1::2]] == ["red", "green", "blue"]
    model = json.loads(next(saved.glob("*.json")).read_text(encoding="utf-8"))["model"]
    assert given[-1] == encode_prompt(AutoTokenizer.from_pretrained(model), whole[:-1])
    assert sorted(map(len, read_saved(saved))) == [3, 7]  # the old file is gone
    # Taken back altogether it has no file any more; what was asked last is the latest.
    talk(recipe(), "/resume", "/undo", "/undo", "/undo")
    assert list(map(len, read_saved(saved))) == [3]


DAMAGED = {
    "empty": b"",
    "cut": b'{"model": "x", "messages": [{"role": "us',
    "list": b"[]",
    "no messages": b'{"model": "x", "messages": []}',
    "a role": b'{"messages": [{"role": "king", "content": "a"}]}',
    "no text": b'{"messages": [{"role": "user", "content": 5}]}',
    "zero": b'{"messages": [{"role": "user", "content": 0}]}',
    "false": b'{"messages": [{"role": "user", "content": false}]}',
    "an empty object": b'{"messages": [{"role": "user", "content": {}}]}',
    "an empty list": b'{"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": []}]}',
    "half a pair": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "no call": b'{"messages": [{"role": "user", "content": "a"}, {"role": "function_call", "content": "x"}]}',
    "odd calls": b'{"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}]}',
    "deep": b"[" * 100_000,
    "no UTF-8": b'{"messages": [{"role": "user", "content": "\xff"}]}',
}


def test_damaged_files_are_passed_over_with_a_note(talk, recipe, saved):
    talk(recipe(), "red")
    for name, content in DAMAGED.items():
        (saved / f"{name}.json").write_bytes(content)
    os.mkfifo(saved / "pipe.json")
    _, err = talk(recipe(), "/resume list", "/set chat_template_kwargs. 5", "/resume")
    assert err.count("warning: passed over: ") == 2 * (len(DAMAGED) + 1)
    assert "warning: chat_template_kwargs.: an argument's name is wanted" in err
    assert f"> red\n{WORDS['red']}\n" in err
    assert all((saved / f"{name}.json").exists() for name in DAMAGED)


def test_text_of_a_saved_conversation_is_not_obeyed_by_the_terminal(talk, recipe, saved):
    saved.mkdir(parents=True)
    row = {"model": "a\x1b[2Jb", "messages": [user("x\x1b]2;t\x07y"), assistant("\x9b1mz")]}
    (saved / "odd.json").write_text(json.dumps(row))
    out, err = talk(recipe(), "/resume", "/resume list")
    assert "x\\x1b]2;t\\x07y" in err
    assert not {"\x1b", "\x9b", "\x07"} & {*out, *err}


def test_what_can_not_be_saved_is_a_warning_and_the_talk_goes_on(talk, recipe, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (str(tmp_path / "file"), "~nobody_here/x"):
        monkeypatch.setenv("IMPRUVER_CACHE", place)
        out, err = talk(recipe(), "red", "/reset", "green", "/resume")
        assert out.splitlines() == [WORDS["red"], WORDS["green"]]
        assert err.count("warning: this conversation is not saved: ") == 1


def test_calls_are_resumed_where_they_wait_for_a_response(talk, recipe, thinker, saved):
    talk(recipe(thinker), "weather")
    out, _ = talk(recipe(thinker), "/resume", "/result rain", "exit", "think")
    assert out == "it rains\n"
    assert [message["role"] for message in read_saved(saved)[0]] == [
        *("user", "function_call", "function_response", "assistant")
    ]
