"""One question answered as a person would ask it: token by token, and how fast that is.

The stock `model.generate`, not the one pass an article of the evaluation: one question has nothing to share.
"""

import time

import torch
from transformers.generation.streamers import BaseStreamer

import bmwqa_utils as bq


def stream_answer(
    model, tokenizer, context: str, question: str, max_new_tokens: int, streamer: BaseStreamer, **options
) -> list[int]:
    """The token ids of the greedy answer to one question on one article, each given to `streamer` as soon as it is.

    The prompt is that of training; a control token in the article or the question is plain text. `options` go to
    `model.generate`.
    """
    ids = torch.tensor([bq.encode_text(tokenizer, bq.format_prompt(context, question))], device=model.device)
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        repetition_penalty=1.0,  # some models bring one of their own, which the evaluation does not apply
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        streamer=streamer,
        **options,
    )
    return made[0, ids.shape[1] :].tolist()


class Stamps(BaseStreamer):
    """The times (s) at which the prompt and then each token came."""

    def __init__(self):
        self.times = []

    def put(self, value):
        self.times.append(time.perf_counter())

    def end(self):
        pass


def answer_speed(model, tokenizer, context: str, question: str, new_tokens: int = 12) -> dict[str, float]:
    """{"first_token_seconds", "tokens_per_second"} of one answer of `new_tokens`.

    first_token_seconds: from the prompt to its first token, nearly all of it reading the article. tokens_per_second:
    of the tokens after the first, one at a time. The answer may not end early, so that all models write as much.
    """
    stamps = Stamps()
    stream_answer(model, tokenizer, context, question, new_tokens, stamps, min_new_tokens=new_tokens)
    start, first, *_, last = stamps.times
    return {"first_token_seconds": first - start, "tokens_per_second": (new_tokens - 1) / (last - first)}


def pick(options: dict, name: str, what: str):
    """`options[name]`; ValueError names what there is."""
    if name not in options:
        raise ValueError(f"There is no {what} {name!r}. There are: {', '.join(options)}.")
    return options[name]
