"""The rankers `votes` and `expected`: the paper's overlap, with more than one sequence.

One sampled sequence is a rough guess. `votes` takes the share of many sampled sequences that have a
code; `expected` takes the model's own probability of it. A track's score is then the weighted
overlap that these let expect.
"""

import numpy as np
import torch

from common.retrieval import WEIGHTS
from common.tokens import MODALITIES
from steps.infer.likelihood_ranker import LAST, code_log_probs, music_weight


def code_shares(sequences, k):
    """Share of the sampled sequences that have each code: (5, k) float32.

    sequences: lists of five codes, or None where the block was not well-formed
    """
    shares = np.zeros((len(MODALITIES), k), np.float32)
    for codes in sequences:
        for m, code in enumerate(codes or ()):
            if code >= 0:
                shares[m, code] += 1 / len(sequences)
    return shares


def code_marginals(cache, dialogue_tokenizer, rngs, samples):
    """P(code of each modality | prompt): (B, 5, K) float32 numpy; each modality sums to 1.

    The probability of a code depends on the codes before it. So these are drawn, `samples` times,
    and what the model then says of the next modality is averaged.

    cache: of B x samples prompts, the copies of each prompt one after the other
    rngs: a numpy Generator for each of them
    """
    vocabulary = dialogue_tokenizer.vocabulary
    weight = music_weight(cache.model, vocabulary)
    length = len(cache)
    ones = np.ones((len(rngs), 1), np.int64)
    hidden = cache.read(vocabulary.start * ones, ones)[:, -1]            # (B x samples, d)
    marginals = []
    for m in range(len(MODALITIES)):
        p = code_log_probs(hidden, weight[m])[0].exp()                   # (B x samples, K)
        marginals.append(p.view(-1, samples, vocabulary.k).mean(1))      # (B, K)
        if m < LAST:
            draws = torch.tensor([[rng.random()] for rng in rngs], device=p.device, dtype=p.dtype)
            code = torch.searchsorted(p.cumsum(1), draws).clamp(max=vocabulary.k - 1)
            ids = vocabulary.first + m * vocabulary.k + code             # (B x samples, 1)
            hidden = cache.read(ids, torch.ones_like(code))[:, -1]
    cache.truncate(length)
    return torch.stack(marginals, 1).cpu().numpy()


def expected_overlap(codes, p):
    """Weighted overlap of every track, where code c of modality m has probability p[m, c].

    codes: (N, 5), -1 where missing (never matches)
    p: (5, K). With 1 for the codes of one sequence and 0 elsewhere, this is `retrieval.overlap`.
    Returns: (N,) float32.
    """
    # code -1 finds the last column: 0
    table = np.pad(p, ((0, 0), (0, 1))) * np.asarray(WEIGHTS, np.float32)[:, None]
    scores = table[0][codes[:, 0]]
    for m in range(1, len(MODALITIES)):
        scores += table[m][codes[:, m]]
    return scores
