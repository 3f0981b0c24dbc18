"""int8 layers: what they take, and what they read, with the real model."""

import pytest
import torch

import bmwqa_utils as bq
from bmwqa.answers import answer_speed
from bmwqa.int8 import saved_mb, to_int8
from bmwqa.models import EMBEDDED, load_model, weights_mb
from bmwqa.one_pass import reference_nll, share_prefix


def test_int8_layers_take_less_and_read_nearly_as_before(article, embedded_tokenizer):
    (group,) = bq.group_by_article(bq.build_qa_pairs(article), embedded_tokenizer)
    model = load_model(EMBEDDED)
    before, size = reference_nll(model, group, share_prefix), saved_mb(model)
    assert size == pytest.approx(weights_mb(EMBEDDED), rel=0.01)
    small = to_int8(model)
    assert saved_mb(small) < 0.65 * size
    gaps = reference_nll(small, group, share_prefix) / before - 1
    assert 1e-4 < gaps.abs().max() < 0.6
    speed = answer_speed(small, embedded_tokenizer, bq.article_context(article), "Where?")
    assert speed["tokens_per_second"] > 0


def test_layers_with_the_largest_inputs_stay_as_they_are(tiny_model_folder):
    layer = to_int8(load_model(tiny_model_folder)).get_decoder().layers[0]
    assert type(layer.mlp.down_proj) is torch.nn.Linear
    others = (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp.gate_proj)
    assert {type(each) for each in others} == {torch.ao.nn.quantized.dynamic.Linear}
