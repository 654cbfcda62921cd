"""The precision rules as a table; devices that this machine lacks are stood in for by their one answer."""

import pytest
from impruver_core.errors import ImpruverError
from impruver_train.config.precision import choose_precision

# model.dtype, trainer's own, device, has bf16 -> computed in, trained in, frozen in, autocast, number of warnings
RULES = [
    ("auto", {}, "cpu", False, ("float32", "float32", "float32", None), 0),
    ("auto", {}, "cpu", True, ("bfloat16", "float32", "bfloat16", "bf16"), 0),
    ("auto", {}, "cuda", True, ("bfloat16", "float32", "bfloat16", "bf16"), 0),
    ("auto", {}, "cuda", False, ("float16", "float32", "float16", "fp16"), 0),
    ("auto", {"bf16": False}, "cuda", True, ("float32", "float32", "float32", None), 0),
    ("auto", {"fp16": True}, "cuda", True, ("float16", "float32", "float16", "fp16"), 0),
    ("bf16", {}, "cuda", True, ("bfloat16", "float32", "bfloat16", "bf16"), 0),
    ("bf16", {}, "cpu", False, ("bfloat16", "float32", "bfloat16", "bf16"), 1),
    ("bf16", {"bf16": False}, "cuda", True, ("bfloat16", "bfloat16", "bfloat16", None), 1),
    ("fp16", {}, "cuda", True, ("float16", "float32", "float16", "fp16"), 0),
    ("fp32", {}, "cuda", True, ("float32", "float32", "float32", None), 0),
]
REFUSED = [("fp16", {}, "cpu"), ("fp16", {"fp16": False}, "cuda"), ("fp32", {"bf16": True}, "cuda")]


@pytest.mark.parametrize(("dtype", "trainer", "device", "bf16", "wanted", "warned"), RULES)
def test_rules(dtype, trainer, device, bf16, wanted, warned, monkeypatch):
    for module in ("impruver_core.modeling.loading", "impruver_train.config.precision"):
        monkeypatch.setattr(f"{module}.has_bf16", lambda device: bf16)
    chosen, warnings = choose_precision(dtype, trainer, device)
    held = [str(kind).removeprefix("torch.") for kind in (chosen.compute, chosen.trained, chosen.frozen)]
    assert (*held, chosen.autocast) == wanted
    assert len(warnings) == warned


@pytest.mark.parametrize(("dtype", "trainer", "device"), REFUSED)
def test_refused(dtype, trainer, device):
    with pytest.raises(ImpruverError):
        choose_precision(dtype, trainer, device)
