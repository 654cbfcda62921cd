"""Logits of target positions alone: loss and gradients of all logits, on any family."""

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
    """Three rows, two of them padded, with targets in parts; one labels its first token, which nothing predicts."""
    import torch

    ids = torch.randint(3, 50, (3, 16), generator=torch.Generator().manual_seed(1))
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[0, :9] = labels[1, 1:5] = labels[2, 10:] = labels[1, 13:] = IGNORED
    mask[2, 10:] = mask[1, 13:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize(("count", "fuse"), [(17, True), (None, True), (17, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_all_logits(kind, batch, count, fuse):
    import torch
    from impruver_train.modeling import chunked_loss
    from impruver_train.modeling.logits_path import find_logits_path

    model = model_of(kind)
    path = chunked_loss.LogitsPath.CHUNKED if fuse else chunked_loss.LogitsPath.TARGETS
    assert find_logits_path(model, path) is path
    seen = []
    for inputs in (batch, chunked_loss.add_logits_to_keep(batch)):
        if inputs is not batch:
            chunked_loss.enable_chunked_loss(model, path, 7)
        model.zero_grad()
        outputs = model(**inputs, num_items_in_batch=count)
        outputs.loss.backward()
        seen.append((outputs, {name: weight.grad.clone() for name, weight in model.named_parameters()}))
    (everywhere, whole), (chosen, part) = seen
    targets = int((batch["labels"][:, 1:] != IGNORED).sum())
    assert (chosen.logits.hidden.shape[0] if fuse else len(chosen.logits)) == targets
    assert isinstance(chosen.logits, chunked_loss.LazyLogits) == fuse
    assert everywhere.logits.shape == (3, 16, 50)
    assert chosen.loss.item() == pytest.approx(everywhere.loss.item(), rel=1e-5)
    for name, gradient in whole.items():
        assert torch.allclose(part[name], gradient, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_loss_and_gradient_in_pieces_are_torchs(dtype):
    """Also scaled, as fp16's loss is: its small gradients come through. Little is kept beside the gradient."""
    import torch
    from impruver_train.modeling.chunked_loss import CHUNK, compute_chunked_loss

    logits = (torch.randn(2 * CHUNK + 5, 300) * 4).to(getattr(torch, dtype)).requires_grad_()
    labels = torch.randint(0, 300, (1, len(logits) + 1))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part) or part, lambda part: part):
        loss = compute_chunked_loss(logits, labels, 300)
    assert [part.shape for part in kept if part.dim()] == [logits.shape]
    (loss * 1024).backward()
    exact = logits.detach().float().requires_grad_()
    (torch.nn.functional.cross_entropy(exact, labels[0, 1:]) * 1024).backward()
    assert torch.allclose(logits.grad.float(), exact.grad, rtol=2e-2 if dtype == "bfloat16" else 2e-3, atol=1e-6)
    assert (logits.grad != 0).float().mean() > 0.9
    with torch.no_grad():
        assert compute_chunked_loss(logits, labels, 300).item() == pytest.approx(loss.item())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_matrix_applied_in_pieces_keeps_no_logits(dtype, frozen):
    import torch
    from impruver_train.modeling.chunked_loss import CHUNK, LazyLogits, compute_chunked_loss

    torch.manual_seed(0)
    places, head = 2 * CHUNK + 5, torch.nn.Linear(16, 300)
    head = head.to(getattr(torch, dtype)).requires_grad_(not frozen)
    hidden = torch.randn(places, 16, dtype=getattr(torch, dtype), requires_grad=True)
    labels = torch.randint(0, 300, (1, places + 1))
    trained = [weight for weight in head.parameters() if weight.requires_grad]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part) or part, lambda part: part):
        loss = compute_chunked_loss(LazyLogits(hidden, head, trained) * 2.0, labels, 300)
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


def test_a_16_bit_matrix_has_its_gradient_rounded_once():
    import torch
    from impruver_train.modeling.chunked_loss import LazyLogits, compute_chunked_loss

    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(16, 50, bias=False).bfloat16(), torch.randn(2000, 16).bfloat16()
    labels = torch.randint(0, 50, (1, 2001))
    compute_chunked_loss(LazyLogits(hidden, head, [head.weight]), labels, 50, chunk=4).backward()
    exact = head.weight.detach().double().requires_grad_()
    torch.nn.functional.cross_entropy(hidden.double() @ exact.T, labels[0, 1:]).backward()
    assert head.weight.grad.dtype == torch.bfloat16
    assert (head.weight.grad - exact.grad).norm() < 5e-3 * exact.grad.norm()


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
    from impruver_train.modeling.chunked_loss import limit_logits_path

    plain = {"label_smoothing_factor": 0.0, "use_liger_kernel": False, "torch_compile": False, "n_gpu": 0}
    plain |= {"fsdp": "", "fp16": False}

    def limit(own_trainer=False, trains_head=True, **more):
        return limit_logits_path(SimpleNamespace(**plain | more), own_trainer, trains_head).name

    assert limit() == "CHUNKED"
    assert limit(own_trainer=True) == limit(**{key: value}) == "ALL"
    assert limit(fp16=True) == limit(fsdp="full_shard") == "TARGETS"
    assert limit(fp16=True, trains_head=False) == "CHUNKED"


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


FORWARD, RETURN = "    def forward(self", "        return CausalLMOutput("
NAMES = "input_ids, attention_mask, labels, logits_to_keep"
HEAD = "        logits = self.lm_head(hidden_states)\n"
OWN = "        loss = nn.functional.cross_entropy(logits[:, :-1].mT, labels[:, 1:])\n"
LOSS = "        loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)\n"
Z_LOSS = "loss = loss + {} * logits.float().logsumexp(-1).pow(2).mean()\n"
ODD = {  # what is replaced in that forward and by what; which logits may be computed
    "nothing": ("", "", "CHUNKED"),
    "capped": (HEAD, HEAD + "        logits = torch.tanh(logits / 3.0) * 3.0\n", "CHUNKED"),
    "scaled by a trained number": (HEAD, HEAD + "        logits = logits * self.scale\n", "CHUNKED"),
    "clamped": (HEAD, HEAD + "        logits = logits.clamp(-9, 9)\n", "TARGETS"),
    "moved by trained numbers": (HEAD, HEAD + "        logits = logits + self.moved\n", "TARGETS"),
    "in place": (HEAD, HEAD + "        logits[..., 7] = 0\n", "TARGETS"),
    "in another precision": (HEAD, "        with torch.autocast('cpu', torch.bfloat16):\n    " + HEAD, "ALL"),
    "a norm in the output": (RETURN, RETURN + "hidden_states=(logits.norm(),), ", "TARGETS"),
    "scaled by position": (HEAD, HEAD + "        logits = logits * (1 + attention_mask[..., None])\n", "ALL"),
    "less their mean over positions": (HEAD, HEAD + "        logits = logits - logits.mean(-2, True)\n", "ALL"),
    "z-loss": (LOSS, f"{LOSS}        {Z_LOSS.format(1.0)}", "ALL"),
    "a small z-loss": (LOSS, f"{LOSS}        {Z_LOSS.format(1e-4)}", "ALL"),
    "z-loss in training": (LOSS, f"{LOSS}        if self.training:\n            {Z_LOSS.format(1e-4)}", "ALL"),
    "z-loss in evaluation": (LOSS, f"{LOSS}        if not self.training:\n            {Z_LOSS.format(1.0)}", "ALL"),
    "other labels": (HEAD, "        labels = labels.masked_fill(labels % 3 == 0, -100)\n" + HEAD, "ALL"),
    "unshifted labels": (LOSS, LOSS.replace(")\n", ", shift_labels=labels)\n"), "ALL"),
    "a loss of its own": (LOSS, "        loss = logits.float().mean()\n", "ALL"),
    "the loss of all logits": (LOSS, OWN, "ALL"),
    "all positions": ("(hidden_states, logits_to_keep)", "(hidden_states, 0)", "ALL"),
    "decorated": (FORWARD, f"    @twice\n{FORWARD}", "ALL"),
    "no def": (FORWARD, f"    forward = lambda self, {NAMES}=0: self.run({NAMES})\n\n    def run(self", "CHUNKED"),
}


@pytest.fixture
def strict(tmp_path):
    """A tiny model of that class with a replacement in its source."""
    from runpy import run_path

    import torch

    def make(old="", new="", **more):
        assert old in STRICT
        (tmp_path / "strict.py").write_text(STRICT.replace(old, new) if old else STRICT, encoding="utf-8")
        model = run_path(str(tmp_path / "strict.py"))["Strict"](model_of("llama", **more).config)
        model.scale, model.moved = torch.nn.Parameter(torch.tensor(0.5)), torch.nn.Parameter(torch.rand(50))
        return model

    return make


@pytest.mark.parametrize("odd", ODD)
def test_what_a_forward_does_to_logits_decides(odd, strict, batch):
    """And either way loss and gradients are those of all logits."""
    old, new, path = ODD[odd]
    assert agree(strict(old, new), batch) == path


def agree(model, batch):
    """Has `model` train as a run would, and compares with all logits; the path's name."""
    import torch
    from impruver_train.modeling import chunked_loss
    from impruver_train.modeling.logits_path import find_logits_path

    seen = []
    path = find_logits_path(model)
    for sparse in (False, path is not chunked_loss.LogitsPath.ALL):
        if sparse:
            chunked_loss.enable_chunked_loss(model, path)
        model.zero_grad()
        torch.manual_seed(0)
        loss = model(**(chunked_loss.add_logits_to_keep(batch) if sparse else batch)).loss
        loss.backward()
        seen.append([loss.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    assert len(seen[0]) == len(seen[1])
    for whole, part in zip(*seen, strict=True):
        assert (whole - part).norm() <= 1e-5 * whole.norm()
    return path.name


def hooked(model, torch):
    model.lm_head.register_forward_hook(lambda head, inputs, logits: logits - logits.mean(-2, keepdim=True))


def softmaxed_hook(model, torch):
    model.lm_head.register_forward_hook(lambda head, inputs, logits: logits.log_softmax(-1))


def viewed(model, torch):
    del model.lm_head.weight
    model.lm_head.weight = model.model.embed_tokens.weight.flip(0)


def normed(model, torch):
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)


def wrapped(model, torch):
    plain = model.forward
    model.forward = lambda **inputs: plain(**inputs)


def tied(model, torch):
    model.lm_head.weight = model.model.embed_tokens.weight


def centred(model, torch):
    class Centred(torch.nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden - hidden.mean(-2, keepdim=True))

    model.lm_head = Centred(32, 50)


def with_a_loss_of_its_own(model, torch):
    model.loss_function = lambda logits, labels, vocab_size, **more: logits.float().pow(2).mean()


def adapted(model, torch):
    """Its head too, with dropout, which draws other numbers for other positions."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=2, target_modules=["lm_head", "q_proj"], lora_dropout=0.3), model)
    model.eval()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (hooked, "ALL"),
        (softmaxed_hook, "TARGETS"),
        (viewed, "TARGETS"),
        (normed, "TARGETS"),
        (wrapped, "CHUNKED"),
        (tied, "CHUNKED"),
        (centred, "ALL"),
        (with_a_loss_of_its_own, "ALL"),
        (adapted, "TARGETS"),
    ],
)
def test_a_changed_head_or_model_trains_exactly(change, path, batch):
    import torch

    model = model_of("llama")
    change(model, torch)
    assert agree(model, batch) == path


@pytest.mark.parametrize("z_loss", [0.1, 1e-4])
def test_a_loss_of_all_logits_sees_them_all(z_loss, batch):
    model = model_of("bamba", mamba_n_heads=2, mamba_d_head=32, mamba_d_state=8, attn_layer_indices=[1])
    model.z_loss_coefficient = z_loss
    assert agree(model, batch) == "ALL"


def test_a_routers_loss_is_not_one_of_logits(batch):
    model = model_of("mixtral", output_router_logits=True, num_local_experts=4, router_jitter_noise=0.1)
    assert agree(model.train(), batch) == "CHUNKED"


def test_a_forward_that_looks_at_rows_of_logits_computes_all():
    import torch
    from impruver_train.modeling.logits_path import find_logits_path
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4}
    vision = {"base_channels": 32, "embed_dim": 32, "latent_channels": 32, "num_embeddings": 32, "num_res_blocks": 1}
    torch.manual_seed(0)
    config = ChameleonConfig(**sizes, vq_config=vision, vocab_size=64, vocabulary_map={"<image>": 4, "IMGIMGAZ": 60})
    assert find_logits_path(ChameleonForConditionalGeneration(config)).name == "ALL"


@pytest.mark.parametrize("z_loss", [None, 1e-4])
@pytest.mark.parametrize("how", ["bf16", "autocast"])
def test_in_16_bits_a_row_without_targets_tells_of_other_losses(how, z_loss, strict):
    import torch
    from impruver_train.modeling.logits_path import find_logits_path

    model = strict(LOSS, f"{LOSS}        {Z_LOSS.format(z_loss)}") if z_loss else strict()
    autocast = torch.bfloat16 if how == "autocast" else None
    path = find_logits_path(model if autocast else model.bfloat16(), autocast=autocast)
    assert path.name == ("ALL" if z_loss else "CHUNKED")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_dropout_is_the_same_with_and_without(kind):
    from impruver_train.modeling.logits_path import find_logits_path

    more = {"attention_dropout": 0.2} if kind == "llama" else {}  # GPT-2's own: 0.1 in four places
    assert find_logits_path(model_of(kind, **more)).name == "CHUNKED"


def test_the_test_leaves_a_model_as_it_was(strict):
    """Weights, gradients, buffers that a forward changes, modes, hooks, random state."""
    import torch
    from impruver_train.modeling.logits_path import find_logits_path

    counted = "        self.calls += 1\n        self.register_buffer('last', hidden_states[0, 0].detach())\n"
    model = strict(HEAD, counted + HEAD)
    model.register_buffer("calls", torch.zeros(1))
    model.register_buffer("last", torch.zeros(32))
    model.train()
    model.model.eval()  # a mode for each part

    def state():
        hooks = [len(part._forward_hooks) for part in model.modules()]
        weights = [(each.clone(), each.grad, each._post_accumulate_grad_hooks or None) for each in model.parameters()]
        own = [sorted(vars(part)) for part in model.modules()]
        modes = [part.training for part in model.modules()]
        return hooks, own, model.config.to_dict(), modes, weights, [*model.buffers()], torch.get_rng_state()

    before = state()
    before[5][:] = [buffer.clone() for buffer in before[5]]
    assert find_logits_path(model).name == "CHUNKED"
    for then, now in zip(before, state(), strict=True):
        assert str(then) == str(now)
    assert float(model.calls) == 0


FAMILIES = [*KINDS, "deepseek_v3", "gemma3n_text", "gemma4_text", "qwen3_moe", "cohere2", "granite", "olmo_hybrid"]


@pytest.mark.parametrize("kind", FAMILIES)
def test_before_weights_a_small_model_of_the_class_tells(kind):
    import torch
    from impruver_core.recipe.sections import ModelSection
    from impruver_train.modeling.logits_path import predict_logits_path
    from transformers import CONFIG_MAPPING

    before = torch.get_rng_state()
    section = ModelSection(attn_implementation="flash_attention_2")
    assert predict_logits_path(section, CONFIG_MAPPING[kind](), None).name == "CHUNKED"
    assert (torch.get_rng_state() == before).all()


def test_a_class_that_can_not_be_made_small_is_guessed_at_and_tried_when_loaded(recipe, impruver_train, tmp_path):
    (tmp_path / "strict.py").write_text(STRICT.replace(FORWARD, REFUSES + FORWARD), encoding="utf-8")
    path = recipe(lora=None, model={"class": "strict.Strict"})
    _, out, _ = impruver_train(path, "--dry_run")
    assert "logits: of target positions alone, a chunk at a time with their loss, if the loaded model passes" in out
    code, _, err = impruver_train(path)
    assert code == 0, err
    assert "fails the test" not in err


REFUSES = """    def __init__(self, config):
        if config.vocab_size < 100:
            raise ValueError("too few")
        super().__init__(config)

"""


@pytest.mark.parametrize("known_before", [True, False])
def test_a_model_that_fails_trains_on_all_logits_and_says_so(known_before, recipe, impruver_train, tmp_path, tiny):
    source = STRICT.replace(LOSS, f"{LOSS}        {Z_LOSS.format(0.1)}")
    source = source if known_before else source.replace(FORWARD, REFUSES + FORWARD)
    (tmp_path / "odd.py").write_text(source, encoding="utf-8")
    (tmp_path / "on_all.py").write_text(LOOKS.replace("Looks", "OnAll"), encoding="utf-8")
    losses = {}
    for name, trainer in (("own", {"class": "on_all.OnAll"}), ("ours", {})):
        path = recipe(output_dir=str(tmp_path / name), lora=None, model={"class": "odd.Strict"}, trainer=trainer)
        code, _, err = impruver_train(path)
        assert code == 0, err
        losses[name] = [row["loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl")]
    assert losses["own"] == losses["ours"]
    path = recipe(output_dir=str(tmp_path / "dry"), lora=None, model={"class": "odd.Strict"})
    _, out, _ = impruver_train(path, "--dry_run")
    if known_before:
        assert "logits: of all positions; of target positions alone this model has" in out
        assert "logits: of all positions; of target" in err
    else:
        assert "if the loaded model passes the test" in out
        assert "logits: of all positions, as this model fails the test" in err


def test_smoothed_labels_train(recipe, impruver_train, parts, tmp_path, tiny):
    smoothed = {"label_smoothing_factor": 0.1, "eval_strategy": "steps", "eval_steps": 1}
    code, _, err = impruver_train(recipe(trainer=smoothed, val_path=str(parts / "val.jsonl")))
    assert code == 0, err
    assert all(row.get("loss", 1.0) > 0 for row in read_jsonl(tmp_path / "out" / "metrics.jsonl"))
