"""Ask a language model for many dialogues, several calls at a time, and count what came of it.

Every answer is on disk before it counts. The journal is an append-only file with one line per
answer: `number` (of the dialogue), `attempt` (1 or 2), `in` and `out` (tokens), `verdict` (ok,
repaired, ask again, no answer, rejected), `notes` (what was repaired, or the reason), `turns`, and
the `answer` itself where it has none. A run that is killed loses only the calls in flight.
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
    text: str | None     # None: nothing of use came back
    tokens_in: int
    tokens_out: int
    fault: str = ""      # why there is no text
    final: bool = False  # asking again would not help


class Task(NamedTuple):
    """A dialogue to be asked for."""
    number: int
    attempt: int = 1
    complaint: str = ""  # at the second attempt: what was wrong with the first answer


class NoAnswer(Exception):
    """A call failed each time that it was tried; others may work."""


class Refused(NoAnswer):
    """The server refuses this prompt; others may work."""


class Stop(Exception):
    """No call can work (key, model name, quota): the run ends and keeps what is done."""


class RateLimit:
    """At most `per_minute` calls per minute over all threads, evenly spread; 0 = no limit."""

    def __init__(self, per_minute):
        self.gap = 60 / per_minute if per_minute else 0.0
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.next_slot = 0.0   # in time.monotonic(), as the next one
        self.held_until = 0.0  # when the server takes calls again

    def wait(self):
        """Return when a call may be made. Raises Stop when the run is ending."""
        start = -1.0
        while start < self.held_until:  # pause may have come during the sleep: another slot, then
            with self.lock:
                start = max(time.monotonic(), self.next_slot, self.held_until)
                self.next_slot = start + self.gap
            self.sleep(start - time.monotonic())

    def pause(self, seconds):
        """No further call of any thread within these seconds; threads that have a slot lose it."""
        with self.lock:
            self.held_until = max(self.held_until, time.monotonic() + seconds)

    def sleep(self, seconds):
        if self.stop.wait(max(0.0, seconds)):
            raise Stop("stopped")


@contextmanager
def on_interrupt(stop):
    """Within it Ctrl-C and errors call stop(); a second Ctrl-C ends the process."""
    pressed = []

    def handle(*_):
        if pressed:
            os._exit(130)  # all is on disk; an orderly exit would wait for the threads
        pressed.append(True)
        # not print, which must not interrupt itself
        os.write(2, b"\nwaiting for the calls in flight; interrupt again to lose them\n")
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    except BaseException:
        stop()  # or threads that sleep would be waited for
        raise
    finally:
        signal.signal(signal.SIGINT, before)


class Progress:
    """One split while it is asked for; arguments as in `ask_all`, file: the open journal."""

    def __init__(self, file, lines_of, n, judge, limiter, workers, answered):
        self.file, self.judge, self.limiter, self.answered = file, judge, limiter, answered
        self.most_failures = max(4, 2 * workers)  # in a row
        self.failures = 0        # in a row
        self.trouble = []        # why the run ends
        self.missed = Counter()  # {number: calls without an answer}
        tasks = []
        for number in range(n):
            lines = lines_of.get(number, ())
            answers = [line for line in lines if line["verdict"] != "no answer"]
            self.missed[number] = len(lines) - len(answers)
            if not answers:
                tasks.append(Task(number))
            elif answers[-1]["verdict"] == "ask again":
                tasks.append(Task(number, 2, answers[-1]["notes"][0]))
        # What had no answer before comes last: where the server is down, others find that out.
        self.queue = deque(sorted(tasks, key=lambda task: self.missed[task.number]))

    def stop(self, why="stopped by hand"):
        self.trouble.append(why)
        self.limiter.stop.set()

    def write(self, task, answer, verdict, notes, turns=()):
        """Append a line to the journal."""
        line = {"number": task.number, "attempt": task.attempt, "in": answer.tokens_in,
                "out": answer.tokens_out, "verdict": verdict, "notes": notes, "turns": turns}
        if not turns:
            line["answer"] = answer.text  # it was of no use
        self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.file.flush()
        self.bar.update(verdict not in ("ask again", "no answer"))

    def record_failure(self, batch, error):
        """The tasks had no answer: once more when all others are done, then they are rejected."""
        # A prompt that is refused again is no news of the server.
        if not (isinstance(error, Refused) and self.missed[batch[0].number]):
            self.failures += 1
        if self.failures >= self.most_failures:
            self.stop(f"{self.failures} calls in a row failed; the last: {error}")
        for task in batch:
            self.missed[task.number] += 1
            twice = self.missed[task.number] >= 2
            verdict = "rejected" if twice and self.answered else "no answer"
            self.write(task, Answer(None, 0, 0), verdict, [str(error)])
            if not twice:
                self.queue.append(task)
            elif not self.answered:
                self.stop(str(error))

    def record_answers(self, batch, answers):
        """Answers that cannot be used are asked for once more, then they are rejected."""
        self.failures = 0
        self.answered = True
        for task, answer in zip(batch, answers, strict=True):
            verdict, turns, notes = "ask again", [], [answer.fault]
            if answer.text is not None:
                verdict, turns, notes = self.judge(task.number, answer.text)
            if verdict == "ask again" and (answer.final or task.attempt == 2):
                verdict = "rejected"
            self.write(task, answer, verdict, notes, turns)
            if verdict == "ask again":
                self.queue.append(Task(task.number, 2, notes[0]))


def read_journal(path):
    """{number: [its lines as dicts, in order]}; {} where there is no journal.

    A half-written last line is cut off.
    """
    lines_of = {}
    if data.keep_whole_lines(path):
        for _, line in data.read_jsonl(path, "python 03_synthesize.py ... --no-resume"):
            lines_of.setdefault(line["number"], []).append(line)
    return lines_of


def ask_all(journal, n, ask, judge, limiter, batch_size, workers, name, answered):
    """Ask for the dialogues 0 to n - 1 that the journal leaves open; append one line per answer.

    A call without an answer is made again once all others are done. If it fails again, even in
    another run, its dialogue is rejected.

    ask: function of `batch_size` Tasks that returns Answers, called in `workers` threads; raises
        NoAnswer or Stop
    judge: function of a number and a text that returns a parse.Verdict
    answered: whether anything was ever answered. Until then nothing is rejected, since the server
        or the request as such is to blame.
    Returns: answered, as it is now
    Raises SystemExit: stopped; what is answered is kept.
    """
    lines_of = read_journal(journal)
    with open(journal, "a", encoding="utf-8", errors="replace") as f, \
            ThreadPoolExecutor(workers) as pool:
        progress = Progress(f, lines_of, n, judge, limiter, workers, answered)
        queue, running = progress.queue, {}
        with tqdm(total=n, initial=n - len(queue), desc=name) as progress.bar, \
                on_interrupt(progress.stop):
            while queue and not progress.trouble or running:
                while queue and not progress.trouble and len(running) < workers:
                    batch = [queue.popleft() for _ in range(min(batch_size, len(queue)))]
                    running[pool.submit(ask, batch)] = batch
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    batch = running.pop(future)
                    try:
                        progress.record_answers(batch, future.result())
                    except Stop as error:
                        progress.stop(str(error))
                    except NoAnswer as error:
                        progress.record_failure(batch, error)
    if progress.trouble:
        raise SystemExit(f"{progress.trouble[0]}. What was answered is kept in {journal}; the same "
                         f"command goes on from there, and asks for nothing twice")
    return progress.answered


def cost(tokens_in, tokens_out, price_in, price_out):
    """Dollars, or None where a price (dollars per million tokens) is not known."""
    if price_in is None or price_out is None:
        return None
    return round((tokens_in * price_in + tokens_out * price_out) / 1e6, 4)


def summarise(journals, counts, price_in, price_out):
    """What was made, why answers were refused, and what all tries cost: a dict.

    journals: {split: from `read_journal`}
    counts: {split: n}; of dialogues from n on, from an earlier try, only the cost is counted
    """
    paid = [line for journal in journals.values() for lines in journal.values() for line in lines]
    lines = [line for split, journal in journals.items() for number in journal
             if number < counts[split] for line in journal[number]]

    def reasons(verdict):
        """{the first words of a note: how often}, the most frequent first."""
        notes = [note for line in lines if line["verdict"] == verdict for note in line["notes"]]
        return dict(Counter(note.partition(":")[0] for note in notes).most_common())

    count = Counter(line["verdict"] for line in lines)
    tokens_in = sum(line["in"] for line in paid)
    tokens_out = sum(line["out"] for line in paid)
    return {"made": count["ok"] + count["repaired"], "repaired": count["repaired"],
            "asked_twice": count["ask again"], "rejected": count["rejected"],
            "repairs": reasons("repaired"), "first_answers_refused": reasons("ask again"),
            "reasons": reasons("rejected"), "tokens_in": tokens_in, "tokens_out": tokens_out,
            "cost": cost(tokens_in, tokens_out, price_in, price_out)}


def print_summary(summary):
    """summary: from `summarise`, and `dialogues_a_minute` of this try."""
    text = (f"made {summary['made']:,} (repaired {summary['repaired']:,}), "
            f"rejected {summary['rejected']:,}, asked twice {summary['asked_twice']:,}; "
            f"{summary['tokens_in']:,} tokens in, {summary['tokens_out']:,} out")
    if summary["cost"] is not None:
        text += f", ${summary['cost']:,.4f}"
    if summary["dialogues_a_minute"]:
        text += f"; {summary['dialogues_a_minute']:.1f} dialogues per minute"
    print(text)
    for name, reasons in (("repaired", summary["repairs"]), ("rejected", summary["reasons"]),
                          ("first answer refused", summary["first_answers_refused"])):
        if reasons:
            print(f"  {name}: " + ", ".join(f"{kind} {n}" for kind, n in reasons.items()))
