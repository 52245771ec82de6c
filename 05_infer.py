"""05: answer a listener: five music tokens, a track, a sentence (paper, section 2.4).

The paper samples five tokens and takes the track that shares most with them. There are more ways to
order all tracks, one per name of --rankers:
    likelihood  the model's probability of each track's own tokens, found by a beam search over the
                trie of all tracks (steps/infer/rankers.py)
    overlap     the paper's: exact match, then weighted overlap with the sampled tokens
    greedy      the same with the likeliest tokens
    votes       the mean overlap with --samples sampled sequences
    expected    the overlap that the model's probabilities of the codes let expect

In Python, from the repository's folder:
    infer = importlib.import_module("05_infer")
    talkplay = infer.load("data/demo")
    answer = infer.reply(talkplay, [{"query": "something calm"}])
    print(answer.track["title"], "-", answer.response)
A second turn needs the first one's "music" (answer.track["track_id"]) and "response", see `reply`.

Reads   tracks.jsonl, annotations/, codes.npy, model/; predict also dialogues_test.jsonl (or _valid)
Writes  predict: one file per ranker, predictions/talkplay.jsonl (likelihood),
        predictions/talkplay-overlap.jsonl ... (with --split valid: predictions_valid/...)

Demo        python 05_infer.py chat
            python 05_infer.py predict                          (half a minute on two cores)
Full scale  python 05_infer.py predict --data-dir data/mpd --device cuda --batch-size 16
"""

import argparse
import json
import os
import sys
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from common import data, metrics, retrieval, runs, tokens
from common.flags import add_shared, check_ranges
from common.turns import FOLDERS, collect_turns
from steps.infer.generation import PromptCache, music_grammar, sample, stop_ids, stream_text
from steps.infer.model import load
from steps.infer.rankers import code_marginals, code_shares, expected_overlap, rank_tracks
from steps.infer.show import show, why

# the prediction files; the first of --rankers chooses the track that the response is about
SYSTEMS = {"likelihood": "talkplay", "overlap": "talkplay-overlap", "greedy": "talkplay-greedy",
           "votes": "talkplay-votes", "expected": "talkplay-expected"}
JOURNAL = "talkplay.jsonl.part"  # what a cut predict goes on from
BLOCK_LENGTH = len(tokens.MODALITIES) + 2  # of a music block: its codes, start and end


class Settings(NamedTuple):
    """How to answer. The defaults of the first four are the paper's."""
    temperature: float = 1.0         # 0: the likeliest token
    top_p: float = 0.9               # nucleus: a share of the probability
    repetition_penalty: float = 1.0  # divides the logits of what has been said; 1: none
    free: bool = True                # False holds each music token to its modality
    beam: int = 50                   # prefixes per level, of `likelihood`
    samples: int = 20                # sequences per turn, of `votes` and `expected`
    max_new_tokens: int = 96         # of a response; `predict_turns` writes none with 0


PAPER = Settings()


# ---------------------------------------------------------------- the paper's answer, step by step

def prompt_of(dialogue_tokenizer, turns, codes_of, context=0):
    """Ids up to where the answer to the last turn begins: (L,) int32.

    context: tokens of prompt and answer, for which the oldest turns are left out; 0: as many as in
        training, which 04_train.py leaves in the tokenizer
    """
    context = (context or dialogue_tokenizer.tokenizer.model_max_length) - tokens.ANSWER_ROOM
    for first in range(len(turns)):
        ids, _ = tokens.encode_dialogue(dialogue_tokenizer, turns[first:], codes_of, prompt=True)
        if len(ids) <= context:
            return ids
    return ids[-context:]


def sample_codes(cache, dialogue_tokenizer, rngs, settings=PAPER):
    """1. Sample five music tokens after each prompt.

    rngs: a numpy Generator per prompt
    Returns: per prompt five codes (-1 where missing), or None where the block is not well-formed.
    """
    vocabulary = dialogue_tokenizer.vocabulary
    length = len(cache)
    grammar = None if settings.free else music_grammar(vocabulary, cache.model)
    stop = [vocabulary.end, *stop_ids(dialogue_tokenizer)]
    blocks = sample(cache, cache.end, rngs, stop, BLOCK_LENGTH, *settings[:3], grammar)
    cache.truncate(length)
    return [tokens.ids_to_codes(vocabulary, block) for block in blocks]


def rank_by_overlap(index, codes, rng):
    """2. Rows of the best tracks for five codes: exact matches, then by weighted overlap."""
    if codes is None:  # not well-formed: nothing matches, and the order is drawn
        codes = [-1] * len(tokens.MODALITIES)
    return retrieval.search(index, codes, metrics.DEPTH, rng)[0]


def respond(cache, dialogue_tokenizer, codes, rngs, settings=PAPER, on_token=None):
    """3. The sentence about the chosen tracks: B strings.

    codes: (B, 5) of the tracks, which the model reads as if it had written them
    on_token: called with a row's ids after each new one
    """
    length = len(cache)
    blocks = np.zeros((len(codes), BLOCK_LENGTH), np.int64)
    keep = np.zeros_like(blocks)
    for row, track_codes in enumerate(codes):  # right-aligned: the last place is the last token
        ids = tokens.codes_to_ids(dialogue_tokenizer.vocabulary, track_codes)
        blocks[row, -len(ids):] = ids
        keep[row, -len(ids):] = 1
    hidden = cache.read(blocks, keep)[:, -1]                             # (B, d)
    texts = sample(cache, hidden, rngs, stop_ids(dialogue_tokenizer), settings.max_new_tokens,
                   *settings[:3], on_token=on_token, may_be_empty=False)
    cache.truncate(length)
    decode = dialogue_tokenizer.tokenizer.decode
    return [decode(ids, skip_special_tokens=True).strip() for ids in texts]


def first_unplayed(rows, played):
    return int(next((row for row in rows if row not in played), rows[0]))


# ---------------------------------------------------------------- the order of all tracks

def rank(talkplay, ranker, prompts, cache, sampled, rngs_for, settings=PAPER):
    """Rows of the best tracks by one ranker, for each of the prompts.

    sampled: per prompt, what `sample_codes` has returned
    rngs_for: function of a purpose (common/metrics.py); returns a numpy Generator per prompt
    """
    dialogue_tokenizer = talkplay.dialogue_tokenizer
    if ranker == "greedy":
        greedy = Settings(temperature=0, free=settings.free)
        sampled = sample_codes(cache, dialogue_tokenizer, rngs_for(metrics.SAMPLE_CODES), greedy)
    if ranker in ("overlap", "greedy"):
        rngs = rngs_for(metrics.BREAK_OVERLAP_TIES)
        return [rank_by_overlap(talkplay.index, codes, rng)
                for codes, rng in zip(sampled, rngs, strict=True)]
    if ranker == "likelihood":
        scored = rank_tracks(cache, dialogue_tokenizer, talkplay.groups, metrics.DEPTH,
                             settings.beam)
        return [rows[metrics.rank_rows(scores, rng, metrics.DEPTH)]
                for (rows, scores), rng in zip(scored, rngs_for(metrics.BREAK_TIES), strict=True)]

    # votes and expected: several sequences per prompt
    samples = settings.samples
    copies = PromptCache(talkplay.model, [prompt for prompt in prompts for _ in range(samples)])
    rngs = [child for rng in rngs_for(metrics.DRAW_MANY) for child in rng.spawn(samples)]
    if ranker == "votes":
        drawn = sample_codes(copies, dialogue_tokenizer, rngs, settings)
        p = [code_shares(drawn[i:i + samples], dialogue_tokenizer.vocabulary.k)
             for i in range(0, len(drawn), samples)]
    else:
        p = code_marginals(copies, dialogue_tokenizer, rngs, samples)
    return [metrics.rank_rows(expected_overlap(talkplay.codes, p_codes), rng, metrics.DEPTH)
            for p_codes, rng in zip(p, rngs_for(metrics.BREAK_TIES), strict=True)]


# ---------------------------------------------------------------- answer one listener

class Answer(NamedTuple):
    track: dict
    row: int       # of the track
    sampled: list  # the five codes that the model wrote, or None where they are not well-formed
    response: str = ""


@torch.inference_mode()
def reply(talkplay, turns, ranker="likelihood", settings=PAPER, rng=None, on_track=None,
          on_text=None):
    """Answer the last of `turns`: Answer. A track is not played twice in a dialogue.

    turns: dicts with query; those before the last also with music (the track_id played, or None)
        and response (str or None)
    rng: a numpy Generator (None: a new one, so that the same turns get the same answer)
    on_track, on_text: called with the Answer before its response, with each piece of the response
    """
    rng = rng or np.random.default_rng(0)
    dialogue_tokenizer = talkplay.dialogue_tokenizer
    prompt = prompt_of(dialogue_tokenizer, turns, talkplay.codes_of)
    cache = PromptCache(talkplay.model, [prompt])
    sampled = sample_codes(cache, dialogue_tokenizer, [rng], settings)
    rows, = rank(talkplay, ranker, [prompt], cache, sampled, lambda purpose: [rng], settings)
    played = [talkplay.row_of[turn["music"]] for turn in turns[:-1] if turn["music"]]
    row = first_unplayed(rows, played)
    answer = Answer(talkplay.tracks[row], row, sampled[0])
    if on_track:
        on_track(answer)
    on_token = stream_text(dialogue_tokenizer.tokenizer, on_text) if on_text else None
    response, = respond(cache, dialogue_tokenizer, talkplay.codes[[row]], [rng], settings,
                        on_token)
    return answer._replace(response=response)


def chat(talkplay, ranker="likelihood", seed=0, settings=PAPER):
    """Talk in the terminal."""
    def print_track(answer):
        text = data.item_text(answer.track, ("title", "artist", "album", "year"))
        print(f"play > {text}\n       {', '.join(answer.track['tags'])}\n       "
              f"{why(answer.sampled, talkplay.codes[answer.row])}\ntalk > ", end="", flush=True)

    print("Say what you would like to hear. An empty line or Ctrl-D ends the chat.\n"
          '"sampled": the five tokens that the model wrote; = where the track has the same. '
          "Only --ranker overlap goes by them.")
    sys.stdin.reconfigure(errors="replace")  # what is typed need not be UTF-8
    rng = np.random.default_rng(seed)
    turns = []
    while True:
        try:
            query = input("\nyou  > ").strip()
        except EOFError:
            query = ""
        if not query:
            print()
            return
        answer = reply(talkplay, [*turns, {"query": query}], ranker, settings, rng, print_track,
                       on_text=lambda text: print(text, end="", flush=True))
        print()
        turns.append({"query": query, "music": answer.track["track_id"],
                      "response": answer.response})


# ---------------------------------------------------------------- predict a file of dialogues

@torch.inference_mode()
def predict_turns(talkplay, turns, rankers, seed=0, settings=PAPER):
    """Answer a batch of `common.turns.Turn`: per turn, its line of each ranker's file."""
    def rngs_for(purpose):
        return [metrics.turn_rng(seed, *turn.key, purpose) for turn in turns]

    dialogue_tokenizer = talkplay.dialogue_tokenizer
    prompts = [prompt_of(dialogue_tokenizer, [*turn.past, {"query": turn.query}],
                         talkplay.codes_of) for turn in turns]
    cache = PromptCache(talkplay.model, prompts)
    sampled = sample_codes(cache, dialogue_tokenizer, rngs_for(metrics.SAMPLE_CODES), settings)
    rankings = [rank(talkplay, ranker, prompts, cache, sampled, rngs_for, settings)
                for ranker in rankers]
    responses = [None] * len(turns)
    if settings.max_new_tokens:
        chosen = [first_unplayed(rows, turn.played)
                  for rows, turn in zip(rankings[0], turns, strict=True)]
        responses = respond(cache, dialogue_tokenizer, talkplay.codes[chosen],
                            rngs_for(metrics.WRITE_RESPONSE), settings)
    return [[{"dialogue_id": turn.dialogue_id, "turn": turn.number,
              "track_ids": [talkplay.tracks[row]["track_id"] for row in ranking[i]],
              "response": None if n else responses[i],
              "codes": sampled[i], "well_formed": sampled[i] is not None}
             for n, ranking in enumerate(rankings)] for i, turn in enumerate(turns)]


def predict(talkplay, dialogues, paths, rankers, batch_size=32, seed=0, settings=PAPER):
    """Write the prediction files `paths`, one per ranker; go on where an earlier call was cut.

    Returns: the number of turns, and the share of them whose sampled codes are well-formed.
    """
    journal = paths[0].with_name(JOURNAL)  # one line per turn, with its lines of all files
    done = {}
    if data.keep_whole_lines(journal):
        for _, line in data.read_jsonl(journal, ""):
            first = line["rows"][0]
            done[first["dialogue_id"], first["turn"]] = line["rows"]

    # in the order of length, to pad little; the turns of a dialogue are read at one go
    length = {d["dialogue_id"]: sum(len(turn["query"]) for turn in d["turns"]) for d in dialogues}
    turns = collect_turns(dialogues, talkplay.row_of)
    to_do = sorted((turn for turn in turns if turn.key not in done),
                   key=lambda turn: (length[turn.dialogue_id], turn.key))
    with open(journal, "a", encoding="utf-8") as f:
        for i in tqdm(range(0, len(to_do), batch_size), desc="predict"):
            batch = to_do[i:i + batch_size]
            predicted = predict_turns(talkplay, batch, rankers, seed, settings)
            for turn, rows in zip(batch, predicted, strict=True):
                f.write(json.dumps({"rows": rows}) + "\n")
                done[turn.key] = rows
            f.flush()
    for i, path in enumerate(paths):
        data.write_jsonl(path, (done[turn.key][i] for turn in turns))
    os.remove(journal)
    return len(turns), float(np.mean([rows[0]["well_formed"] for rows in done.values()]))


# ---------------------------------------------------------------- the command line

def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    chat, predict, show = (
        commands.add_parser(name, allow_abbrev=False, help=what, description=what)
        for name, what in (("chat", "talk to the model"),
                           ("predict", "rank all tracks for every turn of a file of dialogues"),
                           ("show", "print a predicted dialogue")))
    for command in (chat, predict):
        add_shared(command, "data-dir", "device", "seed")
        add = command.add_argument
        add("--temperature", type=float, default=1.0, help="0 = greedy (paper and default: 1)")
        add("--top-p", type=float, default=0.9, help="nucleus (paper and default: 0.9)")
        add("--repetition-penalty", type=float, default=1.0, help="1 = none (paper and default)")
        add("--free", action=argparse.BooleanOptionalAction, default=True,
            help="sample the music tokens freely (default), or hold each to its modality")
        add("--beam", type=int, default=50, help="prefixes per level, of likelihood (default 50)")
        add("--cold-share", type=float, help="probability that likelihood gives to all tracks "
            "without a playlist code (default: their share of the catalogue)")
        add("--max-new-tokens", type=int, default=96,
            help="of a response, at most; predict writes no responses with 0 (default 96)")
    chat.add_argument("--ranker", choices=("likelihood", "overlap"), default="likelihood",
                      help="what chooses the track: its probability (default), or the paper's")

    add = predict.add_argument
    add("--rankers", nargs="+", choices=SYSTEMS, default=["likelihood", "overlap"], help="one file "
        "each (default likelihood overlap); the top of this script says what they are")
    add("--samples", type=int, default=20, help="of votes and expected, per turn (default 20)")
    add("--batch-size", type=int, default=32, help="turns answered at a time (default 32)")
    add("--limit", type=int, default=0, help="dialogues; 0 = all (default, and what 06 needs)")
    add_shared(predict, "resume")
    add_shared(show, "data-dir")
    show.add_argument("--dialogue", help="dialogue_id (default: the first of the split)")
    for command in (predict, show):
        command.add_argument("--split", choices=FOLDERS, default="test",
                             help="dialogues (default test)")
    args = parser.parse_args()
    check_ranges(args, temperature=0, top_p=(1e-6, 1), repetition_penalty=0.01, beam=1,
                 cold_share=(0, 1), max_new_tokens=0, samples=1, batch_size=1, limit=0)
    if args.command == "predict" and len(set(args.rankers)) < len(args.rankers):
        raise SystemExit(f"--rankers {' '.join(args.rankers)}: name each of them once")
    return args


def main():
    args = parse_args()
    folder = args.data_dir
    if args.command == "show":
        show(folder, args.split, args.dialogue)
        return
    settings = Settings(**{name: value for name, value in vars(args).items()
                           if name in Settings._fields})
    if args.command == "chat":
        chat(load(folder, args.device, args.cold_share), args.ranker, args.seed, settings)
        return

    out = folder / FOLDERS[args.split]
    paths = [out / f"{SYSTEMS[ranker]}.jsonl" for ranker in args.rankers]
    dialogue_file = f"dialogues_{args.split}.jsonl"
    run, state = runs.begin_run(
        folder, f"05_infer.{args.split}", args, resume=args.resume, record=False,
        reads=[*data.catalogue_files(folder), "codes.npy", dialogue_file,
               "model/model.safetensors"],
        writes=[path.relative_to(folder) for path in paths],
        ignore=("data_dir", "resume", "device", "batch_size"))
    if state == "done":
        print("05_infer predict: already done (--no-resume does it again)")
        return
    talkplay = load(folder, args.device, args.cold_share)
    dialogues = data.load_dialogues(folder / dialogue_file, talkplay.row_of)
    out.mkdir(exist_ok=True)
    if state == "new":
        (out / JOURNAL).unlink(missing_ok=True)
    runs.record_run(run)  # only now: its input is good, and nothing of an older run is left
    n_turns, well_formed = predict(talkplay, dialogues[:args.limit or None], paths, args.rankers,
                                   args.batch_size, args.seed, settings)
    print(f"{n_turns:,} turns; {well_formed:.1%} of the sampled music blocks are well-formed")
    runs.finish_run(run, well_formed_share=well_formed)
    print(f"wrote {', '.join(map(str, paths))}; next: python 06_evaluate.py --data-dir {folder} "
          f"--split {args.split}")


if __name__ == "__main__":
    main()
