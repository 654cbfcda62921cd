"""NaN and infinity in weights: told by the tensor's name before anything is computed with them."""

import shutil

import pytest

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def spoiled(parts, tmp_path):
    """Makes a base in which some values of a tensor are others."""
    from safetensors.torch import load_file, save_file

    def make(name=NAME, values=(float("nan"),), kept=None):
        base = shutil.copytree(parts / "base", tmp_path / "spoiled", dirs_exist_ok=True)
        weights = load_file(base / "model.safetensors")
        if name not in weights:
            weights[name] = weights[NAME].clone()
        for at, value in enumerate(values):
            weights[name].view(-1)[7 * at] = value
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
        return {"model": {"name": str(base)}}

    return make


CASES = {
    "NaN": ([float("nan")] * 3, {}, f"{NAME} holds NaN (3 of 2,048 values)"),
    "infinity": ([float("-inf")], {}, f"{NAME} holds infinity (1 of 2,048 values)"),
    "both, packed": (
        [float("inf"), float("nan")],
        {"trainer": {"packing": True}},
        f"{NAME} holds NaN and infinity (2 of 2,048 values)",
    ),
    "full training": ([float("nan")], {"lora": None}, f"{NAME} holds NaN (1 of 2,048 values)"),
    "new tokens": (
        [float("nan")],
        {"tokenizer": {"special_tokens": {"additional_special_tokens": ["<|stop|>"]}}},
        f"{NAME} holds NaN",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_base_without_numbers_is_told_before_a_step(name, spoiled, recipe, impruver_train, tmp_path):
    values, keys, wanted = CASES[name]
    base = spoiled(values=values)
    code, stdout, err = impruver_train(recipe(**base | keys))
    assert (code, stdout, "Traceback" in err) == (3, "", False), err
    assert f"impruver-train: error: model.name: {base['model']['name']}: {wanted}" in err
    assert "copy or download it again" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_without_numbers_is_told(bits, spoiled, recipe, impruver_train):
    base = spoiled()
    base["model"][f"load_in_{bits}bit"] = True
    code, _, err = impruver_train(recipe(**base))
    assert code == 3, err
    assert f"{NAME} holds NaN" in err


def test_weights_that_are_not_loaded_may_hold_anything(spoiled, recipe, impruver_train):
    base = spoiled(name="vision_tower.weight")
    code, _, err = impruver_train(recipe(**base, trainer={"max_steps": 1}))
    assert code == 0, err


def test_a_checkpoint_without_numbers_is_told(recipe, impruver_train, tmp_path):
    from safetensors.torch import load_file, save_file

    trainer = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    assert impruver_train(recipe(trainer=trainer))[0] == 0
    named = shutil.copytree(tmp_path / "out/checkpoint-1", tmp_path / "theirs/checkpoint-1")
    (named / "impruver.json").unlink()
    weights = load_file(named / "adapter_model.safetensors")
    first = next(iter(weights))
    weights[first].view(-1)[0] = float("nan")
    save_file(weights, named / "adapter_model.safetensors", metadata={"format": "pt"})
    keys = {"output_dir": str(tmp_path / "second"), "trainer": trainer | {"resume_from_checkpoint": str(named)}}
    code, _, err = impruver_train(recipe(**keys))
    assert (code, "Traceback" in err) == (3, False), err
    assert f"{named}: {first.removesuffix('.weight')}.default.weight holds NaN (1 of " in err


def test_a_mask_among_the_buffers_may_hold_infinity():
    import torch
    from impruver_core.errors import CheckFailedError
    from impruver_train.modeling.finite_weights import check_finite_base

    model = torch.nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    model.register_buffer("unsaved", torch.tensor([float("nan")]), persistent=False)
    check_finite_base(model, "base")
    model.register_buffer("scale", torch.tensor([float("nan")]))
    with pytest.raises(CheckFailedError, match=r"scale holds NaN \(1 of 1 values\)"):
        check_finite_base(model, "base")


def test_pieces_of_a_large_tensor_are_all_looked_at():
    import torch
    from impruver_train.modeling.finite_weights import PIECE, find_nonfinite

    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        weight = torch.full((3 * PIECE + 5,), torch.finfo(dtype).max, dtype=dtype)
        assert find_nonfinite([("w", weight)]) == []
        for at in (0, PIECE, -1):
            weight[at] = float("nan")
        (found,) = find_nonfinite([("w", weight)])
        assert tuple(found) == ("w", 3, 0, len(weight))
    eight = torch.ones(9).to(torch.float8_e4m3fn)
    assert find_nonfinite([("w", eight)]) == []
    eight[4] = float("nan")
    assert find_nonfinite([("w", eight)])[0].nan == 1
    assert find_nonfinite([("empty", torch.empty(0)), ("meta", torch.empty(4, device="meta"))]) == []
