"""Other ways to order all tracks than the paper's one sampled sequence.

`rank_tracks`, the ranker `likelihood`: the model's probability of each track's own tokens. A beam
search walks down the trie of all tracks (trie.py), so it meets sequences of real tracks only.
`expected_overlap`: the paper's overlap with many sampled sequences (`votes`: `code_shares`), or
with the model's own probabilities of the codes (`expected`: `code_marginals`).
"""

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from common import tokens
from common.retrieval import WEIGHTS
from common.tokens import MODALITIES
from steps.infer.generation import PromptCache
from steps.infer.trie import Trie, build_trie, expand_ranges

LAST = len(MODALITIES) - 1  # the last level of the trie
BAND = 1000.0  # larger than any log-probability: what the beam has kept longer comes first


def code_log_probs(hidden, weight):
    """Log-probabilities of the codes of one modality, and of a missing code: their expected value.

    hidden: (..., d) where the token comes next. weight: (K, d). Returns: (..., K), (...), float32.
    """
    logp = torch.log_softmax(hidden.float() @ weight.float().T, -1)
    return logp, (logp.exp() * logp).sum(-1)


def music_weight(model, vocabulary):
    """Output embedding of the music tokens: (number of modalities, K, d)."""
    end = vocabulary.first + len(MODALITIES) * vocabulary.k
    weight = model.get_output_embeddings().weight[vocabulary.first:end]
    return weight.view(len(MODALITIES), vocabulary.k, -1)


# ---------------------------------------------------------------- likelihood

def unconditional_log_probs(model, dialogue_tokenizer, codes, batch_size=256):
    """Log-probability of each code (N, 5) after a query that says nothing: (N, 5) float32.

    What the model thinks of a track before it knows what is wanted (contextual calibration: Zhao
    et al. 2021).
    """
    vocabulary = dialogue_tokenizer.vocabulary
    weight = music_weight(model, vocabulary)                             # (5, K, d)
    turns = [{"query": "Play some music."}]
    prompt, _ = tokens.encode_dialogue(dialogue_tokenizer, turns, {}, prompt=True)
    log_probs = np.zeros(codes.shape, np.float32)
    for first in tqdm(range(0, len(codes), batch_size), desc="prior", leave=False):
        rows = torch.from_numpy(codes[first:first + batch_size].astype(np.int64)).to(model.device)
        cache = PromptCache(model, [[*prompt, vocabulary.start]] * len(rows))
        hidden = cache.end                                               # (B, d)
        for m in range(len(MODALITIES)):
            present = rows[:, m:m + 1] >= 0                              # (B, 1)
            code = rows[:, m:m + 1].clamp(min=0)
            logp, missing = code_log_probs(hidden, weight[m])            # (B, K), (B,)
            logp = torch.where(present[:, 0], logp.gather(1, code)[:, 0], missing)
            log_probs[first:first + len(rows), m] = logp.cpu()
            if m < LAST:  # a missing code adds no token
                ids = vocabulary.first + m * vocabulary.k + code
                hidden = torch.where(present, cache.read(ids, present)[:, -1], hidden)
    return log_probs


class Group(NamedTuple):
    """Tracks that the ranker compares with each other: the known ones, or the cold ones."""
    rows: np.ndarray   # (n,) rows of the catalogue
    trie: Trie         # of these tracks
    prior: np.ndarray  # (n, 5) to subtract from the codes' log-probabilities, or None
    share: float       # of the probability, whatever the query
    beam_share: float  # of --beam


def group_tracks(model, dialogue_tokenizer, codes, cold_share=None):
    """The known tracks and the cold ones (those without a playlist code): list of Group.

    Known tracks are ordered by their probability: what is often played is likelier to be wanted.
    That of a cold track says above all that the model has not met its codes. So cold tracks are
    ordered by how much the query raises it (pointwise mutual information). The two numbers cannot
    be compared, so each group gets a fixed share of the probability.

    cold_share: of the probability, 0 to 1 (None: their share of the catalogue)
    """
    cold = codes[:, 0] < 0
    if cold.all() or not cold.any():  # without a playlist modality, nobody can tell them apart
        return [Group(np.arange(len(codes)), build_trie(codes), None, 1.0, 1.0)]
    if cold_share is None:
        cold_share = cold.mean()
    prior = unconditional_log_probs(model, dialogue_tokenizer, codes[cold])
    return [Group(np.flatnonzero(~cold), build_trie(codes[~cold]), None, 1 - cold_share, 0.8),
            Group(np.flatnonzero(cold), build_trie(codes[cold]), prior, cold_share, 0.2)]


def rank_tracks(cache, dialogue_tokenizer, groups, depth, beam=50):
    """The `depth` best tracks after each prompt, and some more: (rows, scores float64), by row.

    A score is a log-probability; each group's add up to its share. Tracks that the beam has lost
    lie 1000 and more lower, by the level at which it lost them.
    """
    ranked = [[] for _ in range(len(cache.mask))]
    for group in groups:
        group_beam = max(1, round(beam * group.beam_share))
        searched = score_nodes(cache, dialogue_tokenizer, group.trie, group.prior, group_beam)
        for so_far, levels in zip(ranked, searched, strict=True):
            rows, scores = best_tracks(group.trie, levels, depth)
            # the probability of a prefix that the beam has lost is not that of its tracks
            total = log_total(group.trie, levels[-1:] if group.prior is None else levels)
            so_far.append((group.rows[rows], scores - total + np.log(max(group.share, 1e-9))))

    for i, of_groups in enumerate(ranked):
        rows, scores = (np.concatenate(arrays) for arrays in zip(*of_groups, strict=True))
        order = np.argsort(rows)
        ranked[i] = rows[order], scores[order]
    return ranked


def score_nodes(cache, dialogue_tokenizer, trie, prior=None, beam=50):
    """Walk down the trie level by level, keeping the `beam` best nodes of each prompt.

    All nodes of a level are read in one pass; each attends to its prompt and its own ancestors.
    The probability of a code is taken among the codes of its modality.

    prior: (N, 5), subtracted code by code, or None
    Returns: per prompt, and per level: (nodes, scores). These are the nodes that the beam has lost
        there, and at the last level those that it has reached. Every track is in one of them.
        Score: log P(codes so far | prompt), less what `prior` says, float32.
    """
    vocabulary = dialogue_tokenizer.vocabulary
    weight = music_weight(cache.model, vocabulary)                       # (5, K, d)
    prompt_length = len(cache)
    n_prompts = len(cache.mask)

    # begin at the root: one node per prompt, the start token
    ones = np.ones((n_prompts, 1), np.int64)
    hidden = cache.read(vocabulary.start * ones, ones)                   # (B, W = 1, d)
    sees_prompt = cache.mask.bool()[:, None]                             # (B, 1, T)
    ancestors = torch.zeros(n_prompts, 1, 0, dtype=torch.bool, device=cache.device)
    beams = [(np.zeros(1, np.int64), np.zeros(1, np.float32))] * n_prompts  # nodes, scores
    lost = [[] for _ in range(n_prompts)]

    for level in range(LAST + 1):
        # how likely is each code, after each node of the beam
        logp, missing, expected = level_log_probs(hidden, weight[level], trie, level, prior)

        # the next beam of each prompt, side by side; code -1 where a prompt has fewer nodes
        shape = n_prompts, min(beam, len(trie.codes[level]))
        parent = np.full(shape, -1)
        code = np.full(shape, -1)
        width = beam if level < LAST else 0  # at the end, all nodes go on the list
        for i in range(n_prompts):
            (*beams[i], parents), lost_here = extend_beam(trie, level, *beams[i], logp[i],
                                                          missing[i], width, expected)
            lost[i].append(lost_here)
            parent[i, :len(parents)] = parents
            code[i, :len(parents)] = trie.codes[level][beams[i][0]]
        if level == LAST:
            break
        width = max(len(nodes) for nodes, _ in beams)
        code = torch.from_numpy(code[:, :width]).to(cache.device)        # (B, W)
        parent = torch.from_numpy(parent[:, :width]).to(cache.device)
        parent = parent.clamp(min=0)[..., None]                          # (B, W, 1)

        # a node sees the prompt, what its parent sees of the tree, and itself
        real = code >= 0  # a missing code adds no token
        inherited = ancestors.gather(1, parent.expand(-1, -1, ancestors.shape[2]))
        ancestors = torch.cat([inherited, torch.diag_embed(real)], 2)    # (B, W, tokens read)
        sees = torch.cat([sees_prompt.expand(-1, width, -1), ancestors], 2)

        # read the level; where there is no token, the parent's hidden state stays
        ids = vocabulary.first + level * vocabulary.k + code.clamp(min=0)
        before = hidden.gather(1, parent.expand(-1, -1, hidden.shape[2]))
        hidden = torch.where(real[..., None], cache.read_tree(ids, sees), before)  # (B, W, d)
    cache.truncate(prompt_length)
    return lost


def level_log_probs(hidden, weight, trie, level, prior=None):
    """What the codes of a level add to the scores, from hidden (B, W, d) and weight (K, d): numpy.

    Returns: log-probabilities (B, W, K), of a missing code (B, W), to subtract (n_nodes,) or None.
    """
    logp, missing = (x.cpu().numpy() for x in code_log_probs(hidden, weight))
    if (trie.codes[level] < 0).all():  # a modality that no track has
        return np.zeros_like(logp), np.zeros_like(missing), None
    first_tracks = trie.rows[trie.tracks[level][:-1]]  # all tracks of a node have the same prior
    return logp, missing, None if prior is None else prior[first_tracks, level]


def extend_beam(trie, level, nodes, scores, logp, missing, beam, expected=None):
    """From one prompt's nodes to their children at `level`: the `beam` best, and the lost ones.

    nodes, scores: (W,)
    logp, missing, expected: of the prompt, from `level_log_probs`
    Returns: (nodes, scores, parents' places in the given `nodes`) of the best, (nodes, scores) of
        the lost.
    """
    children, parents = expand_ranges(trie.children[level], nodes)
    codes = trie.codes[level][children]
    gain = np.where(codes < 0, missing[parents], logp[parents, codes])
    if expected is not None:
        gain = gain - expected[children]
    scores = scores[parents] + gain
    best = np.ones(len(children), bool)
    if len(children) > beam:
        best[np.argpartition(-scores, beam)[beam:]] = False
    return (children[best], scores[best], parents[best]), (children[~best], scores[~best])


def best_tracks(trie, levels, depth):
    """The `depth` best tracks and some more. Those that the beam has kept longest come first.

    levels: of a prompt, from `score_nodes`. Tracks with the same codes share their probability.
    Returns: rows of the trie's codes, scores float64.
    """
    rows = []
    scores = []
    for level in reversed(range(LAST + 1)):
        nodes, node_scores = levels[level]
        tracks, place = expand_ranges(trie.tracks[level], nodes)
        shared = np.log(trie.n_same_codes[tracks])
        rows.append(trie.rows[tracks])
        scores.append(node_scores[place] - shared - BAND * (LAST - level))
        if sum(map(len, rows)) >= depth:
            break
    return np.concatenate(rows), np.concatenate(scores)


def log_total(trie, levels):
    """log of the sum of exp(score) over the distinct codes below the nodes of the last levels."""
    scores = []
    for tracks, (nodes, node_scores) in zip(trie.tracks[-len(levels):], levels, strict=True):
        # how many nodes of the last level lie below each node
        first, end = np.searchsorted(trie.tracks[LAST], [tracks[nodes], tracks[nodes + 1]])
        scores.append(node_scores + np.log(end - first))
    return float(np.logaddexp.reduce(np.concatenate(scores).astype(float)))


# ---------------------------------------------------------------- votes and expected

def code_shares(sequences, k):
    """Share of the sampled sequences (of `sample_codes`) that have each code: (5, k) float32."""
    shares = np.zeros((len(MODALITIES), k), np.float32)
    for codes in sequences:
        for m, code in enumerate(codes or ()):
            if code >= 0:
                shares[m, code] += 1 / len(sequences)
    return shares


def code_marginals(cache, dialogue_tokenizer, rngs, samples):
    """P(code of each modality | prompt): (B, 5, K) float32 numpy; each modality sums to 1.

    The codes before are drawn `samples` times, and the probabilities of the next one averaged.

    cache: of B x samples prompts, the copies of each prompt one after the other, each with a rng
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

    codes: (N, 5). p: (5, K), as from one sequence: then this is `retrieval.overlap`, (N,) float32.
    """
    # code -1 finds the last column: 0
    table = np.pad(p, ((0, 0), (0, 1))) * np.asarray(WEIGHTS, np.float32)[:, None]
    scores = table[0][codes[:, 0]]
    for m in range(1, len(MODALITIES)):
        scores += table[m][codes[:, m]]
    return scores
