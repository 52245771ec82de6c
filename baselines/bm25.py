"""Baseline: BM25, word matching between the conversation and the tracks' texts (the paper's section 5).

What counts as the query, and what as the text of a track, decides how strong BM25 is. Every
combination of ITEM_FORMS and HISTORIES, with and without English stop words, is scored by MRR on the
valid dialogues, played tracks left out as 06_evaluate.py does; the three best forms are then tuned on a
grid of BM25's k1 and b, on valid too. The best of all is the system `bm25`. The others are shown as
well: results/bm25_forms.csv has each form at its best setting, and its test MRR, which is computed only
after the choice. Texts are lower-cased, words have two letters or more, no stemming.

Nothing after the query of turn t is used for turn t.

Reads   tracks.jsonl, dialogues_valid.jsonl, dialogues_test.jsonl
Writes  predictions/bm25.jsonl (test), predictions_valid/bm25.jsonl (valid), results/bm25_forms.csv
Demo    python baselines/bm25.py
Full    python baselines/bm25.py --data-dir data/mpd    (1,143 turns, N = 17,348: 60 s; the demo: 30 s)
"""

import argparse
import sys
from itertools import product
from pathlib import Path

import bm25s
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from common import data, metrics

FOLDERS = {"valid": "predictions_valid", "test": "predictions"}
BASIC = ("title", "artist", "album", "tags", "year")
ITEM_FORMS = {"tags": BASIC, "full": (*BASIC, "caption", "lyrics")}
HISTORIES = ("last query", "queries", "queries + last twice more", "queries + responses",
             "queries + responses + tracks", "last query + last track")  # tracks: as text, form "tags"
STOP_WORDS = ("kept", "removed")
DEFAULT = (1.2, 0.75)    # k1: how fast a repeated word stops counting; b: how much long texts are marked down
K1, B = (0.5, 1.2, 2.5), (0.0, 0.3, 0.75)  # the grid for the best forms
TUNED = 3                # how many forms are tuned


def query_text(turns, t, history, texts, row_of):
    """The query of turn t (0-based) in one form of HISTORIES, from turns[:t] and the query of turn t only.

    texts: (N,) list, what stands for a played track.
    """
    past, last = turns[:t], turns[t]["query"]
    played = [texts[row_of[turn["music"]]] for turn in past if turn["music"]]
    if history == "last query":
        return last
    if history == "last query + last track":
        return " ".join([last, *played[-1:]])
    parts = [turn["query"] for turn in past] + [last]
    if history == "queries + last twice more":  # a word said twice counts twice: the last query weighs most
        parts += [last, last]
    if "responses" in history:
        parts += [turn["response"] for turn in past if turn["response"]]
    if "tracks" in history:
        parts += played
    return " ".join(parts)


def split_words(texts, stop_words):
    """Lower-cased words of each text: a list of lists."""
    return bm25s.tokenize(texts, lower=True, stopwords="english" if stop_words == "removed" else None,
                          return_ids=False, show_progress=False)


def build_index(words, k1, b):
    """BM25 (Lucene's form) over the words of the N tracks."""
    index = bm25s.BM25(k1=k1, b=b)
    index.index(words, show_progress=False)
    return index


def score_tracks(index, words):
    """BM25 scores of all tracks for one query's words: (N,) float32."""
    return index.get_scores_from_ids(index.get_tokens_ids(words))


def collect_turns(dialogues, row_of):
    """The turns that have targets: list of (dialogue, t 0-based, played rows, target rows)."""
    found = []
    for dialogue in dialogues:
        turns = dialogue["turns"]
        for t, turn in enumerate(turns):
            if turn["targets"]:
                played = [row_of[past["music"]] for past in turns[:t] if past["music"]]
                found.append((dialogue, t, played, [row_of[track_id] for track_id in turn["targets"]]))
    return found


def rank_turn(index, words, dialogue, t, depth, seed):
    """Rows of the `depth` best tracks for one turn, ties (and all tracks without a match) by a seeded draw."""
    return metrics.rank_rows(score_tracks(index, words), metrics.turn_rng(seed, dialogue["dialogue_id"], t + 1), depth)


def query_words(turns, history, stop_words, texts, row_of):
    """The words of every turn's query in one form."""
    return split_words([query_text(d["turns"], t, history, texts, row_of) for d, t, *_ in turns], stop_words)


def form_mrr(form, index, turns, texts, row_of, depth, seed):
    """MRR of one form over `turns`, played tracks left out. index: that of the form's item text, k1 and b."""
    queries, ranks = query_words(turns, form["history"], form["stop_words"], texts, row_of), []
    for words, (dialogue, t, played, targets) in zip(queries, turns):
        ranked = rank_turn(index, words, dialogue, t, depth, seed)
        ranks.append(metrics.rank_of_first_hit(metrics.filter_played(ranked, played, targets), targets))
    return metrics.mrr(ranks)


def best_settings(tried):
    """Of the forms tried, the best setting of each (item, history), best first."""
    best = {}
    for form in sorted(tried, key=lambda form: -form["valid_mrr"]):
        best.setdefault((form["item"], form["history"]), form)
    return list(best.values())


def choose_forms(item_words, turns, texts, row_of, depth, seed):
    """Try all forms on the valid turns, then tune k1 and b of the TUNED best ones.

    item_words: {(item form, stop words): words of the N tracks}; texts: see query_text.
    Returns: list of dicts item, history, stop_words, k1, b, valid_mrr, best first.
    """
    tried = []
    for item, stop_words in tqdm(list(product(ITEM_FORMS, STOP_WORDS)), desc="forms"):
        index = build_index(item_words[item, stop_words], *DEFAULT)
        for history in HISTORIES:
            form = {"item": item, "history": history, "stop_words": stop_words, "k1": DEFAULT[0], "b": DEFAULT[1]}
            tried.append(form | {"valid_mrr": form_mrr(form, index, turns, texts, row_of, depth, seed)})
    leaders = best_settings(tried)[:TUNED]
    for leader, k1, b in tqdm(list(product(leaders, K1, B)), desc="k1 and b"):
        form = leader | {"k1": k1, "b": b}
        index = build_index(item_words[form["item"], form["stop_words"]], k1, b)
        tried.append(form | {"valid_mrr": form_mrr(form, index, turns, texts, row_of, depth, seed)})
    return best_settings(tried)


def predict(form, index, turns, texts, track_ids, row_of, depth, seed):
    """Yield one line of predictions for every turn."""
    queries = query_words(turns, form["history"], form["stop_words"], texts, row_of)
    for words, (dialogue, t, *_) in zip(queries, turns):
        ranked = [track_ids[row] for row in rank_turn(index, words, dialogue, t, depth, seed)]
        yield {"dialogue_id": dialogue["dialogue_id"], "turn": t + 1, "track_ids": ranked, "response": None}


def main():
    parser = argparse.ArgumentParser(description="Rank all tracks by BM25; the form is chosen on the valid dialogues.")
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of equal scores (default 0)")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="skip when already done (default); --no-resume predicts afresh")
    args = parser.parse_args()

    tracks = data.load_tracks(args.data_dir)
    track_ids = [track["track_id"] for track in tracks]
    row_of = {track_id: row for row, track_id in enumerate(track_ids)}
    turns = {split: collect_turns(data.load_dialogues(args.data_dir / f"dialogues_{split}.jsonl", row_of), row_of)
             for split in FOLDERS}
    annotations = sorted(f"annotations/{path.name}" for path in (args.data_dir / "annotations").glob("*.jsonl"))
    reads = ["tracks.jsonl", *annotations, *(f"dialogues_{split}.jsonl" for split in FOLDERS)]
    writes = [*(f"{folder}/bm25.jsonl" for folder in FOLDERS.values()), "results/bm25_forms.csv"]
    run, state = data.begin_run(args.data_dir, "bm25", args, reads, writes, resume=args.resume)
    if state == "done":
        print("bm25: already done, nothing changed")
        return

    depth = metrics.ranking_depth(len(tracks))
    texts = [data.item_text(track, ITEM_FORMS["tags"]) for track in tracks]
    item_words = {(item, stop_words): split_words([data.item_text(track, fields) for track in tracks], stop_words)
                  for item, fields in ITEM_FORMS.items() for stop_words in STOP_WORDS}
    forms = choose_forms(item_words, turns["valid"], texts, row_of, depth, args.seed)
    chosen = forms[0]
    index = build_index(item_words[chosen["item"], chosen["stop_words"]], chosen["k1"], chosen["b"])
    for split, folder in FOLDERS.items():
        lines = predict(chosen, index, turns[split], texts, track_ids, row_of, depth, args.seed)
        data.write_jsonl(args.data_dir / folder / "bm25.jsonl", lines)
    for form in forms:  # the choice is made; only now the test targets are looked at
        index = build_index(item_words[form["item"], form["stop_words"]], form["k1"], form["b"])
        form["test_mrr"] = form_mrr(form, index, turns["test"], texts, row_of, depth, args.seed)
        print(f"{form['item']:5} {form['history']:29} stop words {form['stop_words']:8} k1 {form['k1']:.1f} b {form['b']:.2f}  "
              f"MRR valid {form['valid_mrr']:.4f}  test {form['test_mrr']:.4f}")
    data.write_csv(args.data_dir / "results" / "bm25_forms.csv", forms[0], [form.values() for form in forms])
    data.finish_run(run, chosen_on_valid=chosen)
    print(f"Chosen on valid: item text {chosen['item']}, query {chosen['history']}. Wrote {args.data_dir}/{writes[1]}, "
          f"{writes[0]} and {writes[2]}. Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
