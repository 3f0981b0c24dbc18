"""RMS norms and gated units that keep less for the gradients than transformers' own.

Theirs keep every intermediate result. Ours keep the inputs and compute the rest again, with fewer
passes over memory. The outputs are the same, bit by bit; tests/test_activations.py proves it.
"""

import torch
from torch.nn.functional import silu

from bmwqa.linear import HalvedLinear, multiply


def keep_less(model: torch.nn.Module) -> torch.nn.Module:
    """The model, its norms and gated units changed in place; their weights stay the same.

    A layer that computes anything else, such as the norm of Gemma, stays as it is.
    """
    for layer in model.modules():
        parts = {*vars(layer), *layer._parameters, *layer._modules}
        for lean in (LeanRMSNorm, LeanGatedUnit):
            if lean.PARTS <= parts and type(layer) is not lean and gives_the_same(lean, layer):
                layer.__class__ = lean
    return model


@torch.no_grad()
def gives_the_same(lean: type, layer: torch.nn.Module) -> bool:
    """Whether a layer's outputs stay as they are, bit by bit, if `lean` computes them."""
    weight = layer.weight if lean is LeanRMSNorm else layer.gate_proj.weight
    # not random: no seed changes by that
    inputs = torch.linspace(-3, 3, 2 * weight.shape[-1], device=weight.device)
    inputs = inputs.view(2, -1).to(weight.dtype)
    return torch.equal(layer(inputs), lean.forward(layer, inputs))


class LeanRMSNorm(torch.nn.Module):
    """inputs / RMS(inputs) * weight, computed in fp32 (Zhang and Sennrich, arXiv 1910.07467)."""

    PARTS = {"weight", "variance_epsilon"}

    def forward(self, inputs):
        return _RMSNorm.apply(inputs, self.weight, self.variance_epsilon)


class _RMSNorm(torch.autograd.Function):
    """inputs [..., size], weight [size] -> [..., size]."""

    @staticmethod
    def forward(ctx, inputs, weight, epsilon):
        scale = inputs.float().square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(inputs, weight, scale)
        return (inputs * scale).to(inputs.dtype) * weight

    @staticmethod
    def backward(ctx, gradient):
        inputs, weight, scale = ctx.saved_tensors
        normed, dweight = inputs * scale, None  # in fp32, as scale is
        if ctx.needs_input_grad[1]:
            dweight = (gradient * normed.to(gradient.dtype)).flatten(0, -2).sum(0)
        dnormed = (gradient * weight).float()
        along = (dnormed * normed).mean(-1, keepdim=True)  # the RMS does not let it through
        dinputs = dnormed.addcmul_(normed, along, value=-1).mul_(scale)
        return dinputs.to(inputs.dtype), dweight, None


class LeanGatedUnit(torch.nn.Module):
    """down(silu(gate(inputs)) * up(inputs)) (Shazeer, arXiv 2002.05202)."""

    PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}

    def forward(self, inputs):
        gate, up, down = self.gate_proj(inputs), self.up_proj(inputs), self.down_proj
        if type(down) is HalvedLinear and down.bias is None and gate.dtype == down.weight.dtype:
            return _GatedLinear.apply(gate, up, down.weight)
        return down(_Gated.apply(gate, up))  # with an adapter, which keeps its inputs itself


class _Gated(torch.autograd.Function):
    """gate, up [..., size] -> silu(gate) * up."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, gradient):
        gate, up = ctx.saved_tensors
        return _gate_gradient(gradient, gate, up), silu(gate).mul_(gradient)


class _GatedLinear(torch.autograd.Function):
    """gate, up [..., size], weight [outputs, size] -> (silu(gate) * up) @ weight.T."""

    @staticmethod
    def forward(ctx, gate, up, weight):
        ctx.save_for_backward(gate, up, weight)
        rows = silu(gate).mul_(up).flatten(0, -2)
        return multiply(rows, weight.t()).unflatten(0, gate.shape[:-1])

    @staticmethod
    def backward(ctx, gradient):
        gate, up, weight = ctx.saved_tensors
        doutput, active, dweight = gradient.flatten(0, -2), silu(gate), None
        if ctx.needs_input_grad[2]:
            dweight = doutput.t() @ (active * up).flatten(0, -2)
        dproduct = multiply(doutput, weight).view_as(gate)
        return _gate_gradient(dproduct, gate, up), active.mul_(dproduct), dweight


def _gate_gradient(gradient, gate, up):
    return torch.ops.aten.silu_backward(gradient * up, gate)
