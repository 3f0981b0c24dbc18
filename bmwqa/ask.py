"""A local page to ask all articles on: `make ask`, `python -m bmwqa.ask MODEL OUT_DIR`."""

import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported

import gradio as gr
from transformers import TextIteratorStreamer

from bmwqa.answers import stream_answer
from bmwqa.corpus import ROOT, read_json
from bmwqa.export import NEW_TOKENS
from bmwqa.machine import choose_precision
from bmwqa.models import EMBEDDED, load_model, load_tokenizer, short_name
from bmwqa.pairs import content_words
from bmwqa.retrieval import ArticleIndex, open_index
from bmwqa.scores import declines, holds, normalize
from bmwqa_utils import prompt_ids

AT_ONCE = 4  # people who are answered at the same time; others wait
CHARACTERS = 1000  # of a question; those of training have at most 150
EXAMPLES = ["When did the thunderstorm reach the Masaryk Circuit?"]
EXAMPLES += ["Who drove the opening stint in Brno?", "How many spectators came to Brno?"]


class PressRoom:
    """Models by variant, and an index of articles that answers nothing below `threshold`."""

    def __init__(self, models: dict, tokenizer, index: ArticleIndex, threshold: float):
        self.models, self.index, self.threshold = models, index, threshold
        self.tokenizer, self._pool = tokenizer, ThreadPoolExecutor(AT_ONCE)
        self.titles = {name: text.split("\n")[0] for name, text in index.contexts.items()}
        tokenizer.split_special_tokens = True  # a switch for all threads: no control token in text

    def find(self, question: str, chosen: str) -> tuple[str, str]:
        """(id of the article to read, or ""; why). chosen: an id, or "" to find it."""
        if not 0 < len(question.strip()) <= CHARACTERS:
            return "", f"Found {len(question):,} characters. Ask in 1 to {CHARACTERS:,}."
        (ranks,) = self.index.rank([question])
        why = "\n".join(f"{score:.1f}  {self.titles[name]} ({name})" for name, score in ranks)
        name, score = ranks[0]
        if not chosen and score < self.threshold:
            return "", f"No article fits: the best score is below {self.threshold:.1f}.\n{why}"
        return chosen or name, why

    def stream(self, variant: str, context: str, question: str) -> Iterator[str]:
        """The answer as far as it is written, again and again."""
        model, options = self.models[variant], {"skip_prompt": True, "skip_special_tokens": True}
        streamer = TextIteratorStreamer(self.tokenizer, **options)
        tokens = len(prompt_ids(self.tokenizer, context, question)) + NEW_TOKENS
        config = model.config.get_text_config()
        if tokens > (most := getattr(config, "max_position_embeddings", tokens)):
            yield f"Article and answer take {tokens:,} tokens; this model reads at most {most:,}."
            return
        options = {"limit": NEW_TOKENS, "streamer": streamer}
        job = self._pool.submit(stream_answer, model, self.tokenizer, context, question, **options)
        job.add_done_callback(lambda _: streamer.end())  # of one that failed, too
        yield from accumulate(streamer)
        job.result()

    def respond(self, question: str, variants: list[str], chosen: str) -> Iterator[list]:
        """Why this article, the article, and a text box per variant, as they come."""
        boxes = {v: gr.Textbox("", label=v, visible=v in variants) for v in self.models}
        name, why = self.find(question, chosen)
        context = self.index.contexts[name] if name else ""
        yield [why, [(context, None)], *boxes.values()]
        if not name:
            return
        answers = {}
        for variant in [v for v in boxes if v in variants]:
            for text in self.stream(variant, context, question):
                label = f"{variant}: does not say" if declines(text) else variant
                boxes[variant] = gr.Textbox(text, label=label)
                answers[variant] = text
                yield [gr.skip(), gr.skip(), *boxes.values()]
        yield [gr.skip(), mark_answers(context, question, answers), *boxes.values()]


def mark_answers(context: str, question: str, answers: dict[str, str]) -> list[tuple]:
    """The context in sentences: (sentence, variants whose answer it holds, or None).

    Of several sentences that hold an answer, the one with most words of the question is marked; of
    a longer answer, each sentence in the answer.
    """
    sentences, about = re.split(r"(?<=[.!?”])(?=\s)|(?<=\n)", context), content_words(question)
    nearest = sorted(sentences, key=lambda s: len(about & content_words(s)), reverse=True)
    plain, marks = {s: normalize(s) for s in nearest}, {s: [] for s in nearest}
    for variant, answer in answers.items():
        for sentence in sentences_of(normalize(answer), plain):
            marks[sentence].append(variant)
    return [(sentence, ", ".join(marks[sentence]) or None) for sentence in sentences]


def sentences_of(answer: str, plain: dict[str, str]) -> list[str]:
    """The first sentence that holds an answer, else those that a longer answer holds.

    answer: normalised. plain: {sentence: normalised}. Yes and no stand in no sentence.
    """
    if answer not in ("", "yes", "no"):
        around = [sentence for sentence in plain if holds(plain[sentence], answer)]
        if around:
            return around[:1]
    return [s for s in plain if holds(answer, plain[s]) and len(plain[s].split()) > 3]


def open_page(room: PressRoom, **options) -> tuple:
    """What gradio's `launch` gives; on this machine alone, and without links to other sites."""
    first = ["full"] if "full" in room.models else [*room.models][:1]
    with gr.Blocks(title="Ask the press room") as page:
        gr.Markdown("## Ask the press room\nAnswers come from one press release alone.")
        with gr.Row():
            question = gr.Textbox(label="Question", scale=3, elem_id="question")
            articles = [("found by the question", "")]
            articles += [(title, name) for name, title in room.titles.items()]
            chosen = gr.Dropdown(articles, value="", label="Article", scale=2, elem_id="chosen")
        gr.Examples([[text] for text in EXAMPLES], question)
        variants = gr.CheckboxGroup([*room.models], value=first, label="Model", elem_id="variants")
        button = gr.Button("Ask", variant="primary", elem_id="ask")
        with gr.Row():
            boxes = [gr.Textbox(label=v, visible=v in first, elem_id=v) for v in room.models]
        why = gr.Textbox(label="Best articles, with their scores", lines=3, elem_id="why")
        article = gr.HighlightedText(label="Article", combine_adjacent=True, elem_id="article")
        inputs, outputs = [question, variants, chosen], [why, article, *boxes]
        events = [button.click, question.submit]
        gr.on(events, room.respond, inputs, outputs, concurrency_limit=AT_ONCE)
    options |= {"server_name": "127.0.0.1", "share": False, "ssr_mode": False}
    return page.launch(run_history=False, footer_links=[], **options)


def main(model: str = EMBEDDED, out_dir: str = "") -> None:
    """Open the page with the base and its trained variants that are in `out_dir`."""
    names = {"full": "full_ft", "lora": "lora", "pruned": "pruned_ft"}
    folder = ROOT / out_dir
    places = {variant: folder / f"{short_name(model)}_{name}" for variant, name in names.items()}
    trained = {variant: place for variant, place in places.items() if place.is_dir()}
    if not trained:
        here = f"There is no {places['full'].name} in {folder}"
        sys.exit(f"{here}. Train it: `make run MODEL={model}`.")
    used = read_json(next(iter(trained.values())) / "training.json", ("model",))["model"]
    dtype, _ = choose_precision()
    models = {
        variant: load_model(place, used["revision"], dtype, merge=True, attention=None)
        for variant, place in ({"base": used["name"]} | trained).items()
    }
    tokenizer = load_tokenizer(used["name"], used["revision"])
    open_page(PressRoom(models, tokenizer, *open_index(ROOT / "data" / "processed")))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ValueError as error:
        sys.exit(str(error))
