"""Linear layers in bf16 on the CPU, whose products use all threads.

oneDNN 3.12, which torch 2.13 calls, leaves a product to one of two threads when it has somewhat
more rows than columns: 1,306 tokens times 896 outputs, on a CPU with AMX. Its halves use both.
`python -m experiments.products` measures which products that concerns, and what halves gain.
"""

import torch


def use_all_threads(model: torch.nn.Module) -> torch.nn.Module:
    """The model, its bf16 linear layers on the CPU changed in place; the weights stay the same."""
    for layer in model.modules():
        is_linear = type(layer) is torch.nn.Linear
        if is_linear and layer.weight.dtype == torch.bfloat16 and layer.weight.is_cpu:
            layer.__class__ = HalvedLinear
    return model


class HalvedLinear(torch.nn.Linear):
    """torch's linear layer; inputs of its weights' dtype are multiplied by `multiply`."""

    def forward(self, inputs):
        if inputs.dtype != self.weight.dtype:  # autocast will cast one of them
            return super().forward(inputs)
        output = _Linear.apply(inputs.flatten(0, -2), self.weight, self.bias)
        return output.unflatten(0, inputs.shape[:-1])


class _Linear(torch.autograd.Function):
    """rows [T, inputs], weight [outputs, inputs], bias [outputs] or None -> [T, outputs]."""

    @staticmethod
    def forward(ctx, rows, weight, bias):
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weight)
        output = multiply(rows, weight.t())
        return output if bias is None else output.add_(bias)

    @staticmethod
    def backward(ctx, gradient):
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        return (
            multiply(gradient, weight) if of_rows else None,
            gradient.t() @ rows if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def multiply(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """rows [T, K] @ matrix [K, N], in halves of the rows where those are faster."""
    halved = is_halved(len(rows), matrix.shape[1])
    return multiply_halves(rows, matrix) if halved else rows @ matrix


def is_halved(count: int, columns: int) -> bool:
    """Whether a product of so many rows and columns is computed in halves."""
    return columns <= count < 2 * columns


def multiply_halves(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """rows [T, K] @ matrix [K, N], in halves of the rows."""
    product = rows.new_empty(len(rows), matrix.shape[1])
    for half, part in zip(rows.chunk(2), product.chunk(2), strict=True):
        torch.mm(half, matrix, out=part)
    return product
