"""How much each modality weighs: the stored generated codes, ranked again with other weights (the paper's Tables 3 and 4).

The paper's ranking is a weighted count of equal codes (section 2.5). Other weights need no model: the codes
that it generated are stored with its predictions. Ties are drawn as 05_infer.py draws them with the same seed, so
the default weights give back the ranks of talkplay-overlap. With other weights other tracks tie, and where a modality is left
out (Table 4) the draws are others too: the luck of ties alone moves an MRR of the demo by about .001.
"""

import numpy as np
from tqdm import tqdm

from common import metrics, retrieval
from steps.evaluate.scores import METRICS, generates

SOURCE = "talkplay-overlap"  # whose codes are ranked again
TIES = 2  # which of a turn's generators 05_infer.py draws the ties of the overlap from
PAPER, DEFAULT, UNIFORM = (25, 16, 9, 4, 1), retrieval.WEIGHTS, (1, 1, 1, 1, 1)
# weights of playlist, semantic, metadata, lyrics, audio, and where they come from. A weight of 0: left out
WEIGHTINGS = {DEFAULT: "common/retrieval.py"} | {
              PAPER: "paper, order of section 2.4", (25, 9, 16, 4, 1): "paper, order of Table 3", (5, 4, 3, 2, 1): "ours",
              UNIFORM: "paper, Table 4", PAPER[::-1]: "ours"}
LEAVE_ONE_OUT = [UNIFORM] + [tuple(int(i != m) for i in range(5)) for m in range(5)]
# {the paper's table: (its rows, the one that the others are compared with)}
TABLES = {3: (list(WEIGHTINGS), DEFAULT), 4: (LEAVE_ONE_OUT, UNIFORM)}
COLUMNS = ("table", "weights", "metric", "value", "ci_low", "ci_high", "against", "margin", "margin_low", "margin_high", "n")
SHOWN = ("mrr", "hit@1", "hit@10", "hit@100")


def ablate(systems, codes, turns, draws, seed):
    """Tables 3 and 4, where SOURCE is among the systems and has codes.

    systems: {system: scores}; codes: (N, 5) of the catalogue; draws: the --seed of 05_infer.py, for the ties; seed: of
    the bootstrap. Returns: the rows of ablations.csv, and the share of turns to which the default weights give the rank of
    the stored ranking: 1, if codes, seed and code are those that made it. ([], None) without SOURCE.
    """
    if SOURCE not in systems or not generates(systems[SOURCE]):
        return [], None
    ranks = rerank_all(codes, systems[SOURCE], turns, draws)
    return ablation_rows(ranks, turns, seed), float(np.mean(ranks[DEFAULT] == systems[SOURCE]["ranks"]))


def rerank(codes, generated, turns, weights, depth, seed):
    """Ranks of the targets when tracks are ordered by weighted overlap with the generated codes: (n_turns,) int.

    codes: (N, 5) int16 of the catalogue; generated: list of n_turns lists of five codes, or None (nothing valid:
    all tracks tie); turns: from `turns.collect_turns`; depth: how many tracks are ranked.
    """
    kept = np.array(weights) > 0  # a modality that is left out may not tell exact matches from others either
    index = retrieval.build_index(np.where(kept, codes, -1))
    ranks = np.zeros(len(turns), int)
    for i, (turn, query) in enumerate(zip(turns, generated, strict=True)):
        query = np.where(kept, -1 if query is None else query, -1).tolist()
        ranked, _ = retrieval.search(index, query, depth, metrics.turn_rng(seed, *turn.key, TIES), weights)
        ranks[i] = metrics.rank_of_first_hit(metrics.filter_played(ranked, turn.played, turn.targets), turn.targets)
    return ranks


def rerank_all(codes, scores, turns, seed):
    """{weights: (n_turns,) ranks} of every row of TABLES, for the codes of one system."""
    weightings = dict.fromkeys(weights for rows, _ in TABLES.values() for weights in rows)
    return {weights: rerank(codes, scores["codes"], turns, weights, scores["depth"], seed)
            for weights in tqdm(weightings, desc="weights")}


def ablation_rows(ranks, turns, seed):
    """Rows of ablations.csv. ranks: of rerank_all. Margins are paired by turn with the weights `against`."""
    groups, rows = np.array([turn.group for turn in turns]), []
    for number, (weightings, against) in TABLES.items():
        for weights in weightings:
            for metric in SHOWN:
                values, others = (METRICS[metric](ranks[w]) for w in (weights, against))
                interval = metrics.bootstrap_ci(values, groups, seed=seed)
                margin = metrics.paired_difference(values, others, groups, seed=seed)
                rows.append((number, weight_text(weights), metric, float(values.mean()), *interval,
                             weight_text(against), *margin, len(values)))
    return rows


def weight_text(weights):
    """(25, 16, 9, 4, 1) -> "25/16/9/4/1"."""
    return "/".join(map(str, weights))
