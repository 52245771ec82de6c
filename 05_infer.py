"""05: answer a listener: five music tokens, a track, a sentence (paper, section 2.4).

The paper samples five tokens and takes the track that shares most with them. There are more ways to
order all tracks, one per name of --rankers:
    likelihood  the model's probability of each track's own tokens, found by a beam search over the
                trie of all tracks (steps/infer/likelihood_ranker.py)
    overlap     the paper's: exact match, then weighted overlap with the sampled tokens
    greedy      the same with the likeliest tokens
    votes       the mean overlap with --samples sampled sequences
    expected    the overlap that the model's probabilities of the codes let expect

In a notebook (`reply` says more):
    infer = importlib.import_module("05_infer")
    talkplay = infer.load("data/demo")
    answer = infer.reply(talkplay, [{"query": "something calm"}])
    print(answer.track["title"], "-", answer.response)

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
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from common import data, retrieval, runs, tokens
from common.metrics import DEPTH, rank_rows, turn_rng
from common.process import resolve_device
from common.turns import FOLDERS, collect_turns
from steps.infer.expected_overlap import code_marginals, code_shares, expected_overlap
from steps.infer.generation import PromptCache, music_grammar, sample, stop_ids, stream_text
from steps.infer.likelihood_ranker import rank_tracks
from steps.infer.model import load
from steps.infer.show import show, why

# the prediction files; the first of --rankers chooses the track that the response is about
SYSTEMS = {"likelihood": "talkplay", "overlap": "talkplay-overlap", "greedy": "talkplay-greedy",
           "votes": "talkplay-votes", "expected": "talkplay-expected"}
JOURNAL = "talkplay.jsonl.part"  # what a cut predict goes on from
ANSWER_ROOM = 64  # tokens of the context that a prompt leaves to the answer
BLOCK_LENGTH = len(tokens.MODALITIES) + 2  # of a music block: its codes, start and end
# each turn has one random stream per purpose, so that no draw depends on another
SAMPLE_CODES, BREAK_TIES, BREAK_OVERLAP_TIES, WRITE_RESPONSE, DRAW_MANY = range(5)


class Sampling(NamedTuple):
    """How tokens are drawn. The defaults are the paper's."""
    temperature: float = 1.0         # 0: the likeliest token
    top_p: float = 0.9               # nucleus: a share of the probability
    repetition_penalty: float = 1.0  # divides the logits of what has been said; 1: none


PAPER = Sampling()


# ---------------------------------------------------------------- the paper's answer, step by step

def prompt_of(dialogue_tokenizer, turns, codes_of, context=0):
    """Ids up to where the answer to the last turn begins: (L,) int32.

    context: tokens of prompt and answer (0: as many as in training, which 04_train.py leaves in
        the tokenizer). If there are more, the oldest turns are left out.
    """
    context = (context or dialogue_tokenizer.tokenizer.model_max_length) - ANSWER_ROOM
    for first in range(len(turns)):
        ids, _ = tokens.encode_dialogue(dialogue_tokenizer, turns[first:], codes_of, prompt=True)
        if len(ids) <= context:
            return ids
    return ids[-context:]


def sample_codes(cache, dialogue_tokenizer, rngs, sampling=PAPER, free=True):
    """1. Sample five music tokens after each prompt.

    cache: PromptCache of B prompts
    rngs: a numpy Generator per prompt
    free: False holds each token to its modality
    Returns: per prompt five codes (-1 where missing), or None where the block is not well-formed.
    """
    vocabulary = dialogue_tokenizer.vocabulary
    length = len(cache)
    grammar = None if free else music_grammar(vocabulary, cache.model)
    stop = [vocabulary.end, *stop_ids(dialogue_tokenizer)]
    blocks = sample(cache, cache.end, rngs, stop, BLOCK_LENGTH, grammar=grammar,
                    **sampling._asdict())
    cache.truncate(length)
    return [tokens.ids_to_codes(vocabulary, block) for block in blocks]


def rank_by_overlap(index, codes, rng):
    """2. Rows of the best tracks for five codes: exact matches, then by weighted overlap."""
    if codes is None:  # not well-formed: nothing matches, and the order is drawn
        codes = [-1] * len(tokens.MODALITIES)
    rows, _ = retrieval.search(index, codes, DEPTH, rng)
    return rows


def respond(cache, dialogue_tokenizer, codes, rngs, sampling=PAPER, max_new_tokens=96,
            on_token=None):
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
    texts = sample(cache, hidden, rngs, stop_ids(dialogue_tokenizer), max_new_tokens,
                   on_token=on_token, may_be_empty=False, **sampling._asdict())
    cache.truncate(length)
    decode = dialogue_tokenizer.tokenizer.decode
    return [decode(ids, skip_special_tokens=True).strip() for ids in texts]


def first_unplayed(rows, played):
    return int(next((row for row in rows if row not in played), rows[0]))


# ---------------------------------------------------------------- the order of all tracks

def rank(talkplay, ranker, prompts, cache, sampled, rngs_for, sampling=PAPER, free=True, beam=50,
         samples=20):
    """Rows of the DEPTH best tracks by one ranker, for each of the prompts.

    cache: PromptCache of the prompts
    sampled: per prompt, what `sample_codes` has returned
    rngs_for: function of a purpose, such as BREAK_TIES; returns a numpy Generator per prompt
    """
    dialogue_tokenizer = talkplay.dialogue_tokenizer
    if ranker == "greedy":
        likeliest = Sampling(temperature=0)
        sampled = sample_codes(cache, dialogue_tokenizer, rngs_for(SAMPLE_CODES), likeliest, free)
    if ranker in ("overlap", "greedy"):
        return [rank_by_overlap(talkplay.index, codes, rng)
                for codes, rng in zip(sampled, rngs_for(BREAK_OVERLAP_TIES), strict=True)]
    if ranker == "likelihood":
        scored = rank_tracks(cache, dialogue_tokenizer, talkplay.groups, DEPTH, beam)
        return [rows[rank_rows(scores, rng, DEPTH)]
                for (rows, scores), rng in zip(scored, rngs_for(BREAK_TIES), strict=True)]

    # votes and expected: several sequences per prompt
    copies = PromptCache(talkplay.model, [prompt for prompt in prompts for _ in range(samples)])
    rngs = [child for rng in rngs_for(DRAW_MANY) for child in rng.spawn(samples)]
    if ranker == "votes":
        drawn = sample_codes(copies, dialogue_tokenizer, rngs, sampling, free)
        p = [code_shares(drawn[i:i + samples], dialogue_tokenizer.vocabulary.k)
             for i in range(0, len(drawn), samples)]
    else:
        p = code_marginals(copies, dialogue_tokenizer, rngs, samples)
    return [rank_rows(expected_overlap(talkplay.codes, of_prompt), rng, DEPTH)
            for of_prompt, rng in zip(p, rngs_for(BREAK_TIES), strict=True)]


# ---------------------------------------------------------------- answer one listener

class Answer(NamedTuple):
    track: dict
    row: int      # of the track
    codes: list   # the five sampled codes, or None where they are not well-formed
    response: str = ""


@torch.inference_mode()
def reply(talkplay, turns, ranker="likelihood", sampling=PAPER, free=True, beam=50, context=0,
          max_new_tokens=96, rng=None, on_track=None, on_text=None):
    """Answer the last of `turns`: Answer. A track is not played twice in a dialogue.

    turns: dicts with query; those before the last also with music (the track_id played, or None)
        and response (str or None)
    ranker: a key of SYSTEMS
    rng: a numpy Generator (None: a new one, so that the same turns get the same answer)
    on_track: called with the Answer before its response is written
    on_text: called with each new piece of the response
    """
    rng = np.random.default_rng(0) if rng is None else rng
    dialogue_tokenizer = talkplay.dialogue_tokenizer
    prompt = prompt_of(dialogue_tokenizer, turns, talkplay.codes_of, context)
    cache = PromptCache(talkplay.model, [prompt])
    sampled = sample_codes(cache, dialogue_tokenizer, [rng], sampling, free)
    rows = rank(talkplay, ranker, [prompt], cache, sampled, lambda purpose: [rng], sampling, free,
                beam)[0]
    played = [talkplay.row_of[turn["music"]] for turn in turns[:-1] if turn["music"]]
    row = first_unplayed(rows, played)
    answer = Answer(talkplay.tracks[row], row, sampled[0])
    if on_track:
        on_track(answer)
    on_token = stream_text(dialogue_tokenizer.tokenizer, on_text) if on_text else None
    response, = respond(cache, dialogue_tokenizer, talkplay.codes[[row]], [rng], sampling,
                        max_new_tokens, on_token)
    return answer._replace(response=response)


def chat(talkplay, seed=0, **how):
    """Talk in the terminal. how: arguments of `reply`."""
    def print_track(answer):
        text = data.item_text(answer.track, ("title", "artist", "album", "year"))
        print(f"play > {text}\n       {', '.join(answer.track['tags'])}\n       "
              f"{why(answer.codes, talkplay.codes[answer.row])}\ntalk > ", end="", flush=True)

    print("Say what you would like to hear. An empty line or Ctrl-D ends the chat.\n"
          '"sampled": the five tokens that the model wrote; = where the track has the same. '
          "Only --ranker overlap goes by them.")
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
        answer = reply(talkplay, [*turns, {"query": query}], rng=rng, on_track=print_track,
                       on_text=lambda text: print(text, end="", flush=True), **how)
        print()
        turns.append({"query": query, "music": answer.track["track_id"],
                      "response": answer.response})


# ---------------------------------------------------------------- predict a file of dialogues

@torch.inference_mode()
def predict_turns(talkplay, turns, rankers, seed=0, sampling=PAPER, free=True, beam=50, samples=20,
                  context=0, max_new_tokens=96):
    """Answer a batch of `common.turns.Turn`: per turn, its line of each ranker's file.

    max_new_tokens: of a response; 0 leaves the responses out
    """
    def rngs_for(purpose):
        return [turn_rng(seed, *turn.key, purpose) for turn in turns]

    dialogue_tokenizer = talkplay.dialogue_tokenizer
    prompts = [prompt_of(dialogue_tokenizer, [*turn.past, {"query": turn.query}],
                         talkplay.codes_of, context) for turn in turns]
    cache = PromptCache(talkplay.model, prompts)
    sampled = sample_codes(cache, dialogue_tokenizer, rngs_for(SAMPLE_CODES), sampling, free)
    rankings = [rank(talkplay, ranker, prompts, cache, sampled, rngs_for, sampling, free, beam,
                     samples) for ranker in rankers]
    responses = [None] * len(turns)
    if max_new_tokens:
        chosen = [first_unplayed(rows, turn.played)
                  for rows, turn in zip(rankings[0], turns, strict=True)]
        responses = respond(cache, dialogue_tokenizer, talkplay.codes[chosen],
                            rngs_for(WRITE_RESPONSE), sampling, max_new_tokens)
    return [[{"dialogue_id": turn.dialogue_id, "turn": turn.number,
              "track_ids": [talkplay.tracks[row]["track_id"] for row in ranking[i]],
              "response": None if n else responses[i],
              "codes": sampled[i], "well_formed": sampled[i] is not None}
             for n, ranking in enumerate(rankings)] for i, turn in enumerate(turns)]


def predict(talkplay, dialogues, paths, batch_size=32, **how):
    """Write the prediction files `paths`, one per ranker; go on where an earlier call was cut.

    how: arguments of `predict_turns`
    Returns: the number of turns, and the share of them whose sampled codes are well-formed.
    """
    journal = paths[0].with_name(JOURNAL)  # one line per turn, with its lines of all files
    done = {}
    if journal.is_file():
        data.keep_whole_lines(journal)
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
            for turn, rows in zip(batch, predict_turns(talkplay, batch, **how), strict=True):
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
    for name, what in (("chat", "talk to the model"),
                       ("predict", "rank all tracks for every turn of a file of dialogues"),
                       ("show", "print a predicted dialogue")):
        command = commands.add_parser(name, allow_abbrev=False, help=what, description=what)
        add, on_off = command.add_argument, argparse.BooleanOptionalAction
        add("--data-dir", type=Path, default="data/demo", help="folder (default data/demo)")
        if name != "chat":
            add("--split", choices=FOLDERS, default="test", help="dialogues (default test)")
        if name == "show":
            add("--dialogue", help="dialogue_id (default: the first of the split)")
            continue
        add("--temperature", type=float, default=1.0, help="0 = greedy (paper and default: 1)")
        add("--top-p", type=float, default=0.9, help="nucleus (paper and default: 0.9)")
        add("--repetition-penalty", type=float, default=1.0, help="1 = none (paper and default)")
        add("--free", action=on_off, default=True, help="sample the music tokens freely (default), "
            "or hold each to its modality")
        add("--beam", type=int, default=50, help="prefixes per level, of likelihood (default 50)")
        add("--cold-share", type=float, help="probability that likelihood gives to all tracks "
            "without a playlist code, 0 to 1 (default: their share of the catalogue)")
        add("--context", type=int, default=0, help="tokens of prompt and answer; of longer prompts "
            "the oldest turns are left out (default 0: as in training)")
        add("--max-new-tokens", type=int, default=96, help="of a response, at most (default 96)")
        add("--device", type=resolve_device, default="auto", help="auto (default), cpu, cuda ...")
        add("--seed", type=int, default=0, help="of the sampling and of ties (default 0)")
        if name == "chat":
            add("--ranker", choices=("likelihood", "overlap"), default="likelihood", help="what "
                "chooses the track: its probability (default), or the paper's overlap")
            continue
        add("--rankers", nargs="+", choices=SYSTEMS, default=["likelihood", "overlap"], help="one "
            "file each (default likelihood overlap); the top of this script says what they are")
        add("--samples", type=int, default=20, help="of votes and expected, per turn (default 20)")
        add("--responses", action=on_off, default=True, help="write what the model says (default)")
        add("--batch-size", type=int, default=32, help="turns answered at a time (default 32)")
        add("--limit", type=int, default=0, help="dialogues; 0 = all (default, and what 06 needs)")
        add("--resume", action=on_off, default=True, help="go on with a run that was cut (default);"
            " --no-resume starts afresh")
    return parser.parse_args()


def main():
    args = parse_args()
    folder = args.data_dir
    if args.command == "show":
        show(folder, args.split, args.dialogue)
        return
    if args.cold_share is not None and not 0 <= args.cold_share <= 1:
        raise SystemExit(f"--cold-share {args.cold_share}: a number from 0 to 1 is expected")
    how = {"sampling": Sampling(args.temperature, args.top_p, args.repetition_penalty),
           "free": args.free, "beam": args.beam, "context": args.context, "seed": args.seed}
    if args.command == "chat":
        chat(load(folder, args.device, args.cold_share), ranker=args.ranker,
             max_new_tokens=args.max_new_tokens, **how)
        return

    out = folder / FOLDERS[args.split]
    paths = [out / f"{SYSTEMS[ranker]}.jsonl" for ranker in args.rankers]
    reads = [*data.catalogue_files(folder), "codes.npy", f"dialogues_{args.split}.jsonl",
             "model/model.safetensors"]
    run, state = runs.begin_run(folder, f"05_infer.{args.split}", args, resume=args.resume,
                                reads=reads, writes=[path.relative_to(folder) for path in paths],
                                record=False, ignore=("data_dir", "resume", "device", "batch_size"))
    if state == "done":
        print("05_infer predict: already done, nothing changed")
        return
    talkplay = load(folder, args.device, args.cold_share)
    dialogues = data.load_dialogues(folder / f"dialogues_{args.split}.jsonl", talkplay.row_of)
    runs.record_run(run)  # only now: what it reads has proved good
    out.mkdir(exist_ok=True)
    if state == "new":
        (out / JOURNAL).unlink(missing_ok=True)
    n_turns, well_formed = predict(
        talkplay, dialogues[:args.limit or None], paths, args.batch_size, rankers=args.rankers,
        samples=args.samples, max_new_tokens=args.max_new_tokens if args.responses else 0, **how)
    print(f"{n_turns:,} turns; {well_formed:.1%} of the sampled music blocks are well-formed")
    runs.finish_run(run, well_formed_share=well_formed)
    print(f"wrote {', '.join(map(str, paths))}; next: python 06_evaluate.py --data-dir {folder} "
          f"--split {args.split}")


if __name__ == "__main__":
    main()
