"""Smaller without training: the weights of a model's linear layers in int8, on the CPU."""

import io
import warnings

import torch
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic


def to_int8(model, in_fp32: tuple[str, ...] = ("down_proj",)):
    """The fp32 model on the CPU, its linear layers in int8, changed in place.

    in_fp32: names of layers that stay as they are, as the embedding does. torch's own way: a scale
    per row of each matrix, and one for all inputs of a product. Some inputs of `down_proj` are far
    larger than the others (Dettmers et al., arXiv 2208.07339), so one scale would cost it most.
    """
    linear = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    layers = {n: per_channel_dynamic_qconfig for n in linear if not n.endswith(in_fp32)}
    with warnings.catch_warnings(action="ignore"):  # torch says that torchao will replace this
        return quantize_dynamic(model.cpu(), layers, torch.qint8, inplace=True)


def saved_mb(model) -> float:
    """The size that a model's weights would have on disk, in MB (1e6 bytes)."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell() / 1e6
