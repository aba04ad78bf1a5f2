"""Ranks against a loop and against torchmetrics."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.modules.metrics.retrieval import PairRetrieval, best_ranks
from torchmetrics.retrieval import RetrievalHitRate


def problem(seed, queries=9, candidates=14, ties=False):
    generator = torch.Generator().manual_seed(seed)
    embedded = torch.randn(queries + candidates, 4, generator=generator)
    if ties:
        embedded = embedded.sign()
    query, candidate = embedded.split((queries, candidates))
    right = torch.rand(queries, candidates, generator=generator) < 0.2
    right[torch.arange(queries), torch.randint(candidates, (queries,), generator=generator)] = True
    return query, candidate, right.nonzero()


@given(st.integers(0, 10**6), st.booleans(), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_ranks_are_those_of_a_loop(seed, ties, chunk_size):
    query, candidate, pairs = problem(seed, ties=ties)
    expected = []
    for q in range(len(query)):
        own = {c for p, c in pairs.tolist() if p == q}
        scores = (query[q : q + 1] @ candidate.T)[0].tolist()
        best = max(scores[c] for c in own)
        others = [s for c, s in enumerate(scores) if c not in own]
        expected.append(sum(s > best for s in others) + sum(s == best for s in others) / 2)
    assert best_ranks(query, candidate, pairs, chunk_size).tolist() == expected


@pytest.mark.parametrize("k", [1, 3, 10])
def test_hit_rates_are_torchmetrics(k):
    query, candidate, pairs = problem(3)
    scores = query @ candidate.T
    target = torch.zeros_like(scores, dtype=torch.long)
    target[pairs[:, 0], pairs[:, 1]] = 1
    groups = torch.arange(len(query))[:, None].expand_as(scores)
    theirs = RetrievalHitRate(top_k=k)(scores.flatten(), target.flatten(), groups.flatten())
    # Of K places a query with several right ones needs only one, whatever the others take.
    ranks = best_ranks(query, candidate, pairs)
    assert (ranks < k).double().mean().item() == pytest.approx(theirs.item())


def test_images_and_texts_come_in_any_order_and_number():
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(6, 5, generator=generator), dim=1)
    owner = torch.tensor([0, 0, 1, 2, 3, 3, 3, 4, 5])
    texts = F.normalize(images[owner] + 0.8 * torch.randn(9, 5, generator=generator), dim=1)
    ids = torch.tensor([40, 10, 30, 99, 7, 8])
    whole, parts = PairRetrieval((1, 2)), PairRetrieval((1, 2))
    whole.update(images, ids, texts, ids[owner])
    for rows in (torch.tensor([5, 1]), torch.tensor([0, 4, 2, 3])):
        of_these = torch.isin(owner, rows)
        parts.update(images[rows], ids[rows], texts[of_these], ids[owner[of_these]])
    found = {name: value.item() for name, value in whole.compute().items()}
    assert found == {name: value.item() for name, value in parts.compute().items()}
    scores = images @ texts.T
    right = [owner[int(scores[i].argmax())] == i for i in range(6)]
    assert found["image_to_text_r1"] == pytest.approx(sum(map(int, right)) / 6)
    back = [int(scores[:, t].argmax()) == owner[t] for t in range(9)]
    assert found["text_to_image_r1"] == pytest.approx(sum(map(int, back)) / 9)


def test_equal_embeddings_are_no_success():
    same = torch.ones(10, 3)
    number = torch.arange(10)
    metric = PairRetrieval((1, 5))
    metric.update(same, number, same, number)
    values = metric.compute()
    assert values["image_to_text_r1"] == 0
    assert values["image_to_text_median"] == 5.5


def test_a_query_without_a_right_answer_is_named():
    with pytest.raises(ValueError, match="query 1 has no right candidate"):
        best_ranks(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([[0, 0]]))
