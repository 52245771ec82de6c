"""Models from strangers: their code is not run, their pickles are not read; mistyped paths."""

import ast
import io
import json
import pickle
import sys
from pathlib import Path

import pytest
from test_layout import FILES

from annotate import captions, lyrics
from baselines import two_stage
from common.models import looks_like_path
from steps.extract_embeddings import clap, text
from steps.infer import model as infer
from steps.prepare_data import talkplaydata_files
from steps.synthesize.llm import local
from steps.train.base_models import load_base

LOADERS = {
    "04": lambda folder: load_base(str(folder), []),
    "05": lambda folder: infer.load(folder.parent, "cpu"),
    "two_stage": lambda folder: two_stage.load_model(str(folder), "cpu"),
    "local": lambda folder: local.load_model(str(folder), "cpu"),
    "text": lambda folder: text.load_text_encoder(str(folder), "cpu"),
    "clap": lambda folder: clap.load_clap(str(folder), "cpu"),
    "lyrics": lambda folder: lyrics.load_whisper(str(folder), "cpu"),
    "captions": lambda folder: captions.load_captioner(str(folder), "cpu"),
}


class Payload:
    """An object whose pickle writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


@pytest.mark.parametrize("loader", [*LOADERS, "resolve_text_encoder"])
def test_code_that_comes_with_a_model_is_not_run(small, monkeypatch, loader):
    folder, ran = small / "model", small / "ran"
    folder.mkdir()
    kinds = ("Config", "Model", "ModelForCausalLM", "ModelForSeq2SeqLM", "Processor")
    auto_map = {f"Auto{kind}": f"evil.{kind}" for kind in kinds}
    auto_map["AutoTokenizer"] = ["evil.Tokenizer", None]
    (folder / "config.json").write_text(json.dumps({"model_type": "new", "auto_map": auto_map}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(small / "cache"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    load = LOADERS.get(loader, lambda folder: text.resolve_text_encoder(str(folder)))
    with pytest.raises(SystemExit, match="model cannot be loaded: .* comes with it, which is never "
                                         "run") as error:
        load(folder)
    assert "\n" not in str(error.value) and not ran.exists()
    assert len(sys.stdin.read()) == 18  # nobody was asked


@pytest.mark.parametrize("loader, kind", [
    ("04", "llama"), ("05", "llama"), ("two_stage", "llama"), ("local", "llama"),
    ("text", "llama"), ("clap", "clap"), ("captions", "qwen2_audio")])
def test_a_pickle_is_not_read(small, tiny, loader, kind):
    tiny[1].tokenizer.save_pretrained(small / "model")
    (small / "model" / "config.json").write_text(json.dumps({"model_type": kind}))
    (small / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(small / "ran")))
    with pytest.raises(SystemExit, match="model cannot be loaded: it has no .*safetensors, and "
                                         r"pickles \(pytorch_model.bin\) are not read") as error:
        LOADERS[loader](small / "model")
    assert "\n" not in str(error.value) and not (small / "ran").exists()


def test_every_loader_says_so():
    """trust_remote_code=False in every from_pretrained, use_safetensors=True in a model's."""
    n_calls = 0
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            kind = ast.unparse(node.func.value).split(".")[-1]
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if node.func.attr == "from_pretrained":
                n_calls += 1
                assert given["trust_remote_code"] == "False", name
                if not kind.endswith(("Config", "Tokenizer", "Processor", "Extractor")):
                    assert given["use_safetensors"] == "True", name
            elif (kind, node.func.attr) == ("torch", "load"):
                assert given["weights_only"] == "True", name
    assert n_calls > 15


@pytest.mark.parametrize("loader", [loader for loader in LOADERS if loader != "05"])
def test_a_mistyped_path_does_not_ask_the_hub(tmp_path, monkeypatch, loader):
    (tmp_path / "models").mkdir()
    (tmp_path / "a.safetensors").write_text("")
    monkeypatch.chdir(tmp_path)
    for name in (f"{tmp_path}/x", "./x", "../x", ".x/y", "~/x", "x/", "models/x", "a.safetensors"):
        with pytest.raises(SystemExit, match=f"{name} cannot be loaded: there is no such folder"):
            LOADERS[loader](name)


def test_what_looks_like_a_path(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not looks_like_path("gpt2") and not looks_like_path("meta-llama/Llama-3.2-1B-Instruct")
    for name in ("gpt2", "Qwen/Qwen3-0.6B"):  # the hub is asked, which is off line here
        with pytest.raises(SystemExit, match="cannot be loaded: (?!there is no such folder)"):
            load_base(name, [])
    with pytest.raises(SystemExit, match="--parts data/x: no such file or folder"):
        talkplaydata_files.find_files(["data/x"])
    with pytest.raises(SystemExit, match="--text-encoder data/x cannot be loaded: there is no"):
        text.resolve_text_encoder("data/x")
