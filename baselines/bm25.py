"""Baseline: BM25 matches the words of conversation and tracks (the paper's section 5).

How strong BM25 is depends on what counts as the query and as the text of a track. So every
combination of ITEM_FORMS and HISTORIES, with and without English stop words, is scored by its MRR
on the valid dialogues. The three best are then tuned on a grid of BM25's k1 and b, on valid too.
results/bm25_forms.csv has each form at its best setting, with its test MRR. Words have two letters
or more, and there is no stemming. Nothing after the query of turn t is used for turn t.

Reads   tracks.jsonl, annotations/, dialogues_valid.jsonl, dialogues_test.jsonl
Writes  predictions/bm25.jsonl (test), predictions_valid/bm25.jsonl (valid), results/bm25_forms.csv
Demo    python baselines/bm25.py                        (30 s)
Full    python baselines/bm25.py --data-dir data/mpd    (60 s with 17,348 tracks)
"""

import argparse
import sys
from itertools import product
from pathlib import Path

import bm25s
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from baselines import shared
from common import data, flags, turns

NAME = "bm25"
BASIC = ("title", "artist", "album", "tags", "year")
ITEM_FORMS = {"tags": BASIC, "full": (*BASIC, "caption", "lyrics")}
HISTORIES = ("last query", "queries", "queries + last twice more", "queries + responses",
             "queries + responses + tracks", "last query + last track")  # tracks: their form "tags"
STOP_WORDS = ("kept", "removed")
# k1: how fast a repeated word stops counting; b: how much long texts are marked down
DEFAULT = (1.2, 0.75)
GRID = [(k1, b) for k1 in (0.5, 1.2, 2.5) for b in (0.0, 0.3, 0.75) if (k1, b) != DEFAULT]
TUNED = 3  # how many forms are tuned on the grid


def query_text(turn, history, texts):
    """The query of a turn in one form of HISTORIES, from its own query and the turns before it.

    texts: what stands for a played track, list of (N,) strings.
    """
    played = [texts[row] for row in turn.played]
    if history == "last query":
        return turn.query
    if history == "last query + last track":
        return " ".join([turn.query, *played[-1:]])
    said = [past["query"] for past in turn.past] + [turn.query]
    if history == "queries + last twice more":  # words said twice count twice: more weight
        said += [turn.query, turn.query]
    if "responses" in history:
        said += [past["response"] for past in turn.past if past["response"]]
    if "tracks" in history:
        said += played
    return " ".join(said)


def split_words(texts, stop_words):
    """Lower-cased words of each text: a list of lists."""
    return bm25s.tokenize(texts, stopwords="english" if stop_words == "removed" else None,
                          return_ids=False, show_progress=False)


def build_index(words, k1, b):
    """BM25 (Lucene's form) over the words of the N tracks."""
    index = bm25s.BM25(k1=k1, b=b)
    index.index(words, show_progress=False)
    return index


def score_turns(form, index, turn_list, texts):
    """Yield the scores of all tracks, (N,) float32, for every turn, in one form.

    index: of the form's item text, k1 and b. texts: see query_text.
    """
    queries = [query_text(turn, form["history"], texts) for turn in turn_list]
    for words in split_words(queries, form["stop_words"]):
        yield index.get_scores_from_ids(index.get_tokens_ids(words))


def best_settings(tried):
    """The best setting of each (item, history) among the forms tried, best first."""
    best = {}
    for form in sorted(tried, key=lambda form: -form["valid_mrr"]):
        best.setdefault((form["item"], form["history"]), form)
    return list(best.values())


def choose_forms(item_words, valid_turns, texts, seed):
    """Try all forms on the valid turns, then tune k1 and b of the TUNED best ones.

    item_words: {(item form, stop words): words of the N tracks}. texts: see query_text.
    Returns: list of dicts item, history, stop_words, k1, b, valid_mrr, best first.
    """
    def add_mrr(form, index):
        scores = score_turns(form, index, valid_turns, texts)
        return form | {"valid_mrr": turns.mrr(scores, valid_turns, seed)}

    # every form, at BM25's default setting
    tried = []
    k1, b = DEFAULT
    for (item, stop_words), words in tqdm(item_words.items(), desc="forms"):
        index = build_index(words, k1, b)
        for history in HISTORIES:
            form = {"item": item, "history": history, "stop_words": stop_words, "k1": k1, "b": b}
            tried.append(add_mrr(form, index))

    # the best forms, at every other setting
    leaders = best_settings(tried)[:TUNED]
    for leader, (k1, b) in tqdm(list(product(leaders, GRID)), desc="k1 and b"):
        index = build_index(item_words[leader["item"], leader["stop_words"]], k1, b)
        tried.append(add_mrr(leader | {"k1": k1, "b": b}, index))
    return best_settings(tried)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    flags.add_shared(parser, "data-dir", "seed", "resume")
    args = parser.parse_args()
    flags.check_ranges(args)
    tracks = data.load_tracks(args.data_dir)
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    turns_of = turns.load_turns(args.data_dir, row_of)
    run = shared.begin_run(args, NAME, writes=[f"results/{NAME}_forms.csv"])
    if run is None:
        return

    item_texts = {item: [data.item_text(track, fields) for track in tracks]
                  for item, fields in ITEM_FORMS.items()}
    item_words = {(item, stop_words): split_words(item_texts[item], stop_words)
                  for item, stop_words in product(ITEM_FORMS, STOP_WORDS)}
    texts = item_texts["tags"]

    def score(form, split):
        index = build_index(item_words[form["item"], form["stop_words"]], form["k1"], form["b"])
        return score_turns(form, index, turns_of[split], texts)

    forms = choose_forms(item_words, turns_of["valid"], texts, args.seed)
    chosen = shared.rank_forms(args.data_dir, NAME, forms, score, turns_of, list(row_of), args.seed)
    shared.finish_run(args.data_dir, run, chosen_on_valid=chosen)


if __name__ == "__main__":
    main()
