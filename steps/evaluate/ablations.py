"""How much each modality weighs: the paper's Tables 3 and 4, from stored codes.

The paper ranks by a weighted count of equal codes (section 2.4). Ties are drawn as 05_infer.py
draws them with the same seed, so the default weights give back the ranks of talkplay-overlap. With
other weights other tracks tie: this luck alone moves an MRR of the demo by about .001.
"""

import numpy as np
from tqdm import tqdm

from common import metrics, retrieval, tokens
from common.turns import target_rank
from steps.evaluate.scores import generates

SOURCE = "talkplay-overlap"  # the system whose codes are ranked again

PAPER = (25, 16, 9, 4, 1)
UNIFORM = (1,) * len(tokens.MODALITIES)
# {weights of the modalities in token order: where they come from}
WEIGHTINGS = {
    retrieval.WEIGHTS: "common/retrieval.py", PAPER: "paper, order of section 2.4",
    (25, 9, 16, 4, 1): "paper, order of Table 3", (5, 4, 3, 2, 1): "paper, Table 3",
    UNIFORM: "paper, Tables 3 and 4", PAPER[::-1]: "paper, Table 3"}
# a weight of 0: the modality is left out
LEAVE_ONE_OUT = [UNIFORM, *(UNIFORM[:m] + (0,) + UNIFORM[m + 1:] for m in range(len(UNIFORM)))]
# {the paper's table: (its rows, the weights that the others are compared with)}
TABLES = {3: (list(WEIGHTINGS), retrieval.WEIGHTS), 4: (LEAVE_ONE_OUT, UNIFORM)}

COLUMNS = ("table", "weights", "metric", "value", "ci_low", "ci_high", "against", "margin",
           "margin_low", "margin_high", "n")
SHOWN = ("mrr", "hit@1", "hit@10", "hit@100")


def ablate(systems, codes, turns, ties_seed, seed):
    """Tables 3 and 4, where SOURCE is among the systems and has codes.

    ties_seed: the --seed of 05_infer.py. seed: of the bootstrap
    Returns: the rows of ablations.csv, and the share of turns whose stored rank the default weights
        give back (1 if codes, seed and code are those that made it); ([], None) without SOURCE.
    """
    if SOURCE not in systems or not generates(systems[SOURCE]):
        return [], None
    source = systems[SOURCE]
    ranks = {weights: rerank(codes, source.codes, turns, weights, source.depth, ties_seed)
             for weights in tqdm({*WEIGHTINGS, *LEAVE_ONE_OUT}, desc="weights")}
    same_rank = float(np.mean(ranks[retrieval.WEIGHTS] == source.ranks))
    return ablation_rows(ranks, turns, seed), same_rank


def rerank(codes, generated, turns, weights, depth, seed):
    """Ranks of the targets when tracks are ordered by weighted overlap with the generated codes.

    codes: of the catalogue, (N, modalities) int16
    generated: codes per turn; None where nothing well formed was generated, so that all tracks tie
    Returns: (n_turns,) int.
    """
    # a modality that is left out must not tell exact matches from others either
    kept = np.array(weights) > 0
    index = retrieval.build_index(np.where(kept, codes, -1))
    ranks = np.zeros(len(turns), int)
    for i, (turn, query) in enumerate(zip(turns, generated, strict=True)):
        query = np.where(kept, -1 if query is None else query, -1).tolist()
        rng = metrics.turn_rng(seed, *turn.key, metrics.BREAK_OVERLAP_TIES)
        ranked, _ = retrieval.search(index, query, depth, rng, weights)
        ranks[i] = target_rank(ranked, turn)
    return ranks


def ablation_rows(ranks, turns, seed):
    """Rows of ablations.csv, from {weights: (n_turns,) ranks}; margins are paired by turn."""
    groups = np.array([turn.group for turn in turns])
    rows = []
    for number, (weightings, against) in TABLES.items():
        for weights in weightings:
            for metric in SHOWN:
                values, others = map(metrics.METRICS[metric], (ranks[weights], ranks[against]))
                low, high = metrics.bootstrap_ci(values, groups, seed=seed)
                margin = metrics.paired_difference(values, others, groups, seed=seed)
                rows.append((number, weight_text(weights), metric, float(values.mean()), low, high,
                             weight_text(against), *margin, len(values)))
    return rows


def weight_text(weights):
    """(25, 16, 9, 4, 1) -> "25/16/9/4/1"."""
    return "/".join(map(str, weights))
