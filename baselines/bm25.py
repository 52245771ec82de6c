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
from common import data, runs, turns

BASIC = ("title", "artist", "album", "tags", "year")
ITEM_FORMS = {"tags": BASIC, "full": (*BASIC, "caption", "lyrics")}
HISTORIES = ("last query", "queries", "queries + last twice more", "queries + responses",
             "queries + responses + tracks", "last query + last track")  # tracks: as text, form "tags"
STOP_WORDS = ("kept", "removed")
DEFAULT = (1.2, 0.75)    # k1: how fast a repeated word stops counting; b: how much long texts are marked down
K1, B = (0.5, 1.2, 2.5), (0.0, 0.3, 0.75)  # the grid for the best forms
TUNED = 3                # how many forms are tuned


def query_text(turn, history, texts, row_of):
    """The query of a turn in one form of HISTORIES, from the turns before it and its own query only.

    texts: (N,) list, what stands for a played track.
    """
    past, last = turn.past, turn.query
    played = [texts[row_of[before["music"]]] for before in past if before["music"]]
    if history == "last query":
        return last
    if history == "last query + last track":
        return " ".join([last, *played[-1:]])
    parts = [before["query"] for before in past] + [last]
    if history == "queries + last twice more":  # a word said twice counts twice: the last query weighs most
        parts += [last, last]
    if "responses" in history:
        parts += [before["response"] for before in past if before["response"]]
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


def score_turns(form, index, found, texts, row_of):
    """Yield the scores of all tracks for every turn, in one form. index: that of the form's item text, k1 and b."""
    for words in split_words([query_text(turn, form["history"], texts, row_of) for turn in found], form["stop_words"]):
        yield score_tracks(index, words)


def best_settings(tried):
    """Of the forms tried, the best setting of each (item, history), best first."""
    best = {}
    for form in sorted(tried, key=lambda form: -form["valid_mrr"]):
        best.setdefault((form["item"], form["history"]), form)
    return list(best.values())


def choose_forms(item_words, found, texts, row_of, seed):
    """Try all forms on the valid turns `found`, then tune k1 and b of the TUNED best ones.

    item_words: {(item form, stop words): words of the N tracks}; texts: see query_text.
    Returns: list of dicts item, history, stop_words, k1, b, valid_mrr, best first.
    """
    tried = []
    for item, stop_words in tqdm(list(product(ITEM_FORMS, STOP_WORDS)), desc="forms"):
        index = build_index(item_words[item, stop_words], *DEFAULT)
        for history in HISTORIES:
            form = {"item": item, "history": history, "stop_words": stop_words, "k1": DEFAULT[0], "b": DEFAULT[1]}
            tried.append(form | {"valid_mrr": turns.mrr(score_turns(form, index, found, texts, row_of), found, seed)})
    leaders = best_settings(tried)[:TUNED]
    for leader, k1, b in tqdm([(leader, *setting) for leader in leaders for setting in product(K1, B) if setting != DEFAULT],
                              desc="k1 and b"):
        form = leader | {"k1": k1, "b": b}
        index = build_index(item_words[form["item"], form["stop_words"]], k1, b)
        tried.append(form | {"valid_mrr": turns.mrr(score_turns(form, index, found, texts, row_of), found, seed)})
    return best_settings(tried)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Rank all tracks by BM25; the form is chosen on the valid dialogues.")
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of equal scores (default 0)")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="skip when already done (default); --no-resume predicts afresh")
    args = parser.parse_args()

    tracks = data.load_tracks(args.data_dir)
    track_ids = [track["track_id"] for track in tracks]
    row_of = {track_id: row for row, track_id in enumerate(track_ids)}
    of_split = turns.load_turns(args.data_dir, row_of)
    reads = [*data.catalogue_files(args.data_dir), *turns.dialogue_files()]
    writes = [*turns.prediction_files("bm25"), "results/bm25_forms.csv"]
    run, state = runs.begin_run(args.data_dir, "bm25", args, reads, writes, resume=args.resume)
    if state == "done":
        print("bm25: already done, nothing changed")
        return

    texts = [data.item_text(track, ITEM_FORMS["tags"]) for track in tracks]
    item_words = {(item, stop_words): split_words([data.item_text(track, fields) for track in tracks], stop_words)
                  for item, fields in ITEM_FORMS.items() for stop_words in STOP_WORDS}
    forms = choose_forms(item_words, of_split["valid"], texts, row_of, args.seed)
    chosen = forms[0]
    index = build_index(item_words[chosen["item"], chosen["stop_words"]], chosen["k1"], chosen["b"])
    for split, found in of_split.items():
        turns.write_predictions(args.data_dir, split, "bm25", score_turns(chosen, index, found, texts, row_of), found, track_ids, args.seed)
    for form in forms:  # the choice is made; only now the test targets are looked at
        index = build_index(item_words[form["item"], form["stop_words"]], form["k1"], form["b"])
        form["test_mrr"] = turns.mrr(score_turns(form, index, of_split["test"], texts, row_of), of_split["test"], args.seed)
        print(f"{form['item']:5} {form['history']:29} stop words {form['stop_words']:8} k1 {form['k1']:.1f} b {form['b']:.2f}  "
              f"MRR valid {form['valid_mrr']:.4f}  test {form['test_mrr']:.4f}")
    data.write_csv(args.data_dir / "results" / "bm25_forms.csv", forms[0], [form.values() for form in forms])
    runs.finish_run(run, chosen_on_valid=chosen)
    print(f"Chosen on valid: item text {chosen['item']}, query {chosen['history']}. Wrote {args.data_dir}/{writes[1]}, "
          f"{writes[0]} and {writes[2]}. Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
