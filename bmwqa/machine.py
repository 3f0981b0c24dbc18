"""The machine: how it computes fastest, what it is, and how much memory a run takes."""

import contextlib
import ctypes
import gc
import platform
import threading
from importlib.metadata import version

import psutil
import torch


def this_device() -> torch.device:
    """Where models are computed: the GPU where there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def choose_precision(wanted: str = "auto") -> tuple[torch.dtype, str]:
    """The dtype of weights and matrix products, and one line that says why. Adapters are fp32.

    wanted: "bf16" or "fp32"; "auto": bf16 where this machine has instructions for it.
    """
    device = this_device()
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        units = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
        has = f"has {units[0]}" if units else "has no bf16 instructions (amx_bf16 or avx512_bf16)"
        fast, reason = bool(units), f"this CPU {has}"
    else:
        cuda = device.type != "mps"
        fast = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        reason = f"this {device.type} device {'has' if fast else 'has no'} bf16 units"
    if wanted != "auto":
        fast, reason = wanted == "bf16", f"PRECISION asks for it; {reason}"
    dtype = torch.bfloat16 if fast else torch.float32
    return dtype, f"Matrix products in {'bf16' if fast else 'fp32'}: {reason}."


def hardware_arguments(autocast: bool = False) -> dict[str, bool]:
    """What TrainingArguments needs here. autocast: fp32 weights are multiplied in bf16."""
    return {"use_cpu": not torch.accelerator.is_available(), "bf16": autocast}


def machine() -> dict:
    """What a figure was measured on: processor, cores, memory (1e9 bytes), versions."""
    return {
        "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
    } | {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")}


class PeakMemory:
    """`with PeakMemory(model) as peak: …`, then `peak.gb`: the most memory it took (1e9 bytes).

    It is read every 20 ms. What the process held before, beside the models, is subtracted, so a run
    after another counts as if it were alone; without a model, nothing is subtracted. On a CUDA
    device, it is the most that torch has held there.
    """

    def __init__(self, *models: torch.nn.Module):
        self._models = models

    def __enter__(self):
        gc.collect()
        with contextlib.suppress(AttributeError, OSError, TypeError):  # only glibc has it
            ctypes.CDLL(None).malloc_trim(0)
        self._cuda, self._process = torch.cuda.is_available(), psutil.Process()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        self._beside = 0
        if self._models and not self._cuda:
            weights = [t for model in self._models for t in model.parameters()]
            held = sum(weight.numel() * weight.element_size() for weight in weights)
            self._beside = self._process.memory_info().rss - held
        self.gb, self._done = 0.0, threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def _watch(self):
        while not self._done.wait(0.02):
            cuda, process = self._cuda, self._process
            held = torch.cuda.max_memory_allocated() if cuda else process.memory_info().rss
            self.gb = max(self.gb, (held - self._beside) / 1e9)

    def __exit__(self, *error):
        self._done.set()
        self._watcher.join()
