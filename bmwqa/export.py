"""A trained folder as other tools take it: chat template, end tokens, Modelfile and model card."""

import json
import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from bmwqa.answers import end_tokens
from bmwqa.corpus import ROOT, read_json, write_text
from bmwqa.report import with_interval
from bmwqa_utils import PREFIX, SYSTEM, format_prompt, prompt_ids

USER = PREFIX.partition("<|user|>\n")[2] + "{question}"  # what the user says in a chat
NEW_TOKENS = 192  # the most that other tools write; the paragraphs of training are shorter
WINDOW = 4096  # tokens that ollama keeps, if the model can
HUB_BASES = {  # of models with the licence Apache-2.0: their id on the hub
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Qwen/Qwen2.5-0.5B": "Qwen/Qwen2.5-0.5B",
}
CONTEXT, QUESTION = "A museum opens\n1 May 2025\n\nMunich. A museum opened.", "Where is it?"


def export_folder(folder: Path, results: dict | None = None) -> None:
    """Write into a trained folder what other tools need; its weights stay as they are.

    results: of notebook 3, whose scores the card then has. This project's answers do not depend on
    these files, so they may be written again at any time.
    """
    tokenizer, training = AutoTokenizer.from_pretrained(folder), read_json(folder / "training.json")
    tokenizer.chat_template = chat_template(tokenizer)
    texts = {"chat_template.jinja": tokenizer.chat_template}
    texts["README.md"] = f"{model_card(folder, tokenizer, training, results)}\n"
    if (folder / "config.json").exists():  # an adapter has those of its base
        ends = end_tokens(GenerationConfig.from_pretrained(folder), tokenizer)
        texts["Modelfile"] = modelfile(tokenizer, ends, AutoConfig.from_pretrained(folder))
        texts["generation_config.json"] = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=ends,
            pad_token_id=ends[0],
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
        ).to_json_string()
    for name, text in texts.items():
        if not (folder / name).exists() or (folder / name).read_text(encoding="utf-8") != text:
            write_text(folder / name, text)


def chat_template(tokenizer) -> str:
    """A Jinja template: of a system and a user message (`USER`), it makes `format_prompt`'s text.

    Without a system message, that of training is taken. As tools add no token to a chat, the text
    begins with the one that this tokenizer begins with, if any.
    """
    begins = prompt_ids(tokenizer, "", "")[0] == tokenizer.bos_token_id
    template = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8").strip()
    template = template.replace("SYSTEM", json.dumps(f"<|system|>\n{SYSTEM}\n\n"))
    return "{{- bos_token }}" + template if begins else template


def modelfile(tokenizer, ends: list[int], config) -> str:
    """Ollama's Modelfile; ollama itself adds the token that a tokenizer begins with."""
    user = USER.format(context="⟨context⟩", question="⟨question⟩")
    prompt = format_prompt("⟨context⟩", "⟨question⟩").replace(user, "{{ .Prompt }}")
    prompt = prompt.replace(SYSTEM, "{{ .System }}")
    positions = getattr(config.get_text_config(), "max_position_embeddings", WINDOW)
    lines = ["FROM .", f'TEMPLATE """{prompt}"""', f'SYSTEM """{SYSTEM}"""']
    lines += [f'PARAMETER stop "{token}"' for token in tokenizer.convert_ids_to_tokens(ends)]
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]
    lines += [f"PARAMETER num_ctx {min(WINDOW, positions)}", f"PARAMETER num_predict {NEW_TOKENS}"]
    return "\n".join(lines) + "\n"


def model_card(folder: Path, tokenizer, training: dict, results: dict | None) -> ModelCard:
    """The card of a trained folder, with the scores in `results` if they are of this training."""
    name = re.sub(r"-[0-9a-f]{8}(-x\d+)?$", "", training["run"])
    base, adapter = training["model"], (folder / "adapter_config.json").exists()
    hub = HUB_BASES.get(base["name"])
    embedded, is_folder = base["name"] == "smollm2-135m", (ROOT / base["name"]).is_dir()
    base_name = Path(base["name"]).name if is_folder else base["name"]  # no path of this machine
    variant, scores = name.partition("_")[2].removesuffix("_ft"), None
    if results and results["training"].get(variant, {}).get("run") == training["run"]:
        scores = results["variants"][variant][results["headline"]]
    content = USER.format(context=CONTEXT, question=QUESTION)
    chat = [{"role": "user", "content": content}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    return ModelCard.from_template(
        ModelCardData(
            language="en",
            license="apache-2.0" if hub else "other",
            base_model=hub or (None if is_folder else base_name),
            library_name="peft" if adapter else "transformers",
            pipeline_tag="text-generation",
            tags=["question-answering"],
        ),
        template_path=str(Path(__file__).with_name("model_card.md")),
        name=name,
        base=base_name,
        revision=base["revision"],
        place="models/smollm2-135m" if embedded else base_name,
        local=embedded or is_folder,
        hub=hub,
        adapter=adapter,
        training=training,
        content=json.dumps(content),
        same_tokens=ids == prompt_ids(tokenizer, CONTEXT, QUESTION),
        end=tokenizer.eos_token,
        limit=NEW_TOKENS,
        results=results,
        scores=scores,
        with_interval=with_interval,
    )
