"""transformers as the backend: what the model gets, every kind of output_dir, where it stops, what it draws."""

import io
import json
from pathlib import Path

import pytest
from impruver_chat.backends.chat_tokenizer import EncodingOptions, find_stop_criteria
from impruver_chat.backends.transformers.backend import load_backend
from impruver_chat.generation.parameters import SamplingParams
from impruver_chat.model_dir import find_model
from impruver_core import encode_prompt
from impruver_core.recipe.loading import load_recipe
from support.chat_models import OTHER_WORDS, WORDS, ask, make_tokenizer
from support.messages import user


@pytest.fixture
def loaded(recipe):
    """The backend of a folder of `models`."""

    def load_one(folder="full", variables=(), **keys):
        config = load_recipe(recipe(folder, **keys))
        options = EncodingOptions(chat_template_kwargs=dict(variables))
        found = find_model(Path(config.output_dir), config.model.name, config.base_dir)
        return load_backend(found, config.model, config.tokenizer, options, config.base_dir)

    return load_one


def test_the_model_gets_the_ids_of_encode_prompt(answers, recipe, models, monkeypatch):
    from transformers import AutoTokenizer, LlamaForCausalLM

    given = []
    generate = LlamaForCausalLM.generate

    def note(self, **options):
        pairs = zip(options["input_ids"], options["attention_mask"].bool(), strict=True)
        given.extend(ids[mask].tolist() for ids, mask in pairs)
        return generate(self, **options)

    monkeypatch.setattr(LlamaForCausalLM, "generate", note)
    conversation = [user("red"), {"role": "assistant", "content": "красный"}, user("green?")]
    rows = [{"prompt": "red"}, {"messages": conversation}]
    answers(recipe(), rows, "--max_new_tokens", "1", "--system_prompt", "be brief")
    tokenizer = AutoTokenizer.from_pretrained(models / "full")
    wanted = [[{"role": "system", "content": "be brief"}, user("red")], conversation]
    assert given == sorted((encode_prompt(tokenizer, messages) for messages in wanted), key=len, reverse=True)


def test_template_arguments_of_the_recipe_and_of_the_row(loaded, copy):
    folder, messages = copy("full"), [user("x")]
    (folder / "chat_template.jinja").write_text("{{ mood }} {{ messages[0]['content'] }}<|end|>")
    backend = loaded(folder, {"mood": "a"})
    assert backend.tokenizer.decode(backend.tokenizer.encode(messages)) == "a x"
    assert backend.tokenizer.decode(backend.tokenizer.encode(messages, None, {"mood": "b"})) == "b x"


@pytest.mark.parametrize("kind", ["full", "adapter", "merged"])
def test_every_kind_of_output_dir_answers_as_it_was_trained(kind, loaded, models, tmp_path):
    words = WORDS if kind == "full" else OTHER_WORDS
    if kind == "merged":
        kind = tmp_path / "merged"
        model = loaded("adapter").model.merge_and_unload()
        model.save_pretrained(kind)
        make_tokenizer(kind)
    backend = loaded(kind)
    assert {word: ask(backend, word).text for word in words} == words


@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_a_quantized_base_under_the_adapter(bits, loaded):
    backend = loaded("adapter", model={"dtype": "fp32", bits: True})
    kinds = {type(part).__module__.partition(".")[0] for part in backend.model.modules()}
    assert "bitsandbytes" in kinds
    if bits == "load_in_8bit":
        assert [ask(backend, word).text for word in OTHER_WORDS] == list(OTHER_WORDS.values())


def test_an_adapter_with_grown_embeddings_made_by_impruver_train(models, tmp_path, loaded, write_jsonl, capfd):
    """New special tokens: the rows that training added are there, and the answer is that of peft's own model."""
    import torch
    from impruver_train.cli import main
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    train = write_jsonl([{"input_ids": [5, 6, 290, 291], "labels": [5, 6, 290, 291]}] * 8, "train.jsonl")
    config = {
        "output_dir": str(tmp_path / "out"),
        "train_path": str(train),
        "model": {"name": str(models / "full"), "dtype": "fp32"},
        "tokenizer": {"special_tokens": {"additional_special_tokens": ["<new1>", "<new2>"]}},
        "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
        "trainer": {"max_steps": 3, "learning_rate": 0.01, "use_cpu": True, "save_strategy": "no"},
    }
    (tmp_path / "train.yaml").write_text(json.dumps(config))
    assert main(["--config", str(tmp_path / "train.yaml")]) == 0, capfd.readouterr().err
    backend = loaded(tmp_path / "out", model=config["model"])
    assert backend.model.get_input_embeddings().weight.shape[0] == 292
    base = AutoModelForCausalLM.from_pretrained(models / "full", dtype=torch.float32)
    base.resize_token_embeddings(292)
    model = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = encode_prompt(tokenizer, [user("red<new1>")])
    assert 290 in ids
    out = model.generate(input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=12, eos_token_id=6)
    answer = ask(backend, ids, room=12)
    assert answer.text == tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).rstrip("�")


def test_it_stops_at_each_end_of_turn(models, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models / "full")
    assert find_stop_criteria(tokenizer, models / "full").ids == {2, 6}  # EOS, and what the template shows
    (tmp_path / "impruver.json").write_text('{"impruver": 1, "end_of_turn": ["<|user|>", "\\n###"]}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 4}')
    stops = find_stop_criteria(tokenizer, tmp_path)
    assert (stops.ids, stops.texts) == ({2, 3, 4}, ("\n###",))


def test_a_text_that_ends_turns_ends_the_answer(loaded, copy):
    folder = copy("full")
    (folder / "impruver.json").write_text('{"impruver": 1, "end_of_turn": ["ый"]}')
    answer = ask(loaded(folder), "red")
    assert (answer.text, answer.ended) == ("красн", True)


def test_what_is_streamed_is_the_answer_and_comes_in_pieces(loaded):
    backend, pieces = loaded(), []
    answer = ask(backend, "red", emit=pieces.append)
    assert "".join(pieces) == answer.text == WORDS["red"]
    assert len(pieces) > 5
    assert answer.ended


def test_the_seed_decides_what_is_drawn(loaded):
    backend, drawn = loaded("babbler"), SamplingParams(temperature=2.0, top_p=1.0, top_k=0)
    first, again, other = (ask(backend, "red", drawn, seed).text for seed in (1, 1, 2))
    assert first == again != other
    assert not ask(backend, "red", drawn, room=3).ended


def test_the_models_own_generation_defaults_do_not_leak_in(loaded, copy):
    folder, plain = copy("babbler"), ask(loaded("babbler"), "red").text
    leaky = {"min_p": 0.99, "no_repeat_ngram_size": 1, "suppress_tokens": [5], "max_length": 21, "num_beams": 3}
    (folder / "generation_config.json").write_text(json.dumps(leaky))
    assert ask(loaded(folder), "red").text == plain


def test_repetition_is_punished_as_transformers_does(loaded):
    import torch

    backend = loaded("babbler")
    ids = backend.tokenizer.encode([user("red")])
    out = backend.model.generate(
        input_ids=torch.tensor([ids]), do_sample=False, repetition_penalty=1.5, max_new_tokens=9, eos_token_id=2
    )
    answer = ask(backend, ids, SamplingParams(do_sample=False, repetition_penalty=1.5), room=9)
    # cut off at its room: half a character is not shown
    assert answer.text == backend.tokenizer.decode(out[0, len(ids) :]).rstrip("�")


def test_a_generation_config_may_say_its_numbers_without_a_point(chat, recipe, copy, monkeypatch):
    folder = copy("full")
    saved = {"do_sample": True, "temperature": 2, "repetition_penalty": 2, "top_k": 1, "top_p": 1}
    (folder / "generation_config.json").write_text(json.dumps(saved))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"blue\n")))
    code, out, err = chat("--config", recipe(folder))
    assert (code, bool(out.strip())) == (0, True), err
    assert "temperature 2, top_p 1, top_k 1, repetition_penalty 2" in err
