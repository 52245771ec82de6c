"""Ask a language model for many dialogues, several calls at a time.

Every answer is on disk before it counts. The journal is an append-only file with one line per
answer: `number` (of the dialogue), `attempt` (1 or 2), `in` and `out` (tokens), `verdict` (ok,
repaired, ask again, no answer, rejected), `notes` (what was repaired, or the reason), `turns`, and
the `answer` itself where it was of no use. A run that is killed loses the calls in flight and
nothing else: the next one reads the journal and asks only for what it does not have.
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
    complaint: str = ""  # at the second attempt: why the first answer was of no use


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
        # In time.monotonic():
        self.free = 0.0        # the next free slot
        self.held_until = 0.0  # the end of what the server asked to wait

    def wait(self):
        """Return when a call may be made. Raises Stop when the run is ending."""
        start = -1.0
        while start < self.held_until:  # pause may have come during the sleep: another slot, then
            with self.lock:
                start = max(time.monotonic(), self.free, self.held_until)
                self.free = start + self.gap
            self.sleep(start - time.monotonic())

    def pause(self, seconds):
        """No further call of any thread within these seconds; threads that have a slot lose it."""
        with self.lock:
            self.held_until = max(self.held_until, time.monotonic() + seconds)

    def sleep(self, seconds):
        if self.stop.wait(max(0.0, seconds)):
            raise Stop("stopped")


# ---------------------------------------------------------------- the journal

def read_journal(path):
    """{number: [its lines as dicts, in order]}; {} where there is no journal.

    A half-written last line is cut off.
    """
    lines = {}
    if data.keep_whole_lines(path):
        for _, line in data.read_jsonl(path, "python 03_synthesize.py ... --no-resume"):
            lines.setdefault(line["number"], []).append(line)
    return lines


def open_tasks(journal, n):
    """What a journal leaves open of the dialogues 0 to n - 1.

    What had no answer before comes last: where the server is down, other dialogues find that out,
    and nothing is set aside for it.

    journal: from `read_journal`
    Returns: (deque of Tasks, {number: how often it had no answer})
    """
    tasks = []
    missed = Counter()
    for number in range(n):
        lines = journal.get(number, ())
        answers = [line for line in lines if line["verdict"] != "no answer"]
        missed[number] = len(lines) - len(answers)
        if not answers:
            tasks.append(Task(number))
        elif answers[-1]["verdict"] == "ask again":
            tasks.append(Task(number, 2, answers[-1]["notes"][0]))
    return deque(sorted(tasks, key=lambda task: missed[task.number])), missed


def journal_line(task, answer, verdict, notes, turns=()):
    line = {"number": task.number, "attempt": task.attempt, "in": answer.tokens_in,
            "out": answer.tokens_out, "verdict": verdict, "notes": notes, "turns": list(turns)}
    return line if turns else line | {"answer": answer.text}


def record_answer(task, answer, judge):
    """(line for the journal, the next Task or None).

    judge: function of a number and a text that returns a parse.Verdict
    """
    if answer.text is None:
        state, turns, notes = "ask again", [], [answer.fault]
    else:
        state, turns, notes = judge(task.number, answer.text)
    again = None
    if state == "ask again" and (answer.final or task.attempt == 2):
        state = "rejected"
    elif state == "ask again":
        again = Task(task.number, 2, notes[0])
    return journal_line(task, answer, state, notes, turns), again


# ---------------------------------------------------------------- many calls

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
    """The state of one split while it is asked for; arguments as in `ask_all`."""

    def __init__(self, journal, n, judge, limiter, workers, answered):
        self.queue, self.missed = open_tasks(read_journal(journal), n)
        self.judge = judge
        self.limiter = limiter
        self.most_failures = max(4, 2 * workers)  # in a row
        self.answered = answered
        self.failures = 0  # in a row
        self.trouble = []  # why the run ends
        self.file = None   # the journal, while it is open
        self.bar = None

    def stop(self, why="stopped by hand"):
        self.trouble.append(why)
        self.limiter.stop.set()

    def write(self, line):
        self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.file.flush()
        self.bar.update(line["verdict"] not in ("ask again", "no answer"))

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
            state = "rejected" if twice and self.answered else "no answer"
            self.write(journal_line(task, Answer(None, 0, 0), state, [str(error)]))
            if not twice:
                self.queue.append(task)
            elif not self.answered:
                self.stop(str(error))

    def record_answers(self, batch, answers):
        self.failures = 0
        self.answered = True
        for task, answer in zip(batch, answers, strict=True):
            line, again = record_answer(task, answer, self.judge)
            self.write(line)
            if again:
                self.queue.append(again)


def ask_all(journal, n, ask, judge, limiter, batch_size, workers, name, answered):
    """Ask for the dialogues 0 to n - 1 that the journal leaves open; append one line per answer.

    A call without an answer is made again once all others are done. If it fails again, even in
    another run, its dialogue is rejected.

    ask: function of a list of Tasks that returns a list of Answers, called in `workers` threads
        with `batch_size` tasks; raises NoAnswer or Stop
    judge: as in `record_answer`
    answered: whether anything was ever answered in this run or before. Until then nothing is
        rejected, since the server or the request as such is to blame.
    Returns: answered, as it is now
    Raises SystemExit: stopped; what is answered is kept.
    """
    progress = Progress(journal, n, judge, limiter, workers, answered)
    queue, running = progress.queue, {}
    with open(journal, "a", encoding="utf-8", errors="replace") as progress.file, \
            ThreadPoolExecutor(workers) as pool, \
            tqdm(total=n, initial=n - len(queue), desc=name) as progress.bar, \
            on_interrupt(progress.stop):
        while queue and not progress.trouble or running:
            while queue and not progress.trouble and len(running) < workers:
                batch = [queue.popleft() for _ in range(min(batch_size, len(queue)))]
                running[pool.submit(ask, batch)] = batch
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                batch = running.pop(future)
                try:
                    answers = future.result()
                except Stop as error:
                    progress.stop(str(error))
                except NoAnswer as error:
                    progress.record_failure(batch, error)
                else:
                    progress.record_answers(batch, answers)
    if progress.trouble:
        raise SystemExit(f"{progress.trouble[0]}. What was answered is kept in {journal}; the same "
                         f"command goes on from there, and asks for nothing twice")
    return progress.answered
