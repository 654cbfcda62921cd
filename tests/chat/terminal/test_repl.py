"""The real program at a terminal: typing, streaming, stopping, leaving, what a person sees."""

import json
import re
import signal
import time

import pytest
from support.chat_models import OTHER_WORDS, WORDS

GREEDY = ("--temperature", "0", "--repetition_penalty", "1")


@pytest.fixture
def started(terminal, tmp_path):
    """Starts the command at a terminal; it has asked for the first question."""

    def start(*flags, **environment):
        environment = {"IMPRUVER_CACHE": str(tmp_path / "cache")} | environment
        window = terminal("-m", "impruver_chat", *flags, **environment)
        window.prompted(1)
        return window

    return start


def test_typing_several_lines_history_and_leaving(started, recipe, tmp_path):
    window = started("--config", recipe(), *GREEDY)
    assert "Ctrl+D leaves, /help lists the commands" in window.text()
    window.type("red")
    assert f"> red\n{WORDS['red']}\n>" in re.sub(r"\n+", "\n", window.prompted(2))
    window.process.send("  rad\x7f\x7f\x7f   \x01\x1b[C\x1b[C\x0b")  # what is typed is edited to blanks
    window.type("")
    window.prompted(3)
    window.type("/reset")
    assert "forgotten" in window.prompted(4)
    window.type("/rest")
    assert "no command /rest, did you mean /reset?" in window.prompted(5)
    window.process.send("white\\\rone\x1b\rtwo")
    window.until("two")
    window.type("")
    window.prompted(6)
    window.type(f"/save {tmp_path / 'saved.jsonl'}")
    window.until("appended 2 messages")
    window.process.sendeof()
    assert window.left() == 0
    (row,) = map(json.loads, (tmp_path / "saved.jsonl").read_text(encoding="utf-8").splitlines())
    assert row["messages"][0] == {"role": "user", "content": "white\none\ntwo"}
    history = tmp_path / "cache/chat_history"
    assert history.stat().st_mode & 0o077 == 0
    again = started("--config", recipe(), *GREEDY)
    again.process.send("\x1b[A" * 2)  # past the /save, the question before
    again.until("two")
    again.process.sendintr()
    assert again.left() == 0


def test_ctrl_c_stops_an_answer_and_leaves_at_the_prompt(started, recipe, tmp_path):
    window = started("--config", recipe("babbler"), *GREEDY, "--max_new_tokens", "3900")
    window.type("tell me a lot")
    window.until(lambda text: len(text.partition("> tell me a lot")[2].strip()) > 5)  # the first of thousands of tokens
    window.process.send("typed meanwhile")
    window.process.sendintr()
    window.until("(stopped)")
    window.until("> typed meanwhile")
    window.process.send("\x15")
    window.type(f"/save {tmp_path / 'saved.jsonl'}")
    window.until("appended 2 messages")
    window.process.sendintr()
    assert window.left() == 0
    said = json.loads((tmp_path / "saved.jsonl").read_text(encoding="utf-8"))["messages"][1]["content"]
    assert 5 < len(said) < 3000


def test_reasoning_is_dim_and_answers_are_markdown(started, recipe, thinker):
    window = started("--config", recipe(thinker), *GREEDY)
    window.type("think")
    assert "let me see\n\nответ\n" in window.prompted(2)
    assert "\x1b[2mlet me see" in window.raw.decode()
    window.type("/reset")
    window.prompted(3)
    window.type("mark")
    assert "жирный и код 🍎\n\n • a\n • b\n" in window.prompted(4)
    window.type("/reset")
    window.prompted(5)
    window.type("weather")
    assert 'function call: get_weather {"city": "Paris"}\n/result TEXT' in window.prompted(6)
    assert "<call>" not in window.text()
    window.type("/result rain")
    assert "it rains" in window.prompted(7)
    window.type("/quit")
    assert window.left() == 0


def test_each_command_at_a_terminal(started, recipe, tmp_path):
    window = started("--config", recipe("adapter"), *GREEDY)
    path = tmp_path / "saved.jsonl"
    shown = [
        ("/help", "/compare           Answers with the adapter and without it"),
        ("/system be brief", "system prompt: be brief"),
        ("/system -", "system prompt: none"),
        ("red", OTHER_WORDS["red"]),
        ("/retry", f"> /retry\n{OTHER_WORDS['red']}"),
        ("/undo", "taken back: red"),
        ("/set temperature 0.2", "temperature 0.2, top_p 0.6"),
        ("/set temperature 0", "the likeliest token each time"),
        ("/compare", "answers with the adapter and without it"),
        ("green", f"with the adapter:\n{OTHER_WORDS['green']}\nwithout it:\n{WORDS['green']}"),
        (f"/save {path}", "appended 2 messages"),
        ("/reset", "forgotten"),
        ("/result x", "no function was called"),
        ("/hlep", "did you mean /help?"),
    ]
    for number, (typed, told) in enumerate(shown, 2):
        window.type(typed)
        assert told in window.prompted(number)
    window.type("/quit")
    assert window.left() == 0
    assert [message["role"] for message in json.loads(path.read_text())["messages"]] == ["user", "assistant"]


def test_plain_shows_what_was_said(started, recipe, thinker):
    window = started("--config", recipe(thinker), *GREEDY, "--plain")
    window.type("mark")
    assert "**жирный** и `код` 🍎\n\n- a\n- b\n" in window.prompted(2)
    window.type("/reset")
    window.prompted(3)
    window.type("think")
    assert "let me see\nответ\n" in window.prompted(4)
    window.process.sendeof()
    assert window.left() == 0


def test_a_history_that_cannot_be_kept_is_a_warning(started, recipe, tmp_path):
    (tmp_path / "file").write_text("")
    window = started("--config", recipe(), *GREEDY, IMPRUVER_CACHE=str(tmp_path / "file"), columns=200)
    assert f"warning: {tmp_path / 'file' / 'chat_history'}: " in window.text()
    assert "questions are not kept for the next session" in window.text()
    window.type("red")
    assert WORDS["red"] in window.prompted(2)
    window.process.sendintr()
    assert window.left() == 0


def test_a_folder_of_caches_in_nobodys_home_is_a_warning(started, recipe):
    window = started("--config", recipe(), IMPRUVER_CACHE="~nobody_here/x", columns=200)
    assert "warning: ~nobody_here/x: there is no such home folder; set IMPRUVER_CACHE to a folder" in window.text()
    window.process.sendeof()
    assert window.left() == 0


def test_a_dumb_terminal(started, recipe):
    window = started("--config", recipe(), *GREEDY, TERM="dumb")
    window.type("red")
    assert WORDS["red"] in window.prompted(2)
    assert b"\x1b" not in window.raw
    window.process.sendeof()
    assert window.left() == 0


def test_bytes_that_are_no_text_are_told_and_the_talk_goes_on(started, recipe):
    window = started("--config", recipe(), *GREEDY)
    window.process.send(b"red\xff\xfe\r")
    assert "not asked: this line is not UTF-8" in window.prompted(2)
    window.type("red")
    assert WORDS["red"] in window.prompted(3)


@pytest.mark.parametrize("wait", [0, 0.1])
def test_sigterm_at_the_prompt_ends_it(started, recipe, wait):
    window = started("--config", recipe())
    time.sleep(wait)
    window.process.kill(signal.SIGTERM)
    assert window.left() == 143
    assert "Press ENTER" not in window.text()


def test_ctrl_d_typed_into_an_answer_leaves_at_the_next_prompt(started, recipe):
    window = started("--config", recipe("babbler"), *GREEDY, "--max_new_tokens", "3900")
    window.type("tell me a lot")
    window.until(lambda text: len(text.partition("> tell me a lot")[2].strip()) > 5)
    window.process.sendeof()
    window.process.sendintr()
    assert window.left() == 0
    assert "(stopped)" in window.text()


LEAVING = """
import os, signal
from impruver_chat.terminal.prompt_input import exiting_on_signal, make_editor
session = make_editor([])
with exiting_on_signal(session.app) as begun:
    os.kill(os.getpid(), signal.SIGTERM)
    session.prompt("> ", pre_run=begun)
"""


def test_sigterm_before_the_prompt_begins_is_not_lost(terminal, tmp_path):
    window = terminal("-c", LEAVING, IMPRUVER_CACHE=str(tmp_path))
    assert window.left() == 1
    assert "TerminationSignal" in window.text()
