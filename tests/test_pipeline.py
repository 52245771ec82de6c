"""The whole chain on a mini catalogue, every command of the README, and the notebooks."""

import argparse
import csv
import importlib
import json
import os
import re
import shlex
import subprocess
import sys

import nbformat
import pytest
import torch
from conftest import ROOT
from nbclient import NotebookClient

from common import runs

STAGES = [
    ("00_prepare_data.py", "demo", "--n-tracks", "60", "--n-playlists", "80"),
    ("01_extract_embeddings.py",),
    ("02_quantize.py",),
    ("03_synthesize.py", "simulate", "--n-train", "40", "--n-valid", "6", "--n-test", "6"),
    ("04_train.py", "--device", "cpu", "--indexing-repeats", "1"),
    ("05_infer.py", "predict", "--device", "cpu", "--max-new-tokens", "8"),
    ("baselines/random_order.py",),
    ("baselines/popularity.py",),
    ("baselines/bm25.py",),
    ("06_evaluate.py",),
]


def run(*command):
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    for stage in STAGES:
        done = run(*stage, "--data-dir", str(folder))
        assert done.returncode == 0, f"{stage}: {done.stderr[-3000:]}"
    return folder


def test_chain_ends_in_results(mini):
    rows = list(csv.DictReader(open(mini / "results" / "metrics.csv")))
    assert list(rows[0]) == [
        "system",
        "subset",
        "turn",
        "metric",
        "value",
        "ci_low",
        "ci_high",
        "n",
    ]
    assert {r["system"] for r in rows} == {
        "talkplay",
        "talkplay-overlap",
        "random_order",
        "popularity",
        "bm25",
    }
    assert {r["metric"] for r in rows} == {
        "mrr",
        "hit@1",
        "hit@10",
        "hit@100",
        "ndcg@10",
        "ndcg@20",
    }
    turns = sum(len(json.loads(line)["turns"]) for line in open(mini / "dialogues_test.jsonl"))
    assert all(int(r["n"]) == turns for r in rows if r["subset"] == "all" and r["turn"] == "all")
    assert all(
        float(r["value"]) == 1 for r in rows if r["metric"] == "hit@100" and r["subset"] == "all"
    )  # 60 tracks in all
    assert (mini / "results" / "results.md").is_file() and (
        mini / "results" / "mrr_per_turn.png"
    ).is_file()


def test_second_run_skips_what_is_done(mini):
    for stage in STAGES[:-1]:
        done = run(*stage, "--data-dir", str(mini))
        assert done.returncode == 0 and "already done" in done.stdout, (
            stage,
            done.stdout,
            done.stderr,
        )


def test_every_stage_leaves_its_record(mini):
    records = {p.stem: json.loads(p.read_text()) for p in (mini / "runs").glob("*.json")}
    assert {
        "00_prepare_data",
        "01_extract_embeddings",
        "02_quantize",
        "03_synthesize",
        "04_train",
        "05_infer.test",
    } <= set(records)
    for record in records.values():
        assert (
            record["state"] == "finished"
            and record["peak_memory_gib"] > 0
            and record["versions"]
            and record["outputs"]
        )


def test_a_changed_input_is_refused_by_name(mini):
    path = mini / "codes.npy"
    before = path.read_bytes()
    try:
        path.write_bytes(before[:-1] + bytes([(before[-1] + 1) % 2]))
        done = run(
            "04_train.py", "--device", "cpu", "--indexing-repeats", "1", "--data-dir", str(mini)
        )
        assert (
            done.returncode == 1 and "codes.npy" in done.stderr and "Traceback" not in done.stderr
        )
    finally:
        path.write_bytes(before)


def test_show_prints_a_dialogue(mini):
    done = run("05_infer.py", "show", "--data-dir", str(mini))
    assert (
        done.returncode == 0
        and done.stdout.count("listener") >= 4
        and done.stdout.count("model ") >= 4
    )
    missing = run("05_infer.py", "show", "--data-dir", str(mini), "--dialogue", "no-such")
    assert missing.returncode == 1 and "no-such is not in" in missing.stderr
    path = mini / "dialogues_test.jsonl"
    before = path.read_bytes()
    try:  # other dialogues than those that the model answered
        path.write_bytes(before.replace(b'"query": "', b'"query": "Well. ', 1))
        other = run("05_infer.py", "show", "--data-dir", str(mini))
        assert (
            other.returncode == 1
            and "has changed since 05_infer.test read it" in other.stderr
            and "Traceback" not in other.stderr
        )
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_run(path, mini, monkeypatch):
    monkeypatch.setenv("TALKPLAY_DATA", str(mini))
    notebook = nbformat.read(path, as_version=4)
    assert len(notebook.cells) <= 30
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    committed = nbformat.read(path, as_version=4)
    assert any(cell.get("outputs") for cell in committed.cells), (
        "commit the notebook executed on the demo"
    )


class Parsed(Exception):
    pass


def documented_commands():
    """Each `python script.py ...` of the README, docs/, data/README.md and the docstrings."""
    pages = [ROOT / "README.md", ROOT / "data" / "README.md", *(ROOT / "docs").glob("*.md")]
    texts = [page.read_text() for page in pages if page.name != "LOG.md"]
    texts += [importlib.import_module(p.stem).__doc__ for p in sorted(ROOT.glob("0*.py"))]
    found = set()
    for text in texts:
        for line in re.sub(r"\\\n\s*", " ", text).split("\n"):
            match = re.search(
                r"(?:python|torchrun(?: --[\w-]+ \S+)*) ((?:[\w/]+/)?\w+\.py\b[^`#(|]*)", line
            )
            if match:
                found.add(match.group(1).strip().rstrip(".,;"))
    return sorted(found)


@pytest.mark.parametrize("command", documented_commands())
def test_documented_commands_parse(command, monkeypatch):
    """The script is there and takes the flags: its parser accepts them (nothing is run)."""
    script, *flags = shlex.split(re.sub(r"\[.*?\]", "", command))
    assert (ROOT / script).is_file(), script
    parse = argparse.ArgumentParser.parse_args

    def stop(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [script, *flags])
    monkeypatch.setattr(
        torch.cuda, "device_count", lambda: 8
    )  # --device cuda is refused where there is none
    with pytest.raises(Parsed):
        importlib.import_module(script.removesuffix(".py").replace("/", ".")).main()


SCRIPTS = [
    p.relative_to(ROOT).as_posix()
    for p in (*sorted(ROOT.glob("0*.py")), *sorted(ROOT.glob("[ab]*/*.py")))
    if "\ndef main(" in p.read_text()
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_has_a_help_text(script, monkeypatch):
    """Of every subcommand, too."""

    def stop(self, args=None, namespace=None):
        raise Parsed(self)

    def options(parser):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, command in action.choices.items():
                    yield from ((f"{name} {option}", text) for option, text in options(command))
            else:
                yield "/".join(action.option_strings) or action.dest, action.help

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [script])
    with pytest.raises(Parsed) as parsed:
        importlib.import_module(script.removesuffix(".py").replace("/", ".")).main()
    found = list(options(parsed.value.args[0]))
    assert len(found) > 2 and [option for option, text in found if not text] == []


def test_more_than_a_few_commands_are_documented():
    assert len(documented_commands()) > 15


def test_a_change_in_the_middle_of_a_large_file_is_seen(tmp_path):
    with open(tmp_path / "large", "wb") as f:
        f.truncate(300 * 2**20)  # of no size on disk
    before = runs.file_hash(tmp_path / "large")
    with open(tmp_path / "large", "r+b") as f:
        f.seek(150 * 2**20)
        f.write(b"1" * 2**20)
    assert runs.file_hash(tmp_path / "large") != before
