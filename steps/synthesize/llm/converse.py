"""The subcommands gemini and local of 03_synthesize.py: their flags, and what they do."""

import re
import time
from functools import partial

import numpy as np

from common import data, runs
from common.process import resolve_device
from steps.synthesize import guards
from steps.synthesize.llm import jobs, parse, prompt

# Flags that change no dialogue; dialogue i is the same for any n, and what was paid for is kept.
NO_EFFECT = ("n_train", "n_valid", "n_test", "show_prompt", "price_in", "price_out", "concurrency",
             "requests_per_minute", "tries", "timeout", "api_endpoint", "batch_size")
DEFAULT_MODEL = "gemini-flash-latest"
SAMPLE = 50  # prompts of a split that are looked at for the estimate


def add_flags(add, writer):
    """The flags of a subcommand. add: its add_argument; writer: "gemini" or "local"."""
    add("--chunk", type=int, default=7, help="tracks per training dialogue, about (default 7)")
    add("--chunk-test", type=int, default=13, help="the same for valid and test (default 13)")
    add("--lyrics-words", type=int, default=60, help="most words per lyrics; 0 = none (default 60)")
    add("--negatives", type=int, default=4, help="most tracks of the negative set in the prompt; "
        "0 = nothing is turned down (default 4)")
    add("--temperature", type=float, default=1.0, help="of the sampling; 0 = greedy (default 1)")
    add("--top-p", type=float, default=0.95, help="nucleus, a share (default 0.95)")
    add("--max-new-tokens", type=int, default=8192, help="per answer, with thinking (default 8192)")
    add("--show-prompt", action="store_true", help="print a prompt and the cost, and call nobody")
    for name, what in (("--price-in", "prompts"), ("--price-out", "answers")):
        add(name, type=float, help=f"dollars per million tokens of the {what} (default: no cost)")
    if writer == "local":
        add("--model", required=True, help="a Hugging Face name or a folder with a chat model, for "
            "instance Qwen/Qwen3-4B-Instruct-2507")
        add("--batch-size", type=int, default=8, help="dialogues at a time (default 8)")
        add("--device", type=resolve_device, default="auto", help="auto (default), cpu, cuda, ...")
        return
    add("--model", default=DEFAULT_MODEL, help=f"name of Google's (default {DEFAULT_MODEL}; the "
        "paper's, gemini-1.5-flash-002, is retired)")
    add("--concurrency", type=int, default=8, help="calls at a time (default 8)")
    add("--requests-per-minute", type=float, default=60, help="0 = no limit (default 60)")
    add("--tries", type=int, default=6, help="of a call that fails or hangs (default 6)")
    add("--timeout", type=float, default=120, help="longest silence of the server, s (default 120)")
    add("--api-endpoint", help="another server than Google's, such as http://127.0.0.1:8080")


def check_flags(args):
    """Raises SystemExit: a flag of gemini or local has a value that cannot be meant."""
    if (args.price_in is None) != (args.price_out is None):
        raise SystemExit("--price-in, --price-out: give both, in dollars per million tokens")
    if args.command == "local":
        return
    if not re.fullmatch(r"((models|tunedModels)/)?[\w.-]+", args.model, re.ASCII):
        raise SystemExit(f"--model {args.model}: a name of Google's is accepted, such as "
                         f"{DEFAULT_MODEL}; a model of Hugging Face is for the subcommand local")
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
    """Print what the run will take, from a sample; with --show-prompt also the first prompt."""
    args.prompt = runs.file_hash(prompt.TEMPLATE)  # for the record: another prompt is another run
    if args.show_prompt:
        print(prompt.fill(jobs_of["train"](0), args.lyrics_words))
    tokens_in, tokens_out = np.sum([
        prompt.estimate([jobs_of[split](number) for number in range(min(n, SAMPLE))], n,
                        args.lyrics_words) for split, n in counts.items()], axis=0)
    dollars = jobs.cost(tokens_in, tokens_out, args.price_in, args.price_out)
    told = "give --price-in and --price-out" if dollars is None else f"about ${dollars:,.2f}"
    print(f"{sum(counts.values()):,} calls, about {tokens_in:,} tokens in and {tokens_out:,} out "
          f"({prompt.TOKEN_CHARS} characters each; without second tries and thinking): {told}")


def open_backend(args):
    """(a function of prompts and seeds that returns Answers, its RateLimit, batch size, threads).

    Raises SystemExit: no key, no package, no model.
    """
    sampling = {"temperature": args.temperature, "top_p": args.top_p,
                "max_new_tokens": args.max_new_tokens}
    if args.command == "local":
        from steps.synthesize.llm import local
        model, tokenizer = local.load_model(args.model, args.device)
        generate = partial(local.generate, model, tokenizer, **sampling)
        return generate, jobs.RateLimit(0), args.batch_size, 1

    from steps.synthesize.llm import gemini
    limiter = jobs.RateLimit(args.requests_per_minute)
    call = gemini.make_call(args.model, gemini.read_key(), args.api_endpoint, args.timeout,
                            **sampling)

    def ask(prompts, seeds):
        return [gemini.ask_patiently(call, text, limiter, args.tries) for text in prompts]

    return ask, limiter, 1, args.concurrency


def write_dialogues(args, counts, jobs_of):
    """Write the dialogues of all splits, or go on with that.

    counts: {split: number of dialogues}; jobs_of: from `make_jobs`
    Returns: the run to be finished, or None if all was done before
    """
    folder = args.data_dir
    run, state = guards.begin_run(args, runs.PLACE + NO_EFFECT, ["dialogues_rejected.jsonl"])
    if state == "done" and runs.read_run(folder, "03_synthesize").get("asked") == counts:
        return None
    if state != "new":
        guards.refuse_changed(folder)
    backend = open_backend(args)  # before anything is deleted
    if state == "new":
        guards.remove_old(folder)
    runs.record_run(run)

    # Ask for what the journals leave open, and print what it came to, even after an error.
    paths = guards.journal_paths(folder)
    journals = {split: jobs.read_journal(path) for split, path in paths.items()}
    answered = any(line["verdict"] != "no answer" for journal in journals.values()
                   for lines in journal.values() for line in lines)
    before = jobs.summarise(journals, counts, args.price_in, args.price_out)
    start = time.time()
    try:
        for split in counts:
            answered = ask_split(args, split, counts[split], jobs_of[split], *backend,
                                 paths[split], answered)
    finally:
        journals = {split: jobs.read_journal(path) for split, path in paths.items()}
        summary = jobs.summarise(journals, counts, args.price_in, args.price_out)
        done = sum(summary[key] - before[key] for key in ("made", "rejected"))
        summary["dialogues_a_minute"] = round(60 * done / (time.time() - start), 1)
        jobs.print_summary(summary)
    write_files(args, journals, counts, jobs_of)
    return run | {"summary": summary, "asked": counts}


def ask_split(args, split, n, job_of, backend, limiter, batch_size, workers, journal, answered):
    """jobs.ask_all for the n dialogues of a split. backend, ...: from `open_backend`"""
    def ask(tasks):
        seeds = [np.random.SeedSequence([args.seed, data.SPLITS.index(split), task.number,
                                         task.attempt]).generate_state(1) for task in tasks]
        return backend([prompt.fill(job_of(task.number), args.lyrics_words, task.complaint)
                        for task in tasks], [int(seed[0]) for seed in seeds])

    def judge(number, text):
        return parse.judge(text, job_of(number).shown())

    return jobs.ask_all(journal, n, ask, judge, limiter, batch_size, workers, split, answered)


def write_files(args, journals, counts, jobs_of):
    """Write the dialogues 0 to n - 1 of each split, and those set aside, from the journals.

    Raises SystemExit: a split has none; the others are written.
    """
    aside = args.data_dir / "dialogues_rejected.jsonl"
    dialogues = {split: [] for split in counts}
    rejected = []
    for split, n in counts.items():
        for number in range(n):
            lines = journals[split][number]
            job = jobs_of[split](number)
            meta = {"backend": args.command, "model": args.model, "sampled": len(job.tracks)}
            row = {"dialogue_id": job.dialogue_id, "playlist_id": job.playlist_id, "meta": meta}
            if lines[-1]["turns"]:
                if lines[-1]["notes"]:
                    meta["repaired"] = lines[-1]["notes"]
                dialogues[split].append(row | {"turns": lines[-1]["turns"]})
            else:
                rejected.append(row | {"reasons": [line["notes"][0] for line in lines],
                                       "answers": [line["answer"] for line in lines]})

    data.write_jsonl(aside, rejected)
    for split, path in guards.dialogue_paths(args.data_dir).items():
        if dialogues[split]:
            data.write_jsonl(path, dialogues[split])
        else:
            path.unlink(missing_ok=True)
    for split, rows in dialogues.items():
        if not rows:
            raise SystemExit(f"no {split} dialogue could be used; the reasons and the answers are "
                             f"in {aside}. Ask for more with a larger --n-{split} (what is there "
                             f"is kept), or take another --model with --no-resume")
