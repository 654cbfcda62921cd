"""Generation parameters: which layer wins."""

import json

import pytest
from impruver_chat.generation.parameters import SamplingParams, format_parameters, resolve_parameters
from impruver_chat.sections import ChatSection
from impruver_core.errors import ImpruverError


@pytest.fixture
def chosen(tmp_path):
    def choose_from(saved, interactive=True, **given):
        if saved is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(saved))
        return resolve_parameters(ChatSection(**given), tmp_path, interactive)

    return choose_from


def test_defaults_sample_at_a_terminal_and_are_greedy_for_files(chosen):
    assert chosen(None) == SamplingParams(200, 1.2, True, 0.5, 0.6, 40)
    assert chosen(None, interactive=False) == SamplingParams(200, 1.0, False, 0.5, 0.6, 40)


@pytest.mark.parametrize("interactive", [True, False])
def test_generation_config_stands_between(chosen, interactive):
    saved = {"do_sample": True, "temperature": 0.9, "top_k": 7, "eos_token_id": [2], "max_length": 20, "top_p": None}
    got = chosen(saved, interactive, top_k=3)
    assert (got.do_sample, got.temperature, got.top_k, got.top_p) == (True, 0.9, 3, 0.6)


def test_a_value_that_is_about_sampling_asks_for_it(chosen):
    assert chosen(None, False, top_p=0.9).do_sample
    assert chosen({"do_sample": False}, True, temperature=0.7).do_sample
    assert not chosen(None, False, max_new_tokens=5, repetition_penalty=1.1).do_sample
    assert not chosen(None, True, do_sample=False, temperature=0.7).do_sample


def test_a_temperature_of_0_is_greedy(chosen):
    assert not chosen(None, True, temperature=0.0).do_sample
    assert not chosen(None, True, temperature=0.0, do_sample=True).do_sample
    assert not chosen({"temperature": 0, "do_sample": True}).do_sample


@pytest.mark.parametrize("saved", [{"top_p": 2}, {"temperature": "hot"}, {"top_k": 1.5}, {"max_new_tokens": 0}])
def test_a_broken_generation_config_is_named(chosen, saved, tmp_path):
    with pytest.raises(ImpruverError, match=f"generation_config.json: {next(iter(saved))}"):
        chosen(saved)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ImpruverError, match="not JSON"):
        chosen(None)


def test_described():
    assert format_parameters(SamplingParams(do_sample=False)) == (
        "the likeliest token each time, repetition_penalty 1.2, at most 200 new tokens"
    )
    assert (
        format_parameters(SamplingParams(repetition_penalty=1))
        == "temperature 0.5, top_p 0.6, top_k 40, at most 200 new tokens"
    )
