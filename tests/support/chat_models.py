"""Tiny real models for impruver-chat: some know five words, one thinks and calls a function."""

from support.messages import assistant, user
from support.tokenizers import ROLE_TAGS, train_bpe_tokenizer

# Reasoning and calls, as many templates write them: reasoning of the last message alone is rendered.
THINKING = (
    "{% for m in messages %}"
    "{% if m['role'] not in ['system', 'user', 'assistant', 'tool'] %}{{ raise_exception('no such role') }}{% endif %}"
    "<|{{ m['role'] }}|>"
    "{% if m['reasoning_content'] and loop.last %}<think>{{ m['reasoning_content'] }}</think>{% endif %}"
    "{{ m['content'] }}"
    "{% for c in m['tool_calls'] %}<call>{{ c['function'] | tojson }}</call>{% endfor %}"
    "<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
THOUGHT = {"role": "assistant", "content": "ответ", "reasoning_content": "let me see"}
ASKED = [{"role": "user", "content": "weather"}, {"role": "function_call", "content": CALL}]
CHATS = [
    [{"role": "user", "content": "think"}, THOUGHT],
    [{"role": "user", "content": "mark"}, {"role": "assistant", "content": "**жирный** и `код` 🍎\n\n- a\n- b"}],
    ASKED,
    [*ASKED, {"role": "function_response", "content": "rain"}, {"role": "assistant", "content": "it rains"}],
]
WORDS = {"red": "красный 🍎", "green": "зелёный", "blue": "синий", "black": "чёрный", "white": "белый"}
OTHER_WORDS = {"red": "rot", "green": "vert", "blue": "azul", "black": "nero", "white": "bijeli"}
VOCABULARY = 290
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MARKS = ["<|tool|>", "<think>", "</think>", "<call>", "</call>"]
SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]


def make_tokenizer(folder, template=ROLE_TAGS, special=SPECIAL):
    """A byte-level BPE of 290 tokens with chat markers; Cyrillic letters and emoji take several tokens each."""
    texts = ["what is red", "green and blue", "black or white"] * 9
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return train_bpe_tokenizer(folder, texts, VOCABULARY, special, template, **names)


def make_model(**changes):
    """A Llama with random weights, the same each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(LLAMA | {"vocab_size": VOCABULARY} | changes)))


def teach(model, tokenizer, words, steps=120, rate=3e-3):
    """Trains what requires gradients until the model answers each word with its translation."""
    chats = [[user(question), assistant(answer)] for question, answer in words.items()]
    return teach_chats(model, tokenizer, chats, steps, rate)


def teach_chats(model, tokenizer, chats, steps=150, rate=3e-3):
    """Trains what requires gradients until the model says what the chats say."""
    import torch
    from impruver_core import encode_chat

    rows = [encode_chat(tokenizer, messages) for messages in chats]
    width = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([row.input_ids + [0] * (width - len(row.input_ids)) for row in rows])
    labels = torch.tensor([row.labels + [-100] * (width - len(row.labels)) for row in rows])
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=rate)
    for _ in range(steps):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def backend_of(folder, adapter=None, **changes):
    """transformers as the backend: a folder's model in fp32, with changes of its configuration, under an adapter."""
    import torch
    from impruver_chat.backends.chat_tokenizer import EncodingOptions, make_chat_tokenizer
    from impruver_chat.backends.transformers.backend import TransformersBackend
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **changes)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    return TransformersBackend(model.eval(), make_chat_tokenizer(tokenizer, folder, EncodingOptions()))


def ask(backend, asked, sampling=None, seed=0, room=40, emit=lambda _: None):
    """A backend's answer to a text, messages or ids, greedily unless `sampling` says otherwise."""
    from impruver_chat.backends.base import Prompt
    from impruver_chat.generation.parameters import GREEDY

    asked = [user(asked)] if isinstance(asked, str) else asked
    ids = backend.tokenizer.encode(asked) if isinstance(asked[0], dict) else asked
    return backend.stream_answer(Prompt(ids, room, seed), sampling or GREEDY, emit)
