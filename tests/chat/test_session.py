"""History: whole turns, the system prompt kept, what is put out counted."""

import pytest
from impruver_chat.session import NoAnswer, Session, fit, last_turns, room_for


def chat(*roles):
    return [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(roles)]


def encode(messages):
    return [0] * sum(len(message["content"].split()) for message in messages)  # two ids a message


FIVE_TURNS = chat(*["user", "assistant"] * 4, "user")


@pytest.mark.parametrize(("limit", "kept"), [(0, 1), (1, 1), (2, 1), (3, 3), (8, 7), (9, 9), (10, 9), (99, 9)])
def test_history_is_cut_at_whole_turns(limit, kept):
    assert last_turns(FIVE_TURNS, limit) == FIVE_TURNS[-kept:]


def test_a_turn_with_tools_stays_whole():
    messages = chat("user", "assistant", "tool", "assistant", "user")
    assert last_turns(messages, 4) == messages[-1:]
    assert last_turns(messages, 5) == messages


def test_the_session_counts_what_the_limit_puts_out_and_never_the_system_prompt():
    session = Session("be brief", history_limit=3)
    dropped = []
    for number in range(4):
        dropped.append(session.ask(f"question {number}"))
        ids, out = session.prompt(encode, None, 10)
        assert out == 0
        assert len(ids) == 2 + 2 * len(session.messages)
        session.answer("an answer")
    assert dropped == [0, 0, 2, 2]
    session.reset()
    session.ask("a question")
    assert len(session.prompt(encode, None, 10)[0]) == 4


def test_the_oldest_turns_make_room_for_the_answer():
    system = [{"role": "system", "content": "be brief"}]
    ids, kept = fit(FIVE_TURNS, system, encode, context=20, room=6)
    assert (len(ids), kept) == (12, FIVE_TURNS[-5:])
    ids, kept = fit(FIVE_TURNS, system, encode, context=20, room=99)  # no room to be had: the last turn alone
    assert (len(ids), kept) == (4, FIVE_TURNS[-1:])
    assert room_for(ids, 20, 99) == 16
    assert room_for(ids, None, 99) == 99


def test_one_turn_that_does_not_fit_is_refused_and_taken_back():
    session = Session(None)
    session.ask("x " * 30)
    with pytest.raises(NoAnswer, match=r"30 tokens, and the model's context is 30"):
        session.prompt(encode, 30, 1)
    session.take_back()
    assert session.messages == []
