"""AdamW for weights in bf16, whose eight bits hold few updates: the rest is kept beside them."""

import optimi
import torch


def optimizer_for(model, rate: float) -> tuple[type, dict] | None:
    """Trainer's `optimizer_cls_and_kwargs`: ours for bf16 weights; None: torch's, without any.

    beta2 is 0.99, because 0.999 changes a bf16 moment by less than its last bit after some steps.
    """
    weights = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    if torch.bfloat16 not in weights:
        return None
    options = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    return DitheredAdamW, options | {"lr": rate, "kahan_sum": True, "triton": False}


class DitheredAdamW(optimi.AdamW):
    """optimi's AdamW with Kahan's sum: what a weight cannot hold of an update goes into the next.

    The sum begins with a random part of the weight's last bit instead of zero. With zero, hardly a
    weight moves before its updates add up to half its last bit, and then all do; now the mean of
    many weights follows each update, as in fp32: `python -m experiments.precision` shows all three.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.generator = torch.Generator().manual_seed(torch.initial_seed())  # in all processes

    def _init_state(self, group: dict, state: dict, param: torch.Tensor) -> None:
        is_new = "kahan_comp" not in state  # not after a checkpoint
        super()._init_state(group, state, param)
        if is_new and state["kahan_comp"] is not None:
            weights, rest = (getattr(t, "_local_tensor", t) for t in (param, state["kahan_comp"]))
            shares = torch.rand(weights.shape, generator=self.generator) - 0.5
            rest.copy_(shares.to(weights.device) * last_bit(weights))


def last_bit(weights: torch.Tensor) -> torch.Tensor:
    """How far each weight is from the next larger number of its dtype."""
    sizes = weights.detach().abs()
    return torch.nextafter(sizes, torch.full_like(sizes, torch.inf)) - sizes
