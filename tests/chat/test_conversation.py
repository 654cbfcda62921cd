"""History: whole turns, the system prompt kept, what is put out counted."""

import pytest
from impruver_chat.conversation import Conversation, NoAnswerError, fit_to_context, limit_new_tokens, select_last_turns
from support.messages import user


def chat(*roles):
    return [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(roles)]


def encode(messages):
    return [0] * sum(len(message["content"].split()) for message in messages)  # two ids a message


ANSWER = {"role": "assistant", "content": "an answer"}
FIVE_TURNS = chat(*["user", "assistant"] * 4, "user")


@pytest.mark.parametrize(("limit", "kept"), [(0, 1), (1, 1), (2, 1), (3, 3), (8, 7), (9, 9), (10, 9), (99, 9)])
def test_history_is_cut_at_whole_turns(limit, kept):
    assert select_last_turns(FIVE_TURNS, limit) == FIVE_TURNS[-kept:]


def test_a_turn_with_tools_stays_whole():
    messages = chat("user", "assistant", "tool", "assistant", "user")
    assert select_last_turns(messages, 4) == messages[-1:]
    assert select_last_turns(messages, 5) == messages


def test_dropped_turns_are_counted_and_the_system_prompt_stays():
    session = Conversation("be brief", history_limit=3)
    dropped = []
    for number in range(4):
        session.messages.append(user(f"question {number}"))
        asked = session.build_prompt(encode, None, 10)
        dropped.append(asked.forgotten_by_limit)
        assert asked.forgotten_by_context == 0
        assert len(asked.ids) == 2 + 2 * len(session.messages[session.forgotten :])
        session.messages.append(ANSWER)
    assert dropped == [0, 0, 2, 2]
    assert len(session.get_messages()) == 9
    session.reset()
    session.messages.append(user("a question"))
    assert len(session.build_prompt(encode, None, 10).ids) == 4


def test_what_is_taken_back_leaves_a_conversation_that_can_go_on():
    session = Conversation(history_limit=1)
    for text in ("one", "two"):
        session.messages.append(user(text))
        session.build_prompt(encode, None, 10)
        session.messages.append(ANSWER)
    assert session.forgotten == 2
    session.remove_last_answer()
    with pytest.raises(NoAnswerError, match="no answer yet"):
        session.remove_last_answer()
    assert session.remove_last_turn() == "two"
    assert (len(session.messages), session.forgotten) == (2, 0)
    assert session.remove_last_turn() == "one"
    with pytest.raises(NoAnswerError, match="nothing was said yet"):
        session.remove_last_turn()


def test_each_call_gets_its_response():
    session = Conversation()
    session.messages.append(user("both"))
    with pytest.raises(NoAnswerError):
        session.add_tool_response("early")
    calls = [{"id": f"call{n}", "type": "function", "function": {"name": name}} for n, name in enumerate("ab")]
    session.messages.append({"role": "assistant", "content": "let me", "tool_calls": calls})
    assert [session.add_tool_response("first"), session.add_tool_response("second")] == [1, 0]
    assert session.messages[2:] == [
        {"role": "tool", "name": "a", "tool_call_id": "call0", "content": "first"},
        {"role": "tool", "name": "b", "tool_call_id": "call1", "content": "second"},
    ]
    session.messages.append({"role": "function_call", "content": '[{"name": "a"}, {"name": "b"}]'})
    assert [session.add_tool_response("first"), session.add_tool_response("second")] == [1, 0]
    assert session.messages[-1] == {"role": "function_response", "content": "second"}
    with pytest.raises(NoAnswerError):
        session.add_tool_response("late")


def test_the_oldest_turns_make_room_for_the_answer():
    system = [{"role": "system", "content": "be brief"}]
    ids, kept = fit_to_context(FIVE_TURNS, system, encode, context_length=20, room=6)
    assert (len(ids), kept) == (12, FIVE_TURNS[-5:])
    # no room to be had: the last turn alone
    ids, kept = fit_to_context(FIVE_TURNS, system, encode, context_length=20, room=99)
    assert (len(ids), kept) == (4, FIVE_TURNS[-1:])
    assert limit_new_tokens(ids, 20, 99) == 16
    assert limit_new_tokens(ids, None, 99) == 99


def test_one_turn_that_does_not_fit_is_refused_and_taken_back():
    session = Conversation(None)
    session.messages.append(user("x " * 30))
    with pytest.raises(NoAnswerError, match=r"30 tokens, and the model's context is 30"):
        session.build_prompt(encode, 30, 1)
    session.remove_last_messages()
    assert session.messages == []
