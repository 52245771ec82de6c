"""Rank all tracks by the model's probabilities instead of one sampled sequence (part of 05_infer.py).

`rank_tracks` asks for the probability of each track's own five tokens; `code_marginals` for that of each
code, whatever the codes before it: retrieval.expected_overlap makes a ranking of these.
"""

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from common import tokens
from steps.infer.generation import PromptCache
from steps.infer.trie import Trie, build_trie, expand_ranges

BAND = 1000.0     # more than any log-probability: keeps tracks that a beam search scored deeper in front


def code_log_probs(hidden, weight):
    """Log-probability of each code of a modality, and what a missing code counts: its expectation, minus the entropy.

    hidden: (..., d) where the modality's token comes next; weight: (K, d) output rows of its tokens.
    Returns: (..., K) and (...), float32.
    """
    logp = torch.log_softmax(hidden.float() @ weight.float().T, -1)
    return logp, (logp.exp() * logp).sum(-1)


def music_weight(model, vocabulary):
    """Output embedding of the music tokens: (5, K, d)."""
    return model.get_output_embeddings().weight[vocabulary.first:vocabulary.first + 5 * vocabulary.k].view(5, vocabulary.k, -1)


def unconditional_log_probs(model, dialogue_tokenizer, codes, query="Play some music.", batch_size=256):
    """What the model thinks of each track's tokens before it knows what is wanted.

    The log-probability of each code after a query that says nothing (contextual calibration: Zhao et al. 2021).

    codes: (N, 5). Returns: (N, 5) float32.
    """
    vocabulary, weight = dialogue_tokenizer.vocabulary, music_weight(model, dialogue_tokenizer.vocabulary)
    prompt = [*tokens.encode_dialogue(dialogue_tokenizer, [{"query": query}], {}, prompt=True)[0], vocabulary.start]
    gains = np.zeros((len(codes), 5), np.float32)
    for first in tqdm(range(0, len(codes), batch_size), desc="prior", leave=False):
        rows = codes[first:first + batch_size]
        present = torch.from_numpy(rows >= 0).to(model.device)
        reading = PromptCache(model, [prompt] * len(rows))
        hidden = reading.end
        for m in range(5):
            code = torch.from_numpy(rows[:, m].astype(np.int64)).to(model.device).clamp(min=0)
            logp, missing = code_log_probs(hidden, weight[m])
            gains[first:first + len(rows), m] = torch.where(present[:, m], logp.gather(1, code[:, None])[:, 0], missing).cpu()
            if m < 4:
                read = reading.read((vocabulary.first + m * vocabulary.k + code)[:, None], present[:, m:m + 1].long())[:, -1]
                hidden = torch.where(present[:, m:m + 1], read, hidden)
    return gains


class Group(NamedTuple):
    """Tracks that the likelihood ranker compares with each other: the known ones, or the new ones."""
    rows: np.ndarray        # (n,) rows of the catalogue
    trie: Trie    # of these tracks
    prior: np.ndarray       # (n, 5) to subtract, or None
    share: float            # of the probability, which the group has whatever the query
    beam: float             # its part of --beam


def group_tracks(model, dialogue_tokenizer, codes, cold_share=None):
    """The known tracks and the new ones (without a playlist code), each for itself: list of Group.

    Known tracks are ordered by their probability: what is often played is likelier to be wanted. That of a new track
    says above all that the model has not met its code sequence, so new ones are ordered by how much the
    query raises it (`unconditional_log_probs`; pointwise mutual information). Numbers of two such kinds cannot be
    compared, so each group gets a fixed share of the probability: cold_share, default the new tracks' share of the catalogue.
    """
    new = codes[:, 0] < 0
    if new.all() or not new.any():  # without a playlist modality, nobody can tell new from known
        return [Group(np.arange(len(codes)), build_trie(codes), None, 1.0, 1.0)]
    share = new.mean() if cold_share is None else cold_share
    return [Group(np.flatnonzero(~new), build_trie(codes[~new]), None, 1 - share, 0.8),
            Group(np.flatnonzero(new), build_trie(codes[new]), unconditional_log_probs(model, dialogue_tokenizer, codes[new]), share, 0.2)]


def rank_tracks(reading, dialogue_tokenizer, groups, depth, beam=50):
    """The tracks that are among the `depth` best after each prompt: for each (rows, ascending, and their scores), float64.

    Score: the log-probability, that of each group normalised to its share. Tracks that the beam has lost lie 1000 and more
    lower, by the level at which it lost them. There may be more than `depth` tracks.
    """
    parts = [[] for _ in range(reading.mask.shape[0])]
    for group in groups:
        for part, levels in zip(parts, score_nodes(reading, dialogue_tokenizer, group.trie, group.prior, max(1, round(beam * group.beam)))):
            rows, scores = best_tracks(group.trie, levels, depth)
            # the probability of a prefix that the beam has lost is not that of its tracks
            total = log_total(group.trie, levels[-1:] if group.prior is None else levels)
            part.append((group.rows[rows], scores - total + np.log(max(group.share, 1e-9))))
    joined = [[np.concatenate(x) for x in zip(*part)] for part in parts]
    return [(rows[order], scores[order]) for rows, scores in joined for order in [np.argsort(rows)]]


def score_nodes(reading, dialogue_tokenizer, trie, prior=None, beam=50):
    """Descend the trie level by level, keeping the `beam` best prefixes of each prompt.

    All prefixes of a level are read in one pass, each attending to the prompt and to its own ancestors only. The
    probability of a code is taken among the codes of its modality; a missing code counts as an average one, and
    a modality that no track has counts nothing.

    prior: (N, 5), subtracted code by code; None: nothing is.
    Returns: for each prompt five pairs (nodes, scores): the nodes that the beam has lost at each level, at the last level those
    that it has reached. Every track is in one of them. Score: log P(the prefix | the prompt), less what `prior` says, float32.
    """
    model, vocabulary, device = reading.model, dialogue_tokenizer.vocabulary, reading.device
    b, prompt, weight = reading.mask.shape[0], len(reading), music_weight(reading.model, dialogue_tokenizer.vocabulary)
    hidden = reading.read(np.full((b, 1), vocabulary.start), np.ones((b, 1)))  # (B, W = 1, d): at the root
    start_position = reading.mask.sum(1) - 1
    trunk = reading.mask.bool()                                                # (B, T): prompt and start token
    ancestors = torch.zeros(b, 1, 0, dtype=torch.bool, device=device)          # (B, W, tree tokens read so far)
    beams = [(np.zeros(1, np.int64), np.zeros(1, np.float32))] * b             # nodes and scores of each prompt: the root
    done = [[] for _ in range(b)]
    for level in range(5):
        logp, missing = (x.cpu().numpy() for x in code_log_probs(hidden, weight[level]))  # (B, W, K), (B, W)
        expected = None if prior is None else prior[trie.rows[trie.tracks[level][:-1]], level]  # the same for all tracks of a node
        if (trie.codes[level] < 0).all():
            logp, missing, expected = np.zeros_like(logp), np.zeros_like(missing), None
        parent, code = np.full((2, b, min(beam, len(trie.codes[level]))), -1)
        for i in range(b):
            (*beams[i], parents), lost = extend_beam(trie, level, *beams[i], logp[i], missing[i], beam if level < 4 else 0, expected)
            done[i].append(lost)
            parent[i, :len(parents)], code[i, :len(parents)] = parents, trie.codes[level][beams[i][0]]
        if level == 4:
            break
        width = max(len(nodes) for nodes, _ in beams)
        parent, code = (torch.from_numpy(x[:, :width]).to(device) for x in (parent, code))
        real, parent = code >= 0, parent.clamp(min=0)[..., None]               # a missing code adds no token
        ancestors = torch.cat([ancestors.gather(1, parent.expand(-1, -1, ancestors.shape[2])), torch.diag_embed(real)], 2)
        sees = torch.cat([trunk[:, None].expand(-1, width, -1), ancestors], 2)
        mask = torch.zeros(sees.shape, dtype=hidden.dtype, device=device).masked_fill(~sees, torch.finfo(hidden.dtype).min)
        read = model.base_model(input_ids=vocabulary.first + level * vocabulary.k + code.clamp(min=0), attention_mask=mask[:, None],
                                position_ids=start_position[:, None] + ancestors.sum(2), past_key_values=reading.cache).last_hidden_state
        hidden = torch.where(real[..., None], read, hidden.gather(1, parent.expand(-1, -1, hidden.shape[2])))
    reading.truncate(prompt)
    return done


def extend_beam(trie, level, nodes, scores, logp, missing, beam, expected=None):
    """From one prompt's nodes to their children at `level`: the `beam` best, and those that are lost.

    scores (W,), logp (W, K), missing (W,): of `nodes`, see code_log_probs; expected: (n_nodes,) to subtract, or None.
    Returns: (nodes, scores, the places of their parents in the given `nodes`) of the best, (nodes, scores) of the lost.
    """
    children, parents = expand_ranges(trie.children[level], nodes)
    codes = trie.codes[level][children]
    gain = np.where(codes < 0, missing[parents], logp[parents, codes])
    scores = scores[parents] + (gain if expected is None else gain - expected[children])
    best = np.zeros(len(children), bool)
    best[np.argpartition(-scores, beam)[:beam] if len(children) > beam else slice(None)] = True
    return (children[best], scores[best], parents[best]), (children[~best], scores[~best])


def best_tracks(trie, levels, depth):
    """The `depth` best tracks and some more: rows, scores float64. Those that the beam has kept longest come first.

    levels: (nodes, scores) for each level, see score_nodes. Tracks with the same codes share their probability.
    """
    rows, found = [], []
    for level in reversed(range(5)):
        tracks, place = expand_ranges(trie.tracks[level], levels[level][0])
        rows.append(trie.rows[tracks])
        found.append(levels[level][1][place] - np.log(trie.n_same_codes[tracks]) - BAND * (4 - level))
        if sum(map(len, rows)) >= depth:
            break
    return np.concatenate(rows), np.concatenate(found)


def log_total(trie, levels):
    """log of the sum of exp(score) over the tracks of nodes. levels: as in score_nodes, or the last ones of them."""
    scores = []
    for tracks, (nodes, values) in zip(trie.tracks[-len(levels):], levels):
        first, end = np.searchsorted(trie.tracks[4], [tracks[nodes], tracks[nodes + 1]])  # the last level's nodes below
        scores.append(values + np.log(end - first))
    return float(np.logaddexp.reduce(np.concatenate(scores).astype(float)))


# ---------------------------------------------------------------- the expectation of the paper's overlap

def code_marginals(reading, dialogue_tokenizer, rngs, samples):
    """P(code of each modality | prompt): (B, 5, K) float32 numpy, each modality sums to 1.

    The probability of a code depends on the codes before it, so these are drawn, and what the model then says of the next
    modality is averaged over the draws.

    reading: of B x samples prompts, each prompt's samples one after another; rngs: a Generator for each of them.
    """
    vocabulary, weight, length = dialogue_tokenizer.vocabulary, music_weight(reading.model, dialogue_tokenizer.vocabulary), len(reading)
    hidden = reading.read(np.full((len(rngs), 1), vocabulary.start), np.ones((len(rngs), 1)))[:, -1]
    marginals = []
    for m in range(5):
        p = code_log_probs(hidden, weight[m])[0].exp()                             # (B x samples, K)
        marginals.append(p.view(-1, samples, vocabulary.k).mean(1))
        if m < 4:
            draws = torch.tensor([[rng.random()] for rng in rngs], device=p.device, dtype=p.dtype)
            code = torch.searchsorted(p.cumsum(1), draws).clamp(max=vocabulary.k - 1)
            hidden = reading.read(vocabulary.first + m * vocabulary.k + code, torch.ones_like(code))[:, -1]
    reading.truncate(length)
    return torch.stack(marginals, 1).cpu().numpy()
