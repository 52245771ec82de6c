"""Rank all tracks by the model's probabilities instead of one sampled sequence (part of 05_infer.py).

`rank_tracks` asks for the probability of each track's own five tokens; `code_marginals` for that of each
code, whatever the codes before it: retrieval.expected_overlap makes a ranking of these.
"""

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from common import retrieval, tokens
from inference.generation import Reading

BAND = 1000.0     # more than any log-probability: keeps tracks that a beam search scored deeper in front


def code_gains(hidden, weight):
    """Log-probability of each code of a modality, and what a missing code counts: its expectation, minus the entropy.

    hidden: (..., d) where the modality's token comes next; weight: (K, d) output rows of its tokens.
    Returns: (..., K) and (...), float32.
    """
    logp = torch.log_softmax(hidden.float() @ weight.float().T, -1)
    return logp, (logp.exp() * logp).sum(-1)


def music_weight(model, vocabulary):
    """Output embedding of the music tokens: (5, K, d)."""
    return model.get_output_embeddings().weight[vocabulary.first:vocabulary.first + 5 * vocabulary.k].view(5, vocabulary.k, -1)


def track_prior(model, coder, codes, query="Play some music.", batch_size=256):
    """What the model thinks of each track's tokens before it knows what is wanted.

    The log-probability of each code after a query that says nothing (contextual calibration: Zhao et al. 2021).

    codes: (N, 5). Returns: (N, 5) float32.
    """
    vocabulary, weight = coder.vocabulary, music_weight(model, coder.vocabulary)
    prompt = [*tokens.encode_dialogue(coder, [{"query": query}], {}, prompt=True)[0], vocabulary.start]
    gains = np.zeros((len(codes), 5), np.float32)
    for first in tqdm(range(0, len(codes), batch_size), desc="prior", leave=False):
        rows = codes[first:first + batch_size]
        present = torch.from_numpy(rows >= 0).to(model.device)
        reading = Reading(model, [prompt] * len(rows))
        hidden = reading.end
        for m in range(5):
            code = torch.from_numpy(rows[:, m].astype(np.int64)).to(model.device).clamp(min=0)
            logp, missing = code_gains(hidden, weight[m])
            gains[first:first + len(rows), m] = torch.where(present[:, m], logp.gather(1, code[:, None])[:, 0], missing).cpu()
            if m < 4:
                read = reading.read((vocabulary.first + m * vocabulary.k + code)[:, None], present[:, m:m + 1].long())[:, -1]
                hidden = torch.where(present[:, m:m + 1], read, hidden)
    return gains


class Group(NamedTuple):
    """Tracks that the likelihood ranker compares with each other: the known ones, or the new ones."""
    rows: np.ndarray        # (n,) rows of the catalogue
    trie: retrieval.Trie    # of these tracks
    prior: np.ndarray       # (n, 5) to subtract, or None
    share: float            # of the probability, which the group has whatever the query
    beam: float             # its part of --beam


def group_tracks(model, coder, codes, new_share=None):
    """The known tracks and the new ones (without a playlist code), each for itself: list of Group.

    Known tracks are ordered by their probability: what is often played is likelier to be wanted. That of a new track
    says above all that the model has not met its code sequence, so new ones are ordered by how much the
    query raises it (`track_prior`; pointwise mutual information). Numbers of two such kinds cannot be
    compared, so each group gets a fixed share of the probability: new_share, default the new tracks' share of the catalogue.
    """
    new = codes[:, 0] < 0
    if new.all() or not new.any():  # without a playlist modality, nobody can tell new from known
        return [Group(np.arange(len(codes)), retrieval.build_trie(codes), None, 1.0, 1.0)]
    share = new.mean() if new_share is None else new_share
    return [Group(np.flatnonzero(~new), retrieval.build_trie(codes[~new]), None, 1 - share, 0.8),
            Group(np.flatnonzero(new), retrieval.build_trie(codes[new]), track_prior(model, coder, codes[new]), share, 0.2)]


def rank_tracks(reading, coder, groups, n_tracks, beam=50):
    """Log-probability of each track after the prompts: (B, n_tracks) float32, the groups' scores each normalised to its share.

    Tracks that the beam has lost lie 1000 and more lower, by the level at which it lost them.
    """
    scores = np.empty((reading.mask.shape[0], n_tracks), np.float32)
    for group in groups:
        found = rank_by_likelihood(reading, coder, group.trie, group.prior, max(1, round(beam * group.beam)))
        level = np.round(found / BAND)  # the last one at which the beam had the track; 4: it was not lost
        inside = found - BAND * level
        if group.prior is None:  # the probability of a lost prefix is not that of the track
            inside = np.where(level == 4, inside, -np.inf)
        best = inside.max(1, keepdims=True)
        total = best + np.log(np.exp(inside - best).sum(1, keepdims=True))
        scores[:, group.rows] = found - 4 * BAND - total + np.log(max(group.share, 1e-9))
    return scores


def rank_by_likelihood(reading, coder, trie, prior=None, beam=50):
    """Score of each track of the trie: log P(its tokens | the prompt), less what `prior` says.

    The trie is descended level by level, keeping the `beam` best prefixes of each prompt. All prefixes of a
    level are read in one pass, each attending to the prompt and to its own ancestors only. The
    probability of a code is taken among the codes of its modality; a missing code counts as an average one, and
    a modality that no track has counts nothing. Tracks with the same codes share their
    probability. Tracks that the beam has lost follow, by the level at which it lost them and their score there.

    prior: (N, 5), subtracted code by code; None: nothing is.
    Returns: (B, N) float32 numpy; higher is better. BAND is added for each level that the beam has reached.
    """
    model, vocabulary, device = reading.model, coder.vocabulary, reading.device
    b, k, prompt, weight = reading.mask.shape[0], coder.vocabulary.k, len(reading), music_weight(reading.model, coder.vocabulary)
    hidden = reading.read(np.full((b, 1), vocabulary.start), np.ones((b, 1)))  # (B, W = 1, d): at the root
    start_position = reading.mask.sum(1) - 1
    trunk = reading.mask.bool()                                                # (B, T): prompt and start token
    ancestors = torch.zeros(b, 1, 0, dtype=torch.bool, device=device)          # (B, W, tree tokens read so far)
    nodes, scores = torch.zeros(b, 1, dtype=torch.long, device=device), torch.zeros(b, 1, device=device)
    ranks = None
    for level in range(5):
        # scores of all nodes of this level whose parent is in the beam
        codes, parents, of_track = (torch.from_numpy(x[level]).to(device) for x in (trie.codes, trie.parents, trie.nodes))
        logp, missing = code_gains(hidden, weight[level])                      # (B, W, K), (B, W)
        slot = torch.full((b, int(parents.max()) + 1), -1, device=device)
        slot.scatter_(1, nodes.clamp(min=0), torch.where(nodes >= 0, torch.arange(nodes.shape[1], device=device), -1))
        slot = slot[:, parents]                                                # (B, n): beam place of the parent
        place = slot.clamp(min=0)
        gain = torch.where(codes < 0, missing.gather(1, place), logp.flatten(1).gather(1, place * k + codes.clamp(min=0)))
        if prior is not None:
            expected = torch.zeros(len(codes), device=device)
            expected[of_track] = torch.from_numpy(prior[:, level]).to(device)  # the same for all tracks of a node
            gain = gain - expected
        if not (codes >= 0).any():
            gain = torch.zeros_like(gain)
        node_scores = (scores.gather(1, place) + gain).masked_fill(slot < 0, float("-inf"))
        here = node_scores[:, of_track] + BAND * level                         # tracks scored deeper come first
        ranks = here if ranks is None else torch.where(here.isfinite(), here, ranks)
        if level == 4:
            break
        # the next beam: its best nodes, read by the model in one pass
        scores, nodes = node_scores.topk(min(beam, node_scores.shape[1]))
        parent, code = slot.gather(1, nodes).clamp(min=0), codes[nodes]
        nodes = nodes.masked_fill(~scores.isfinite(), -1)
        real = (code >= 0) & (nodes >= 0)                                      # a missing code adds no token
        parent_ancestors = ancestors.gather(1, parent[..., None].expand(-1, -1, ancestors.shape[2]))
        ancestors = torch.cat([parent_ancestors, torch.diag_embed(real)], 2)
        sees = torch.cat([trunk[:, None].expand(-1, nodes.shape[1], -1), ancestors], 2)
        positions = start_position[:, None] + ancestors.sum(2)
        mask = torch.zeros(sees.shape, dtype=hidden.dtype, device=device).masked_fill(~sees, torch.finfo(hidden.dtype).min)
        read = model.base_model(input_ids=vocabulary.first + level * k + code.clamp(min=0), attention_mask=mask[:, None],
                                position_ids=positions, past_key_values=reading.cache).last_hidden_state
        parent_hidden = hidden.gather(1, parent[..., None].expand(-1, -1, hidden.shape[2]))
        hidden = torch.where(real[..., None], read, parent_hidden)
    reading.rewind(prompt)
    return (ranks - torch.from_numpy(np.log(trie.counts)).to(device)).float().cpu().numpy()


# ---------------------------------------------------------------- the expectation of the paper's overlap

def code_marginals(reading, coder, rngs, samples):
    """P(code of each modality | prompt): (B, 5, K) float32 numpy, each modality sums to 1.

    The probability of a code depends on the codes before it, so these are drawn, and what the model then says of the next
    modality is averaged over the draws.

    reading: of B x samples prompts, each prompt's samples one after another; rngs: a Generator for each of them.
    """
    vocabulary, weight, length = coder.vocabulary, music_weight(reading.model, coder.vocabulary), len(reading)
    hidden = reading.read(np.full((len(rngs), 1), vocabulary.start), np.ones((len(rngs), 1)))[:, -1]
    marginals = []
    for m in range(5):
        p = code_gains(hidden, weight[m])[0].exp()                             # (B x samples, K)
        marginals.append(p.view(-1, samples, vocabulary.k).mean(1))
        if m < 4:
            draws = torch.tensor([[rng.random()] for rng in rngs], device=p.device, dtype=p.dtype)
            code = torch.searchsorted(p.cumsum(1), draws).clamp(max=vocabulary.k - 1)
            hidden = reading.read(vocabulary.first + m * vocabulary.k + code, torch.ones_like(code))[:, -1]
    reading.rewind(length)
    return torch.stack(marginals, 1).cpu().numpy()
