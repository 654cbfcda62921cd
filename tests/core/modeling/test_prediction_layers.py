"""Bases whose files hold layers that predict further tokens, which transformers leaves out."""

import pytest
from impruver_core.errors import ImpruverError
from impruver_core.modeling.loading import check_loading_info


def test_only_layers_that_predict_further_tokens_may_be_left_out():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
    weight = "model.layers.2.mlp.up_proj.weight"
    info = {"mismatched_keys": set(), "missing_keys": set()}
    check_loading_info(model, info | {"unexpected_keys": {weight, "model.layers.2.eh_proj.weight"}}, "base")
    for more in (set(), {"model.layers.3.eh_proj.weight"}):
        with pytest.raises(ImpruverError, match=r"has no place for 1 tensor .*layers\.2\.mlp\.up_proj"):
            check_loading_info(model, info | {"unexpected_keys": {weight, *more}}, "base")
