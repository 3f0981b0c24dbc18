"""Norms and gated units that keep less compute what transformers' own do."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import Gemma3TextConfig, Qwen2Config
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP, Gemma3RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm

from bmwqa.activations import LeanGatedUnit, LeanRMSNorm, keep_less
from bmwqa.linear import use_all_threads
from bmwqa.models import load_model

SIZES = dict(hidden_size=32, intermediate_size=48)


@pytest.fixture(params=["norm", "gated unit"])
def layer(request):
    """One of transformers' layers, with random weights in fp32."""
    torch.manual_seed(0)
    if request.param == "gated unit":
        return Qwen2MLP(Qwen2Config(**SIZES))
    norm = Qwen2RMSNorm(SIZES["hidden_size"])
    torch.nn.init.normal_(norm.weight)
    return norm


def output_and_gradients(layer, dtype: torch.dtype) -> list[torch.Tensor]:
    """Of some rows in that dtype: the output, then the gradients of the rows and of all weights."""
    torch.manual_seed(1)
    rows, weights = torch.randn(2, 1, 50, SIZES["hidden_size"]).bfloat16().to(dtype)
    output = layer(rows.requires_grad_())
    (output * weights).sum().backward()
    return [output, rows.grad, *(weight.grad for weight in layer.parameters())]


def test_outputs_and_gradients_are_those_of_transformers(layer):
    lean = keep_less(copy.deepcopy(layer))
    assert type(lean) in (LeanRMSNorm, LeanGatedUnit)
    one, other = (output_and_gradients(each, torch.float32) for each in (layer, lean))
    assert torch.equal(one[0], other[0])
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("halved", [False, True])
def test_in_bf16_they_are_as_near_to_fp32_as_those_of_transformers(layer, halved):
    layer.bfloat16()
    exact = output_and_gradients(copy.deepcopy(layer).float(), torch.float32)
    one = output_and_gradients(copy.deepcopy(layer), torch.bfloat16)
    lean = keep_less(use_all_threads(layer) if halved else layer)
    other = output_and_gradients(lean, torch.bfloat16)
    assert halved or torch.equal(one[0], other[0])
    for true, theirs, ours in zip(exact, one, other, strict=True):
        assert (ours - true).norm() < 1.1 * (theirs - true).norm()


def bytes_for_gradients(layer) -> int:
    """What a layer keeps of 100 rows in bf16 for the gradients, beside its weights."""
    known = {weight.untyped_storage().data_ptr() for weight in layer.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = layer(torch.ones(1, 100, SIZES["hidden_size"]).bfloat16().requires_grad_())
    assert output.requires_grad
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in known)


def test_they_keep_their_inputs_alone():
    torch.manual_seed(0)
    norm, unit = Qwen2RMSNorm(32).bfloat16(), Qwen2MLP(Qwen2Config(**SIZES)).bfloat16()
    stock = [bytes_for_gradients(layer) for layer in (norm, unit)]
    lean = [bytes_for_gradients(keep_less(use_all_threads(layer))) for layer in (norm, unit)]
    a_number, a_scale = 2 * 100, 4 * 100
    assert lean == [32 * a_number + a_scale, (32 + 48 + 48) * a_number]
    assert stock[0] > 2.8 * lean[0] and stock[1] > 1.7 * lean[1]


def test_frozen_layers_pass_gradients_on_and_keep_no_rows_for_their_weights():
    torch.manual_seed(0)
    unit = Qwen2MLP(Qwen2Config(**SIZES)).bfloat16().requires_grad_(False)
    kept = bytes_for_gradients(keep_less(use_all_threads(unit)))
    assert kept == (48 + 48) * 2 * 100
    _, of_rows, *of_weights = output_and_gradients(unit, torch.bfloat16)
    assert of_rows.abs().sum() > 0 and of_weights == [None] * 3


def test_an_adapter_learns_beside_them(tiny_model_folder):
    gradients = []
    for lean in (False, True):
        torch.manual_seed(0)
        model = load_model(tiny_model_folder)
        if not lean:
            for layer in model.modules():
                if type(layer) is LeanGatedUnit:
                    layer.__class__ = Qwen2MLP
        adapter = LoraConfig(target_modules=["gate_proj", "down_proj"], init_lora_weights=False)
        model = get_peft_model(model, adapter)
        model(input_ids=torch.arange(20)[None]).logits.square().mean().backward()
        gradients.append([w.grad for w in model.parameters() if w.requires_grad])
    torch.testing.assert_close(*gradients)


def test_other_norms_and_other_activations_stay_as_they_are():
    config = Gemma3TextConfig(**SIZES)
    for layer in (Gemma3RMSNorm(32), Gemma3MLP(config), torch.nn.RMSNorm(32)):
        assert type(keep_less(layer)) is type(layer)
    norm = Gemma3RMSNorm(32)
    norm.variance_epsilon = norm.eps  # it has all parts, but multiplies by 1 + weight
    assert type(keep_less(norm)) is Gemma3RMSNorm


def test_models_are_loaded_with_them(tiny_model_folder):
    kinds = [type(module) for module in load_model(tiny_model_folder).modules()]
    assert kinds.count(LeanRMSNorm) == 9 and kinds.count(LeanGatedUnit) == 4
