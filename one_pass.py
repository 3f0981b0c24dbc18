"""One forward pass an article: the batch, its loss and its answers, for all questions of an article in one row.

    [article | question 1, answer 1 | question 2, answer 2 | …]

Every question sees the article and itself, and its positions go on where the article ends. Causal attention makes that
equal to separate rows, which tests/test_one_pass.py proves for losses, gradients and answers.
"""

import ctypes
import math
import sys
from collections.abc import Callable

import torch
import torch.utils.checkpoint
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IGNORE = -100  # the label of a token that is not trained, as torch's cross entropy has it

# ---------------------------------------------------------------------------------------------------------------------
# Batches and their loss


def share_prefix(group: dict) -> dict[str, torch.Tensor]:
    """The batch [prefix | branch 1 | branch 2 | …]: T tokens in one row, in which no branch sees another.

    input_ids, position_ids: [1, T]; positions restart after the prefix in every branch.
    attention_mask: [1, 1, T, T], True where a token (row) sees another (column): backwards, the prefix and itself.
    logits_to_keep: [S], the places that predict a supervised token; labels: [answers, longest], padded with IGNORE.
    """
    prefix, branches = group["prefix"], group["branches"]
    ids, positions, owner, keep, labels = list(prefix), list(range(len(prefix))), [0] * len(prefix), [], []
    for number, branch in enumerate(branches, start=1):
        supervised = [i for i, label in enumerate(branch["labels"]) if label != IGNORE]
        keep += [len(ids) + i - 1 for i in supervised]
        labels.append(torch.tensor([branch["labels"][i] for i in supervised]))
        ids += branch["input_ids"]
        positions += range(len(prefix), len(prefix) + len(branch["input_ids"]))
        owner += [number] * len(branch["input_ids"])
    owner = torch.tensor(owner)
    sees = (owner[None, :] == 0) | (owner[None, :] == owner[:, None])
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": sees.tril()[None, None],
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
    """The loss of a step, for Trainer's `compute_loss_func`: the mean over the answers of each answer's mean NLL.

    So a date counts as much as a first paragraph twenty times its length.
    """
    nll = answer_nll(outputs.logits, labels)
    return (nll.sum(1) / (labels != IGNORE).sum(1)).mean()


# ---------------------------------------------------------------------------------------------------------------------
# Attention and memory on a CPU


def attend_in_blocks(module, query, key, value, attention_mask, scaling, **kwargs):
    """Attention of one row in blocks of 128 tokens, each of which computes only what is not ahead of its last token.

    A backward mask hides half of the square; torch's CPU kernel computes it all the same. The query heads that share a
    key are one matrix product. The backward pass computes the probabilities again: kept, they would cost gigabytes.
    Whatever is not one row under a square mask on a CPU (padding, generation, a GPU) goes torch's own way.
    """
    tokens = query.shape[2]
    if attention_mask is None or query.device.type != "cpu" or len(query) > 1 or key.shape[2] != tokens:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    inputs = query[0] * scaling, key[0], value[0], ~attention_mask[0, 0]
    seen = torch.utils.checkpoint.checkpoint(_attend, *inputs, use_reentrant=False)
    return seen.transpose(0, 1)[None], None


def _attend(query, key, value, hidden):
    heads, tokens, size = key.shape
    query, blocks = query.view(heads, -1, tokens, size), []
    for start in range(0, tokens, 128):
        end = min(start + 128, tokens)
        scores = query[:, :, start:end].reshape(heads, -1, size) @ key[:, :end].transpose(1, 2)
        scores = scores.view(heads, -1, end - start, end).masked_fill_(hidden[start:end, :end], -math.inf)
        seen = scores.softmax(-1).view(heads, -1, end) @ value[:, :end]
        blocks.append(seen.view(-1, end - start, size))
    return torch.cat(blocks, 1)


AttentionInterface.register("blocks", attend_in_blocks)
AttentionMaskInterface.register("blocks", sdpa_mask)


def tune_for_cpu(model) -> None:
    """Before training on a CPU: attention in blocks; and on Linux the process keeps the memory that a step frees.

    The kernel would hand out every page of the gradients anew, zeroed, at every step.
    """
    if model.device.type != "cpu":
        return
    model.set_attn_implementation("blocks")
    if GLIBC:
        GLIBC.mallopt(M_MMAP_MAX, 0)
        GLIBC.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def release_freed_memory() -> None:
    """Give the memory that the process has kept back to the kernel, on Linux."""
    if GLIBC:
        GLIBC.malloc_trim(0)


GLIBC = ctypes.CDLL(None) if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim") else None
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


# ---------------------------------------------------------------------------------------------------------------------
# Exact or not, and answers


def choose_collator(model, group: dict) -> tuple[Callable, str]:
    """`share_prefix` if it gives this model the losses of `separate_rows`, else the latter, and a line that says so."""
    nll = []
    with torch.inference_mode():
        for collate in (share_prefix, separate_rows):
            batch = {key: tensor.to(model.device) for key, tensor in collate(group).items()}
            labels = batch.pop("labels")
            nll.append(answer_nll(model(**batch).logits, labels).sum(1))
    off = ((nll[0] - nll[1]).abs() / nll[1]).max().item()
    if off < 1e-3:
        return share_prefix, f"One pass an article: same losses as separate rows, up to a relative {off:.0e}."
    return separate_rows, f"Separate rows: one pass an article is off by a relative {off:.0e}. Is the mask ignored?"


@torch.inference_mode()
def score_and_answer(model, group: dict, end: int, limit: int) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    """(nll, labels, answers) of a group, its article read once: `answer_nll` of the references, then greedy answers.

    answers: the new token ids of each question, at most `limit`, with `end` if they ended. Every step adds one token to
    each answer that has not ended, in one row: the article's keys and values are kept once, not once a question.
    """
    batch = share_prefix(group)
    labels = batch.pop("labels")
    tokens, cache = (labels != IGNORE).sum(1), DynamicCache(config=model.config)
    logits = _logits(model, cache, **batch)
    nll = answer_nll(logits, labels.to(logits.device))

    # an answer sees the article (0) and its own question (1, 2, …), but no reference (-1)
    start, owner, answers = len(group["prefix"]), [0] * len(group["prefix"]), [[] for _ in labels]
    lengths = torch.tensor([len(branch["input_ids"]) for branch in group["branches"]]) - tokens
    for number, (question, reference) in enumerate(zip(lengths.tolist(), tokens.tolist(), strict=True), start=1):
        owner += [number] * question + [-1] * reference
    owner, active = torch.tensor(owner), torch.arange(len(labels))
    logits = logits[:, tokens.cumsum(0) - tokens]  # where a question ends and its reference would begin
    for step in range(limit):
        ids = logits[0].argmax(-1).cpu()
        for question, token in zip(active.tolist(), ids.tolist(), strict=True):
            answers[question].append(token)
        active, ids = active[ids != end], ids[ids != end]
        if not len(active) or step == limit - 1:
            break
        owner = torch.cat([owner, active + 1])
        sees = (owner == 0) | (owner == active[:, None] + 1)
        positions = start + lengths[active] + step
        logits = _logits(
            model, cache, input_ids=ids[None], position_ids=positions[None], attention_mask=sees[None, None]
        )
    return nll, labels, answers


def _logits(model, cache: DynamicCache, **batch: torch.Tensor) -> torch.Tensor:
    batch = {key: tensor.to(model.device) for key, tensor in batch.items()}
    return model(**batch, past_key_values=cache).logits
