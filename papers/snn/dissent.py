"""The dissent: sentence pairs as sums over word vectors, where SELU was reported to lose to ReLU (Patel 2017).

The blog's data (SNLI with GloVe vectors) is not at hand. Its network is rebuilt on pairs of sentences of War and
Peace: does the second follow the first, or stand elsewhere in its chapter, or in another book? The layers, the sum over
42 positions with shared padding, and the choices that break self-normalization are the blog's.
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


@functools.cache
def pairs(source: str, words: int, vector: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Word vectors (words, vector), row 0 for padding; pairs of sentences (count, 2, 42) as its rows; classes (count,).

    Vectors are a truncated SVD of the logarithms of co-occurrences within five words, each feature standardized.
    """
    if source == "toy":
        random = np.random.default_rng(0)
        y = random.integers(0, 3, count)
        sentences = random.integers(1, words // 3, (count, 2, POSITIONS)) + (y * (words // 3))[:, None, None]
        return torch.randn(words, vector), torch.from_numpy(sentences), torch.from_numpy(y)
    chapters = _chapters(data.locate("war-and-peace.txt", TEXT).read_text(encoding="utf-8"), words)
    vectors = _vectors([word for book in chapters for chapter in book for s in chapter for word in s], words, vector)
    sentences, y = _pairs(chapters, count)
    return torch.from_numpy(vectors), torch.from_numpy(sentences), torch.from_numpy(y)


def _chapters(text: str, words: int) -> list[list[list[list[int]]]]:
    """Books of chapters of sentences of word numbers, 1 the most frequent; rarer words are dropped."""
    books = [
        re.split(r"\n\s*CHAPTER [IVXL]+\s*\n", book)
        for book in re.split(r"\n\s*(?:BOOK|FIRST EPILOGUE|SECOND EPILOGUE)\b[^\n]*\n", text)
    ]
    tokens = [
        [[re.findall(r"[a-z']+", s.lower()) for s in re.split(r"(?<=[.!?])\s+", c)] for c in book] for book in books
    ]
    seen, counts = np.unique([word for book in tokens for c in book for s in c for word in s], return_counts=True)
    rank = {str(word): number for number, word in enumerate(seen[np.argsort(-counts)][: words - 1], 1)}
    ranked = [[[[rank[w] for w in s if w in rank] for s in c] for c in book] for book in tokens]
    kept = [[[s for s in c if len(s) >= 4] for c in book] for book in ranked]
    return [[c for c in book if len(c) >= 10] for book in kept if any(len(c) >= 10 for c in book)]


def _vectors(stream: list[int], words: int, vector: int) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import svds

    stream_ = np.array(stream)
    near = [(stream_[:-k], stream_[k:]) for k in range(1, 6)]
    left, right = (np.concatenate([pair[i] for pair in near]) for i in (0, 1))
    counts = coo_matrix((np.ones(len(left)), (left, right)), (words, words)).tocsr()
    counts = (counts + counts.T).log1p()
    u, s, _ = svds(counts, vector, v0=np.random.default_rng(0).standard_normal(words))
    found = data.standardized(u * np.sqrt(s))[0]
    found[0] = 0.0
    return found


def _pairs(books: list[list[list[list[int]]]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Class 0: the next sentence; 1: another of the chapter; 2: one of another book."""
    random = np.random.default_rng(0)
    sentences, y = np.zeros((count, 2, POSITIONS), np.int64), random.integers(0, 3, count)
    for pair, kind in zip(sentences, y, strict=True):
        here = books[(b := random.integers(len(books)))]
        chapter = here[random.integers(len(here))]
        at = random.integers(len(chapter) - 1)
        if kind == 0:
            other = chapter[at + 1]
        elif kind == 1:
            other = chapter[random.choice([i for i in range(len(chapter)) if abs(i - at) > 1])]
        else:
            there = books[(b + random.integers(1, len(books))) % len(books)]
            far = there[random.integers(len(there))]
            other = far[random.integers(len(far))]
        for row, words in zip(pair, (chapter[at], other), strict=True):
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
    """The blog's network on two sentences; `variant` is "blog", "blog+BN" or "SNN".

    "blog" is Keras's default initialization (Glorot uniform), a sum over all positions, dropout 0.2 and no
    normalization; "blog+BN" has batch normalization where the blog has it; "SNN" is what the theory asks for: LeCun's
    initialization, a sum divided by the root of the number of words, words whose mean is taken off, alpha dropout.
    """

    def __init__(self, vectors: Tensor, hidden: int, activation: str, variant: str) -> None:
        super().__init__()
        size = vectors.shape[1]
        act = nn.SELU if activation == "SELU" else nn.ReLU
        self.words = nn.Embedding.from_pretrained(vectors, freeze=True)
        self.each = nn.Sequential(nn.Linear(size, size), act())
        self.sum = WordSum(by_root=variant == "SNN")
        norm = (lambda n: [nn.BatchNorm1d(n)]) if variant == "blog+BN" else (lambda n: [])
        drop = hooke.nn.AlphaDropout(0.05) if variant == "SNN" and activation == "SELU" else nn.Dropout(0.2)
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
                if variant != "SNN":
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
