"""Ask a language model for many dialogues: several calls at a time, and every answer on disk before it counts.

The journal is an append-only file, a line an answer: `number` (of the dialogue), `attempt` (1 or 2), `in` and `out`
(tokens), `verdict` (ok, repaired, ask again, no answer, rejected), `notes` (what was repaired, or the reason), `turns`, and
the `answer` itself where it was of no use. A killed run loses the calls in flight and nothing else: the next one reads the
journal and asks only for what it does not have.
"""

import json
import os
import signal
import threading
import time
from collections import Counter, deque
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
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
    """A call failed each time that it was tried, or the server refuses this prompt; others may work."""


class Stop(Exception):
    """No call can work (key, model name, quota), or the user wants no more: the run ends and keeps what is done."""


class RateLimit:
    """At most `per_minute` calls a minute over all threads, evenly spread; 0 = no limit."""

    def __init__(self, per_minute):
        self.gap = 60 / per_minute if per_minute else 0.0
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.free = self.held_until = 0.0  # of time.monotonic(): the next free slot, and the end of what the server asked to wait

    def wait(self):
        """Return when a call may be made. Raises Stop when the run is ending."""
        start = -1.0
        while start < self.held_until:  # pause may have come during the sleep: another slot, then
            with self.lock:
                start = max(time.monotonic(), self.free, self.held_until)
                self.free = start + self.gap
            self.sleep(start - time.monotonic())

    def pause(self, seconds):
        """No further call of any thread within these seconds, since the server asks for it; threads that have a slot lose it."""
        with self.lock:
            self.held_until = max(self.held_until, time.monotonic() + seconds)

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


def open_tasks(found, n):
    """(deque of the Tasks that a journal leaves open of the dialogues 0 to n - 1, {number: its rounds without an answer}).

    found: of read_journal. What had no answer before comes last: where the server is down, other dialogues find that out,
    and nothing is set aside for it.
    """
    tasks, missed = [], Counter()
    for number in range(n):
        lines = found.get(number, ())
        answers = [line for line in lines if line["verdict"] != "no answer"]
        missed[number] = len(lines) - len(answers)
        if not answers:
            tasks.append(Task(number))
        elif answers[-1]["verdict"] == "ask again":
            tasks.append(Task(number, 2, answers[-1]["notes"][0]))
    return deque(sorted(tasks, key=lambda task: missed[task.number])), missed


def journal_line(task, answer, state, notes, turns=()):
    line = {"number": task.number, "attempt": task.attempt, "in": answer.tokens_in, "out": answer.tokens_out,
            "verdict": state, "notes": notes, "turns": list(turns)}
    return line if turns else line | {"answer": answer.text}


def settle(task, answer, judge):
    """(line of the journal, the next Task or None). judge: function of number and text -> parse.Verdict."""
    if answer.text is None:
        state, turns, notes = "ask again", [], [answer.fault]
    else:
        verdict = judge(task.number, answer.text)
        state, turns, notes = verdict.state, verdict.turns, verdict.notes
    if state == "ask again" and (answer.final or task.attempt == 2):
        state = "rejected"
    return journal_line(task, answer, state, notes, turns), Task(task.number, 2, notes[0]) if state == "ask again" else None


@contextmanager
def on_interrupt(stop):
    """Within it Ctrl-C calls stop(), wherever the main thread is, and once more ends the process; an error calls stop(), too."""
    pressed = []

    def handle(*_):
        if pressed:
            os._exit(130)  # each line of the journal is on disk; an orderly exit would wait for the threads
        pressed.append(True)
        os.write(2, b"\nwaiting for the calls in flight; interrupt again to lose them\n")  # print must not interrupt itself
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    except BaseException:
        stop()  # or threads that sleep would be waited for
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def ask_all(journal, n, ask, judge, limiter, batch_size, workers, name, answered):
    """Ask for the dialogues 0 to n - 1 that the journal does not settle; append a line an answer.

    ask: function of a list of Tasks -> list of Answers, called in `workers` threads with `batch_size` tasks; raises NoAnswer
    or Stop. A call without an answer is made again once all others are done, and its dialogue is rejected if it fails again,
    be it in another try of the run. answered: whether anything was ever answered in this run or its earlier tries; before
    that nothing is rejected, since the server or the request as such is to blame.
    Returns: answered, as it is now. Raises SystemExit: stopped; what is answered is kept.
    """
    queue, missed = open_tasks(read_journal(journal), n)
    in_a_row, trouble, running = 0, [], {}

    def stop(why):
        trouble.append(why)
        limiter.stop.set()

    with open(journal, "a", encoding="utf-8", errors="replace") as f, ThreadPoolExecutor(workers) as pool, \
            tqdm(total=n, initial=n - len(queue), desc=name) as bar, on_interrupt(lambda: stop("stopped by hand")):

        def write(line):
            f.write(json.dumps(line, ensure_ascii=False) + "\n")
            f.flush()
            bar.update(line["verdict"] not in ("ask again", "no answer"))

        while queue and not trouble or running:
            while queue and not trouble and len(running) < workers:
                batch = [queue.popleft() for _ in range(min(batch_size, len(queue)))]
                running[pool.submit(ask, batch)] = batch
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                batch = running.pop(future)
                try:
                    answers = future.result()
                except Stop as error:
                    stop(str(error))
                except NoAnswer as error:
                    in_a_row += 1
                    if in_a_row >= max(4, 2 * workers):
                        stop(f"{in_a_row} calls in a row failed; the last: {error}")
                    for task in batch:
                        missed[task.number] += 1
                        state = "rejected" if answered and missed[task.number] >= 2 else "no answer"
                        write(journal_line(task, Answer(None, 0, 0), state, [str(error)]))
                        if missed[task.number] < 2:
                            queue.append(task)
                        elif not answered:
                            stop(str(error))
                else:
                    in_a_row, answered = 0, True
                    for task, answer in zip(batch, answers):
                        line, again = settle(task, answer, judge)
                        write(line)
                        queue.extend([again] if again else [])
    if trouble:
        raise SystemExit(f"{trouble[0]}. What was answered is kept in {journal}; the same command goes on from there, and asks for "
                         f"nothing twice")
    return answered


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


def print_summary(summary):
    """summary: of summarise, and `dialogues_a_minute`, settled in this try."""
    print(f"made {summary['made']:,} (repaired {summary['repaired']:,}), rejected {summary['rejected']:,}, "
          f"asked twice {summary['asked_twice']:,}; {summary['tokens_in']:,} tokens in, {summary['tokens_out']:,} out"
          + (f", ${summary['cost']:,.4f}" if summary["cost"] is not None else "")
          + (f"; {summary['dialogues_a_minute']:.1f} dialogues a minute" if summary["dialogues_a_minute"] else ""))
    for name, counts in (("repaired", summary["repairs"]), ("first answer refused", summary["first_answers_refused"]),
                         ("rejected", summary["reasons"])):
        if counts:
            print(f"  {name}: " + ", ".join(f"{kind} {n}" for kind, n in counts.items()))
