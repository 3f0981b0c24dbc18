"""Linear layers in halves compute what torch's own do."""

import pytest
import torch

from bmwqa.linear import HalvedLinear, multiply, use_all_threads
from bmwqa.models import load_model


@pytest.mark.parametrize("count", [1, 15, 16, 17, 31, 32, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_torchs_layer(count, bias):
    torch.manual_seed(0)
    plain = torch.nn.Linear(24, 16, bias=bias, dtype=torch.bfloat16)
    halved = torch.nn.Linear(24, 16, bias=bias, dtype=torch.bfloat16)
    halved.load_state_dict(plain.state_dict())
    use_all_threads(halved)
    assert type(halved) is HalvedLinear
    inputs, weights = torch.randn(1, count, 24), torch.randn(1, count, 16).bfloat16()
    results = []
    for layer in (plain, halved):
        rows = inputs.bfloat16().requires_grad_()
        output = layer(rows)
        (output * weights).sum().backward()
        results.append([output, rows.grad, *(weight.grad for weight in layer.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_a_product_is_halved_only_where_that_helps(monkeypatch):
    sizes, mm = [], torch.mm

    def counted(rows, matrix, out):
        sizes.append(len(rows))
        return mm(rows, matrix, out=out)

    monkeypatch.setattr(torch, "mm", counted)
    for count in (15, 16, 31, 32):
        rows, matrix = torch.randn(count, 8), torch.randn(8, 16)
        torch.testing.assert_close(multiply(rows, matrix), rows @ matrix)
    assert sizes == [8, 8, 16, 15]


def test_frozen_weights_get_no_gradient_and_other_dtypes_go_torchs_way():
    layer = use_all_threads(torch.nn.Linear(24, 16, dtype=torch.bfloat16).requires_grad_(False))
    rows = torch.randn(20, 24, dtype=torch.bfloat16, requires_grad=True)
    layer(rows).sum().backward()
    assert rows.grad is not None and layer.weight.grad is None
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(20, 24)).dtype == torch.bfloat16
    assert type(use_all_threads(torch.nn.Linear(2, 2))) is torch.nn.Linear  # fp32


def test_models_in_bf16_are_loaded_with_them(tiny_model_folder):
    def kinds(dtype):
        model = load_model(tiny_model_folder, dtype=dtype)
        return {type(module) for module in model.modules() if isinstance(module, torch.nn.Linear)}

    assert kinds(torch.float32) == {torch.nn.Linear}
    wanted = torch.nn.Linear if torch.accelerator.is_available() else HalvedLinear
    assert kinds(torch.bfloat16) == {wanted}
