"""AdamW for weights in bf16, whose eight bits hold few updates: the rest is kept beside them."""

import optimi
import torch
from torch.distributed.tensor import DTensor


def optimizer_for(model, rate: float) -> tuple[type, dict] | None:
    """Trainer's `optimizer_cls_and_kwargs`; None where no trained weight is bf16: torch's AdamW.

    beta2 is 0.99, because 0.999 changes a bf16 moment by less than its last bit after some steps.
    """
    weights = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    if torch.bfloat16 not in weights:
        return None
    options = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    return DitheredAdamW, options | {"lr": rate, "kahan_sum": True, "triton": False}


class DitheredAdamW(optimi.AdamW):
    """optimi's AdamW with Kahan's sum: what a weight cannot hold of an update goes into the next.

    The sum begins with a random part of the weight's last bit, not with zero. From zero, a weight
    stays until its updates add up to half its last bit. From a random start, a part of the weights
    moves in every step, and their mean follows each update. `python -m experiments.precision`
    compares both with fp32. A divided model (FSDP) draws other numbers than a whole one.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        # of the same numbers in all processes: DDP never compares their weights
        self.generator = torch.Generator().manual_seed(torch.initial_seed())

    def _init_state(self, group: dict, state: dict, param: torch.Tensor) -> None:
        is_new = "kahan_comp" not in state  # not after a checkpoint
        super()._init_state(group, state, param)
        # before it loads a divided state, torch does a step without gradients: it moves no weight
        if is_new and state["kahan_comp"] is not None and local_part(param.grad).any():
            weights, rest = local_part(param), local_part(state["kahan_comp"])
            shares = torch.rand(weights.shape, generator=self.generator).sub_(0.5)
            rest.copy_(shares.to(weights.device).mul_(last_bit(weights)))


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process has of it: all, or its share of a divided model."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def last_bit(weights: torch.Tensor) -> torch.Tensor:
    """How far each weight is from the next larger number of its dtype."""
    sizes = weights.detach().abs()
    return torch.nextafter(sizes, sizes.new_tensor(torch.inf)).sub_(sizes)
