"""The dissent: sentence pairs as sums over word vectors, where SELU was reported to lose to ReLU (Patel 2017).

The blog's data (SNLI with GloVe vectors) is not at hand. Its network is rebuilt on pairs of sentences of War and
Peace: does the second follow the first, or stand elsewhere in the same passage, or in another part of the book? The
layers, the sum over 42 positions with shared padding, and the choices that break self-normalization are the blog's.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hooke.nn
from papers import data

POSITIONS = 42
"""Words of a sentence that count; shorter ones are padded with zero vectors."""

TEXT = "a plain text of War and Peace as war-and-peace.txt, e.g. from https://www.gutenberg.org/ebooks/2600"


LEAST = 20
"""Words of a sentence at least: shorter ones say too little about where they stand."""

PASSAGE, PARTS = 100, 10
"""Sentences of a passage, and into how many parts of equal length the book is cut."""


@functools.cache
def pairs(source: str, words: int, vector: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Word vectors (words, vector), row 0 for padding; pairs of sentences (count, 2, 42) as its rows; classes (count,).

    The last tenth of the pairs is of passages that the others do not touch. Vectors are a truncated SVD of the
    logarithms of co-occurrences within five words, each feature with mean 0 and variance 1 over the words of the text.
    """
    if source == "toy":
        random = np.random.default_rng(0)
        y = random.integers(0, 3, count)
        sentences = random.integers(1, words // 3, (count, 2, POSITIONS)) + (y * (words // 3))[:, None, None]
        vectors = random.standard_normal((words, vector)).astype(np.float32)
        return torch.from_numpy(vectors), torch.from_numpy(sentences), torch.from_numpy(y)
    text = _sentences(data.locate("war-and-peace.txt", TEXT).read_text(encoding="utf-8"), words)
    vectors = _vectors(np.concatenate(text), words, vector)
    found = [_pairs(text, part, size) for part, size in ((False, count * 9 // 10), (True, count - count * 9 // 10))]
    sentences, y = (np.concatenate([one[i] for one in found]) for i in (0, 1))
    return torch.from_numpy(vectors), torch.from_numpy(sentences), torch.from_numpy(y)


def _sentences(text: str, words: int) -> list[list[int]]:
    """Sentences as word numbers, 1 the most frequent; rarer words are dropped, short sentences go with the next."""
    tokens = [re.findall(r"[a-z']+", one.lower()) for one in re.split(r"(?<=[.!?])\s+", text)]
    seen, counts = np.unique([word for one in tokens for word in one], return_counts=True)
    rank = {str(word): number for number, word in enumerate(seen[np.argsort(-counts, kind="stable")][: words - 1], 1)}
    ranked = [[rank[word] for word in one if word in rank] for one in tokens]
    joined: list[list[int]] = [[]]
    for one in ranked:
        joined[-1] += one
        if len(joined[-1]) >= LEAST:
            joined.append([])
    return joined[:-1]


def _vectors(stream: np.ndarray, words: int, vector: int) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import svds

    near = [(stream[:-k], stream[k:]) for k in range(1, 6)]
    left, right = (np.concatenate([pair[i] for pair in near]) for i in (0, 1))
    counts = coo_matrix((np.ones(len(left)), (left, right)), (words, words)).tocsr()
    u, s, _ = svds((counts + counts.T).log1p(), vector, v0=np.random.default_rng(0).standard_normal(words))
    found = u * np.sqrt(s)
    found = data.standardized(found[stream], found)[1]
    found[0] = 0.0
    return found


def _pairs(text: list[list[int]], held_out: bool, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Class 0: the next sentence; 1: another of the passage; 2: one of a passage in another part of the book.

    Every tenth passage is held out.
    """
    passages = [text[start : start + PASSAGE] for start in range(0, len(text) - PASSAGE + 1, PASSAGE)]
    part = [number * PARTS // len(passages) for number in range(len(passages))]
    mine = [number for number in range(len(passages)) if (number % 10 == 9) == held_out]
    random = np.random.default_rng(int(held_out))
    sentences, y = np.zeros((count, 2, POSITIONS), np.int64), random.integers(0, 3, count)
    for pair, kind in zip(sentences, y, strict=True):
        here = mine[random.integers(len(mine))]
        at = random.integers(PASSAGE - 1)
        if kind == 0:
            other = passages[here][at + 1]
        elif kind == 1:
            away = (at + random.integers(2, PASSAGE - 1)) % PASSAGE  # neither itself nor a neighbor
            other = passages[here][away]
        else:
            far = random.choice([number for number in mine if part[number] != part[here]])
            other = passages[far][random.integers(PASSAGE)]
        for row, words in zip(pair, (passages[here][at], other), strict=True):
            row[: min(len(words), POSITIONS)] = words[:POSITIONS]
    return sentences, y


class WordSum(nn.Module):
    """Sums the words of a sentence, as the blog does; with `by_root`, divides by the root of how many there are."""

    def __init__(self, by_root: bool) -> None:
        super().__init__()
        self.by_root = by_root

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        """(n, positions, units) to (n, units); `known` (n, positions) tells words from padding."""
        if not self.by_root:
            return x.sum(-2)
        return (x * known[..., None]).sum(-2) / known.sum(-1, keepdim=True).clamp(min=1).sqrt()


class PairNet(nn.Module):
    """The blog's network on two sentences; `variant` is "plain", "batch norm" or "theory".

    "plain" is Keras's default initialization (Glorot uniform), a sum over all positions, dropout 0.2 and no
    normalization; "batch norm" adds that where the blog has it. "theory" is what self-normalization asks for: LeCun's
    initialization (He's under ReLU), a sum divided by the root of the number of words, and alpha dropout.
    """

    def __init__(self, vectors: Tensor, hidden: int, activation: str, variant: str) -> None:
        super().__init__()
        size = vectors.shape[1]
        act = nn.SELU if activation == "SELU" else nn.ReLU
        self.words = nn.Embedding.from_pretrained(vectors, freeze=True)
        self.each = nn.Sequential(nn.Linear(size, size), act())
        self.sum = WordSum(by_root=variant == "theory")
        norm = (lambda n: [nn.BatchNorm1d(n)]) if variant == "batch norm" else (lambda n: [])
        drop = hooke.nn.AlphaDropout(0.05) if variant == "theory" and activation == "SELU" else nn.Dropout(0.2)
        self.between = nn.Sequential(*norm(2 * size))
        layers: list[nn.Module] = []
        for inputs in (2 * size, hidden, hidden):
            layers += [nn.Linear(inputs, hidden), act(), drop, *norm(hidden)]
        self.head = nn.Sequential(*layers, nn.Linear(hidden, 3))
        self._start(activation, variant)

    def _start(self, activation: str, variant: str) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
                if variant != "theory":
                    nn.init.xavier_uniform_(module.weight)
                elif activation == "SELU":
                    hooke.nn.lecun_normal_(module.weight)
                else:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, sentences: Tensor) -> Tensor:
        """Logits (n, 3) of pairs of sentences (n, 2, positions)."""
        summed = self.sum(self.each(self.words(sentences)), sentences > 0)
        return self.head(self.between(summed.flatten(1)))


def trial(
    source: str,
    activation: str,
    variant: str,
    lr: float,
    words: int,
    vector: int,
    hidden: int,
    count: int,
    steps: int,
    batch: int,
    every: int,
    seed: int,
) -> dict[str, Any]:
    """Train with Adam, as the blog does, on nine tenths of the pairs; accuracy on the rest.

    Returns:
        dict: Validation accuracies, the mean of the last three as `accuracy`, and what the audit says at the start.
    """
    vectors, sentences, y = pairs(source, words, vector, count)
    torch.manual_seed(seed)
    model = PairNet(vectors, hidden, activation, variant)
    cut = count * 9 // 10
    report = hooke.nn.audit(model, sentences[: min(cut, 512)])
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr)
    accuracies: list[float] = []
    for step in range(1, steps + 1):
        pick = torch.randint(cut, (batch,))
        optimizer.zero_grad()
        F.cross_entropy(model(sentences[pick]), y[pick]).backward()
        optimizer.step()
        if step % every == 0:
            accuracies.append(_accuracy(model, sentences[cut:], y[cut:]))
    findings = [[finding.kind, str(finding.layer), finding.sentence] for finding in report.findings]
    return {"curve": accuracies, "accuracy": float(np.mean(accuracies[-3:])), "findings": findings}


@torch.no_grad()
def _accuracy(model: nn.Module, sentences: Tensor, y: Tensor) -> float:
    model.eval()
    right = [
        (model(part).argmax(-1) == labels).sum().item()
        for part, labels in zip(sentences.split(500), y.split(500), strict=True)
    ]
    model.train()
    return sum(right) / len(y)
