"""03: dialogues from playlists (paper, section 2.3).

A dialogue is a journey through tracks of one playlist: a query, a track, an answer, and so on. A track that the listener
turns down comes from the negative set: tracks by artists of the playlist that are not in it. Who writes it
is --backend:

simulate  a simulated listener, offline (steps/synthesize/simulate.py); --mix and --rejections say how often it asks in which way
gemini    Google's models, as the paper; the key in GEMINI_API_KEY or GOOGLE_API_KEY (steps/synthesize/llm/gemini.py)
local     any chat model of Hugging Face's, on this machine (steps/synthesize/llm/local.py)

The last two fill steps/synthesize/llm/prompt.txt with a chunk of a playlist (--chunk, --chunk-test, --lyrics-words, --negatives), and
steps/synthesize/llm/parse.py makes a dialogue of the answer. What it cannot repair with certainty is asked for once more, then set
aside in dialogues_rejected.jsonl; so there may be fewer dialogues than were asked for. --show-prompt prints one prompt and
what the whole run would cost (--price-in, --price-out), and calls nobody. --concurrency calls are made at a time,
--requests-per-minute at most, each tried up to --tries times. Try a few first, in a folder of its own, and read them:
--n-train 20 --n-valid 5 --n-test 5.

`audit` looks at dialogues instead, from whatever source: schema, queries that give the target away, what they speak of,
whether "slower" brings something slower, whether what answers say is true of the track, duplicates between train and test
(steps/synthesize/audit.py); with --predictions also at the answers of systems.

Reads   tracks.jsonl, playlists.jsonl; audit: the dialogues, with --predictions predictions/*.jsonl
Writes  dialogues_train.jsonl, dialogues_valid.jsonl, dialogues_test.jsonl; gemini and local: dialogues_rejected.jsonl,
        answers_train.jsonl and so on, which keep what was paid for; audit: results/audit.md, results/audit.json

Demo        python 03_synthesize.py                                  (20 s)
            python 03_synthesize.py audit --predictions talkplay     (30 s)
Full scale  python 03_synthesize.py --data-dir data/mpd --n-train 531552 --n-valid 1000 --n-test 1000
            python 03_synthesize.py --data-dir data/mpd-gemini --backend gemini --n-train 531552 --n-valid 1000 --n-test 1000 --show-prompt
            python 03_synthesize.py --data-dir data/mpd-local --backend local --model Qwen/Qwen3-4B-Instruct-2507 --device cuda --batch-size 32

A killed run goes on where it stopped when the same command is given again, and pays for nothing twice; gemini and local
keep what was paid for also with another --n-train, --n-valid or --n-test.
"""

import argparse
import json
import math
import os
import re
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import data, runs
from common.process import resolve_device
from steps.synthesize import audit, simulate
from steps.synthesize.llm import jobs, parse, prompt
from steps.synthesize.attributes import track_attributes

BACKENDS = ("simulate", "gemini", "local")
MIN_TURNS, MAX_TURNS = 4, 14  # of a simulated dialogue; a playlist needs MIN_TURNS tracks for every backend
ONLY_SIMULATE = ("max_tracks", "mix", "rejections")
ONLY_LLM = ("model", "chunk", "chunk_test", "lyrics_words", "negatives", "temperature", "top_p", "max_new_tokens")
COUNTS = ("n_train", "n_valid", "n_test")  # for a language model: dialogue i is the same for any n, and what is paid for is kept
NO_EFFECT = ("task", "file", "predictions", "show_prompt", "concurrency", "requests_per_minute", "tries", "timeout", "api_endpoint",
             "price_in", "price_out", "batch_size", "data_dir", "resume", "device")  # arguments that change no dialogue


# ---------------------------------------------------------------- what a dialogue is made from

def sample_tracks(playlist, rng, most):
    """4 to `most` tracks of a playlist, a stretch of neighbours with gaps, in the playlist's order."""
    ids = playlist["track_ids"]
    n = int(rng.integers(MIN_TURNS, min(most, len(ids)) + 1))
    stretch = min(len(ids), 2 * n)
    start = int(rng.integers(len(ids) - stretch + 1))
    return [ids[start + i] for i in sorted(rng.permutation(stretch)[:n])]


def negative_set(playlist, tracks_by_artist, artist_of):
    """Track ids by artists of the playlist that are not in it, sorted.

    tracks_by_artist: for training dialogues only the tracks of training playlists, or new (cold)
    tracks would be met in training.
    """
    artists = {artist_of[t] for t in playlist["track_ids"]} - {None}
    inside = set(playlist["track_ids"])
    return sorted({t for a in artists for t in tracks_by_artist.get(a, [])} - inside)


def artists_tracks(split, playlists, tracks):
    """({artist: track ids that a negative set of this split may hold}, {track_id: artist})."""
    warm = {t for p in playlists if p["split"] == "train" for t in p["track_ids"]}
    tracks_by_artist = {}
    for track in tracks if split != "train" else [t for t in tracks if t["track_id"] in warm]:
        tracks_by_artist.setdefault(track["artist"], []).append(track["track_id"])
    return tracks_by_artist, {t["track_id"]: t["artist"] for t in tracks}


def playlists_in_turn(split, playlists, seed):
    """The playlists of a split that are long enough, in a seeded order. Raises SystemExit: none."""
    chosen = [p for p in playlists if p["split"] == split and len(p["track_ids"]) >= MIN_TURNS]
    if not chosen:
        raise SystemExit(f"no {split} playlist has {MIN_TURNS} tracks or more; make more playlists with 00_prepare_data.py")
    return [chosen[i] for i in np.random.default_rng([seed, data.SPLITS.index(split)]).permutation(len(chosen))]


# ---------------------------------------------------------------- the simulated listener

def synthesize(split, playlists, tracks, row_of, attributes_of, n, seed, path, most, mix):
    """Write n dialogues over the playlists of one split, in turn; several for each where n is larger.

    attributes_of: {track_id: track_attributes(track)}; most: tracks sampled for one; mix: of simulate.mix_of.

    Lines go to `path`.part one by one; whole lines that are there already are kept. Each dialogue has
    its own random stream, so a resumed run ends in the same file.
    """
    tracks_by_artist, artist_of = artists_tracks(split, playlists, tracks)
    chosen = playlists_in_turn(split, playlists, seed)

    part = path.with_name(path.name + ".part")
    done = data.keep_whole_lines(part)
    with open(part, "a", encoding="utf-8") as f:
        for i in tqdm(range(done, n), initial=done, total=n, desc=split):
            playlist = chosen[i % len(chosen)]
            rng = np.random.default_rng([seed, data.SPLITS.index(split), i])
            sampled = sample_tracks(playlist, rng, most)
            negatives = negative_set(playlist, tracks_by_artist, artist_of)
            turns = simulate.simulate(playlist.get("title"), [tracks[row_of[t]] for t in sampled],
                                      [tracks[row_of[t]] for t in negatives], attributes_of, split, rng, MAX_TURNS, **mix)
            dialogue = {"dialogue_id": f"{split}-{i}", "playlist_id": playlist["playlist_id"],
                        "meta": {"backend": "simulate", "sampled": len(sampled)}, "turns": turns}
            wrong = parse.problems(dialogue, sampled, set(negatives), MIN_TURNS, MAX_TURNS)
            if wrong:
                raise SystemExit(f"dialogue {dialogue['dialogue_id']} of playlist {playlist['playlist_id']}: {'; '.join(wrong)}")
            f.write(json.dumps(dialogue, ensure_ascii=False) + "\n")
            f.flush()
    os.replace(part, path)


# ---------------------------------------------------------------- language models

def job_maker(split, playlists, tracks, row_of, seed, size, most_negatives):
    """A function of a dialogue's number -> prompt.Job: a chunk of a playlist, and some of its negative set."""
    tracks_by_artist, artist_of = artists_tracks(split, playlists, tracks)
    chosen = playlists_in_turn(split, playlists, seed)

    def make_job(number):
        playlist = chosen[number % len(chosen)]
        rng = np.random.default_rng([seed, data.SPLITS.index(split), number])
        ids = prompt.chunk(playlist["track_ids"], number // len(chosen), size, rng)
        negatives = negative_set(playlist, tracks_by_artist, artist_of)
        negatives = [negatives[i] for i in rng.permutation(len(negatives))[:most_negatives]]
        return prompt.Job(number, f"{split}-{number}", playlist["playlist_id"], [tracks[row_of[t]] for t in ids],
                          [tracks[row_of[t]] for t in negatives], prompt.OPENINGS[int(rng.integers(len(prompt.OPENINGS)))])
    return make_job


def make_backend(args, limiter):
    """A function of prompts and seeds -> Answers, by --backend. Raises SystemExit: no key, no package, no model."""
    if args.backend == "gemini":
        from steps.synthesize.llm import gemini
        call = gemini.make_call(args.model, gemini.read_key(), args.api_endpoint, args.temperature, args.top_p, args.max_new_tokens,
                                args.timeout)
        return lambda prompts, seeds: [gemini.ask_patiently(call, text, limiter, args.tries) for text in prompts]
    from steps.synthesize.llm import local
    model, tokenizer = local.load_model(args.model, resolve_device(args.device))
    return lambda prompts, seeds: local.generate(model, tokenizer, prompts, seeds, args.max_new_tokens, args.temperature, args.top_p)


def converse(split, answered, make_job, n, backend, limiter, journal, args):
    """Ask for the n dialogues of a split; the journal has them then. answered, returned: as of jobs.ask_all."""
    def ask(tasks):
        prompts = [prompt.fill(make_job(task.number), args.lyrics_words, task.complaint) for task in tasks]
        seeds = [np.random.SeedSequence([args.seed, data.SPLITS.index(split), task.number, task.attempt]) for task in tasks]
        return backend(prompts, [int(seed.generate_state(1)[0]) for seed in seeds])

    return jobs.ask_all(journal, n, ask, lambda number, text: parse.judge(text, make_job(number).shown()), limiter,
                          args.batch_size if args.backend == "local" else 1, args.concurrency if args.backend == "gemini" else 1, split,
                          answered)


# ---------------------------------------------------------------- the script

def describe_split(dialogues, warm):
    """One row of the paper's Table 1. warm: ids of the tracks in training playlists."""
    turns = [t for d in dialogues for t in d["turns"]]
    music = {t["music"] for t in turns}
    words = {w for t in turns for text in (t["query"], t["response"]) for w in text.lower().split()}
    kinds = [t["kind"] or "not known" for t in turns]
    kinds = {k: kinds.count(k) / len(turns) for k in sorted(set(kinds))}
    return {"dialogues": len(dialogues), "turns": len(turns), "turns per dialogue": round(len(turns) / len(dialogues), 2),
            "tracks": len(music), "cold tracks": len(music - warm), "words": len(words),
            "words per query": round(np.mean([len(t["query"].split()) for t in turns]), 1),
            "rejected": f"{np.mean([t['rejected'] for t in turns]):.1%}",
            "unseen templates": f"{np.mean([t.get('template') == 'unseen' for t in turns]):.1%}",
            "kinds": ", ".join(f"{k} {share:.0%}" for k, share in kinds.items())}


def refuse_others(paths, journals, record, ours, resume):
    """Raises SystemExit where dialogues lie that this script did not make there: an adapter's of 00, somebody's own, another backend's.

    record: runs/03_synthesize.json of the same folder; without it, nobody knows what the answers in the journals were asked for.
    ours: --backend.
    """
    for path in (p for p in paths if p.is_file()):
        backend = (next(data.read_jsonl(path, "the script that wrote it"), (1, {}))[1].get("meta") or {}).get("backend")
        if backend not in BACKENDS or not record.is_file():
            why = f"its meta says backend: {backend}" if backend not in BACKENDS else f"{record} is missing"
            raise SystemExit(f"{path} was not made by 03_synthesize here ({why}) and is not overwritten. Leave 03 out and go on with "
                             f"python 04_train.py --data-dir {path.parent}, or give another --data-dir; to have it replaced, delete it")
        if resume and backend != ours:
            raise SystemExit(f"{path.parent} has dialogues of --backend {backend}; one folder holds one set. Copy tracks.jsonl and playlists.jsonl "
                             f"to another folder and name it with --data-dir (--no-resume replaces those here)")
    for journal in (journal for journal in journals if resume and journal.is_file() and not record.is_file()):
        raise SystemExit(f"{journal} holds answers that may have been paid for, but {record} is missing: put it back, give another "
                         f"--data-dir, or start afresh with --no-resume, which deletes them")


def read_mix(given):
    """["tags=2", ...] -> {kind: weight}. Raises SystemExit: no such kind, or no weight."""
    weights = {}
    for pair in given or ():
        kind, _, weight = pair.partition("=")
        if kind not in simulate.OPENING | simulate.LATER or not re.fullmatch(r"\d*\.?\d+", weight):
            raise SystemExit(f"--mix {pair}: KIND=WEIGHT is accepted, as in tags=2, with a weight of 0 or more and one of the kinds "
                             f"{', '.join(simulate.OPENING | simulate.LATER)}")
        weights[kind] = float(weight)
    return weights


def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Dialogues from playlists, or (audit) a look at dialogues.")
    add = parser.add_argument
    add("task", nargs="?", choices=("write", "audit"), default="write", help="write dialogues (default), or audit those that are there")
    add("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    add("--file", type=Path, nargs="+", help="audit: dialogue files, as paths from here (default: the three of --data-dir); train is "
        "the one with train in its name")
    add("--predictions", nargs="+", default=[], metavar="SYSTEM", help="audit: also the answers in predictions/<SYSTEM>.jsonl, such as "
        "talkplay (default none)")
    add("--backend", choices=BACKENDS, default="simulate", help="who writes the dialogues (default simulate)")
    add("--n-train", type=int, default=4000, help="training dialogues (default 4000; paper 531552)")
    add("--n-valid", type=int, default=150, help="validation dialogues (default 150)")
    add("--n-test", type=int, default=150, help="test dialogues (default 150; paper 1000)")
    add("--max-tracks", type=int, default=10, help="simulate: most tracks sampled for a dialogue, 4 to 10 (default 10)")
    defaults = ["; ".join(f"{kind} {weight:g}" for kind, weight in of.items()) for of in (simulate.OPENING, simulate.LATER)]
    add("--mix", nargs="+", metavar="KIND=WEIGHT", help="simulate: how often each kind of query is tried, as in --mix lyrics=0.5 more=0; "
        f"kinds not named keep their weight (of what is tried, no share of the outcome). Default for first queries: {defaults[0]}; for later ones: {defaults[1]}. A kind that holds for "
        "none of the tracks to come (no lyrics, nothing in common) gives way to another")
    add("--rejections", type=float, help="simulate: share of the later turns at which a track of the negative set comes first and is "
        f"turned down, where one fits; 0 = never (default {simulate.REJECTION:g})")
    add("--model", help="gemini: its name (default gemini-flash-latest; the paper's, gemini-1.5-flash-002, is retired); local: a "
        "Hugging Face name or a folder")
    add("--chunk", type=int, default=7, help="gemini, local: about so many tracks for a training dialogue (default 7)")
    add("--chunk-test", type=int, default=13, help="the same for valid and test (default 13)")
    add("--lyrics-words", type=int, default=60, help="most words of a track's lyrics in the prompt (default 60; 0 = none)")
    add("--negatives", type=int, default=4, help="most tracks of the negative set in the prompt (default 4; 0 = nothing is turned down)")
    add("--temperature", type=float, default=1.0, help="gemini, local: of the sampling, 0 = greedy (default 1)")
    add("--top-p", type=float, default=0.95, help="gemini, local: nucleus (default 0.95)")
    add("--max-new-tokens", type=int, default=8192, help="longest answer in tokens, what a model thinks included (default 8192)")
    add("--show-prompt", action="store_true", help="print one prompt and the tokens and cost of the whole run, and call nobody")
    add("--price-in", type=float, help="dollars a million tokens of the prompts, to tell the cost (default: not told)")
    add("--price-out", type=float, help="dollars a million tokens of the answers (default: not told)")
    add("--concurrency", type=int, default=8, help="gemini: calls at a time (default 8)")
    add("--requests-per-minute", type=float, default=60, help="gemini: most calls a minute, tries included (default 60; 0 = no limit)")
    add("--tries", type=int, default=6, help="gemini: tries of a call that is refused (429), fails (5xx) or hangs (default 6)")
    add("--timeout", type=float, default=120, help="gemini: longest silence of the server, before and within its answer, in s (default 120)")
    add("--api-endpoint", help="gemini: another server than Google's, such as http://127.0.0.1:8080")
    add("--batch-size", type=int, default=8, help="local: dialogues at a time (default 8)")
    add("--device", default="auto", help="local: auto (default: cuda if there is one), cpu, cuda, ...")
    add("--seed", type=int, default=0, help="of every draw (default 0)")
    add("--resume", action=argparse.BooleanOptionalAction, default=True,
        help="go on with a run that was cut (default); --no-resume starts afresh and throws away what has been paid for")
    args = parser.parse_args()
    if not MIN_TURNS <= args.max_tracks <= 10:
        raise SystemExit(f"--max-tracks {args.max_tracks}: {MIN_TURNS} to 10 are accepted")
    for name, least in (("chunk", MIN_TURNS), ("chunk_test", MIN_TURNS), ("n_train", 1), ("n_valid", 1), ("n_test", 1), ("concurrency", 1),
                        ("tries", 1), ("batch_size", 1), ("max_new_tokens", 1), ("negatives", 0), ("lyrics_words", 0), ("seed", 0)):
        if getattr(args, name) < least:
            raise SystemExit(f"--{name.replace('_', '-')} {getattr(args, name)}: {least} or more is accepted")
    for name, good, accepted in (("temperature", 0 <= args.temperature < math.inf, "0 or more"),
                                 ("top_p", 0 < args.top_p <= 1, "above 0, to 1,"),
                                 ("requests_per_minute", args.requests_per_minute >= 0, "0 (no limit) or more"),
                                 ("timeout", 0 < args.timeout <= 86400, "more than 0 s, to 86400,"),
                                 ("price_in", (args.price_in or 0) >= 0, "0 or more"),
                                 ("price_out", (args.price_out or 0) >= 0, "0 or more")):
        if not good:
            raise SystemExit(f"--{name.replace('_', '-')} {getattr(args, name):g}: {accepted} is accepted")
    if args.backend != "simulate" and (args.mix or args.rejections is not None):
        raise SystemExit(f"--mix and --rejections are for --backend simulate; what {args.backend} writes follows steps/synthesize/llm/prompt.txt")
    if not 0 <= (args.rejections or 0) <= 1:
        raise SystemExit(f"--rejections {args.rejections:g}: a share from 0 to 1 is accepted")
    args.mix = read_mix(args.mix) or None  # None, so that runs of before the flag stay what they are
    if args.backend == "local" and not args.model:
        raise SystemExit("--backend local needs --model: a Hugging Face name or a folder with a chat model, for instance "
                         "Qwen/Qwen3-4B-Instruct-2507")
    if args.backend == "gemini" and args.model is not None and not re.fullmatch(r"((models|tunedModels)/)?[\w.-]+", args.model, re.ASCII):
        raise SystemExit(f"--model {args.model}: a name of Google's is accepted, such as gemini-flash-latest; a Hugging Face name or a "
                         f"folder is for --backend local")
    if args.api_endpoint is not None and not re.fullmatch(r"\S+", args.api_endpoint):
        raise SystemExit(f"--api-endpoint {args.api_endpoint}: a server is accepted, such as http://127.0.0.1:8080 (default: Google's)")
    if args.task == "audit" and (args.mix or args.rejections is not None):
        raise SystemExit("--mix and --rejections are for writing dialogues, not for audit")
    if (args.price_in is None) != (args.price_out is None):
        raise SystemExit("--price-in and --price-out tell the cost together; give both, in dollars a million tokens")
    if args.task == "write" and (args.predictions or args.file):
        raise SystemExit("--predictions and --file are for python 03_synthesize.py audit")
    if args.show_prompt and args.backend == "simulate":
        raise SystemExit("--show-prompt: the simulated listener has no prompt; give --backend gemini or local")
    args.model = args.model or "gemini-flash-latest"
    return args


def main():
    args = parse_args()
    folder = args.data_dir
    paths = {split: folder / f"dialogues_{split}.jsonl" for split in data.SPLITS}
    if args.task == "audit":
        audit.run(folder, args.file or list(paths.values()), args.predictions)
        return
    tracks = data.load_tracks(folder)
    row_of = {t["track_id"]: i for i, t in enumerate(tracks)}
    playlists = data.load_playlists(folder, row_of)
    counts = {split: getattr(args, f"n_{split}") for split in data.SPLITS}
    jobs_of = None
    if args.backend != "simulate":
        sizes = {split: args.chunk if split == "train" else args.chunk_test for split in data.SPLITS}
        jobs_of = {split: job_maker(split, playlists, tracks, row_of, args.seed, sizes[split], args.negatives) for split in data.SPLITS}
        prompt.show_estimate(jobs_of, counts, args.lyrics_words, args.price_in, args.price_out, args.show_prompt)
        if args.show_prompt:
            return
        args.prompt = runs.file_hash(prompt.TEMPLATE)  # another prompt is another run
    with jobs.alone(folder / "runs" / "03_synthesize.lock"):
        write(args, folder, paths, counts, tracks, row_of, playlists, jobs_of)


def write(args, folder, paths, counts, tracks, row_of, playlists, jobs_of):
    """Write the dialogues of all splits, or go on with that. jobs_of: {split: of job_maker}, None for the simulated listener."""
    llm, mix, record = jobs_of is not None, simulate.mix_of(args.mix or {}, args.rejections), folder / "runs" / "03_synthesize.json"
    journals = {split: folder / f"answers_{split}.jsonl" for split in data.SPLITS}  # they stay: with another n they are of use
    refuse_others(paths.values(), journals.values(), record, args.backend, args.resume)
    writes = [p.name for p in paths.values()] + ["dialogues_rejected.jsonl"] * llm
    run, state = runs.begin_run(folder, "03_synthesize", args, reads=[*data.catalogue_files(folder), "playlists.jsonl"], writes=writes,
                                resume=args.resume, record=False, ignore=NO_EFFECT + (ONLY_SIMULATE + COUNTS if llm else ONLY_LLM))
    old = runs.read_run(folder, "03_synthesize") if state != "new" else {}
    if state == "done" and (not llm or old.get("asked") == counts):
        print("03_synthesize: already done, nothing changed")
        return
    if llm and state != "new":
        jobs.refuse_changed(paths, journals, old)
    limiter = jobs.RateLimit(args.requests_per_minute)
    backend = make_backend(args, limiter) if llm else None
    if state == "new":
        parts = [path.with_name(path.name + ".part") for path in paths.values()]
        for path in [*parts, *paths.values(), *journals.values(), folder / "dialogues_rejected.jsonl"]:
            path.unlink(missing_ok=True)
    runs.record_run(run)  # only now: the backend is there

    facts = {}
    if llm:
        found, summary = jobs.ask_splits(journals, counts, args.price_in, args.price_out, lambda split, answered: converse(
            split, answered, jobs_of[split], counts[split], backend, limiter, journals[split], args))
        jobs.write_answers(paths, found, counts, jobs_of, args.model, args.backend)
        facts = {"summary": summary, "asked": counts}
    else:
        attributes_of = {t["track_id"]: track_attributes(t) for t in tracks}
        for split, path in paths.items():
            if not path.is_file():
                synthesize(split, playlists, tracks, row_of, attributes_of, counts[split], args.seed, path, args.max_tracks, mix)

    warm = {t for p in playlists if p["split"] == "train" for t in p["track_ids"]}
    rows = {split: describe_split(data.load_dialogues(path, row_of), warm) for split, path in paths.items()}
    for name in rows["train"]:
        print(f"{name:20}" + "  ".join(f"{split} {row[name]:>8}" if name != "kinds" else f"\n  {split}: {row[name]}"
                                        for split, row in rows.items()))
    runs.finish_run(run, table=rows, **facts)
    print(f"wrote {', '.join(str(p) for p in paths.values())}; next: python 04_train.py --data-dir {folder}")


if __name__ == "__main__":
    main()
