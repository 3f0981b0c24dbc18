"""One forward pass per article: all its questions in one row, in training and in answering.

    [article | question 1, answer 1 | question 2, answer 2 | …]

Every question sees the article and itself, and its positions go on where the article ends. With
causal attention, that gives the same losses, gradients and answers as separate rows:
tests/test_one_pass.py proves it.
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


def share_prefix(group: dict) -> dict:
    """The batch [prefix | branch 1 | branch 2 | …], one row of T tokens; no branch sees another.

    input_ids, position_ids: [1, T]; positions restart after the prefix in every branch.
    attention_mask: [1, 1, T, T], True where a token (row) sees another (column).
    blocks: a list, for our attention, see `cut_blocks`.
    logits_to_keep: [S], the places that predict the S supervised tokens.
    labels: [answers, longest answer], padded with IGNORE.
    """
    prefix, branches = group["prefix"], group["branches"]
    ids, positions, owner = list(prefix), list(range(len(prefix))), [0] * len(prefix)
    keep, labels, ends = [], [], []
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
        "blocks": cut_blocks(len(prefix), ends),
        "logits_to_keep": torch.tensor(keep),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE),
    }


def separate_rows(group: dict) -> dict[str, torch.Tensor]:
    """The usual batch: a row per question, with the article in each, padded on the left.

    input_ids, attention_mask, position_ids: [answers, longest row].
    logits_to_keep: [longest answer], the last places that predict.
    labels: [answers, longest answer], padded with IGNORE on the left.
    """
    prefix, branches = group["prefix"], group["branches"]
    rows = [prefix + branch["input_ids"] for branch in branches]
    answers = [[label for label in branch["labels"] if label != IGNORE] for branch in branches]
    (ids, mask), (labels, supervised) = pad_left(rows), pad_left(answers)
    width, longest = ids.shape[1], labels.shape[1]
    return {
        "input_ids": ids,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "attention_mask": mask,
        "logits_to_keep": torch.arange(width - 1 - longest, width - 1),
        "labels": labels.masked_fill(supervised == 0, IGNORE),
    }


def pad_left(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), both [rows, longest]; ids and mask are 0 on padding."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


def answer_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The negative log-likelihood (nats) of each token, [answers, longest]; 0 where IGNORE.

    logits: [1, S, vocabulary] of `share_prefix`, [answers, longest, vocabulary] of `separate_rows`.
    """
    supervised = labels != IGNORE
    in_one_row = len(logits) == 1 and logits.shape[1] == supervised.sum()
    logits = logits[0] if in_one_row else logits[supervised]
    nll = cross_entropy(logits.float(), labels[supervised], reduction="none")
    return torch.zeros(labels.shape, device=nll.device).masked_scatter(supervised, nll)


def answer_loss(outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
    """The loss of a step, for Trainer's `compute_loss_func`: the mean NLL of its supervised tokens.

    Every token weighs the same. If every answer did, a token of a paragraph would weigh a fortieth
    of a date's, and long answers would hardly be learnt.
    """
    return answer_nll(outputs.logits, labels).sum() / (labels != IGNORE).sum()


ATTENTION = "shared_prefix"  # `attn_implementation` of a model, for transformers
BLOCK = 256  # tokens: smaller products are slow, larger ones compute much that no token sees


def cut_blocks(prefix: int, ends: list[int]) -> list[list[int]]:
    """[first, last, seen] of each block of a row with `prefix` tokens and branches up to `ends`.

    A token of a block sees the first `seen` tokens of the row, and tokens of its block. A block of
    the article sees all before it; a block of whole branches sees the article.

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


def shared_prefix_attention(
    module, query, key, value, attention_mask, blocks=None, articles=None, **kwargs
):
    """The attention of a row of `share_prefix`, block by block.

    With `articles`, it is that of a step of `answer_questions`. Without both, or on a GPU, torch
    computes it in one call: there, many small products take longer.
    query: [1, heads, T, size]; key, value: [1, key heads, T, size]; attention_mask: [1, 1, T, T].
    """
    if articles is not None:
        return _answering_attention(module, query, key, value, attention_mask, articles, **kwargs)
    if blocks is None or not query.is_cpu:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    # under autocast, only value is bf16
    query, key = (query * kwargs["scaling"]).to(value.dtype), key.to(value.dtype)
    query = query[0].unflatten(0, (key.shape[1], -1)).transpose(1, 2)
    sees = attention_mask[0, 0]
    with torch.autocast(query.device.type, enabled=False):
        output = BlockAttention.apply(query, key[0], value[0], sees, blocks)
    return output.transpose(0, 1).flatten(1, 2)[None], None


class BlockAttention(torch.autograd.Function):
    """softmax(query key^T) value, block by block: two products of matrices, five for the gradients.

    torch's kernel computes every branch against every other. On a CPU with AVX-512, it is hardly
    faster in bf16 than in fp32. The weights are computed again for the gradients, as in
    FlashAttention (Dao et al., arXiv 2205.14135, section 3.1), so memory grows with T, not with T².
    query, output: [key heads, T, heads per key head, size]; key, value: [key heads, T, size];
    sees: [T, T].
    """

    @staticmethod
    def forward(ctx, query, key, value, sees, blocks):
        ctx.save_for_backward(query, key, value, sees)
        ctx.blocks, output = blocks, torch.empty_like(query)
        for first, last, seen in blocks:
            rows = output[:, first:last]
            weights = _weights(query, _columns(key, first, last, seen), sees, first, last)
            rows.copy_((weights @ _columns(value, first, last, seen)).view(rows.shape))
        return output

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, sees = ctx.saved_tensors
        dquery = torch.empty_like(query)
        dkey, dvalue = (torch.zeros_like(t, dtype=torch.float32) for t in (key, value))
        for first, last, seen in ctx.blocks:
            queries, doutput = (t[:, first:last].flatten(1, 2) for t in (query, gradient))
            keys, values = (_columns(t, first, last, seen) for t in (key, value))
            weights = _weights(query, keys, sees, first, last)
            dweights = doutput @ values.mT
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            rows = dquery[:, first:last]
            rows.copy_((dscores @ keys).view(rows.shape))
            for total, block in ((dkey, dscores.mT @ queries), (dvalue, weights.mT @ doutput)):
                total[:, :seen] += block[:, :seen]
                total[:, first:last] += block[:, seen:]
        return dquery, dkey.to(key.dtype), dvalue.to(value.dtype), None, None


def _columns(tensor, first, last, seen):
    """What a block sees of keys or values: [key heads, columns, size]."""
    return torch.cat([tensor[:, :seen], tensor[:, first:last]], 1)


def _weights(query, keys, sees, first, last):
    """The attention weights of a block: [key heads, tokens * heads per key head, columns]."""
    queries = query[:, first:last]
    scores = queries.flatten(1, 2) @ keys.mT
    within = scores.unflatten(1, queries.shape[1:3])[..., first - last :]
    within.masked_fill_(~sees[first:last, None, first:last], -torch.inf)
    return scores.softmax(-1)


@dataclass
class Articles:
    """Keys and values of A articles, padded to n tokens, for the B rows that ask about them.

    Each article has R seats, as many as the most rows about one article.
    """

    keys: list[torch.Tensor]  # of each layer, [A, key heads, n, size]
    values: list[torch.Tensor]
    padding: torch.Tensor  # [A, 1, 1, n], True where an article has no token
    row_on: torch.Tensor = field(init=False)  # [A, R], the row on each seat; 0 on an empty one
    seat_of: torch.Tensor = field(init=False)  # [B], the seat of each row, among all A * R

    def seat(self, owner: torch.Tensor) -> None:
        """Give each row a seat of its article; owner: [B], the article of each row, ascending."""
        rows = [(owner == number).nonzero()[:, 0] for number in range(len(self.padding))]
        self.row_on = pad_sequence(rows, batch_first=True).to(self.padding.device)
        counts = torch.tensor([len(rows_of_article) for rows_of_article in rows])
        taken = torch.arange(self.row_on.shape[1])[None] < counts[:, None]
        self.seat_of = taken.flatten().nonzero()[:, 0].to(self.padding.device)


def _answering_attention(module, query, key, value, sees, articles, scaling, **kwargs):
    """The attention of one new token in each of B rows: it sees its article and its row.

    Rows about the same article share its keys and values. query: [B, heads, 1, size]; key, value:
    [B, key heads, tokens of the row, size]; sees: [B, 1, 1, tokens of the row].
    """

    # [B, key heads, heads per key head, x] -> [A, key heads, R * heads per key head, x]
    def by_article(rows):
        return rows[articles.row_on].transpose(1, 2).flatten(2, 3)

    def by_row(seats):  # and back
        count = articles.row_on.shape[1]
        return seats.unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)[articles.seat_of]

    keys, values = articles.keys[module.layer_idx], articles.values[module.layer_idx]
    query, n = (query * scaling).unflatten(1, (key.shape[1], -1)).squeeze(3), keys.shape[2]
    row_scores = (query @ key.transpose(2, 3)).masked_fill_(~sees, -torch.inf)
    scores = (by_article(query) @ keys.transpose(2, 3)).masked_fill_(articles.padding, -torch.inf)
    weights = torch.cat([scores, by_article(row_scores)], -1).softmax(-1)
    output = by_row(weights[..., :n] @ values) + by_row(weights[..., n:]) @ value
    return output.flatten(1).unsqueeze(1), None


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@torch.inference_mode()
def reference_nll(model, group: dict, collate: Callable) -> torch.Tensor:
    """[answers]: the NLL (nats) of each reference of a group, in the rows of a collator."""
    batch = collate(group)
    labels = batch.pop("labels").to(model.device)
    return answer_nll(_logits(model, **batch), labels).sum(1)


@dataclass
class Reading:
    """What one pass over an article with its questions and references leaves."""

    nll: list[torch.Tensor]  # of each reference [supervised tokens], see `answer_nll`
    first: torch.Tensor  # [questions], the likeliest token after each question
    questions: list[list[int]]  # the places in the row of each question's tokens
    prefix_length: int
    cache: DynamicCache  # keys and values of the row


@torch.inference_mode()
def read_article(model, group: dict) -> Reading:
    """The `Reading` of one pass over an article with its questions and references."""
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
def answer_questions(model, readings: list[Reading], ends: list[int], limits: list[int]) -> list:
    """The token ids of the greedy answer to each question, up to the first of `ends`.

    limits: the most new tokens per question. Each step writes a token of every answer, so fifty
    questions cost little more than one. The readings lose their caches, to save memory.
    """
    owner, places, sees, lengths = _question_rows(readings)
    starts = sees.sum(1) + lengths[owner]
    cache, articles = _split_caches(readings, places, owner, lengths)
    articles.seat(owner)
    answers = [[] for _ in starts]
    active, limits, ends = torch.arange(len(starts)), torch.tensor(limits), torch.tensor(ends)
    ids = torch.cat([reading.first for reading in readings]).cpu()
    for step in range(1, limits.max() + 1):
        for question, token in zip(active.tolist(), ids.tolist(), strict=True):
            answers[question].append(token)
        goes_on = ~torch.isin(ids, ends) & (limits[active] > step)
        if not goes_on.any():
            break
        if not goes_on.all():
            cache.batch_select_indices(goes_on.nonzero()[:, 0].to(model.device))
            active, ids = active[goes_on], ids[goes_on]
            articles.seat(owner[active])
        positions = starts[active] + step - 1
        ids = _next_tokens(model, ids, positions, sees[active], step, cache, articles)
    return answers


def _question_rows(readings: list[Reading]) -> tuple[torch.Tensor, ...]:
    """(owner, places, sees, lengths) of all B questions, a row each, for `_split_caches`.

    sees: [B, longest question], 1 on the tokens of a question, 0 on padding.
    """
    owner = torch.tensor([i for i, reading in enumerate(readings) for _ in reading.questions])
    places, sees = pad_left([question for reading in readings for question in reading.questions])
    return owner, places, sees, torch.tensor([reading.prefix_length for reading in readings])


def _next_tokens(model, ids, positions, sees, step, cache, articles) -> torch.Tensor:
    """[B]: the likeliest token after `ids` in each row, which has written `step` tokens."""
    batch = {"input_ids": ids[:, None], "position_ids": positions[:, None]}
    mask = pad(sees, (0, step), value=1).bool()[:, None, None]
    batch |= {"attention_mask": mask, "past_key_values": cache, "articles": articles}
    return _logits(model, **batch)[:, -1].argmax(-1).cpu()


def _split_caches(readings, places, owner, lengths) -> tuple[DynamicCache, Articles]:
    """(cache, articles): keys and values of the questions, a row each, and of the articles.

    The references are left out. places: [B, longest question], of its tokens in the row of its
    article; owner: [B], the number of that article; lengths: [A], the tokens of each article.
    """
    cache, keys, values = DynamicCache(), [], []
    for layer in range(len(readings[0].cache.layers)):
        of_questions = []
        for name, of_articles in (("keys", keys), ("values", values)):
            rows = [getattr(r.cache.layers[layer], name)[0].transpose(0, 1) for r in readings]
            questions = [row[places[owner == i]].transpose(1, 2) for i, row in enumerate(rows)]
            of_questions.append(torch.cat(questions))
            prefixes = [row[:length] for row, length in zip(rows, lengths, strict=True)]
            prefixes = pad_sequence(prefixes, batch_first=True)
            of_articles.append(prefixes.transpose(1, 2).contiguous())
        cache.update(*of_questions, layer)
        for reading in readings:
            reading.cache.layers[layer].keys = reading.cache.layers[layer].values = None
    padding = torch.arange(lengths.max())[None] >= lengths[:, None]
    return cache, Articles(keys, values, padding[:, None, None].to(keys[0].device))


def _logits(model, **inputs) -> torch.Tensor:
    inputs = {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in inputs.items()}
    return model(**inputs).logits
