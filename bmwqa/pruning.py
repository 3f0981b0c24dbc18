"""The smaller model: layers cut out of a model, and which."""

from collections.abc import Callable

import torch

from bmwqa.one_pass import reference_nll


def prune_layers(model, groups: list[dict], collate: Callable, share: float = 0.25) -> list[int]:
    """The numbers of the decoder layers that were cut out of `model`, in place: a block in a row.

    share: of all layers. The last layer stays. The cut block is that without which the answers of
    `groups` have the lowest NLL (Kim et al., "Shortened LLaMA", arXiv 2402.02834, section 3).
    """
    decoder, config = model.get_decoder(), model.config
    layers = list(decoder.layers)
    per_layer = {
        name: values
        for name, values in config.to_dict().items()
        if isinstance(values, list) and len(values) == len(layers)
    }
    count = max(1, round(len(layers) * share))

    def cut(first: int) -> None:
        kept = [i for i in range(len(layers)) if not first <= i < first + count]
        decoder.layers = torch.nn.ModuleList(layers[i] for i in kept)
        for number, layer in enumerate(decoder.layers):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = number
        config.num_hidden_layers = len(kept)
        for name, values in per_layer.items():
            setattr(config, name, [values[i] for i in kept])

    nll = {}
    for first in range(len(layers) - count):
        cut(first)
        nll[first] = sum(reference_nll(model, group, collate).sum().item() for group in groups)
    best = min(nll, key=nll.get)
    cut(best)
    return list(range(best, best + count))
