"""The subcommands gemini and local of 03_synthesize.py: their flags, and what they do."""

import re
import time
from functools import partial

import numpy as np

from common import data, runs
from common.process import resolve_device
from steps.synthesize import guards
from steps.synthesize.llm import jobs, parse, prompt
from steps.synthesize.llm.summary import print_summary, summarise

# Flags that change no dialogue. The numbers of dialogues are among them: dialogue i is the same for
# any n, and what was paid for is kept.
NO_EFFECT = ("n_train", "n_valid", "n_test", "show_prompt", "price_in", "price_out", "concurrency",
             "requests_per_minute", "tries", "timeout", "api_endpoint", "batch_size")
DEFAULT_MODEL = "gemini-flash-latest"


def add_flags(add, writer):
    """The flags of a subcommand. add: its add_argument; writer: "gemini" or "local"."""
    if writer == "gemini":
        add("--model", default=DEFAULT_MODEL, help=f"name of Google's (default {DEFAULT_MODEL}; "
            "the paper's, gemini-1.5-flash-002, is retired)")
    else:
        add("--model", required=True, help="a Hugging Face name or a folder with a chat model, for "
            "instance Qwen/Qwen3-4B-Instruct-2507")
    add("--chunk", type=int, default=7,
        help="about so many tracks for a training dialogue (default 7)")
    add("--chunk-test", type=int, default=13, help="the same for valid and test (default 13)")
    add("--lyrics-words", type=int, default=60,
        help="most words of a track's lyrics in the prompt (default 60; 0 = none)")
    add("--negatives", type=int, default=4, help="most tracks of the negative set in the prompt "
        "(default 4; 0 = nothing is turned down)")
    add("--temperature", type=float, default=1.0, help="of the sampling, 0 = greedy (default 1)")
    add("--top-p", type=float, default=0.95, help="nucleus, a share (default 0.95)")
    add("--max-new-tokens", type=int, default=8192,
        help="longest answer in tokens, what a model thinks included (default 8192)")
    add("--show-prompt", action="store_true",
        help="print one prompt and the tokens and cost of the whole run, and call nobody")
    add("--price-in", type=float,
        help="dollars per million tokens of the prompts (default: the cost is not told)")
    add("--price-out", type=float,
        help="dollars per million tokens of the answers (default: the cost is not told)")
    if writer == "gemini":
        add("--concurrency", type=int, default=8, help="calls at a time (default 8)")
        add("--requests-per-minute", type=float, default=60,
            help="most calls per minute, tries included (default 60; 0 = no limit)")
        add("--tries", type=int, default=6,
            help="tries of a call that is refused (429), fails (5xx) or hangs (default 6)")
        add("--timeout", type=float, default=120,
            help="longest silence of the server, before and within its answer, in s (default 120)")
        add("--api-endpoint", help="another server than Google's, such as http://127.0.0.1:8080")
    else:
        add("--batch-size", type=int, default=8, help="dialogues at a time (default 8)")
        add("--device", type=resolve_device, default="auto",
            help="auto (default: cuda if there is one), cpu, cuda, ...")


def check_flags(args):
    """Raises SystemExit: a flag of gemini or local has a value that cannot be meant."""
    if (args.price_in is None) != (args.price_out is None):
        raise SystemExit("--price-in and --price-out tell the cost together; give both, in dollars "
                         "per million tokens")
    if args.command == "local":
        return
    if not re.fullmatch(r"((models|tunedModels)/)?[\w.-]+", args.model, re.ASCII):
        raise SystemExit(f"--model {args.model}: a name of Google's is accepted, such as "
                         f"{DEFAULT_MODEL}; a Hugging Face name or a folder is for the subcommand "
                         f"local")
    if args.api_endpoint is not None and not re.fullmatch(r"\S+", args.api_endpoint):
        raise SystemExit(f"--api-endpoint {args.api_endpoint}: a server is accepted, such as "
                         f"http://127.0.0.1:8080 (default: Google's)")


def make_jobs(args, sources, tracks_by_id):
    """{split: function of a dialogue's number that returns its prompt.Job}.

    sources: {split: function of a number that returns a Source}, from 03_synthesize.py
    """
    def jobs_of(split):
        size = args.chunk if split == "train" else args.chunk_test
        return lambda number: prompt.make_job(f"{split}-{number}", sources[split](number),
                                              tracks_by_id, size, args.negatives)
    return {split: jobs_of(split) for split in sources}


def print_estimate(args, counts, jobs_of):
    """Print what the run will take; with --show-prompt also a prompt, of the first dialogue."""
    args.prompt = runs.file_hash(prompt.TEMPLATE)  # for the record: another prompt is another run
    if args.show_prompt:
        print(prompt.fill(jobs_of["train"](0), args.lyrics_words))
    prompt.print_estimate(jobs_of, counts, args.lyrics_words, args.price_in, args.price_out)


def open_backend(args):
    """(a function of prompts and seeds that returns Answers, its jobs.RateLimit).

    Raises SystemExit: no key, no package, no model.
    """
    sampling = {"temperature": args.temperature, "top_p": args.top_p,
                "max_new_tokens": args.max_new_tokens}
    if args.command == "local":
        from steps.synthesize.llm import local
        model = local.load_model(args.model, args.device)
        return partial(local.generate, *model, **sampling), jobs.RateLimit(0)

    from steps.synthesize.llm import gemini
    limiter = jobs.RateLimit(args.requests_per_minute)
    call = gemini.make_call(args.model, gemini.read_key(), args.api_endpoint, args.timeout,
                            **sampling)
    return lambda prompts, seeds: [gemini.ask_patiently(call, text, limiter, args.tries)
                                   for text in prompts], limiter


def write_dialogues(args, counts, jobs_of):
    """Write the dialogues of all splits, or go on with that.

    counts: {split: number of dialogues}; jobs_of: from `make_jobs`
    Returns: the run to be finished, or None if all was done before
    Raises SystemExit: stopped, or a split has no dialogues.
    """
    folder = args.data_dir
    run, state = guards.begin_run(args, runs.PLACE + NO_EFFECT, ["dialogues_rejected.jsonl"])
    if state == "done" and runs.read_run(folder, "03_synthesize").get("asked") == counts:
        return None
    if state != "new":
        guards.refuse_changed(folder)
    backend, limiter = open_backend(args)  # before anything is deleted
    if state == "new":
        guards.remove_old(folder)
    runs.record_run(run)

    journals, summary = ask_splits(args, counts, jobs_of, backend, limiter)
    write_files(folder, *collect(journals, counts, jobs_of, args.model, args.command))
    return run | {"summary": summary, "asked": counts}


def ask_splits(args, counts, jobs_of, backend, limiter):
    """Ask for what the journals leave open, and print what it came to, even after an error.

    backend, limiter: from `open_backend`
    Returns: ({split: from jobs.read_journal}, the summary for the record)
    """
    paths = guards.journal_paths(args.data_dir)
    journals = {split: jobs.read_journal(path) for split, path in paths.items()}
    answered = any(line["verdict"] != "no answer" for journal in journals.values()
                   for lines in journal.values() for line in lines)
    before = summarise(journals, counts, args.price_in, args.price_out)
    start = time.time()
    try:
        for split, n in counts.items():
            answered = ask_split(args, split, n, jobs_of[split], backend, limiter, paths[split],
                                 answered)
    finally:
        journals = {split: jobs.read_journal(path) for split, path in paths.items()}
        summary = summarise(journals, counts, args.price_in, args.price_out)
        done = sum(summary[key] - before[key] for key in ("made", "rejected"))
        summary["dialogues_a_minute"] = round(60 * done / (time.time() - start), 1)
        print_summary(summary)
    return journals, summary


def ask_split(args, split, n, job_of, backend, limiter, journal, answered):
    """Ask for the n dialogues of a split. answered: as in jobs.ask_all"""
    def ask(tasks):
        prompts = []
        seeds = []
        for task in tasks:
            prompts.append(prompt.fill(job_of(task.number), args.lyrics_words, task.complaint))
            seed = np.random.SeedSequence(
                [args.seed, data.SPLITS.index(split), task.number, task.attempt])
            seeds.append(int(seed.generate_state(1)[0]))
        return backend(prompts, seeds)

    def judge(number, text):
        return parse.judge(text, job_of(number).shown())

    batch_size, workers = 1, 1
    if args.command == "local":
        batch_size = args.batch_size
    else:
        workers = args.concurrency
    return jobs.ask_all(journal, n, ask, judge, limiter, batch_size, workers, split, answered)


def collect(journals, counts, jobs_of, model, writer):
    """The dialogues 0 to n - 1 of each split, in their order, where all have been asked for.

    journals: {split: from jobs.read_journal}; counts: {split: n}; jobs_of: from `make_jobs`
    Returns: ({split: dialogues}, rows of dialogues_rejected.jsonl)
    """
    dialogues = {split: [] for split in counts}
    rejected = []
    for split, n in counts.items():
        for number in range(n):
            lines = journals[split][number]
            last = lines[-1]
            job = jobs_of[split](number)
            meta = {"backend": writer, "model": model, "sampled": len(job.tracks)}
            row = {"dialogue_id": job.dialogue_id, "playlist_id": job.playlist_id, "meta": meta}
            if last["turns"]:
                if last["notes"]:
                    meta["repaired"] = last["notes"]
                dialogues[split].append(row | {"turns": last["turns"]})
            else:
                rejected.append(row | {"reasons": [line["notes"][0] for line in lines],
                                       "answers": [line["answer"] for line in lines]})
    return dialogues, rejected


def write_files(folder, dialogues, rejected):
    """Write the dialogues, and those set aside; both from `collect`.

    Raises SystemExit: a split has none; the others are written.
    """
    aside = folder / "dialogues_rejected.jsonl"
    data.write_jsonl(aside, rejected)
    for split, path in guards.dialogue_paths(folder).items():
        if dialogues[split]:
            data.write_jsonl(path, dialogues[split])
        else:
            path.unlink(missing_ok=True)
    for split, rows in dialogues.items():
        if not rows:
            raise SystemExit(f"no {split} dialogue could be used; the reasons and the answers are "
                             f"in {aside}. Ask for more with a larger --n-{split} (what is there "
                             f"is kept), or take another --model with --no-resume")
