"""One forward pass an article: the batch, its loss and its answers, for all questions of an article in one row.

    [article | question 1, answer 1 | question 2, answer 2 | …]

Every question sees the article and itself, and its positions go on where the article ends. Causal attention makes that
equal to separate rows, which tests/test_one_pass.py proves for losses, gradients and answers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bmwqa_utils import IGNORE

# ---------------------------------------------------------------------------------------------------------------------
# Batches and their loss


def share_prefix(group: dict) -> dict[str, torch.Tensor]:
    """The batch [prefix | branch 1 | branch 2 | …]: T tokens in one row, in which no branch sees another.

    input_ids, position_ids: [1, T]; positions restart after the prefix in every branch.
    attention_mask: [1, 1, T, T], True where a token (row) sees another (column): backwards, the prefix and itself.
    blocks: [blocks, 3], for the attention ATTENTION, see `cut_blocks`.
    logits_to_keep: [S], the places that predict a supervised token; labels: [answers, longest], padded with IGNORE.
    """
    prefix, branches = group["prefix"], group["branches"]
    ids, positions, owner, keep, labels = list(prefix), list(range(len(prefix))), [0] * len(prefix), [], []
    ends = []
    for number, branch in enumerate(branches, start=1):
        supervised = [i for i, label in enumerate(branch["labels"]) if label != IGNORE]
        keep += [len(ids) + i - 1 for i in supervised]
        labels.append(torch.tensor([branch["labels"][i] for i in supervised]))
        ids += branch["input_ids"]
        positions += range(len(prefix), len(prefix) + len(branch["input_ids"]))
        owner += [number] * len(branch["input_ids"])
        ends.append(len(ids))
    owner = torch.tensor(owner)
    sees = (owner[None, :] == 0) | (owner[None, :] == owner[:, None])
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": sees.tril()[None, None],
        "blocks": torch.tensor(cut_blocks(len(prefix), ends)),
        "logits_to_keep": torch.tensor(keep),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE),
    }


def separate_rows(group: dict) -> dict[str, torch.Tensor]:
    """The same group the usual way: one row a question, the article repeated in each, padded on the left.

    input_ids, attention_mask, position_ids: [answers, longest row]; logits_to_keep: [longest answer], the last places
    that predict; labels: [answers, longest answer], padded with IGNORE on the left.
    """
    rows = [group["prefix"] + branch["input_ids"] for branch in group["branches"]]
    labels = [[label for label in branch["labels"] if label != IGNORE] for branch in group["branches"]]
    (ids, mask), (labels, supervised) = pad_left(rows), pad_left(labels)
    width, answer = ids.shape[1], labels.shape[1]
    return {
        "input_ids": ids,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "attention_mask": mask,
        "logits_to_keep": torch.arange(width - 1 - answer, width - 1),
        "labels": labels.masked_fill(supervised == 0, IGNORE),
    }


def pad_left(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), both [rows, longest]: 0 where the mask, which knows by length and not by id, says padding."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


def answer_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[answers, longest]: the negative log-likelihood (nats) of each supervised token, 0 where the label is IGNORE.

    logits: [1, S, vocabulary] of `share_prefix` or [answers, longest, vocabulary] of `separate_rows`.
    """
    supervised = labels != IGNORE
    logits = logits[0] if len(logits) == 1 and logits.shape[1] == supervised.sum() else logits[supervised]
    nll = cross_entropy(logits.float(), labels[supervised], reduction="none")
    return torch.zeros(labels.shape, device=nll.device).masked_scatter(supervised, nll)


def answer_loss(outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
    """The loss of a step, for Trainer's `compute_loss_func`: the mean NLL of its supervised tokens, as usual.

    A mean of the answers' means would hardly teach long ones: how a paragraph begins would weigh a fortieth of a date.
    """
    return answer_nll(outputs.logits, labels).sum() / (labels != IGNORE).sum()


# ---------------------------------------------------------------------------------------------------------------------
# Attention

ATTENTION = "shared_prefix"  # `attn_implementation` of a model, for transformers
BLOCK = 256  # tokens: products of fewer are slow, and of more compute much that no token sees


def cut_blocks(prefix: int, ends: list[int]) -> list[list[int]]:
    """[first, last, seen] of each block of tokens, of an article of `prefix` tokens and branches that end at `ends`.

    The tokens from first to last see the first `seen` of the row, and else only what their own block has: seen is first
    within the article, and all of the article for a block of whole branches.

    >>> cut_blocks(300, [310, 330])
    [[0, 256, 0], [256, 300, 256], [300, 330, 300]]
    """
    blocks = [[first, min(first + BLOCK, prefix), first] for first in range(0, prefix, BLOCK)]
    first = prefix
    for end in ends:
        if end - first >= BLOCK or end == ends[-1]:
            blocks.append([first, end, prefix])
            first = end
    return blocks


def shared_prefix_attention(module, query, key, value, attention_mask, blocks=None, articles=None, **kwargs):
    """Attention of a row of `share_prefix`, block by block; with `articles`, of a step of `answer_questions`.

    query: [1, heads, T, size]; key, value: [1, key heads, T, size]; attention_mask: [1, 1, T, T] of `share_prefix`.
    With neither it is torch's attention as it is.
    """
    if articles is not None:
        return _answering_attention(module, query, key, value, attention_mask, articles, **kwargs)
    if blocks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    query, key = (query * kwargs["scaling"]).to(value.dtype), key.to(value.dtype)  # under autocast, value alone is bf16
    query = query[0].unflatten(0, (key.shape[1], -1)).transpose(1, 2)
    with torch.autocast(query.device.type, enabled=False):
        answer = BlockAttention.apply(query, key[0], value[0], attention_mask[0, 0], blocks.tolist())
    return answer.transpose(0, 1).flatten(1, 2)[None], None


class BlockAttention(torch.autograd.Function):
    """softmax(query key^T) value, for each block of `cut_blocks` two products of matrices, and five for the gradients.

    torch's own kernel, asked for the whole row, computes every branch against every other, and on a CPU with AVX-512
    it is hardly faster in bf16 than in fp32. The weights are computed again for the gradients instead of being kept, as
    in FlashAttention (Dao et al., arXiv 2205.14135, section 3.1): memory grows with T, not with its square.

    query, and the answer: [key heads, T, heads of each, size]; key, value: [key heads, T, size]; sees: [T, T].
    """

    @staticmethod
    def forward(ctx, query, key, value, sees, blocks):
        ctx.save_for_backward(query, key, value, sees)
        ctx.blocks, answer = blocks, torch.empty_like(query)
        for first, last, seen in blocks:
            own = answer[:, first:last]
            weights = _weights(query, _columns(key, first, last, seen), sees, first, last)
            own.copy_((weights @ _columns(value, first, last, seen)).view(own.shape))
        return answer

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, sees = ctx.saved_tensors
        for_query = torch.empty_like(query)
        for_key, for_value = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (key, value))
        for first, last, seen in ctx.blocks:
            asked, rows = (tensor[:, first:last].flatten(1, 2) for tensor in (query, gradient))
            keys, values = (_columns(tensor, first, last, seen) for tensor in (key, value))
            weights = _weights(query, keys, sees, first, last)
            for_weights = rows @ values.mT
            for_scores = torch._softmax_backward_data(for_weights, weights, -1, weights.dtype)
            own = for_query[:, first:last]
            own.copy_((for_scores @ keys).view(own.shape))
            for total, part in ((for_key, for_scores.mT @ asked), (for_value, weights.mT @ rows)):
                total[:, :seen] += part[:, :seen]
                total[:, first:last] += part[:, seen:]
        return for_query, for_key.to(key.dtype), for_value.to(value.dtype), None, None


def _columns(tensor, first, last, seen):
    """What a block sees of keys or values: [key heads, columns, size]."""
    return torch.cat([tensor[:, :seen], tensor[:, first:last]], 1)


def _weights(query, keys, sees, first, last):
    """The attention weights of a block, `keys` its `_columns`: [key heads, tokens * heads of each, columns]."""
    asked = query[:, first:last]
    scores = asked.flatten(1, 2) @ keys.mT
    own = scores.unflatten(1, asked.shape[1:3])[..., first - last :]
    own.masked_fill_(~sees[first:last, None, first:last], -torch.inf)
    return scores.softmax(-1)


@dataclass
class Articles:
    """What A articles keep for the B rows that ask about them, at most R about one; all articles padded to n tokens."""

    keys: list[torch.Tensor]  # of each layer, [A, key heads, n, size]
    values: list[torch.Tensor]
    padding: torch.Tensor  # [A, 1, 1, n], True where an article has no token
    row: torch.Tensor = field(init=False)  # [A, R], which row stands at a place, 0 where none does
    place: torch.Tensor = field(init=False)  # [B], the place of a row among the A * R

    def seat(self, owner: torch.Tensor) -> None:
        """Set row and place, of rows about the articles `owner`: [B], ascending."""
        seats = [(owner == number).nonzero()[:, 0] for number in range(len(self.padding))]
        self.row = pad_sequence(seats, batch_first=True).to(self.padding.device)
        inside = torch.arange(self.row.shape[1])[None] < torch.tensor([len(seat) for seat in seats])[:, None]
        self.place = inside.flatten().nonzero()[:, 0].to(self.padding.device)


def _answering_attention(module, query, key, value, sees, articles, scaling, **kwargs):
    """One new token in each of B rows: it sees its article, kept once for all rows about it, and its own row.

    query: [B, heads, 1, size]; key, value: [B, key heads, own tokens, size]; sees: [B, 1, 1, own tokens].
    """

    def by_article(rows):  # [B, key heads, heads of each, x] -> [A, key heads, R * heads of each, x]
        return rows[articles.row].transpose(1, 2).flatten(2, 3)

    def by_row(seats):  # and back
        count = articles.row.shape[1]
        return seats.unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)[articles.place]

    keys, values = articles.keys[module.layer_idx], articles.values[module.layer_idx]
    query, n = (query * scaling).unflatten(1, (key.shape[1], -1)).squeeze(3), keys.shape[2]
    own = (query @ key.transpose(2, 3)).masked_fill_(~sees, -torch.inf)
    scores = (by_article(query) @ keys.transpose(2, 3)).masked_fill_(articles.padding, -torch.inf)
    weights = torch.cat([scores, by_article(own)], -1).softmax(-1)
    answer = by_row(weights[..., :n] @ values) + by_row(weights[..., n:]) @ value
    return answer.flatten(1).unsqueeze(1), None


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


# ---------------------------------------------------------------------------------------------------------------------
# Exact or not, and answers


def choose_collator(model, group: dict) -> tuple[Callable, str]:
    """`share_prefix` if it gives this model the losses of `separate_rows`, else the latter, and a line that says so.

    The first three questions of the group are compared; with one alone there is no other that could be seen.
    """
    group, nll = group | {"branches": group["branches"][:3]}, []
    with torch.inference_mode():
        for collate in (share_prefix, separate_rows):
            batch = collate(group)
            labels = batch.pop("labels").to(model.device)
            nll.append(answer_nll(_logits(model, **batch), labels).sum(1))
    off = ((nll[0] - nll[1]).abs().max() / nll[1].mean()).item()
    if off < 1e-3:
        return share_prefix, f"One pass an article: same losses as separate rows, up to a relative {off:.0e}."
    return separate_rows, f"Separate rows: one pass an article is off by a relative {off:.0e}. Is the mask ignored?"


@dataclass
class Reading:
    """An article and its questions, read once: what the references cost, and what the answers begin with."""

    nll: list[torch.Tensor]  # [supervised tokens] of each reference, see `answer_nll`
    first: torch.Tensor  # [questions], the likeliest token after each
    questions: list[list[int]]  # the places of each question's tokens in the row
    prefix_length: int
    cache: DynamicCache  # keys and values of the row


@torch.inference_mode()
def read_article(model, group: dict) -> Reading:
    """One pass over an article with its questions and references, as in training."""
    batch, cache = share_prefix(group), DynamicCache()
    labels, place = batch.pop("labels").to(model.device), len(group["prefix"])
    logits = _logits(model, past_key_values=cache, **batch)
    lengths = (labels != IGNORE).sum(1)
    nll = [row[:length] for row, length in zip(answer_nll(logits, labels), lengths, strict=True)]
    first, questions = logits[0, lengths.cumsum(0) - lengths].argmax(-1), []
    for branch, length in zip(group["branches"], lengths.tolist(), strict=True):
        end = place + len(branch["input_ids"])
        questions.append(list(range(place, end - length)))
        place = end
    return Reading(nll, first, questions, len(group["prefix"]), cache)


@torch.inference_mode()
def answer_questions(model, readings: list[Reading], end: int, limits: list[int]) -> list[list[int]]:
    """Greedy answers to all questions of some readings: the new token ids, with `end` if they ended.

    limits: at most so many tokens, for each question. All are answered at the same time, a token a step: a step costs
    little more for fifty of them than for one. The readings lose their caches: twice the memory would be a lot.
    """
    places, sees = pad_left([question for reading in readings for question in reading.questions])
    owner = torch.tensor([number for number, reading in enumerate(readings) for _ in reading.questions])
    lengths = torch.tensor([reading.prefix_length for reading in readings])
    starts = sees.sum(1) + lengths[owner]
    own, keys, values = DynamicCache(), [], []  # a question sees its article and itself, but no reference
    for layer in range(len(readings[0].cache.layers)):
        asked = [[], []]
        for name, told, part in zip(("keys", "values"), (keys, values), asked, strict=True):
            read = [getattr(reading.cache.layers[layer], name)[0].transpose(0, 1) for reading in readings]
            part += [tokens[places[owner == number]].transpose(1, 2) for number, tokens in enumerate(read)]
            read = [tokens[: reading.prefix_length] for tokens, reading in zip(read, readings, strict=True)]
            told.append(pad_sequence(read, batch_first=True).transpose(1, 2).contiguous())
        own.update(*map(torch.cat, asked), layer)
        for reading in readings:
            reading.cache.layers[layer].keys = reading.cache.layers[layer].values = None
    padding = torch.arange(lengths.max())[None] >= lengths[:, None]
    articles = Articles(keys, values, padding[:, None, None].to(model.device))
    articles.seat(owner)

    answers = [[] for _ in starts]
    active, limits = torch.arange(len(starts)), torch.tensor(limits)
    ids = torch.cat([reading.first for reading in readings]).cpu()
    for step in range(1, limits.max() + 1):
        for question, token in zip(active.tolist(), ids.tolist(), strict=True):
            answers[question].append(token)
        goes_on = (ids != end) & (limits[active] > step)
        if not goes_on.any():
            break
        if not goes_on.all():
            own.batch_select_indices(goes_on.nonzero()[:, 0].to(model.device))
            active, ids = active[goes_on], ids[goes_on]
            articles.seat(owner[active])
        logits = _logits(
            model,
            input_ids=ids[:, None],
            position_ids=(starts[active] + step - 1)[:, None],
            attention_mask=pad(sees[active], (0, step), value=1).bool()[:, None, None],
            past_key_values=own,
            articles=articles,
        )
        ids = logits[:, -1].argmax(-1).cpu()
    return answers


def _logits(model, **inputs) -> torch.Tensor:
    inputs = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in inputs.items()}
    return model(**inputs).logits
