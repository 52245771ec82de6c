"""Ask a language model for many dialogues: several calls at a time, and every answer on disk before it counts.

The journal is an append-only file, a line an answer: `number` (of the dialogue), `attempt` (1 or 2), `in` and `out`
(tokens), `verdict` (ok, repaired, ask again, rejected), `notes` (what was repaired, or the reason), `turns`, and the
`answer` itself where it was of no use. A killed run loses the calls in flight and nothing else: the next one reads the
journal and asks only for what it does not have.
"""

import json
import threading
import time
from collections import Counter, deque
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import NamedTuple

from tqdm import tqdm

from common import data


class Answer(NamedTuple):
    """text: None where nothing of use came back; `fault` says why, and `final` that asking again would not help."""
    text: str | None
    tokens_in: int
    tokens_out: int
    fault: str = ""
    final: bool = False


class Task(NamedTuple):
    """A dialogue to be asked for. complaint: why the first answer was of no use, at the second attempt."""
    number: int
    attempt: int = 1
    complaint: str = ""


class NoAnswer(Exception):
    """A call failed each time that it was tried; others may work."""


class Stop(Exception):
    """No call can work (key, model name, quota), or the user wants no more: the run ends and keeps what is done."""


class RateLimit:
    """At most `per_minute` calls a minute over all threads, evenly spread; 0 = no limit."""

    def __init__(self, per_minute):
        self.gap = 60 / per_minute if per_minute else 0.0
        self.lock, self.free, self.stop = threading.Lock(), 0.0, threading.Event()

    def wait(self):
        """Return when a call may be made. Raises Stop when the run is ending."""
        with self.lock:
            start = max(time.monotonic(), self.free)
            self.free = start + self.gap
        self.sleep(start - time.monotonic())

    def pause(self, seconds):
        """No further call of any thread within these seconds, since the server asks for it."""
        with self.lock:
            self.free = max(self.free, time.monotonic() + seconds)

    def sleep(self, seconds):
        if self.stop.wait(max(0.0, seconds)):
            raise Stop("stopped")


def read_journal(path):
    """{number: [its lines as dicts, in order]}; a half-written last line is cut off. {} where there is no journal."""
    lines = {}
    if data.keep_whole_lines(path):
        for _, line in data.read_jsonl(path, "python 03_synthesize.py --no-resume"):
            lines.setdefault(line["number"], []).append(line)
    return lines


def settle(task, answer, judge):
    """(line of the journal, the next Task or None). judge: function of number and text -> parse.Verdict."""
    if answer.text is None:
        state, turns, notes = "ask again", [], [answer.fault]
    else:
        verdict = judge(task.number, answer.text)
        state, turns, notes = verdict.state, verdict.turns, verdict.notes
    if state == "ask again" and (answer.final or task.attempt == 2):
        state = "rejected"
    line = {"number": task.number, "attempt": task.attempt, "in": answer.tokens_in, "out": answer.tokens_out,
            "verdict": state, "notes": notes, "turns": turns}
    if not turns:
        line["answer"] = answer.text
    return line, Task(task.number, 2, notes[0]) if state == "ask again" else None


def ask_all(journal, n, ask, judge, limiter, batch_size, workers, name):
    """Ask for the dialogues 0 to n - 1 that the journal does not settle; append a line an answer.

    ask: function of a list of Tasks -> list of Answers, called in `workers` threads with `batch_size` tasks; raises NoAnswer
    or Stop. A call without an answer is made again once all others are done; it is rejected if it fails again, unless
    nothing at all was answered: then the server is to blame.
    Returns: how many dialogues were settled now. Raises SystemExit: stopped; what is answered is kept.
    """
    found, queue = read_journal(journal), deque()
    for number in range(n):
        last = found[number][-1] if number in found else None
        if last is None:
            queue.append(Task(number))
        elif last["verdict"] == "ask again":
            queue.append(Task(number, 2, last["notes"][0]))
    missed, answered, settled, in_a_row, trouble, running = Counter(), 0, 0, 0, None, {}
    with open(journal, "a", encoding="utf-8", errors="replace") as f, ThreadPoolExecutor(workers) as pool, \
            tqdm(total=n, initial=n - len(queue), desc=name) as bar:

        def write(line):
            f.write(json.dumps(line, ensure_ascii=False) + "\n")
            f.flush()

        while queue and not trouble or running:
            while queue and not trouble and len(running) < workers:
                batch = [queue.popleft() for _ in range(min(batch_size, len(queue)))]
                running[pool.submit(ask, batch)] = batch
            try:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt:
                if trouble:
                    raise
                trouble, finished = "stopped by hand", ()
                limiter.stop.set()
                print("\nwaiting for the calls in flight; interrupt again to lose them")
            for future in finished:
                batch = running.pop(future)
                try:
                    answers = future.result()
                except Stop as error:
                    trouble = trouble or str(error)
                    limiter.stop.set()
                    continue
                except NoAnswer as error:
                    in_a_row += 1
                    if in_a_row >= max(4, 2 * workers):
                        trouble = trouble or f"{in_a_row} calls in a row had no answer; the last: {error}"
                        limiter.stop.set()
                    for task in batch:
                        missed[task.number] += 1
                        if missed[task.number] < 2:
                            queue.append(task)
                        elif answered:
                            settled += 1
                            bar.update()
                            write(settle(task._replace(attempt=2), Answer(None, 0, 0, f"no answer: {error}"), judge)[0])
                        else:
                            trouble = trouble or f"no answer: {error}"
                    continue
                in_a_row, answered = 0, answered + 1
                for task, answer in zip(batch, answers):
                    line, again = settle(task, answer, judge)
                    write(line)
                    if again:
                        queue.append(again)
                    else:
                        settled += 1
                        bar.update()
    if trouble:
        raise SystemExit(f"{trouble}. What was answered is kept in {journal}; the same command goes on from there, and asks for nothing "
                         f"twice")
    return settled


def summarise(journals, price_in, price_out):
    """What a run made and what it cost, over all its tries: a dict.

    journals: list of read_journal's results. price_in, price_out: dollars a million tokens, or None where not known.
    """
    lines = [line for found in journals for of_one in found.values() for line in of_one]
    count = Counter(line["verdict"] for line in lines)
    kinds = {}
    for state in ("repaired", "ask again", "rejected"):
        notes = [note for line in lines if line["verdict"] == state for note in line["notes"]]
        kinds[state] = dict(Counter(note.partition(":")[0] for note in notes).most_common())
    tokens_in, tokens_out = sum(line["in"] for line in lines), sum(line["out"] for line in lines)
    return {"made": count["ok"] + count["repaired"], "repaired": count["repaired"], "asked_twice": count["ask again"],
            "rejected": count["rejected"], "repairs": kinds["repaired"], "first_answers_refused": kinds["ask again"],
            "reasons": kinds["rejected"], "tokens_in": tokens_in, "tokens_out": tokens_out,
            "cost": cost(tokens_in, tokens_out, price_in, price_out)}


def cost(tokens_in, tokens_out, price_in, price_out):
    """Dollars, or None where a price is not known."""
    return None if price_in is None or price_out is None else round((tokens_in * price_in + tokens_out * price_out) / 1e6, 4)


def collect(journals, jobs_of, model, backend):
    """({split: dialogues}, rows of dialogues_rejected.jsonl) of what the journals hold, in the order of the dialogues' numbers."""
    dialogues, rejected = {}, []
    for split, found in journals.items():
        dialogues[split] = []
        for number, lines in sorted(found.items()):
            job, last = jobs_of[split](number), lines[-1]
            meta = {"backend": backend, "model": model, "sampled": len(job.tracks)}
            row = {"dialogue_id": job.dialogue_id, "playlist_id": job.playlist_id}
            if last["turns"]:
                repaired = {"repaired": last["notes"]} if last["notes"] else {}
                dialogues[split].append(row | {"meta": meta | repaired, "turns": last["turns"]})
            else:
                rejected.append(row | {"meta": meta, "reasons": [line["notes"][0] for line in lines],
                                       "answers": [line["answer"] for line in lines]})
    return dialogues, rejected


def print_summary(summary, settled, seconds):
    """summary: of summarise; settled: dialogues of this try, in so many seconds."""
    print(f"made {summary['made']:,} (repaired {summary['repaired']:,}), rejected {summary['rejected']:,}, "
          f"asked twice {summary['asked_twice']:,}; {summary['tokens_in']:,} tokens in, {summary['tokens_out']:,} out"
          + (f", ${summary['cost']:,.4f}" if summary["cost"] is not None else "")
          + (f"; {60 * settled / seconds:.1f} dialogues a minute" if settled else ""))
    for name, counts in (("repaired", summary["repairs"]), ("first answer refused", summary["first_answers_refused"]),
                         ("rejected", summary["reasons"])):
        if counts:
            print(f"  {name}: " + ", ".join(f"{kind} {n}" for kind, n in counts.items()))
