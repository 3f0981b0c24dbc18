"""The smaller model: which layers are cut out of a model, and how the cut heals."""

from collections.abc import Callable

import torch
from transformers import Trainer

from bmwqa.one_pass import reference_nll


def prune_layers(model, groups: list[dict], collate: Callable, share: float = 0.25) -> list[int]:
    """The numbers of the decoder layers that were cut out of `model`, in place, ascending.

    share: of all layers. Cut are the layers that are missed least: each is left out alone, and
    those without which the answers of `groups` have the lowest NLL go (Kim et al., "Shortened
    LLaMA", arXiv 2402.02834, section 3).
    """
    layers, lists, nll = list(model.get_decoder().layers), per_layer_lists(model.config), {}
    every = range(len(layers))
    for missing in every:
        keep_layers(model, layers, lists, [i for i in every if i != missing])
        nll[missing] = sum(reference_nll(model, group, collate).sum().item() for group in groups)
    removed = sorted(sorted(every, key=nll.get)[: max(1, round(len(layers) * share))])
    keep_layers(model, layers, lists, [i for i in every if i not in removed])
    return removed


def per_layer_lists(config) -> dict[str, list]:
    """The entries of a config that have one value per layer, as `layer_types`."""
    entries, count = config.to_dict().items(), config.num_hidden_layers
    return {name: v for name, v in entries if isinstance(v, list) and len(v) == count}


def keep_layers(model, layers: list, lists: dict[str, list], numbers: list[int]) -> None:
    """Give `model` those of all `layers` with these numbers, and its config what belongs to them.

    lists: of `per_layer_lists` of the whole model.
    """
    model.get_decoder().layers = torch.nn.ModuleList(layers[i] for i in numbers)
    for place, layer in enumerate(model.get_decoder().layers):
        numbered = (module for module in layer.modules() if hasattr(module, "layer_idx"))
        for module in numbered:
            module.layer_idx = place
    model.config.num_hidden_layers = len(numbers)
    for name, values in lists.items():
        setattr(model.config, name, [values[i] for i in numbers])


HEALING = 2  # times full's learning rate
WEIGHT = 5.0  # of the distance to the teacher, beside the loss of the answers


class Distillation(Trainer):
    """The stock Trainer, for a model that is to read as its teacher does.

    A step's loss has one more term, WEIGHT times the squared distance of the last hidden states
    from the teacher's, over all tokens of the row, divided by the teacher's squares. The answers
    alone would heal little: a few hundred tokens per step (Muralidharan et al., arXiv 2407.14679,
    section 3).
    """

    def __init__(self, *arguments, teacher, **options):
        super().__init__(*arguments, **options)
        self.teacher = teacher.requires_grad_(False)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:  # the held-out loss is that of the answers
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = inputs | {"output_hidden_states": True}
        with torch.no_grad():
            batch = {name: value for name, value in inputs.items() if name != "labels"}
            wanted = self.teacher(**batch).hidden_states[-1].float()
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        distance = (outputs.hidden_states[-1].float() - wanted).square().sum()
        loss = loss + WEIGHT * distance / wanted.square().sum()
        return (loss, outputs) if return_outputs else loss
