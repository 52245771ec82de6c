"""03_synthesize.py gemini against a server here that speaks Gemini's REST form, and misbehaves.

Two transports: `google` is the package itself (skipped where it is not installed), `plain` a few
lines of requests in its place. So all but those lines (tries, delays, journal, resuming, repairs)
is tested everywhere. For the test that kills it, 03_synthesize.py runs with the plain transport by

    python tests/test_03_gemini.py ARGS...
"""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
import requests
from conftest import ROOT, make_tracks
from filelock import FileLock

from common import data
from steps.synthesize.llm import gemini, jobs, parse

synthesize = importlib.import_module("03_synthesize")
KEY = "secret-key-12345"


# ---------------------------------------------------------------- the server

def good_turns(prompt):
    """A flawless conversation: all tracks of the prompt's playlist, and one negative if any."""
    handles = re.findall(r"^([PN]\d+) \|", prompt.split("NOW YOURS")[1], re.MULTILINE)
    played = [h for h in handles if h[0] == "P"]
    played[1:1] = [h for h in handles if h[0] == "N"][:1]
    messages = []
    for i, handle in enumerate(played):
        messages += [{"role": "user", "content": f"a wish, number {i}"},
                     {"role": "music", "content": handle, "rejected": handle[0] == "N"},
                     {"role": "assistant", "content": f"an answer, number {i}"}]
    return messages


class Server:
    """behave: function of a prompt's number and how often it has come before -> what to do.

    The numbers count from 0, as the prompts come.
    """

    def __init__(self, behave=lambda number, before: "good", seconds=0.0):
        self.behave, self.seconds, self.lock = behave, seconds, threading.Lock()
        self.prompts, self.log, self.bodies, self.now, self.most = [], [], [], 0, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = body["contents"][0]["parts"][0]["text"]
        name = prompt.split("An earlier answer")[0].strip()  # the same dialogue, asked once more
        with self.lock:
            self.prompts += [name] * (name not in self.prompts)
            number = self.prompts.index(name)
            before = sum(n == number for n, *_ in self.log)
            self.log.append((number, time.monotonic(), handler.path, prompt))
            self.bodies.append((body, dict(handler.headers)))
            self.now, what = self.now + 1, self.behave(number, before)
            self.most = max(self.most, self.now)
        time.sleep(1.5 if what == "hang" else self.seconds)
        code, reply, headers = make_reply(what, prompt)
        with self.lock:
            self.now -= 1
        reply = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        try:
            handler.send_response(code)
            for pair in {"Content-Type": "application/json", "Content-Length": str(len(reply)),
                         **headers}.items():
                handler.send_header(*pair)
            handler.end_headers()
            handler.wfile.write(reply)
        except OSError:
            pass  # nobody listens any more

    def calls(self):
        """{number of the prompt: how often it was asked}."""
        return Counter(number for number, *_ in self.log)

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def make_reply(what, prompt):
    """(status, body, headers) for one sort of behaviour."""
    text = json.dumps(good_turns(prompt))
    if what in ("429", "429, 1 s", "429 for long"):
        delay = {"429": "0.4s", "429, 1 s": "1s"}.get(what, "7200s")
        details = [{"@type": "type.googleapis.com/google.rpc.QuotaFailure"},
                   {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}]
        return 429, {"error": {"code": 429, "message": "Resource has been exhausted",
                               "status": "RESOURCE_EXHAUSTED", "details": details}}, {}
    if what == "503, Retry-After":
        error = {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}
        return 503, {"error": error}, {"Retry-After": "0.3"}
    if what in ("500", "400", "403", "404"):
        return int(what), {"error": {"code": int(what), "message": f"API key not valid: {KEY}",
                                     "status": "INTERNAL"}}, {}
    if what in ("400, this prompt", "413, this prompt", "409, aborted"):
        return int(what[:3]), {"error": {"code": int(what[:3]), "message": "not this one",
                                         "status": "INVALID_ARGUMENT"}}, {}
    # The total has 50 more, which were thought.
    usage = {"promptTokenCount": 1000, "candidatesTokenCount": 200, "totalTokenCount": 1250}
    if what == "not JSON":
        return 200, b"<html>what?</html>", {}
    if what == "no UTF-8":
        return 200, b'{"candidates": "\xff"}', {}
    if what == "error is a text":
        return 503, {"error": "the gateway has gone"}, {}
    if what == "error in a list":
        return 503, [{"error": {"code": 503, "message": "busy"}}], {}
    if what == "429, 0 s":
        return 429, {"error": {"code": 429, "message": "quota",
                               "details": [{"retryDelay": "0s"}]}}, {}
    if what == "empty":
        return 200, {"candidates": [], "usageMetadata": usage}, {}
    if what == "prompt blocked":
        return 200, {"promptFeedback": {"blockReason": "SAFETY"},
                     "usageMetadata": {"promptTokenCount": 1000, "totalTokenCount": 1000}}, {}
    if what == "answer blocked":
        return 200, {"candidates": [{"content": {}, "finishReason": "SAFETY", "index": 0}],
                     "usageMetadata": usage}, {}
    if what == "truncated":
        text = text[:int(0.8 * len(text))]
    if what == "prose":
        text = f"Sure! Here is the conversation:\n```json\n{text}\n```\nEnjoy."
    if what == "unknown id":
        text = text.replace('"P2"', '"P77"')
    if what == "surrogate":
        text = text.replace("an answer, number 0", "\\ud83d an answer")
    reason = "MAX_TOKENS" if what == "truncated" else "STOP"
    half = len(text) // 2  # an answer may come in several parts
    content = {"parts": [{"text": text[:half]}, {"text": text[half:]}], "role": "model"}
    return 200, {"candidates": [{"content": content, "finishReason": reason, "index": 0}],
                 "usageMetadata": usage, "modelVersion": "a field that nobody knows"}, {}


def plain_make_call(model, key, endpoint, timeout, **sampling):
    """In place of gemini.make_call, without the package."""
    def named(value):
        return SimpleNamespace(name=value) if value else None

    def call(prompt):
        try:
            found = requests.post(
                f"{endpoint}/v1beta/models/{model}:generateContent",
                headers={"x-goog-api-key": key}, timeout=timeout,
                json={"contents": [{"parts": [{"text": prompt}], "role": "user"}],
                      "generationConfig": {"responseMimeType": "application/json"}})
            body = found.json()
        except requests.exceptions.Timeout:
            raise gemini.Trouble(None, f"no answer within {timeout} s") from None
        except requests.exceptions.RequestException as error:
            raise gemini.Trouble(None, gemini.clean(str(error), key)) from None
        if found.status_code >= 400:
            raise gemini.Trouble(found.status_code, gemini.clean(body["error"]["message"], key),
                                 gemini.server_delay(body["error"].get("details"), found.headers))
        usage = body["usageMetadata"]
        candidates = []
        for c in body.get("candidates", ()):
            parts = [SimpleNamespace(**part) for part in c["content"].get("parts", ())]
            candidates.append(SimpleNamespace(finish_reason=named(c["finishReason"]),
                                              content=SimpleNamespace(parts=parts)))
        block_reason = named(body.get("promptFeedback", {}).get("blockReason"))
        return gemini.read_answer(SimpleNamespace(
            usage_metadata=SimpleNamespace(
                prompt_token_count=usage["promptTokenCount"],
                candidates_token_count=usage.get("candidatesTokenCount", 0),
                total_token_count=usage["totalTokenCount"]),
            prompt_feedback=SimpleNamespace(block_reason=block_reason), candidates=candidates))
    return call


# ---------------------------------------------------------------- running it

@pytest.fixture(params=["plain", "google"])
def transport(request, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY",
                 "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    if request.param == "plain":
        monkeypatch.setattr(gemini, "make_call", plain_make_call)
    else:
        pytest.importorskip("google.generativeai", reason="google-generativeai is not installed")
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    return request.param


@pytest.fixture
def serve():
    servers = []

    def start(*args, **kwargs):
        servers.append(Server(*args, **kwargs))
        return servers[-1]
    yield start
    for server in servers:
        server.close()


@pytest.fixture
def folder(tmp_path):
    """60 tracks; 12 training playlists of 7 tracks, one of valid and one of test, of 13.

    All are by 7 artists, so that there are negatives.
    """
    data.write_jsonl(tmp_path / "tracks.jsonl", make_tracks(60))
    splits = ["train"] * 12 + ["valid", "test"]
    data.write_jsonl(tmp_path / "playlists.jsonl", [
        {"playlist_id": f"p{i}", "title": None, "modified_at": None, "split": split,
         "track_ids": [f"t{(5 * i + j) % 60}" for j in range(7 if split == "train" else 13)]}
        for i, split in enumerate(splits)])
    return tmp_path


def flags(folder, server, n=3, **more):
    given = {"data-dir": folder, "api-endpoint": server.url, "n-train": n, "n-valid": 1,
             "n-test": 1, "concurrency": 1, "requests-per-minute": 0, "timeout": 0.5, "tries": 3,
             "price-in": 2, "price-out": 10} | more
    return ["gemini", *(part for name, value in given.items()
                        for part in (f"--{name.replace('_', '-')}", str(value)))]


def run(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["03_synthesize.py", *arguments])
    synthesize.main()


def rows(folder, name):
    return [json.loads(line) for line in open(folder / name, encoding="utf-8")]


def ids(folder, name):
    return [row["dialogue_id"] for row in rows(folder, name)]


def record(folder):
    return json.loads((folder / "runs" / "03_synthesize.json").read_text())


def summary(folder):
    return record(folder)["summary"]


def test_good_answers(transport, serve, folder, monkeypatch, capsys):
    server = serve()
    run(monkeypatch, flags(folder, server, n=20, model="some-model"))
    row_of = {f"t{i}": i for i in range(60)}
    found = data.load_dialogues(folder / "dialogues_train.jsonl", row_of)
    assert [d["dialogue_id"] for d in found] == [f"train-{i}" for i in range(20)]
    playlists = {p["playlist_id"]: p for p in rows(folder, "playlists.jsonl")}
    for d in found:
        playlist = playlists[d["playlist_id"]]
        assert d["meta"] == {"backend": "gemini", "model": "some-model", "sampled": 7}
        assert playlist["split"] == "train"
        assert [t["rejected"] for t in d["turns"]] == [False, True] + [False] * 6
        assert [t["music"] for t in d["turns"] if not t["rejected"]] == playlist["track_ids"]
        assert d["turns"][1]["music"] not in playlist["track_ids"]
        assert d["turns"][2]["kind"] == "after_rejection"
        assert d["turns"][0]["query"] == "a wish, number 0"
        assert d["turns"][7]["response"] == "an answer, number 7"
    assert len(data.load_dialogues(folder / "dialogues_test.jsonl", row_of)[0]["turns"]) == 14
    assert rows(folder, "dialogues_rejected.jsonl") == [] and not list(folder.glob("*.part"))
    assert record(folder)["asked"] == {"train": 20, "valid": 1, "test": 1}
    told = summary(folder)
    # thinking is paid for
    assert (told["made"], told["tokens_in"], told["tokens_out"]) == (22, 22000, 22 * 250)
    assert told["cost"] == pytest.approx(22 * (1000 * 2 + 250 * 10) / 1e6)
    out = capsys.readouterr().out
    assert "made 22 (repaired 0), rejected 0" in out and "$0.0990" in out
    assert "dialogues per minute" in out and KEY not in out
    assert len(server.log) == 22
    paths = {path.partition("?")[0] for _, _, path, _ in server.log}
    assert paths == {"/v1beta/models/some-model:generateContent"}
    body, headers = server.bodies[0]
    config = body["generationConfig"]
    headers = {k.lower(): v for k, v in headers.items()}
    assert headers["x-goog-api-key"] == KEY and config["responseMimeType"] == "application/json"
    if transport == "google":
        assert config["responseSchema"]["items"]["required"] == ["role", "content"]
        assert config["temperature"] == 1.0
    run(monkeypatch, flags(folder, server, n=20, model="some-model", concurrency=5))
    assert "already done" in capsys.readouterr().out and len(server.log) == 22


@pytest.mark.parametrize("what, tries, notes", [
    ("429", 2, None), ("503, Retry-After", 2, None), ("500", 2, None), ("409, aborted", 2, None),
    ("hang", 2, None), ("not JSON", 2, None), ("prose", 1, ["fences"]),
    ("truncated", 1, ["cut off"]), ("surrogate", 1, None), ("empty", 2, "no candidate"),
    ("answer blocked", 2, "answer blocked: SAFETY"), ("unknown id", 2, "unknown id: 'P77'")])
def test_one_misbehaviour(transport, serve, folder, monkeypatch, what, tries, notes):
    """The second dialogue's first call goes wrong.

    In the end all dialogues are there, and nothing was asked for in vain.
    """
    server = serve(lambda number, before: what if (number, before) == (1, 0) else "good")
    run(monkeypatch, flags(folder, server))
    assert server.calls() == {0: 1, 1: tries, 2: 1, 3: 1, 4: 1}
    found, told = rows(folder, "dialogues_train.jsonl"), summary(folder)
    assert [d["dialogue_id"] for d in found] == ["train-0", "train-1", "train-2"]
    assert told["rejected"] == 0
    times = [when for number, when, *_ in server.log if number == 1]
    if what == "429":
        assert times[1] - times[0] >= 0.4
    if what == "503, Retry-After":
        # what the server says, not the 0.75 s and more of the back-off
        assert 0.3 <= times[1] - times[0] < 0.7
    if what in ("500", "hang", "not JSON"):
        assert times[1] - times[0] >= 0.75
    if isinstance(notes, list):
        assert [note.partition(":")[0] for note in found[1]["meta"]["repaired"]] == notes
        assert told["repaired"] == 1
    elif notes:
        assert told["asked_twice"] == 1
        assert list(told["first_answers_refused"]) == [notes.partition(":")[0]]
        again = [prompt for number, _, _, prompt in server.log if number == 1][1]
        assert f"An earlier answer could not be used ({notes}" in again
    # calls that failed cost nothing
    assert told["tokens_in"] == 1000 * (5 + (tries - 1) * (notes is not None))
    if what == "surrogate":
        assert found[1]["turns"][0]["response"] == "? an answer"


@pytest.mark.parametrize("what", ["error is a text", "error in a list", "no UTF-8"])
def test_bodies_that_the_package_does_not_expect(serve, folder, monkeypatch, what):
    """As proxies answer. The package stumbles over them; the call is tried again."""
    pytest.importorskip("google.generativeai", reason="google-generativeai is not installed")
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = serve(lambda number, before: what if (number, before) == (1, 0) else "good")
    run(monkeypatch, flags(folder, server))
    assert server.calls() == {0: 1, 1: 2, 2: 1, 3: 1, 4: 1} and summary(folder)["made"] == 5


def test_a_delay_that_is_too_short_is_not_believed_twice(transport, serve, folder, monkeypatch):
    server = serve(lambda number, before: "429, 0 s" if number == 1 and before < 2 else "good")
    run(monkeypatch, flags(folder, server, n=2))
    first, second, third = (when for number, when, *_ in server.log if number == 1)
    assert second - first < 0.75 and third - second >= 1.5


def test_what_cannot_be_had_is_set_aside(transport, serve, folder, monkeypatch, capsys):
    bad = {0: "prompt blocked", 1: "unknown id", 2: "empty"}
    server = serve(lambda number, before: bad.get(number, "good"))
    run(monkeypatch, flags(folder, server, n=5))
    assert ids(folder, "dialogues_train.jsonl") == ["train-3", "train-4"]
    rejected = rows(folder, "dialogues_rejected.jsonl")
    assert [(r["dialogue_id"], r["reasons"]) for r in rejected] == [
        ("train-0", ["prompt blocked: SAFETY"]), ("train-1", ["unknown id: 'P77'"] * 2),
        ("train-2", ["no candidate: an empty list"] * 2)]
    assert rejected[0]["answers"] == [None]
    assert all("P77" in answer for answer in rejected[1]["answers"])
    # a blocked prompt is not tried again
    assert server.calls() == {0: 1, 1: 2, 2: 2, 3: 1, 4: 1, 5: 1, 6: 1}
    assert summary(folder)["reasons"] == {"prompt blocked": 1, "unknown id": 1, "no candidate": 1}
    assert "rejected: " in capsys.readouterr().out


def test_nothing_usable(transport, serve, folder, monkeypatch):
    server = serve(lambda number, before: "unknown id")
    with pytest.raises(SystemExit,
                       match="no train dialogue could be used.*dialogues_rejected.jsonl"):
        run(monkeypatch, flags(folder, server))
    assert len(rows(folder, "dialogues_rejected.jsonl")) == 5
    assert not (folder / "dialogues_train.jsonl").exists()
    with pytest.raises(SystemExit, match="no train dialogue"):
        run(monkeypatch, flags(folder, server))
    assert len(server.log) == 10  # nor is it paid for again


@pytest.mark.parametrize("what", ["400", "403", "404", "429 for long", "429"])
def test_a_refusal_ends_the_run(transport, serve, folder, monkeypatch, capsys, what):
    """And a rerun goes on."""
    refusing = {"now": True}
    server = serve(lambda number, before: what if number >= 2 and refusing["now"] else "good")
    words = {"429 for long": "asks to wait 7200 s", "429": "refused 3 times.*--requests-per-minute"}
    words = words.get(what, f"refuses the request: {what}")
    with pytest.raises(SystemExit, match=words) as stopped:
        run(monkeypatch, flags(folder, server, n=5))
    told = capsys.readouterr()
    assert KEY not in str(stopped.value) + told.err
    assert "the same command goes on" in str(stopped.value)
    assert "made 2 (repaired 0), rejected 0, asked twice 0" in told.out
    assert "asked twice 0; 2,000 tokens in, 500 out, $0.0090" in told.out
    assert server.calls()[2] == (3 if what == "429" else 1) and 3 not in server.calls()
    refusing["now"] = False
    run(monkeypatch, flags(folder, server, n=5))
    assert server.calls()[0] == server.calls()[1] == 1
    assert len(rows(folder, "dialogues_train.jsonl")) == 5
    assert summary(folder)["tokens_in"] == 7000


def test_a_server_that_is_down_is_given_up(transport, serve, folder, monkeypatch):
    down = {"now": True}
    server = serve(lambda number, before: "500" if down["now"] else "good")
    monkeypatch.setattr(gemini, "BACK_OFF", 0.01)
    for _ in range(2):  # the second time others are asked for: nothing is set aside
        with pytest.raises(SystemExit, match="4 calls in a row failed; the last: no answer: 500"):
            run(monkeypatch, flags(folder, server, n=12))
    assert len(server.log) == 8 * 3
    journal = [(row["number"], row["verdict"]) for row in rows(folder, "answers_train.jsonl")]
    assert journal == [(number, "no answer") for number in range(8)]
    down["now"] = False
    run(monkeypatch, flags(folder, server, n=12))
    assert len(rows(folder, "dialogues_train.jsonl")) == 12


def test_a_prompt_that_the_server_chokes_on_is_set_aside(transport, serve, folder, monkeypatch):
    monkeypatch.setattr(gemini, "BACK_OFF", 0.01)
    server = serve(lambda number, before: "500" if number == 1 else "good")
    run(monkeypatch, flags(folder, server, n=4))
    rejected = rows(folder, "dialogues_rejected.jsonl")
    assert rejected[0]["reasons"][0].startswith("no answer: 500")
    assert server.calls()[1] == 2 * 3 and len(rows(folder, "dialogues_train.jsonl")) == 3


@pytest.mark.parametrize("what", ["400, this prompt", "413, this prompt"])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_prompt_that_is_refused_is_set_aside(transport, serve, folder, monkeypatch, what, bad):
    server = serve(lambda number, before: what if number == bad else "good")
    run(monkeypatch, flags(folder, server, n=4))
    rejected, = rows(folder, "dialogues_rejected.jsonl")
    assert rejected["dialogue_id"] == f"train-{bad}"
    assert rejected["reasons"][-1].startswith(f"refused: {what[:3]}")
    assert server.calls()[bad] == 2 and len(rows(folder, "dialogues_train.jsonl")) == 3
    assert summary(folder)["reasons"] == {"refused": 1}


def test_many_refused_prompts_do_not_stop_the_run(transport, serve, folder, monkeypatch):
    """In the second round they come one after the other."""
    bad = range(1, 12, 2)
    server = serve(lambda number, before: "400, this prompt" if number in bad else "good")
    run(monkeypatch, flags(folder, server, n=12))
    assert len(rows(folder, "dialogues_train.jsonl")) == 6
    assert len(rows(folder, "dialogues_rejected.jsonl")) == 6


def test_a_request_that_is_always_refused_ends_the_run(transport, serve, folder, monkeypatch):
    server = serve(lambda number, before: "400, this prompt")
    for n, calls in ((12, 4), (2, 3)):  # of two dialogues the first is asked for twice
        with pytest.raises(SystemExit, match="refused: 400 not this one.*the same command goes on"):
            run(monkeypatch, [*flags(folder, server, n=n), "--no-resume"])
        assert len(server.log) == calls and not (folder / "dialogues_rejected.jsonl").exists()
        server.log.clear()


@pytest.mark.parametrize("what", ["500", "hang", "400, this prompt"])
def test_the_only_dialogue_left_is_set_aside(transport, serve, folder, monkeypatch, what):
    """Whatever the tries of before answered counts, in every split."""
    monkeypatch.setattr(gemini, "BACK_OFF", 0.01)
    now = {"what": "403"}
    server = serve(lambda number, before: now["what"] if number == 4 else "good")
    with pytest.raises(SystemExit, match="refuses the request: 403"):
        run(monkeypatch, flags(folder, server, n=2, n_test=2))
    now["what"] = what
    run(monkeypatch, flags(folder, server, n=2, n_test=2))
    assert ids(folder, "dialogues_rejected.jsonl") == ["test-1"]
    assert len(rows(folder, "dialogues_test.jsonl")) == 1


def test_rounds_without_an_answer_are_counted_over_reruns(transport, serve, folder, monkeypatch):
    monkeypatch.setattr(gemini, "BACK_OFF", 0.01)
    now = {"refused": True}

    def behave(number, before):
        if number == 1:
            return "500"
        return "403" if number == 3 and now["refused"] else "good"

    server = serve(behave)
    with pytest.raises(SystemExit, match="403"):
        run(monkeypatch, flags(folder, server, n=4))
    assert server.calls() == {0: 1, 1: 3, 2: 1, 3: 1}
    now["refused"] = False
    run(monkeypatch, flags(folder, server, n=4))
    assert server.calls()[1] == 2 * 3
    assert ids(folder, "dialogues_rejected.jsonl") == ["train-1"]


def test_an_interrupt_loses_no_answer(transport, serve, folder, monkeypatch, capsys):
    """It comes while an answer is judged, when the main thread is not waiting for calls."""
    judge, server = parse.judge, serve()

    def interrupted(*args):
        if len(server.log) == 2:
            signal.raise_signal(signal.SIGINT)
        return judge(*args)

    monkeypatch.setattr(parse, "judge", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit, match="stopped by hand. What was answered is kept"):
        run(monkeypatch, flags(folder, server, n=5))
    assert len(rows(folder, "answers_train.jsonl")) == len(server.log) == 2
    assert "made 2" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.setattr(parse, "judge", judge)
    run(monkeypatch, flags(folder, server, n=5))
    assert set(server.calls().values()) == {1} and len(rows(folder, "dialogues_train.jsonl")) == 5


def test_concurrency_and_rate(transport, serve, folder, monkeypatch):
    server = serve(seconds=0.15)
    run(monkeypatch, flags(folder, server, n=12, concurrency=4))
    assert 2 <= server.most <= 4
    # whoever answers first
    assert ids(folder, "dialogues_train.jsonl") == [f"train-{i}" for i in range(12)]
    slow = serve()
    run(monkeypatch, [*flags(folder, slow, n=6, concurrency=4, requests_per_minute=600),
                      "--no-resume"])
    times = sorted(when for _, when, *_ in slow.log)[:6]
    assert times[-1] - times[0] >= 0.9 * 5 * 0.1


def test_a_429_holds_all_threads_back(transport, serve, folder, monkeypatch):
    server = serve(lambda number, before: "429" if (number, before) == (0, 0) else "good",
                   seconds=0.1)
    run(monkeypatch, flags(folder, server, n=12, concurrency=2))
    times = sorted(when for _, when, *_ in server.log)
    assert max(b - a for a, b in pairwise(times)) >= 0.3
    assert server.calls()[0] == 2 and sum(server.calls().values()) == 15


def test_a_429_takes_back_the_slots_given(transport, serve, folder, monkeypatch):
    """At 300 calls per minute the threads have slots 0.2 s apart when the refusal comes.

    None of them may be used within the 1 s asked for.
    """
    server = serve(lambda number, before: "429, 1 s" if (number, before) == (0, 0) else "good")
    run(monkeypatch, flags(folder, server, n=8, concurrency=4, requests_per_minute=300))
    times = sorted(when for _, when, *_ in server.log)
    assert times[1] - times[0] >= 0.98 and len(times) == 11
    assert times[-1] - times[1] >= 0.9 * 9 * 0.2  # nor do they come all at once when it is over


def driver(folder, server):
    return [sys.executable, str(Path(__file__).resolve()),
            *flags(folder, server, n=24, concurrency=3, timeout=5)]


def test_killed_and_rerun_asks_for_nothing_twice(serve, folder):
    server = serve(seconds=0.1)
    environment = os.environ | {"GEMINI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    process = subprocess.Popen(driver(folder, server), cwd=ROOT, env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = folder / "answers_train.jsonl"
    while process.poll() is None and not (part.is_file() and part.read_bytes().count(b"\n") >= 6):
        time.sleep(0.01)
    process.kill()
    assert process.wait() != 0, "the run ended before it could be killed"
    time.sleep(0.3)  # what it had sent may still be on its way
    kept = {row["number"] for row in rows(folder, part.name)}
    assert 6 <= len(kept) < 24
    with open(part, "ab") as f:
        f.write(b'{"number": 23, "half a li')
    asked_before, prompts_before = server.calls(), len(server.log)
    done = subprocess.run(driver(folder, server), cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    again = {number for number, *_ in server.log[prompts_before:]} & set(asked_before)
    assert len(again) <= 3  # the calls that were in flight
    assert sum(asked_before.values()) - len(kept) == len(again)
    assert len(server.log) == 26 + len(again)
    assert ids(folder, "dialogues_train.jsonl") == [f"train-{i}" for i in range(24)]
    assert summary(folder)["made"] == 26 and summary(folder)["tokens_in"] == 26000


@pytest.mark.parametrize("presses", [1, 2])
def test_control_c(serve, folder, presses):
    """Once: the calls in flight are waited for, and kept. Twice: it ends at once."""
    server = serve(seconds=2.0)
    environment = os.environ | {"GEMINI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    with subprocess.Popen(driver(folder, server), cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(server.log) < 3:
            time.sleep(0.01)
        for _ in range(presses):
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
        start = time.monotonic()
        out, err = process.communicate(timeout=30)
    assert "interrupt again to lose them" in err and "Traceback" not in err and len(server.log) == 3
    if presses == 1:
        assert process.returncode == 1 and "made 3" in out and "stopped by hand" in err
        assert len(rows(folder, "answers_train.jsonl")) == 3
    else:
        assert process.returncode == 130 and time.monotonic() - start < 1.5


def test_killed_between_the_first_and_the_second_answer(transport, serve, folder, monkeypatch):
    """The first answer, of no use, was paid for: the rerun asks only for the second."""
    server = serve()
    run(monkeypatch, flags(folder, server, n=2))
    journal = [{"number": 0, "attempt": 1, "in": 7, "out": 3, "verdict": "ask again",
                "notes": ["less than half: 1 of 7"], "turns": [], "answer": "[]"}]
    asked = len(server.log)
    for split in data.SPLITS:
        (folder / f"dialogues_{split}.jsonl").unlink()
        (folder / f"answers_{split}.jsonl").unlink()
    data.write_jsonl(folder / "answers_train.jsonl", journal)
    run(monkeypatch, flags(folder, server, n=2))
    complaints = ["(less than half: 1 of 7)" in prompt for *_, prompt in server.log[asked:]]
    assert complaints == [True, False, False, False]
    assert summary(folder)["tokens_in"] == 7 + 4000 and summary(folder)["asked_twice"] == 1


def test_a_changed_file_is_not_paid_for_again(transport, serve, folder, monkeypatch):
    server = serve()
    run(monkeypatch, flags(folder, server, n=2))
    whole = (folder / "dialogues_train.jsonl").read_bytes()
    data.write_jsonl(folder / "dialogues_train.jsonl", rows(folder, "dialogues_train.jsonl")[:1])
    for n in (2, 3):
        message = "dialogues_train.jsonl is not as 03_synthesize left it.*delete it.*costs nothing"
        with pytest.raises(SystemExit, match=message):
            run(monkeypatch, flags(folder, server, n=n))
    (folder / "dialogues_train.jsonl").unlink()
    run(monkeypatch, flags(folder, server, n=2))
    assert len(server.log) == 4 and (folder / "dialogues_train.jsonl").read_bytes() == whole
    journal = (folder / "answers_train.jsonl").read_bytes()
    (folder / "answers_train.jsonl").unlink()
    run(monkeypatch, flags(folder, server, n=2))  # already done
    with pytest.raises(SystemExit, match="answers_train.jsonl is missing.*pay, for all of it anew"):
        run(monkeypatch, flags(folder, server, n=3))
    (folder / "answers_train.jsonl").write_bytes(journal)
    assert len(server.log) == 4
    run(monkeypatch, [*flags(folder, server, n=2), "--no-resume"])
    assert len(server.log) == 8 and len(rows(folder, "dialogues_train.jsonl")) == 2


def test_another_n_keeps_what_is_paid_for(transport, serve, folder, monkeypatch, capsys):
    server = serve(lambda number, before: "prompt blocked" if number == 1 else "good")
    run(monkeypatch, flags(folder, server, n=4))
    first = rows(folder, "dialogues_train.jsonl")
    run(monkeypatch, flags(folder, server, n=9, n_valid=3))
    grown, asked = rows(folder, "dialogues_train.jsonl"), len(server.log)
    assert grown[:3] == first
    assert [d["dialogue_id"] for d in grown[3:]] == [f"train-{i}" for i in range(4, 9)]
    assert asked == 13 and set(server.calls().values()) == {1}
    assert len(rows(folder, "dialogues_valid.jsonl")) == 3
    run(monkeypatch, flags(folder, server, n=9, n_valid=3))
    assert "already done" in capsys.readouterr().out
    run(monkeypatch, flags(folder, server, n=1, n_valid=2, n_test=1))
    assert ids(folder, "dialogues_train.jsonl") == ["train-0"]
    assert len(rows(folder, "dialogues_valid.jsonl")) == 2
    assert rows(folder, "dialogues_rejected.jsonl") == []
    told = summary(folder)
    assert (told["made"], told["rejected"], told["tokens_in"], told["dialogues_a_minute"]) == (
        4, 0, 13000, 0)
    run(monkeypatch, flags(folder, server, n=9, n_valid=3))
    assert rows(folder, "dialogues_train.jsonl") == grown and len(server.log) == asked
    with pytest.raises(SystemExit, match="another argument: seed"):
        run(monkeypatch, [*flags(folder, server, n=20), "--seed", "1"])


def test_a_split_of_which_nothing_is_usable(transport, serve, folder, monkeypatch):
    """The other splits are written, and a larger number mends it without paying twice."""
    server = serve(lambda number, before: "prompt blocked" if number == 3 else "good")
    with pytest.raises(SystemExit, match="no valid dialogue could be used.*larger --n-valid"):
        run(monkeypatch, flags(folder, server))
    assert len(rows(folder, "dialogues_train.jsonl")) == 3
    assert not (folder / "dialogues_valid.jsonl").exists()
    run(monkeypatch, flags(folder, server, n_valid=2))
    assert ids(folder, "dialogues_valid.jsonl") == ["valid-1"]
    assert set(server.calls().values()) == {1}


def test_answers_without_a_record_are_not_deleted(transport, serve, folder, monkeypatch):
    server = serve(lambda number, before: "403" if number == 2 and len(server.log) < 4 else "good")
    with pytest.raises(SystemExit, match="403"):
        run(monkeypatch, flags(folder, server))
    journal = (folder / "answers_train.jsonl").read_bytes()
    (folder / "runs" / "03_synthesize.json").unlink()
    for more in ([], ["--seed", "1"]):
        message = "answers_train.jsonl holds answers.*03_synthesize.json is missing.*--no-resume"
        with pytest.raises(SystemExit, match=message):
            run(monkeypatch, [*flags(folder, server), *more])
    assert (folder / "answers_train.jsonl").read_bytes() == journal and len(server.log) == 3
    run(monkeypatch, [*flags(folder, server), "--no-resume"])
    assert len(rows(folder, "dialogues_train.jsonl")) == 3 and len(server.log) == 8


def test_two_at_once(transport, serve, folder, monkeypatch):
    server = serve()
    (folder / "runs").mkdir()
    with FileLock(folder / "runs" / "03_synthesize.lock"):
        with pytest.raises(SystemExit, match="another 03_synthesize.py is at work in"):
            run(monkeypatch, flags(folder, server))
    assert server.log == []
    run(monkeypatch, flags(folder, server))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(transport, serve, folder, monkeypatch, capsys):
    server = serve(lambda number, before: "403" if (number, before) == (3, 0) else "good")
    with pytest.raises(SystemExit, match="403"):
        run(monkeypatch, flags(folder, server))
    (folder / "answers_valid.jsonl").unlink()
    (folder / "answers_valid.jsonl").symlink_to("/dev/full")
    with pytest.raises(SystemExit, match="No space left on device. Make room"):
        run(monkeypatch, flags(folder, server))
    assert "made 3" in capsys.readouterr().out
    (folder / "answers_valid.jsonl").unlink()
    run(monkeypatch, flags(folder, server))
    assert server.calls() == {0: 1, 1: 1, 2: 1, 3: 3, 4: 1}


def test_a_folder_that_cannot_be_written(serve, folder, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(folder / "runs"))

    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setattr(Path, "mkdir", refused)  # the tests may run as root, who may write anywhere
    with pytest.raises(SystemExit, match="runs: Permission denied. Make room or mend its rights"):
        run(monkeypatch, flags(folder, serve()))


def test_show_prompt_calls_nobody(folder, serve, monkeypatch, capsys):
    server = serve()
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    before = sorted(folder.rglob("*"))
    run(monkeypatch, [*flags(folder, server, n=100), "--show-prompt"])
    out = capsys.readouterr().out
    assert "NEGATIVE SET\nN1 | title: Song" in out and "\nP7 | title: Song" in out
    assert server.log == [] and sorted(folder.rglob("*")) == before
    calls, tokens_in, tokens_out, dollars = re.search(
        r"([\d,]+) calls, about ([\d,]+) tokens in and ([\d,]+) out.*about \$([\d.]+)$",
        out.strip()).groups()
    tokens_in, tokens_out = (int(x.replace(",", "")) for x in (tokens_in, tokens_out))
    assert calls == "102" and tokens_out == 110 * (100 * 7 + 2 * 13)
    # the prompt shown is nearly all of the output
    assert 0.9 < tokens_in / (102 * len(out) / 4) < 1.2
    assert float(dollars) == pytest.approx((tokens_in * 2 + tokens_out * 10) / 1e6, abs=0.01)
    with pytest.raises(SystemExit, match="GEMINI_API_KEY"):
        run(monkeypatch, flags(folder, server))
    assert not (folder / "runs" / "03_synthesize.json").exists()


def test_without_the_package(folder, monkeypatch):
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    monkeypatch.setitem(sys.modules, "google.generativeai", None)
    with pytest.raises(SystemExit, match="pip install google-generativeai==0.8.6"):
        run(monkeypatch, ["gemini", "--data-dir", str(folder), "--n-train", "1"])


@pytest.mark.parametrize("key", ["AIza-top-secret\n", " AIza-top-secret\r\n"])
def test_a_key_with_a_line_end(key, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", key)
    assert gemini.read_key() == "AIza-top-secret"


@pytest.mark.parametrize("key, message", [
    ("  \n", "needs an API key"), ("AIza-top\nsecret", "has a blank, a line break"),
    ("AIza-top secret", "a blank"), ("AIza-top-secret\u2019", "ASCII")])
def test_what_can_be_no_key_is_not_printed(key, message, folder, serve, monkeypatch, capsys):
    """requests would print it, with its line breaks escaped, so that `clean` does not find it."""
    monkeypatch.setenv("GEMINI_API_KEY", key)
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    with pytest.raises(SystemExit, match=message) as stopped:
        run(monkeypatch, flags(folder, serve()))
    told = capsys.readouterr()
    assert "secret" not in f"{stopped.value} {told.out} {told.err}"
    assert not (folder / "runs" / "03_synthesize.json").exists()


@pytest.mark.parametrize("details, headers, seconds", [
    ([{"@type": "x"}, {"retryDelay": "34.074824224s"}], {}, 34.074824224),
    ([{"retryDelay": "0s"}], {"Retry-After": "9"}, 0.0),
    ((), {"Retry-After": "12"}, 12.0), ([], {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ([], {"Retry-After": "soon"}, None), (None, None, None), (["odd"], {}, None)])
def test_server_delay(details, headers, seconds):
    assert gemini.server_delay(details, headers) == seconds


def test_server_delay_as_a_date():
    date = formatdate(time.time() + 60, usegmt=True)
    assert 55 < gemini.server_delay([], {"Retry-After": date}) <= 60


def test_stopping_wakes_the_sleepers():
    limiter, start = jobs.RateLimit(1), time.monotonic()
    limiter.wait()
    threading.Timer(0.1, limiter.stop.set).start()
    with pytest.raises(jobs.Stop):
        limiter.wait()  # would be a minute
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("arguments, message", [
    (["--n-valid", "0"], "--n-valid 0: 1 or more is"),
    (["--chunk", "3"], "--chunk 3: 4 or more is"),
    (["--temperature", "-1"], "--temperature -1: 0 or more is"),
    (["--temperature", "inf"], "--temperature inf"),
    (["--top-p", "0"], "--top-p 0: 1e-06 to 1 "),
    (["--top-p", "nan"], "--top-p nan"), (["--seed", "-1"], "--seed -1: 0 to 2147483647 is"),
    (["--requests-per-minute", "-3"], "--requests-per-minute -3: 0 or more is"),
    (["--timeout", "0"], "--timeout 0: 0.001 to 86400 "),
    (["--timeout", "inf"], "--timeout inf"),
    (["--price-in", "-1"], "--price-in -1"),
    (["--price-in", "1"], "give both, in dollars per million"),
    (["--api-endpoint", ""], "--api-endpoint : a server is accepted"),
    (["--model", "a b"], "--model a b: a name of Google's"), (["--model", ""], "--model : a name"),
    (["--model", "Qwen/Qwen3-4B"], "is for the subcommand local")])
def test_arguments(folder, monkeypatch, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, ["gemini", "--data-dir", str(folder), *arguments])


if __name__ == "__main__":
    gemini.make_call = plain_make_call
    synthesize.main()
