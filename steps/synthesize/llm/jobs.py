"""Ask a language model for many dialogues: several calls at a time, and every answer on disk before it counts.

The journal is an append-only file, a line an answer: `number` (of the dialogue), `attempt` (1 or 2), `in` and `out`
(tokens), `verdict` (ok, repaired, ask again, no answer, rejected), `notes` (what was repaired, or the reason), `turns`, and
the `answer` itself where it was of no use. A killed run loses the calls in flight and nothing else: the next one reads the
journal and asks only for what it does not have.
"""

import errno
import json
import os
import signal
import threading
import time
from collections import Counter, deque
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import NamedTuple

from filelock import FileLock, Timeout
from tqdm import tqdm

from common import data, runs


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


class Refused(NoAnswer):
    """The server refuses this prompt; others may work."""


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
                    in_a_row += not (isinstance(error, Refused) and missed[batch[0].number])  # refused again: no news of the server
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


def ask_splits(journals, counts, price_in, price_out, ask_split):
    """Ask for what the journals leave open, and print what it came to, also where that ends in an error.

    journals: {split: path}; counts: {split: n}; prices: of summarise; ask_split: function of a split and `answered` -> `answered`, both
    of ask_all. Returns: ({split: of read_journal}, the summary for the record).
    """
    def look():
        found = {split: read_journal(path) for split, path in journals.items()}
        return found, summarise(found, counts, price_in, price_out)

    (found, before), start = look(), time.time()
    answered = any(line["verdict"] != "no answer" for of_split in found.values() for lines in of_split.values() for line in lines)
    try:
        for split in journals:
            answered = ask_split(split, answered)
    finally:
        found, summary = look()
        settled = summary["made"] + summary["rejected"] - before["made"] - before["rejected"]
        summary["dialogues_a_minute"] = round(60 * settled / (time.time() - start), 1)
        print_summary(summary)
    return found, summary


def summarise(found, counts, price_in, price_out):
    """What a run made, and what it cost over all its tries: a dict.

    found: {split: of read_journal}; counts: {split: n}, to leave out dialogues that an earlier try with a larger n made (but not
    what they cost). price_in, price_out: dollars a million tokens, or None where not known.
    """
    paid = [line for of_split in found.values() for lines in of_split.values() for line in lines]
    lines = [line for split, of_split in found.items() for lines in of_split.values() for line in lines if line["number"] < counts[split]]
    count = Counter(line["verdict"] for line in lines)
    kinds = {}
    for state in ("repaired", "ask again", "rejected"):
        notes = [note for line in lines if line["verdict"] == state for note in line["notes"]]
        kinds[state] = dict(Counter(note.partition(":")[0] for note in notes).most_common())
    tokens_in, tokens_out = sum(line["in"] for line in paid), sum(line["out"] for line in paid)
    return {"made": count["ok"] + count["repaired"], "repaired": count["repaired"], "asked_twice": count["ask again"],
            "rejected": count["rejected"], "repairs": kinds["repaired"], "first_answers_refused": kinds["ask again"],
            "reasons": kinds["rejected"], "tokens_in": tokens_in, "tokens_out": tokens_out,
            "cost": cost(tokens_in, tokens_out, price_in, price_out)}


def cost(tokens_in, tokens_out, price_in, price_out):
    """Dollars, or None where a price is not known."""
    return None if price_in is None or price_out is None else round((tokens_in * price_in + tokens_out * price_out) / 1e6, 4)


def collect(found, counts, jobs_of, model, backend):
    """({split: dialogues}, rows of dialogues_rejected.jsonl) of the dialogues 0 to n - 1 of each split, in their order.

    found: {split: of read_journal}, where all of them are settled; counts: {split: n}.
    """
    dialogues, rejected = {}, []
    for split, n in counts.items():
        dialogues[split] = []
        for number in range(n):
            lines = found[split][number]
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


def write_answers(paths, found, counts, jobs_of, model, backend):
    """Write the dialogues (paths: {split: path}), and beside them those set aside. The rest: of collect.

    Raises SystemExit: a split has none; the others are written.
    """
    dialogues, rejected = collect(found, counts, jobs_of, model, backend)
    aside = paths["train"].with_name("dialogues_rejected.jsonl")
    data.write_jsonl(aside, rejected)
    for split, path in paths.items():
        if dialogues[split]:
            data.write_jsonl(path, dialogues[split])
        else:
            path.unlink(missing_ok=True)
    for split in (split for split in paths if not dialogues[split]):
        raise SystemExit(f"no {split} dialogue could be used; the reasons and the answers are in {aside}. Ask for more with a larger "
                         f"--n-{split} (what is there is kept), or take another --model with --no-resume")


def refuse_changed(paths, journals, record):
    """Raises SystemExit where going on would overwrite dialogues that somebody has changed, or pay for some once more.

    paths, journals: {split: path}; record: the dict of runs/03_synthesize.json.
    """
    for split, path in ((split, path) for split, path in paths.items() if path.is_file()):
        if not journals[split].is_file():
            raise SystemExit(f"{journals[split]} is missing, from which {path.name} was made. Going on would ask, and pay, for all of it "
                             f"anew: put the file back, or say so with --no-resume")
        if record.get("outputs", {}).get(path.name, runs.file_hash(path)) != runs.file_hash(path):
            raise SystemExit(f"{path} is not as 03_synthesize left it and is not overwritten. Put the file back, or delete it: it is then "
                             f"written anew from {journals[split].name}, which costs nothing (--no-resume would pay again)")


@contextmanager
def alone(lock):
    """Within it this process is the only one that writes the folder's dialogues. lock: path of the lock file.

    Raises SystemExit: another process does, or something cannot be written.
    """
    try:
        lock.parent.mkdir(exist_ok=True)
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise SystemExit(f"another 03_synthesize.py is at work in {lock.parent.parent}; wait for it to end, or give another --data-dir")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
        raise SystemExit(f"{error.filename or lock.parent.parent}: {error.strerror}. Make room or mend its rights, or give another "
                         f"--data-dir; what is written is kept, and the same command goes on from there")


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
