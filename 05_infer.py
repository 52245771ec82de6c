"""05: answer a listener: five music tokens, a track, a sentence (paper, section 2.5).

Rankers turn the model into an order of all tracks:
    likelihood  the model's probability of each track's own tokens, found by a beam over the trie of
                all tracks; at most 4 x --beam prefixes are looked at
    overlap     the paper's: sample five tokens, then weighted overlap with each track's tokens
    greedy      the same with the likeliest tokens
    votes       the mean overlap with --samples sampled sequences
    expected    the overlap that the model's probabilities of the codes let expect

Reads   tracks.jsonl, codes.npy, model/; predict also dialogues_test.jsonl (or _valid)
Writes  predict: a file for each of --rankers, predictions/talkplay.jsonl (likelihood),
        predictions/talkplay-overlap.jsonl ... (for --split valid: predictions_valid/...)

Demo        python 05_infer.py chat
            python 05_infer.py predict                               (half a minute on two cores)
Full scale  python 05_infer.py predict --data-dir data/mpd --device cuda --batch-size 16
"""

import argparse
import json
import os
import signal
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import data, retrieval, runs, tokens
from common.process import resolve_device
from common.metrics import DEPTH, rank_rows
from steps.infer.generation import PromptCache, music_grammar, sample
from steps.infer.likelihood_ranker import code_marginals, group_tracks, rank_tracks

# predict's files; the first of --rankers chooses the track that the response is about
SYSTEMS = {"likelihood": "talkplay"} | {ranker: f"talkplay-{ranker}" for ranker in ("overlap", "greedy", "votes", "expected")}
ANSWER_ROOM = 64  # tokens of the context that a prompt leaves to the answer


# ---------------------------------------------------------------- the model

def load_model(folder, codes, device="cpu"):
    """(model, dialogue_tokenizer) of a folder made by 04_train.py.

    Raises SystemExit: not such a folder, or trained with another K than the catalogue's codes.
    """
    made_by = f"python 04_train.py --data-dir {folder.parent}"
    if not (folder / "config.json").is_file():
        raise SystemExit(f"{folder} is missing or holds no model; make it with: {made_by}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if "cuda" in str(device) else torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        raise SystemExit(f"{folder} cannot be loaded: {str(error).splitlines()[0]} Make it again with: {made_by}")
    dialogue_tokenizer = tokens.DialogueTokenizer(tokenizer)
    info = folder.parent / "codebooks" / "info.json"
    k = json.loads(info.read_text())["k"] if info.is_file() else dialogue_tokenizer.vocabulary.k
    if k != dialogue_tokenizer.vocabulary.k or codes.max() >= dialogue_tokenizer.vocabulary.k:
        raise SystemExit(f"{folder} was trained with K = {dialogue_tokenizer.vocabulary.k} codes a modality, but codes.npy was made with "
                         f"K = {max(k, int(codes.max()) + 1)}. Train again with: {made_by} --no-resume")
    runs.check_unchanged(folder.parent, "04_train", "codes.npy",
                         f"its tokens mean other tracks now. Train again with: {made_by} --no-resume")
    return model.to(device).eval(), dialogue_tokenizer


# ---------------------------------------------------------------- music and text

def generate_codes(reading, dialogue_tokenizer, rngs, free=True, **sampling):
    """Sample a music block after the prompts. Returns a list of five codes, or None where it is not valid."""
    length = len(reading)
    grammar = None if free else music_grammar(dialogue_tokenizer.vocabulary, reading.model.config.vocab_size, reading.device)
    blocks = sample(reading, reading.end, rngs, [dialogue_tokenizer.vocabulary.end, *stop_ids(dialogue_tokenizer)], 7, grammar=grammar, **sampling)
    reading.truncate(length)
    return [tokens.ids_to_codes(dialogue_tokenizer.vocabulary, block) for block in blocks]


def stop_ids(dialogue_tokenizer):
    return [dialogue_tokenizer.format.tail[0], dialogue_tokenizer.tokenizer.eos_token_id]


def respond(reading, dialogue_tokenizer, chosen, rngs, max_new=96, on_token=None, **sampling):
    """The sentence after the music block of the chosen tracks, codes (B, 5) -> list of B strings."""
    length, blocks = len(reading), np.zeros((len(chosen), 7), np.int64)
    keep = np.zeros_like(blocks)
    for row, codes in enumerate(chosen):  # right-aligned, so that the last token is the last place
        ids = tokens.codes_to_ids(dialogue_tokenizer.vocabulary, codes)
        blocks[row, 7 - len(ids):], keep[row, 7 - len(ids):] = ids, 1
    hidden = reading.read(blocks, keep)[:, -1]
    texts = sample(reading, hidden, rngs, stop_ids(dialogue_tokenizer), max_new, on_token=on_token, may_be_empty=False, **sampling)
    reading.truncate(length)
    return [dialogue_tokenizer.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in texts]


# ---------------------------------------------------------------- predict

def prompt_of(dialogue_tokenizer, turns, codes_of, context=0):
    """Ids up to where the answer to the last turn begins.

    The oldest turns are left out if prompt and answer would not fit into `context` tokens (0: as many as
    in training, which 04_train.py leaves in the tokenizer).
    """
    context = (context or dialogue_tokenizer.tokenizer.model_max_length) - ANSWER_ROOM
    for first in range(len(turns)):
        ids, _ = tokens.encode_dialogue(dialogue_tokenizer, turns[first:], codes_of, prompt=True)
        if len(ids) <= context:
            return ids
    return ids[-context:]


def stream(seed, dialogue_id, turn, purpose):
    """A random stream of its own for each turn and purpose."""
    return np.random.default_rng([seed, crc32(dialogue_id.encode()), turn, purpose])


class Catalogue(NamedTuple):
    """The tracks in every form that answering needs."""
    tracks: list
    row_of: dict              # {track_id: row}
    codes: np.ndarray         # (N, 5)
    codes_of: dict            # {track_id: five codes}
    index: retrieval.Index
    groups: list              # of group_tracks


def load_catalogue(data_dir, device, cold_share=None):
    """(model, dialogue_tokenizer, catalogue) of a data directory."""
    tracks = data.load_tracks(data_dir)
    codes = data.load_codes(data_dir, len(tracks))
    model, dialogue_tokenizer = load_model(data_dir / "model", codes, device)
    with torch.inference_mode():
        groups = group_tracks(model, dialogue_tokenizer, codes, cold_share)
    ids = [t["track_id"] for t in tracks]
    return model, dialogue_tokenizer, Catalogue(tracks, {t: i for i, t in enumerate(ids)}, codes, dict(zip(ids, codes)),
                                   retrieval.build_index(codes), groups)


def rank_prompts(ranker, model, dialogue_tokenizer, catalogue, prompts, reading, streams, sampled, args):
    """Rows of the DEPTH best tracks by one ranker, for each prompt that `reading` has read.

    streams: function of a purpose -> a random stream for each prompt. sampled: the codes sampled for each prompt.
    """
    codes, index, sampling = catalogue.codes, catalogue.index, dict(temperature=args.temperature, top_p=args.top_p)
    if ranker in ("overlap", "greedy"):
        if ranker == "greedy":
            sampled = generate_codes(reading, dialogue_tokenizer, streams(0), free=args.free, temperature=0)
        return [retrieval.search(index, c or [-1] * 5, DEPTH, rng)[0] for c, rng in zip(sampled, streams(2))]
    if ranker == "likelihood":
        found = rank_tracks(reading, dialogue_tokenizer, catalogue.groups, DEPTH, args.beam)
        return [rows[rank_rows(scores, rng, DEPTH)] for (rows, scores), rng in zip(found, streams(1))]
    many = PromptCache(model, [prompt for prompt in prompts for _ in range(args.samples)])
    rngs = [rng for stream in streams(4) for rng in stream.spawn(args.samples)]
    if ranker == "votes":
        drawn = generate_codes(many, dialogue_tokenizer, rngs, free=args.free, **sampling)
        p = [retrieval.code_shares(drawn[i:i + args.samples], dialogue_tokenizer.vocabulary.k) for i in range(0, len(drawn), args.samples)]
    else:
        p = code_marginals(many, dialogue_tokenizer, rngs, args.samples)
    scores = [retrieval.expected_overlap(codes, each) for each in p]
    return [rank_rows(s, rng, DEPTH) for s, rng in zip(scores, streams(1))]


def predict_batch(model, dialogue_tokenizer, batch, catalogue, args):
    """Rows of the prediction files, one list for each (dialogue, turn number) of the batch."""
    tracks, row_of, codes = catalogue.tracks, catalogue.row_of, catalogue.codes

    def streams(purpose):
        return [stream(args.seed, d["dialogue_id"], t, purpose) for d, t in batch]

    prompts = [prompt_of(dialogue_tokenizer, d["turns"][:t], catalogue.codes_of, args.context) for d, t in batch]
    sampling = dict(temperature=args.temperature, top_p=args.top_p, repetition_penalty=args.repetition_penalty)
    reading = PromptCache(model, prompts)
    sampled = generate_codes(reading, dialogue_tokenizer, streams(0), free=args.free, **sampling)
    ranked = [rank_prompts(ranker, model, dialogue_tokenizer, catalogue, prompts, reading, streams, sampled, args) for ranker in args.rankers]
    responses = [None] * len(batch)
    if args.responses:
        chosen = []
        for (d, t), rows in zip(batch, ranked[0]):
            played = {row_of[turn["music"]] for turn in d["turns"][:t - 1] if turn["music"]}
            chosen.append(codes[next((r for r in rows if r not in played), rows[0])])
        responses = respond(reading, dialogue_tokenizer, chosen, streams(3), args.max_new_tokens, **sampling)
    return [[{"dialogue_id": d["dialogue_id"], "turn": t, "track_ids": [tracks[r]["track_id"] for r in rows[i]],
              "response": None if n else responses[i], "codes": sampled[i], "well_formed": sampled[i] is not None}
             for n, rows in enumerate(ranked)] for i, (d, t) in enumerate(batch)]


def predict(args):
    folder = args.data_dir
    row_of = {t["track_id"]: i for i, t in enumerate(data.load_tracks(folder))}
    dialogues = data.load_dialogues(folder / f"dialogues_{args.split}.jsonl", row_of)[:args.limit or None]
    out = folder / ("predictions" if args.split == "test" else f"predictions_{args.split}")
    paths = [out / f"{SYSTEMS[ranker]}.jsonl" for ranker in args.rankers]
    run, state = runs.begin_run(folder, f"05_infer.{args.split}", args, resume=args.resume,
                                reads=["tracks.jsonl", "codes.npy", f"dialogues_{args.split}.jsonl", "model/model.safetensors"],
                                writes=[p.relative_to(folder) for p in paths], record=False,
                                ignore=("data_dir", "resume", "device", "batch_size"))
    if state == "done":
        print("05_infer predict: already done, nothing changed")
        return
    model, dialogue_tokenizer, catalogue = load_catalogue(folder, args.device, args.cold_share)
    runs.record_run(run)  # only now: what it reads has proved good
    out.mkdir(exist_ok=True)
    part = out / "talkplay.jsonl.part"  # a line a turn: its rows of all files
    if state == "new":
        part.unlink(missing_ok=True)
    done = {}
    if part.is_file():
        data.keep_whole_lines(part)
        done = {(rows[0]["dialogue_id"], rows[0]["turn"]): rows for _, line in data.read_jsonl(part, "") for rows in [line["rows"]]}

    wanted = [(d, t) for d in dialogues for t, turn in enumerate(d["turns"], 1) if turn["targets"]]
    todo = sorted([w for w in wanted if (w[0]["dialogue_id"], w[1]) not in done],  # the turns of a dialogue are read at one go
                  key=lambda w: (sum(len(turn["query"]) for turn in w[0]["turns"]), w[0]["dialogue_id"], w[1]))
    with open(part, "a", encoding="utf-8") as f, torch.inference_mode():
        for i in tqdm(range(0, len(todo), args.batch_size), desc=f"predict {args.split}"):
            for rows in predict_batch(model, dialogue_tokenizer, todo[i:i + args.batch_size], catalogue, args):
                f.write(json.dumps({"rows": rows}) + "\n")
                done[rows[0]["dialogue_id"], rows[0]["turn"]] = rows
            f.flush()
    for i, path in enumerate(paths):
        data.write_jsonl(path, (done[d["dialogue_id"], t][i] for d, t in wanted))
    os.remove(part)
    valid = np.mean([rows[0]["well_formed"] for rows in done.values()])
    print(f"{len(wanted):,} turns; {valid:.1%} of the sampled music blocks are valid")
    runs.finish_run(run, valid_share=float(valid))
    print(f"wrote {', '.join(map(str, paths))}; next: python 06_evaluate.py --data-dir {folder} --split {args.split}")


def show(args):
    """Print one dialogue with what the listener was played, and what the model would have answered."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # "show | head" ends quietly
    folder = args.data_dir
    tracks = data.load_tracks(folder)
    row_of = {t["track_id"]: i for i, t in enumerate(tracks)}
    dialogues = data.load_dialogues(folder / f"dialogues_{args.split}.jsonl", row_of)
    args.dialogue = args.dialogue or dialogues[0]["dialogue_id"]
    dialogue = next((d for d in dialogues if d["dialogue_id"] == args.dialogue), None)
    if dialogue is None:
        raise SystemExit(f"--dialogue {args.dialogue} is not in {folder}/dialogues_{args.split}.jsonl; its ids run from "
                         f"{dialogues[0]['dialogue_id']} to {dialogues[-1]['dialogue_id']}")
    path = folder / ("predictions" if args.split == "test" else f"predictions_{args.split}") / "talkplay.jsonl"
    rows = {row["turn"]: row for _, row in data.read_jsonl(path, f"python 05_infer.py predict --data-dir {folder} --split {args.split}")
            if row["dialogue_id"] == args.dialogue}
    runs.check_unchanged(folder, f"05_infer.{args.split}", f"dialogues_{args.split}.jsonl",
                         f"predict again: python 05_infer.py predict --data-dir {folder} "
                         f"--split {args.split} --no-resume")
    played = set()
    print(f"{args.dialogue}: what the model would answer. The dialogue goes on with the track of the data, not with the model's.")
    for t, turn in enumerate(dialogue["turns"], 1):
        print(f"\nlistener  {turn['query']}")
        if t in rows:
            ranked = [i for i in rows[t]["track_ids"] if i not in played or i in turn["targets"]]
            rank = next((r for r, i in enumerate(ranked, 1) if i in turn["targets"]), f"below {len(ranked)}")
            print(f"model     {describe(tracks[row_of[ranked[0]]])}\n          \"{rows[t]['response']}\"")
            print(f"data      {describe(tracks[row_of[turn['targets'][0]]])}  (the model ranks it {rank} of {len(tracks)}"
                  f"{'; the listener turns it down' if turn['rejected'] else ''})")
        played.add(turn["music"])


def describe(track):
    return f"{data.item_text(track, ('title', 'artist', 'year'))} [{', '.join(track['tags'])}]"


# ---------------------------------------------------------------- chat

def reply(model, dialogue_tokenizer, turns, catalogue, args, rng, on_text=None):
    """Answer the last of `turns` (its music and response are not set yet).

    Returns: row of the track, the five sampled codes or None, the response.
    """
    tracks, _, codes, codes_of, index, groups = catalogue
    sampling = dict(temperature=args.temperature, top_p=args.top_p, repetition_penalty=args.repetition_penalty)
    reading = PromptCache(model, [prompt_of(dialogue_tokenizer, turns, codes_of, args.context)])
    sampled = generate_codes(reading, dialogue_tokenizer, [rng], free=args.free, **sampling)[0]
    if args.ranker == "likelihood":
        rows, scores = rank_tracks(reading, dialogue_tokenizer, groups, DEPTH, args.beam)[0]
        rows = rows[rank_rows(scores, rng, DEPTH)]
    else:
        rows, _ = retrieval.search(index, sampled or [-1] * 5, DEPTH, rng)
    played = {turn["music"] for turn in turns[:-1]}
    row = next((r for r in rows if tracks[r]["track_id"] not in played), rows[0])
    on_track, on_token = on_text or (None, None)
    if on_track:
        on_track(row, sampled)
    return row, sampled, respond(reading, dialogue_tokenizer, [codes[row]], [rng], args.max_new_tokens, on_token=on_token, **sampling)[0]


def why(sampled, codes):
    """Which of the sampled tokens the track has, as a line of text."""
    if sampled is None:
        return "the sampled tokens were not a valid block"
    marks = [f"{m}-{c}{' =' if c == have else f' (track: {have if have >= 0 else None})'}"
             for m, c, have in zip(tokens.MODALITIES, sampled, codes) if c >= 0]
    return f"sampled {', '.join(marks)}"


def chat(args):
    folder = args.data_dir
    model, dialogue_tokenizer, catalogue = load_catalogue(folder, args.device, args.cold_share)
    tracks, codes = catalogue.tracks, catalogue.codes
    rng, turns = np.random.default_rng(args.seed), []
    print("Say what you would like to hear. An empty line or Ctrl-D ends the chat.\n"
          '"sampled": the five tokens that the model wrote; = where the track has the same. Only --ranker overlap goes by them.')
    while True:
        try:
            query = input("\nyou  > ").strip()
        except EOFError:
            query = ""
        if not query:
            return print()
        turns.append({"query": query, "music": None, "response": None})
        shown = [0]

        def show_track(row, sampled):
            track = tracks[row]
            print(f"play > {data.item_text(track, ('title', 'artist', 'album', 'year'))}\n"
                  f"       {', '.join(track['tags'])}\n       {why(sampled, codes[row])}\ntalk > ", end="", flush=True)

        def show_token(ids):
            text = dialogue_tokenizer.tokenizer.decode(ids, skip_special_tokens=True).lstrip()
            if not text.endswith("\ufffd"):  # wait for the rest of a character
                print(text[shown[0]:], end="", flush=True)
                shown[0] = len(text)

        with torch.inference_mode():
            row, _, response = reply(model, dialogue_tokenizer, turns, catalogue, args, rng, (show_track, show_token))
        print()
        turns[-1] |= {"music": tracks[row]["track_id"], "response": response}


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("chat", "talk to the model"), ("predict", "rank all tracks for every turn of a file of dialogues"),
                       ("show", "print a predicted dialogue")):
        command = commands.add_parser(name, allow_abbrev=False, help=what, description=what)
        command.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
        if name != "chat":
            command.add_argument("--split", choices=("test", "valid"), default="test", help="dialogues (default test)")
        if name == "show":
            command.add_argument("--dialogue", help="dialogue_id (default: the first of the split)")
            continue
        command.add_argument("--temperature", type=float, default=1.0, help="of the sampling, 0 = greedy (paper and default: 1)")
        command.add_argument("--top-p", type=float, default=0.9, help="nucleus, a share of the probability (paper and default: 0.9)")
        command.add_argument("--repetition-penalty", type=float, default=1.0, help="divides the logits of what was said before; 1 = none "
                             "(paper and default)")
        command.add_argument("--free", action=argparse.BooleanOptionalAction, default=True,
                             help="sample the music tokens freely (default), or hold each to its modality")
        command.add_argument("--beam", type=int, default=50, help="prefixes kept a level by the likelihood ranker (default 50)")
        command.add_argument("--cold-share", type=float, default=None, help="probability that the likelihood ranker gives to all "
                             "tracks without a playlist code, 0 to 1 (default: their share of the catalogue)")
        command.add_argument("--context", type=int, default=0, help="tokens of prompt and answer; older turns are left out of "
                             "longer prompts (default 0: as in training)")
        command.add_argument("--max-new-tokens", type=int, default=96, help="longest answer in tokens (default 96)")
        command.add_argument("--device", type=resolve_device, default="auto", help="auto (default: cuda if there is one), cpu, cuda, ...")
        command.add_argument("--seed", type=int, default=0, help="of the sampling and of the order of equal scores (default 0)")
        if name == "chat":
            command.add_argument("--ranker", choices=("likelihood", "overlap"), default="likelihood",
                                 help="what chooses the track: its probability (default), or the paper's overlap")
        else:
            command.add_argument("--rankers", nargs="+", choices=SYSTEMS, default=["likelihood", "overlap"],
                                 help="a file of predictions each (default likelihood overlap); the top of this script says what they are")
            command.add_argument("--samples", type=int, default=20, help="sequences that votes and expected draw a turn (default 20)")
            command.add_argument("--responses", action=argparse.BooleanOptionalAction, default=True,
                                 help="also write what the model says (default)")
            command.add_argument("--batch-size", type=int, default=32, help="turns answered at a time (default 32)")
            command.add_argument("--limit", type=int, default=0, help="dialogues, for a trial; 0 (default) = all (06 accepts nothing less)")
            command.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                                 help="go on with a run that was cut (default); --no-resume starts afresh")
    args = parser.parse_args()
    if not 0 <= (getattr(args, "cold_share", None) or 0) <= 1:
        raise SystemExit(f"--cold-share {args.cold_share}: a number from 0 to 1 is expected")
    torch.set_flush_denormal(True)
    {"chat": chat, "predict": predict, "show": show}[args.command](args)


if __name__ == "__main__":
    main()
