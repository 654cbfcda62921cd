"""Logits of learned places alone: loss and gradients of all logits, on any family."""

from types import SimpleNamespace

import pytest
from support.jsonl import read_jsonl

IGNORED = -100
KINDS = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "smollm3", "gpt2", "mixtral", "olmo2"]


def model_of(kind, **given):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    more = {} if kind == "gpt2" else {"intermediate_size": 64, "num_key_value_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **more, **special, **given)).eval()


@pytest.fixture
def batch():
    """Three rows, two of them padded, learned in parts; one has its first token learned, which nothing predicts."""
    import torch

    ids = torch.randint(3, 50, (3, 16), generator=torch.Generator().manual_seed(1))
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[0, :9] = labels[1, 1:5] = labels[2, 10:] = labels[1, 13:] = IGNORED
    mask[2, 10:] = mask[1, 13:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize(("count", "fuse"), [(17, True), (None, True), (17, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_all_logits(kind, batch, count, fuse, monkeypatch):
    import torch
    from impruver_train.modeling import chunked_loss as forwards
    from impruver_train.modeling import chunked_loss as logits

    monkeypatch.setattr(logits, "PIECE", 7)
    model = model_of(kind)
    assert forwards.can_choose(model)
    assert forwards.plain_head(model) is model.get_output_embeddings()
    seen = []
    for given in (batch, logits.choose_learned(batch)):
        if given is not batch:
            logits.take_loss_in_pieces(model, fuse)
        model.zero_grad()
        said = model(**given, num_items_in_batch=count)
        said.loss.backward()
        seen.append((said, {name: weight.grad.clone() for name, weight in model.named_parameters()}))
    (everywhere, whole), (chosen, part) = seen
    learned = int((batch["labels"][:, 1:] != IGNORED).sum())
    assert (chosen.logits.given.shape[0] if fuse else len(chosen.logits)) == learned
    assert isinstance(chosen.logits, logits.Unmade) == fuse
    assert everywhere.logits.shape == (3, 16, 50)
    assert chosen.loss.item() == pytest.approx(everywhere.loss.item(), rel=1e-5)
    for name, gradient in whole.items():
        assert torch.allclose(part[name], gradient, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_loss_and_gradient_in_pieces_are_torchs(dtype):
    """Also scaled, as fp16's loss is: its small gradients come through. Little is kept beside the gradient."""
    import torch
    from impruver_train.modeling.chunked_loss import PIECE, loss_in_pieces

    logits = (torch.randn(2 * PIECE + 5, 300) * 4).to(getattr(torch, dtype)).requires_grad_()
    labels = torch.randint(0, 300, (1, len(logits) + 1))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part) or part, lambda part: part):
        loss = loss_in_pieces(logits, labels, 300)
    assert [part.shape for part in kept if part.dim()] == [logits.shape]
    (loss * 1024).backward()
    exact = logits.detach().float().requires_grad_()
    (torch.nn.functional.cross_entropy(exact, labels[0, 1:]) * 1024).backward()
    assert torch.allclose(logits.grad.float(), exact.grad, rtol=2e-2 if dtype == "bfloat16" else 2e-3, atol=1e-6)
    assert (logits.grad != 0).float().mean() > 0.9
    with torch.no_grad():
        assert loss_in_pieces(logits, labels, 300).item() == pytest.approx(loss.item())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_matrix_applied_in_pieces_keeps_no_logits(dtype, frozen):
    import torch
    from impruver_train.modeling.chunked_loss import PIECE, Unmade, loss_in_pieces

    torch.manual_seed(0)
    places, head = 2 * PIECE + 5, torch.nn.Linear(16, 300)
    head = head.to(getattr(torch, dtype)).requires_grad_(not frozen)
    hidden = torch.randn(places, 16, dtype=getattr(torch, dtype), requires_grad=True)
    labels = torch.randint(0, 300, (1, places + 1))
    trained = [weight for weight in head.parameters() if weight.requires_grad]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part) or part, lambda part: part):
        loss = loss_in_pieces(Unmade(hidden, head, trained) * 2.0, labels, 300)
    assert max(part.numel() for part in kept) == max(hidden.numel(), sum(weight.numel() for weight in trained[:1]))
    (loss * 1024).backward()
    exact = hidden.detach().float().requires_grad_()
    whole = torch.nn.Linear(16, 300)
    whole.load_state_dict(head.state_dict())
    plain = torch.nn.functional.cross_entropy(whole(exact) * 2.0, labels[0, 1:])
    (plain * 1024).backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5 if dtype == "float32" else 1e-2)
    for ours, theirs in zip([hidden, *trained], [exact, *whole.parameters()][: 1 + len(trained)], strict=True):
        near = (ours.grad.float() - theirs.grad).norm() / theirs.grad.norm()
        assert near < (1e-5 if dtype == "float32" else 2e-2)


def test_a_16_bit_matrix_has_its_gradient_rounded_once(monkeypatch):
    import torch
    from impruver_train.modeling import chunked_loss as logits

    monkeypatch.setattr(logits, "PIECE", 4)
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(16, 50, bias=False).bfloat16(), torch.randn(2000, 16).bfloat16()
    labels = torch.randint(0, 50, (1, 2001))
    logits.loss_in_pieces(logits.Unmade(hidden, head, [head.weight]), labels, 50).backward()
    exact = head.weight.detach().double().requires_grad_()
    torch.nn.functional.cross_entropy(hidden.double() @ exact.T, labels[0, 1:]).backward()
    assert head.weight.grad.dtype == torch.bfloat16
    assert (head.weight.grad - exact.grad).norm() < 5e-3 * exact.grad.norm()


def test_a_model_that_makes_its_loss_itself_is_left_alone():
    from impruver_train.modeling.chunked_loss import can_choose
    from transformers import LlamaForCausalLM

    class Own(LlamaForCausalLM):
        def forward(self, input_ids=None, labels=None, **more):
            logits = super().forward(input_ids=input_ids, **more).logits
            return SimpleNamespace(loss=logits.mean(), logits=logits)

    assert not can_choose(Own(model_of("llama").config))


def test_a_forward_that_looks_at_rows_of_logits_is_left_alone():
    import torch
    from impruver_train.modeling.chunked_loss import can_choose
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    with torch.device("meta"):
        model = ChameleonForConditionalGeneration(ChameleonConfig(**sizes, vocabulary_map={"<image>": 4}))
    assert not can_choose(model)


def test_a_forward_without_source_is_left_alone():
    from impruver_train.modeling.chunked_loss import can_choose
    from transformers import LlamaForCausalLM

    made: dict = {"LlamaForCausalLM": LlamaForCausalLM}
    exec(
        "class Made(LlamaForCausalLM):\n    def forward(self, **given):\n        return super().forward(**given)\n",
        made,
    )
    assert not can_choose(made["Made"](model_of("llama").config))


STRICT = """
import functools

import torch
from torch import nn
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import slice_logits_to_keep


def twice(forward):
    @functools.wraps(forward)
    def wrapped(*given, **named):
        said = forward(*given, **named)
        said.loss = said.loss + said.logits.float().pow(2).mean()
        return said

    return wrapped


class Centred(nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden - hidden.mean(-2, keepdim=True))


class Strict(LlamaForCausalLM):
    def forward(self, input_ids=None, attention_mask=None, labels=None, logits_to_keep=0):
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        hidden_states = outputs.last_hidden_state
        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)
        logits = self.lm_head(hidden_states)
        loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutput(loss=loss, logits=logits)
"""


@pytest.mark.parametrize(
    "more",
    [{"trainer": {"accelerator_config": {"dispatch_batches": True}}}, {"model": {"class": "strict.Strict"}}],
    ids=["batches cut by rows", "a forward that takes no other names"],
)
def test_what_a_batch_goes_through_leaves_losses_alone(more, recipe, impruver_train, tmp_path, tiny):
    (tmp_path / "strict.py").write_text(STRICT, encoding="utf-8")
    losses = {}
    for name, keys in (("plain", {}), ("more", more)):
        code, _, err = impruver_train(recipe(output_dir=str(tmp_path / name), lora=None, **keys))
        assert code == 0, err
        losses[name] = [row["loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl")]
    assert losses["more"] == pytest.approx(losses["plain"], rel=1e-4)


@pytest.mark.parametrize(
    ("key", "value"),
    [("label_smoothing_factor", 0.1), ("use_liger_kernel", True), ("torch_compile", True), ("n_gpu", 2)],
)
def test_where_somebody_looks_at_logits_all_are_made(key, value):
    from impruver_train.modeling.chunked_loss import may_choose

    plain = {"label_smoothing_factor": 0.0, "use_liger_kernel": False, "torch_compile": False, "n_gpu": 0}
    assert may_choose(SimpleNamespace(**plain), False)
    assert not may_choose(SimpleNamespace(**plain), True)
    assert not may_choose(SimpleNamespace(**plain | {key: value}), False)


LOOKS = """
from transformers import Trainer


class Looks(Trainer):
    def compute_loss(self, model, inputs, *args, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, *args, return_outputs=True, **kwargs)
        assert outputs.logits.shape[:2] == inputs["labels"].shape
        return (loss, outputs) if return_outputs else loss
"""


def test_a_custom_trainer_sees_all_logits_and_the_same_losses(recipe, impruver_train, tmp_path, tiny):
    (tmp_path / "looks.py").write_text(LOOKS, encoding="utf-8")
    losses = {}
    for name, more in (("plain", {}), ("own", {"class": "looks.Looks"})):
        code, _, err = impruver_train(recipe(output_dir=str(tmp_path / name), trainer=more))
        assert code == 0, err
        rows = read_jsonl(tmp_path / name / "metrics.jsonl")
        losses[name] = [row.get("loss", row.get("eval_loss")) for row in rows]
    assert losses["own"] == pytest.approx(losses["plain"], rel=1e-4)


MADE, SAID = "        logits = self.lm_head(hidden_states)\n", "        return CausalLMOutput("
SLICED = "        hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep)\n"
LOSS = "        loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)\n"
FORWARD, OUTPUTS = "    def forward(self", "        outputs = self.model("
ODD = {  # what is replaced in that forward and by what; whether places may be chosen, and the head applied in pieces
    "nothing": ("", "", True, True),
    "capped": (MADE, MADE + "        if self.config.cap:\n            logits = torch.tanh(logits)\n", True, True),
    "divided, why": (MADE, MADE + "        logits = logits / self.config.cap  # logits\n", True, True),
    "over lines": (MADE, "        logits = self.lm_head(\n            hidden_states  # all\n        )\n", True, True),
    "scaled by a trained number": (MADE, MADE + "        logits = logits * self.scale\n", True, True),
    "clamped": (MADE, MADE + "        logits = logits.clamp(-9, 9)\n", False, False),
    "moved": (MADE, MADE + "        logits = logits + self.moved\n", False, False),
    "scaled by place": (
        MADE,
        "        scale = 1 + attention_mask[..., None]\n" + MADE + "        logits = logits * scale\n",
        False,
        False,
    ),
    "in place": (MADE, MADE + "        logits[..., 7] = 0\n", False, False),
    "a column": (MADE, MADE + "        loss = logits[..., :40]\n", False, False),
    "z-loss": (SAID, "        loss = loss + logits.logsumexp(-1).pow(2).mean()\n" + SAID, False, False),
    "a penalty in the output": (SAID, SAID + "hidden_states=(logits.norm(),), ", False, False),
    "other labels": (MADE, "        labels = labels.masked_fill(labels % 3 == 0, -100)\n" + MADE, False, False),
    "unshifted": (LOSS, LOSS.replace(")\n", ", shift_labels=labels)\n"), False, False),
    "in another precision": (MADE, "        with torch.autocast('cpu', torch.bfloat16):\n    " + MADE, False, False),
    "only in words": (OUTPUTS, f'        """\n{SLICED}{MADE}"""\n{OUTPUTS}', False, False),
    "only in a comment": (SLICED, SLICED.replace("hidden_states =", "# hidden_states ="), False, False),
    "decorated": (FORWARD, f"    @twice\n{FORWARD}", False, False),
    "no def": (FORWARD, "    forward = lambda self, **given: self.said(**given)\n\n    def said(self", False, False),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_a_forward_does_to_logits_decides(odd, batch, tmp_path):
    """And either way loss and gradients are those of all logits."""
    from runpy import run_path

    import torch
    from impruver_train.modeling import chunked_loss as forwards

    old, new, chooses, fuses = ODD[odd]
    assert old in STRICT
    made = STRICT.replace(old, new) if old else STRICT
    (tmp_path / "made.py").write_text(made, encoding="utf-8")
    config = model_of("llama").config
    config.cap = 3.0
    model = run_path(str(tmp_path / "made.py"))["Strict"](config)
    model.scale, model.moved = torch.nn.Parameter(torch.tensor(0.5)), torch.nn.Parameter(torch.rand(50))
    assert forwards.can_choose(model) == chooses
    assert (chooses and forwards.plain_head(model) is model.lm_head) == fuses
    agree(model, batch)


def agree(model, batch):
    """Has `model` learn as a run would, and compares with all logits."""
    from impruver_train.modeling import chunked_loss as forwards
    from impruver_train.modeling import chunked_loss as logits

    seen = []
    for chosen in (False, forwards.can_choose(model)):
        if chosen:
            logits.take_loss_in_pieces(model, True)
        model.zero_grad()
        loss = model(**(logits.choose_learned(batch) if chosen else batch)).loss
        loss.backward()
        seen.append([loss.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    assert len(seen[0]) == len(seen[1])
    for whole, part in zip(*seen, strict=True):
        assert (whole - part).norm() <= 1e-5 * whole.norm()


def hooked(model, torch):
    model.lm_head.register_forward_hook(lambda head, given, logits: logits - logits.mean(-2, keepdim=True))


def viewed(model, torch):
    del model.lm_head.weight
    model.lm_head.weight = model.model.embed_tokens.weight.flip(0)


def normed(model, torch):
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)


def wrapped(model, torch):
    plain = model.forward
    model.forward = lambda **given: plain(**given)


@pytest.mark.parametrize(
    ("change", "chooses"), [(hooked, False), (wrapped, False), (viewed, True), (normed, True), (None, False)]
)
def test_a_head_that_is_no_plain_matrix_is_not_applied_in_pieces(change, chooses, batch, tmp_path):
    from runpy import run_path

    import torch
    from impruver_train.modeling import chunked_loss as forwards

    model = model_of("llama")
    if change is None:
        (tmp_path / "made.py").write_text(STRICT, encoding="utf-8")
        model.lm_head = run_path(str(tmp_path / "made.py"))["Centred"](32, 50)
    else:
        change(model, torch)
    assert forwards.can_choose(model) == chooses
    assert not chooses or forwards.plain_head(model) is None
    agree(model, batch)


def test_a_loss_of_all_logits_sees_them_all(batch):
    from impruver_train.modeling import chunked_loss as forwards

    model = model_of("bamba", mamba_n_heads=2, mamba_d_head=32, mamba_d_state=8, attn_layer_indices=[1])
    model.z_loss_coefficient = 0.1
    assert not forwards.can_choose(model)
    agree(model, batch)


def test_smoothed_labels_train(recipe, impruver_train, parts, tmp_path, tiny):
    smoothed = {"label_smoothing_factor": 0.1, "eval_strategy": "steps", "eval_steps": 1}
    code, _, err = impruver_train(recipe(trainer=smoothed, val_path=str(parts / "val.jsonl")))
    assert code == 0, err
    assert all(row.get("loss", 1.0) > 0 for row in read_jsonl(tmp_path / "out" / "metrics.jsonl"))
