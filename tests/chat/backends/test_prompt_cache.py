"""The cache of the common prefix, kept between turns: the same answers, and only what is new is computed."""

import pytest
from impruver_chat.backends.chat_tokenizer import EncodingOptions, make_chat_tokenizer
from impruver_chat.backends.transformers.backend import TransformersBackend
from support.chat_models import ask, backend_of
from support.messages import user

FIRST = [user("what is red")]
SECOND = [*FIRST, {"role": "assistant", "content": "it is {}"}, {"role": "user", "content": "and green"}]


def transformers(models, adapter=False, **changes):
    """A backend with a tiny model, and the numbers of tokens that its forward computes."""
    backend, computed = backend_of(models / "full", models / "adapter" if adapter else None, **changes), []
    inner = backend.model.get_base_model() if adapter else backend.model
    inner.register_forward_pre_hook(
        lambda _, args, given: computed.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    return backend, computed


def said(backend, messages, room=12):
    return ask(backend, messages, room=room).text


def with_answer(text):
    return [message | {"content": message["content"].replace("{}", text)} for message in SECOND]


def test_only_what_is_new_is_computed_and_the_answer_is_the_same(models):
    backend, computed = transformers(models)
    first = said(backend, FIRST)
    messages = [*FIRST, {"role": "assistant", "content": first}, *SECOND[2:]]
    computed.clear()
    kept = said(backend, messages)
    assert computed[0] < len(backend.tokenizer.encode(messages)) - len(backend.tokenizer.encode(FIRST))
    assert kept == said(transformers(models)[0], messages)
    computed.clear()
    assert said(backend, messages) == kept  # as /retry asks
    assert computed[0] == 1


def test_an_earlier_turn_that_the_template_changes_is_recomputed(models):
    backend, computed = transformers(models)
    for text in ("it", "quite another text", "", "it is it"):
        computed.clear()
        messages = with_answer(text)
        assert said(backend, messages) == said(transformers(models)[0], messages)
        assert computed[0] > 1


def test_an_interrupted_answer_leaves_no_half_of_a_cache(models):
    backend, _ = transformers(models)

    def interrupt(_):
        raise KeyboardInterrupt

    said(backend, FIRST)
    with pytest.raises(KeyboardInterrupt):
        ask(backend, SECOND, emit=interrupt)
    assert said(backend, SECOND) == said(transformers(models)[0], SECOND)


def test_with_and_without_the_adapter_each_has_its_own(models):
    backend, computed = transformers(models, adapter=True)
    wanted = [said(transformers(models, adapter=True)[0], SECOND), said(transformers(models)[0], SECOND)]
    for _ in range(2):
        with backend.model.disable_adapter():
            bare = said(backend, SECOND)
        assert [said(backend, SECOND), bare] == wanted
    assert wanted[0] != wanted[1]
    assert computed.count(len(backend.tokenizer.encode(SECOND))) == 2


def test_a_window_that_has_moved_on_is_computed_anew(models):
    """Mistral's window forgets: going back behind it would be wrong."""

    import torch
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=290, num_key_value_heads=1, sliding_window=8, **sizes)
    model, tokenizer = MistralForCausalLM(config).eval(), AutoTokenizer.from_pretrained(models / "full")

    def fresh():
        return TransformersBackend(model, make_chat_tokenizer(tokenizer, models / "full", EncodingOptions()))

    backend = fresh()
    for text in ("it", "quite another text", "it is it"):
        assert said(backend, with_answer(text)) == said(fresh(), with_answer(text))


def test_gguf_keeps_the_prefix_too(smollm2_gguf, load_gguf, llama_cpp_here, monkeypatch):
    from cyllama.llama import llama_cpp

    backend, other = (load_gguf(smollm2_gguf) for _ in range(2))
    one, given = llama_cpp.llama_batch_get_one, []
    first = said(backend, FIRST)
    messages = [*FIRST, {"role": "assistant", "content": first}, *SECOND[2:]]
    monkeypatch.setattr(llama_cpp, "llama_batch_get_one", lambda ids, at: given.append(len(ids)) or one(ids, at))
    kept = said(backend, messages)
    assert given[0] < len(backend.tokenizer.encode(messages)) - len(backend.tokenizer.encode(FIRST))
    assert kept == said(other, messages)
    for text in ("no", "quite another text"):
        assert said(backend, with_answer(text)) == said(other, with_answer(text))
    given.clear()
    assert said(backend, with_answer(text), room=3000) == said(other, with_answer(text), room=3000)  # it grew
    assert given[0] == 1
