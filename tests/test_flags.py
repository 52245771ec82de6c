"""Every numeric flag of every script has a range, which is checked before any data are read."""

import argparse
import importlib
import sys

import pytest
from test_pipeline import SCRIPTS, Parsed

from common import flags

BELOW_ZERO = {"--logprob-threshold": "-2000000000"}  # accepts negative numbers, but not this one


def main_of(script):
    return importlib.import_module(script.removesuffix(".py").replace("/", ".")).main


def find_parser(script, monkeypatch):
    def stop(self, args=None, namespace=None):
        raise Parsed(self)

    with monkeypatch.context() as patch, pytest.raises(Parsed) as parsed:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [script])
        main_of(script)()
    return parsed.value.args[0]


def bad_numbers(parser, before=()):
    """Yield (the arguments of a call that gives one number out of its range, its flag, number)."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from bad_numbers(command, [*before, name])
    needed = [text for action in parser._actions if action.required and action.dest != "command"
              and not isinstance(action, argparse._SubParsersAction)
              for text in (*action.option_strings[:1], "x")]
    for action in parser._actions:
        if action.type in (int, float):
            flag, = action.option_strings
            numbers = [BELOW_ZERO.get(flag, "-5")] + ["nan", "inf"] * (action.type is float)
            for number in numbers:
                yield [*before, *needed, f"{flag}={number}"], flag, number


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_number_out_of_its_range_ends_with_one_line(script, monkeypatch, tmp_path):
    """Of every subcommand, too. The data directory does not exist, so none has been read."""
    parser = find_parser(script, monkeypatch)
    monkeypatch.chdir(tmp_path)
    for arguments, flag, number in bad_numbers(parser):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as end:
            main_of(script)()
        assert str(end.value).startswith(f"{flag} {number}: "), (arguments, str(end.value))
        assert "\n" not in str(end.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number, message", [
    (-1, "0 to 1 is accepted"), (1.5, "0 to 1 is accepted"), (10**400, "0 to 1 is accepted")])
def test_both_ends_of_a_range(number, message):
    with pytest.raises(SystemExit, match=f"^--top-p {number}: {message}$"):
        flags.check_ranges(argparse.Namespace(top_p=number), top_p=(0, 1))
    flags.check_ranges(argparse.Namespace(top_p=None), top_p=(0, 1))


@pytest.mark.parametrize("script, arguments, message", [
    ("04_train.py", ["--context", "64"], "--context 64: 65 or more is accepted"),
    ("04_train.py", ["--drop-tokens", "1"], "--drop-tokens 1: 0 to 0.99 is accepted"),
    ("04_train.py", ["--warmup", "1.5"], "--warmup 1.5: 0 to 1 is accepted"),
    ("05_infer.py", ["chat", "--top-p", "0"], "--top-p 0: 1e-06 to 1 is accepted"),
    ("05_infer.py", ["predict", "--rankers", "greedy", "overlap", "greedy"],
     "--rankers greedy overlap greedy: name each of them once"),
    ("baselines/two_stage.py", ["--model", "x", "--max-new-tokens", "0"],
     "--max-new-tokens 0: 1 or more is accepted"),
    ("06_evaluate.py", ["--seed", str(2**31)], "--seed 2147483648: 0 to 2147483647 is accepted"),
    ("annotate/captions.py", ["--max-new-tokens", "0"], "--max-new-tokens 0: 1 or more is"),
    ("benchmarks/sasrec_sequences.py", ["--sequences", "x", "--seeds", "3", "-1"], "--seeds -1: ")])
def test_numbers_at_the_edge(script, arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as end:
        main_of(script)()
    assert str(end.value).startswith(message)
