"""trainer_state.json by strangers: what transformers could not go on from is one message."""

import json
import os

import pytest
from impruver_core.errors import ImpruverError
from impruver_train.checkpointing.trainer_state import read_trainer_state

GENUINE = {
    "epoch": 0.5,
    "global_step": 2,
    "max_steps": 4,
    "train_batch_size": 4,
    "log_history": [{"loss": 1.0, "step": 1}],
    "best_metric": None,
    "best_model_checkpoint": None,
    "stateful_callbacks": {"TrainerControl": {"args": {}, "attributes": {}}},
}
FORGED = {  # what is other in it → what the message says
    "no step": ({"global_step": None}, "global_step: None is not of type int"),
    "a text": ({"global_step": "2"}, "global_step: '2' is not of type int"),
    "a fraction": ({"global_step": 1.5}, "global_step: 1.5 is not of type int"),
    "true": ({"global_step": True}, "global_step: True is not of type int"),
    "a list": ({"global_step": [2]}, "global_step: [2] is not of type int"),
    "below 0": ({"global_step": -1}, "global_step must be a whole number from 0, not -1"),
    "beyond any run": ({"global_step": 1 << 40}, "global_step must be a whole number from 0"),
    "no number": ({"epoch": float("nan")}, "epoch is no number of a run"),
    "a number of many digits": ({"total_flos": 10**400}, "total_flos is no number of a run"),
    "no batch": ({"train_batch_size": None}, "train_batch_size is missing"),
    "a name of its own": ({"__class__": 1}, "__class__: no such argument"),
    "logs that are none": ({"log_history": {"loss": 1}}, "log_history must be a list"),
    "logs of texts": ({"log_history": ["loss"]}, "log_history must be a list"),
    "a number for a path": ({"best_model_checkpoint": 7}, "best_model_checkpoint must be a text"),
    "no callbacks": ({"stateful_callbacks": {}}, "stateful_callbacks must be an object with"),
}


def refuse(folder):
    with pytest.raises(ImpruverError) as caught:
        read_trainer_state(folder)
    assert str(folder / "trainer_state.json") in str(caught.value)
    return str(caught.value)


def test_a_genuine_one_is_read(tmp_path):
    from transformers import TrainerControl, TrainerState

    state = TrainerState(global_step=2, train_batch_size=4, stateful_callbacks=[TrainerControl()])
    state.best_metric = float("inf")
    state.save_to_json(str(tmp_path / "trainer_state.json"))
    assert read_trainer_state(tmp_path)["global_step"] == 2


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_one_is_refused(name, tmp_path):
    fields, said = FORGED[name]
    (tmp_path / "trainer_state.json").write_text(json.dumps(GENUINE | fields))
    assert said in refuse(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "7", "{", "[" * 100_000, '{"global_step": %s}' % ("9" * 10_000), "\xff"])
def test_what_is_no_json_object_is_refused(content, tmp_path):
    (tmp_path / "trainer_state.json").write_text(content, encoding="latin-1")
    refuse(tmp_path)


def test_what_is_no_file_is_refused(tmp_path):
    assert "no ordinary file" in refuse(tmp_path)
    os.mkfifo(tmp_path / "trainer_state.json")
    assert "no ordinary file" in refuse(tmp_path)
