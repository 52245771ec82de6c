"""NV-Embed, MusicFM and CLAP with random weights, against computations that share no code."""

import importlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import librosa
import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F

from baselines import dense
from benchmarks import encoders as encoder_costs
from common import data
from steps.extract_embeddings import audio, clap, librosa_features, musicfm, nv_embed, text

extract = importlib.import_module("01_extract_embeddings")
TEXTS = ["rainy piano", "club", "slow choir at night by the sea, piano and rain", "neon tide",
         "harvest"]
PREFIX = "Instruct: Find the track\nQuery: "


def tone(hertz, seconds, rate):
    t = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


def read_failures(folder):
    return [row for _, row in data.read_jsonl(folder / "embeddings" / "audio_failed.jsonl", "")]


# ---------------------------------------------------------------- NV-Embed

OF_TRANSFORMERS_4 = {  # what it wrote into every config.json
    "add_cross_attention": False, "bad_words_ids": None, "begin_suppress_tokens": None,
    "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None,
    "decoder_start_token_id": None, "do_sample": False, "early_stopping": False,
    "finetuning_task": None, "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": False, "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20,
    "num_beams": 1, "output_attentions": False, "output_hidden_states": False,
    "pad_token_id": None, "prefix": None, "problem_type": None, "pruned_heads": {},
    "return_dict": True, "sep_token_id": None, "task_specific_params": None, "temperature": 1.0,
    "tf_legacy_loss": False, "tie_encoder_decoder": False, "tie_word_embeddings": False,
    "tokenizer_class": None, "top_k": 50, "torchscript": False, "typical_p": 1.0,
    "use_bfloat16": False, "use_cache": True}


def nv_folder(folder, seed=0, layers=2, **text_config):
    """A small NV-Embed as published: config.json of transformers 4, two safetensors, tokenizer,
    code."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "</s>"])
    tokenizer.train_from_iterator(TEXTS + [PREFIX], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    # left padding, no EOS: what the loader has to mend
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "padding_side": "left", "add_bos_token": True,
        "add_eos_token": False, "model_max_length": 10**30}))
    text_config = {
        "_name_or_path": "nvidia/NV-Embed-v2", "architectures": ["MistralModel"],
        "model_type": "bidir_mistral", "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 150, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "sliding_window": 3, "hidden_act": "silu",
        "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
        **OF_TRANSFORMERS_4} | text_config
    latent_config = {"model_type": "latent_attention", "num_latents_value": 7,
                     "num_cross_heads": 2, "cross_dim_head": 6, "latent_dim": 16,
                     "hidden_dim": 16, "output_normalize": True}
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["NVEmbedModel"], "model_type": "nvembed", "hidden_size": 4096,
        "add_eos": True, "padding_side": "right", "mask_type": "b", "is_mask_instruction": True,
        "torch_dtype": "float32", "transformers_version": "4.42.4",
        "auto_map": {"AutoConfig": "evil.NVEmbedConfig", "AutoModel": "evil.NVEmbedModel"},
        "text_config": text_config, "latent_attention_config": latent_config}))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    torch.manual_seed(seed)
    model = nv_embed.NVEmbed(nv_embed.NVEmbedConfig.from_pretrained(folder))
    weights = {key: torch.randn(value.shape) * (0.5 if value.dim() > 1 else 1)
               for key, value in model.state_dict().items()}
    parts = {f"model-0000{i + 1}-of-00002.safetensors": dict(list(weights.items())[i::2])
             for i in range(2)}
    for name, part in parts.items():
        save_file(part, folder / name, metadata={"format": "pt"})
    file_of = {key: name for name, part in parts.items() for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        {"metadata": {}, "weight_map": file_of}))
    return folder


@pytest.fixture(scope="module")
def nv(tmp_path_factory):
    """(folder, what load_text_encoder returns)."""
    folder = nv_folder(tmp_path_factory.mktemp("nv") / "NV-Embed-v2")
    return folder, text.load_text_encoder(text.resolve_text_encoder(str(folder)), "cpu")


def by_hand(w, ids, heads=4, kv_heads=2, latent_heads=2, eps=1e-5):
    """NV-Embed's token vectors (T, D) of one text without padding, in float64 numpy.

    w: its weights by their published names.
    """
    w = {key: value.double().numpy() for key, value in w.items()}

    def linear(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)

    def rms(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w[name + ".weight"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[name + ".weight"] + w[name + ".bias"]

    def attend(q, k, v):  # (T, d), (S, d), (S, d)
        scores = q @ k.T / np.sqrt(q.shape[1])
        share = np.exp(scores - scores.max(1, keepdims=True))
        return share / share.sum(1, keepdims=True) @ v

    def rotate(x):  # (T, d): pairs (i, i + d / 2) are turned by position / 10000^(2 i / d)
        d = x.shape[1]
        angle = np.arange(len(x))[:, None] / 10000 ** (np.arange(0, d, 2) / d)
        turned = (x[:, :d // 2] + 1j * x[:, d // 2:]) * np.exp(1j * angle)
        return np.concatenate([turned.real, turned.imag], 1)

    x = w["embedding_model.embed_tokens.weight"][ids]
    for layer in range(2):
        at = f"embedding_model.layers.{layer}."
        q, k, v = (linear(rms(x, at + "input_layernorm"), at + f"self_attn.{p}_proj")
                   for p in "qkv")
        q, k, v = np.split(q, heads, 1), np.split(k, kv_heads, 1), np.split(v, kv_heads, 1)
        heard = [attend(rotate(q[h]), rotate(k[h * kv_heads // heads]), v[h * kv_heads // heads])
                 for h in range(heads)]
        x = x + linear(np.concatenate(heard, 1), at + "self_attn.o_proj")
        y = rms(x, at + "post_attention_layernorm")
        gate = linear(y, at + "mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, at + "mlp.up_proj"),
                       at + "mlp.down_proj")
    x = rms(x, "embedding_model.norm")

    at = "latent_attention_model.cross_attend_blocks."
    q = linear(norm(x, at + "0.norm"), at + "0.fn.to_q")
    k, v = np.split(linear(norm(w["latent_attention_model.latents"], at + "0.norm_context"),
                           at + "0.fn.to_kv"), 2, 1)
    heard = [attend(*of_head)
             for of_head in zip(*(np.split(x, latent_heads, 1) for x in (q, k, v)), strict=True)]
    x = x + linear(np.concatenate(heard, 1), at + "0.fn.to_out")
    value, gate = np.split(linear(norm(x, at + "1.norm"), at + "1.fn.net.0"), 2, 1)
    gelu = gate * 0.5 * (1 + torch.erf(torch.from_numpy(gate) / 2**0.5).numpy())
    return x + linear(value * gelu, at + "1.fn.net.2")


def unit(x):
    return x / np.linalg.norm(x)


def test_nv_embed_equals_a_computation_by_hand(nv):
    folder, (tokenizer, model, max_tokens) = nv
    weights = model.state_dict()
    # of unlike length: with padding
    got, cut = text.embed_texts(TEXTS, tokenizer, model, max_tokens, batch_size=3)
    expected = []
    for words in TEXTS:
        ids = tokenizer(words, add_special_tokens=False).input_ids
        expected.append(unit(by_hand(weights, [1, *ids, 2]).mean(0)))  # <s> and </s> count
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert max_tokens == 64 and cut == [] and not (folder / "ran").exists()
    assert max(expected[0] @ other for other in expected[1:]) < 0.999  # the texts do differ


def test_the_instruction_is_read_but_not_pooled(nv):
    _, (tokenizer, model, max_tokens) = nv
    got = text.embed_texts(TEXTS, tokenizer, model, max_tokens, batch_size=3, prefix=PREFIX)[0]
    for words, vector in zip(TEXTS, got, strict=True):
        ids = tokenizer(PREFIX + words, add_special_tokens=False).input_ids
        own = len(tokenizer(words, add_special_tokens=False).input_ids)
        vectors = by_hand(model.state_dict(), [1, *ids, 2])
        # the query's tokens and </s>
        np.testing.assert_allclose(vector, unit(vectors[-own - 1:].mean(0)), atol=1e-5)
    encoder = dense.load_encoder(str(nv[0]), PREFIX, "mean", 0, "cpu")
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), got, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_batch(TEXTS, PREFIX).detach(), got, atol=1e-6)
    assert np.abs(encoder.encode(TEXTS) - got).max() > 0.01


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_token_sees_the_whole_text_and_no_padding(tmp_path, attention):
    """In one layer, with a sliding window of 3 in config.json: token 0 sees token 9.

    With and without padding: without, transformers makes no mask and leaves the direction to a
    flag.
    """
    config = nv_embed.NVEmbedConfig.from_pretrained(nv_folder(tmp_path / "nv", layers=1))
    config.text_config._attn_implementation = attention
    model = nv_embed.NVEmbed.from_pretrained(tmp_path / "nv", config=config).eval()
    assert model.embedding_model.config._attn_implementation == attention
    one = torch.arange(10, 20)[None]
    other = one.clone()
    other[0, 9] = 99
    ones = torch.ones_like(one)
    with torch.no_grad():
        a, b = (model(ids, ones).last_hidden_state[0] for ids in (one, other))
        assert (a[0] - b[0]).abs().max() > 1e-3
        padded = torch.cat([torch.cat([one, torch.full((1, 4), 2)], 1), torch.arange(30, 44)[None]])
        mask = torch.ones_like(padded)
        mask[0, 10:] = 0
        got = model(padded, mask).last_hidden_state[0, :10]
        torch.testing.assert_close(got, a, atol=1e-5, rtol=1e-5)
        padded[0, 9] = 99
        got = model(padded, mask).last_hidden_state[0, :10]
        torch.testing.assert_close(got, b, atol=1e-5, rtol=1e-5)


def test_texts_end_with_eos_and_are_padded_on_the_right(nv):
    tokenizer = nv[1][0]
    ids = tokenizer(["club", "rainy piano"], padding=True)
    for row, mask in zip(ids.input_ids, ids.attention_mask, strict=True):
        n = sum(mask)
        assert mask == [1] * n + [0] * (len(row) - n) and row[0] == 1
        assert row[n - 1:] == [2] * (len(row) - n + 1)
        assert not {1, 2} & set(row[1:n - 1])
    assert tokenizer("rainy piano " * 50, truncation=True, max_length=9).input_ids[::8] == [1, 2]


def test_nv_embed_has_the_published_shapes():
    """The names as two public ports load them from the published files; 7.85 billion parameters."""
    with torch.device("meta"):
        config = nv_embed.NVEmbedConfig(text_config={"model_type": "bidir_mistral"})
        model = nv_embed.NVEmbed(config)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 7_851_016_192
    at = "latent_attention_model.cross_attend_blocks."
    assert {key: shape for key, shape in shapes.items() if ".layers." not in key} == {
        "embedding_model.embed_tokens.weight": (32000, 4096),
        "embedding_model.norm.weight": (4096,), "latent_attention_model.latents": (512, 4096),
        at + "0.norm.weight": (4096,), at + "0.norm.bias": (4096,),
        at + "0.norm_context.weight": (4096,), at + "0.norm_context.bias": (4096,),
        at + "0.fn.to_q.weight": (32768, 4096), at + "0.fn.to_kv.weight": (65536, 4096),
        at + "0.fn.to_out.weight": (4096, 32768),
        at + "1.norm.weight": (4096,), at + "1.norm.bias": (4096,),
        at + "1.fn.net.0.weight": (32768, 4096), at + "1.fn.net.0.bias": (32768,),
        at + "1.fn.net.2.weight": (4096, 16384), at + "1.fn.net.2.bias": (4096,)}
    last = "embedding_model.layers.31."
    assert {key.removeprefix(last) for key in shapes if last in key} == {
        *(f"{name}_layernorm.weight" for name in ("input", "post_attention")),
        *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
        *(f"self_attn.{name}_proj.weight" for name in "qkvo")}


def test_01_takes_the_folder_of_nv_embed(nv, tmp_path):
    folder, encoder = nv
    data.write_jsonl(tmp_path / "tracks.jsonl",
                     [{"track_id": "a", "title": "Dust", "tags": ["rainy", "piano"]},
                      {"track_id": "b", "title": "Sea", "tags": []}])
    extract.main(["--data-dir", str(tmp_path), "--modalities", "semantic", "--text-encoder",
                  str(folder), "--device", "cpu"])
    got = np.load(tmp_path / "embeddings" / "semantic.npy")
    assert got.shape == (2, 16) and np.isnan(got[1]).all()
    np.testing.assert_allclose(got[:1], text.embed_texts(["rainy, piano"], *encoder)[0], atol=1e-6)


def test_the_benchmarks_nv_embed_is_the_whole_one(monkeypatch):
    """Both text encoders, made small, read texts; the benchmark's NV-Embed has the true shape."""
    with torch.device("meta"):
        model = nv_embed.NVEmbed(nv_embed.NVEmbedConfig(text_config=encoder_costs.MISTRAL))
    assert sum(p.numel() for p in model.parameters()) == 7_851_016_192
    small = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=4)
    for name in ("MISTRAL", "QWEN3"):
        monkeypatch.setattr(encoder_costs, name, getattr(encoder_costs, name) | small)
    latent = dict(num_latents_value=4, num_cross_heads=2, cross_dim_head=8, latent_dim=16,
                  hidden_dim=16)
    monkeypatch.setattr(nv_embed, "LATENT_DEFAULTS", latent)
    for name, kind in (("qwen3", "Qwen3Model"), ("nv-embed", "NVEmbed")):
        encoder = encoder_costs.make_text_encoder(name, "cpu")
        vectors = text.embed_texts(TEXTS, *encoder)[0]
        assert type(encoder[1]).__name__ == kind and vectors.shape == (5, 16)
        assert np.isfinite(vectors).all()


def test_a_tuned_nv_embed_is_saved_and_read_again(nv, tmp_path):
    tokenizer, model, _ = nv[1]
    dense.two_towers.save_folder([model, tokenizer], tmp_path / "part", tmp_path / "dense_model")
    again = text.load_text_encoder(text.resolve_text_encoder(str(tmp_path / "dense_model")), "cpu")
    np.testing.assert_allclose(text.embed_texts(TEXTS, *again)[0],
                               text.embed_texts(TEXTS, *nv[1])[0], atol=1e-6)


def test_nv_embed_refuses_what_does_not_fit(nv, tmp_path):
    with pytest.raises(SystemExit, match="--pooling last: NV-Embed has a pooling of its own"):
        text.resolve_text_encoder(str(nv[0]), "last")
    folder = nv_folder(tmp_path / "nv")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    first = index["weight_map"]["latent_attention_model.latents"]
    from safetensors.torch import load_file, save_file
    part = load_file(folder / first)
    part = {key.replace("latents", "latent"): value for key, value in part.items()}
    save_file(part, folder / first, metadata={"format": "pt"})
    del index["weight_map"]["latent_attention_model.latents"]
    index["weight_map"]["latent_attention_model.latent"] = first
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SystemExit, match="1 missing keys such as .*latents; 1 unexpected keys "
                                         "such as .*latent. Its folder is not whole; download it"):
        text.load_text_encoder(str(folder), "cpu")
    (folder / first).unlink()
    with pytest.raises(SystemExit, match="--text-encoder .* Its folder is not whole"):
        text.load_text_encoder(str(folder), "cpu")
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match="no text_config. Accepted: minilm"):
        text.resolve_text_encoder(str(folder))
    assert not (folder / "ran").exists()


def test_code_that_comes_with_a_model_is_neither_run_nor_asked_for(tmp_path, monkeypatch):
    config = {"model_type": "new", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    with pytest.raises(SystemExit, match="--text-encoder .*Accepted: minilm"):
        text.resolve_text_encoder(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif("TALKPLAY_NV_EMBED" not in os.environ,
                    reason="TALKPLAY_NV_EMBED: the folder of the published NV-Embed-v2")
def test_the_published_nv_embed_gives_its_cards_scores():
    """The example of the model card: two questions, two answers."""
    folder = os.environ["TALKPLAY_NV_EMBED"]
    encoder = text.load_text_encoder(text.resolve_text_encoder(folder), "cpu")
    queries = text.embed_texts(
        ["are judo throws allowed in wrestling?",
         "how to become a radiology technician in michigan?"], *encoder,
        prefix="Instruct: Given a question, retrieve passages that answer the question\nQuery: ")[0]
    passages = text.embed_texts([
        "Since you're reading this, you are probably someone from a judo background or someone "
        "who is just wondering how judo techniques can be applied under wrestling rules. So "
        "without further ado, let's get to the question. Are Judo throws allowed in wrestling? "
        "Yes, judo throws are allowed in freestyle and folkstyle wrestling. You only need to be "
        "careful to follow the slam rules when executing judo throws. In wrestling, a slam is "
        "lifting and returning an opponent to the mat with unnecessary force.",
        "Below are the basic steps to becoming a radiologic technologist in Michigan:Earn a high "
        "school diploma. As with most careers in health care, a high school education is the "
        "first step to finding entry-level employment. Taking classes in math and science, such "
        "as anatomy, biology, chemistry, physiology, and physics, can help prepare students for "
        "their college studies and future careers.Earn an associate degree. Entry-level "
        "radiologic positions typically require at least an Associate of Applied Science. Before "
        "enrolling in one of these degree programs, students should make sure it has been "
        "properly accredited by the Joint Review Committee on Education in Radiologic Technology "
        "(JRCERT).Get licensed or certified in the state of Michigan."], *encoder)[0]
    np.testing.assert_allclose(queries @ passages.T * 100, [[87.43, 0.46], [0.97, 86.04]], atol=0.3)


# ---------------------------------------------------------------- other text encoders

def test_last_token_with_padding_on_the_left(nv, tmp_path):
    """A small Qwen3, as Qwen3-Embedding is one: padding in a batch changes nothing."""
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=150, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                         max_position_embeddings=64)
    Qwen3Model(config).save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=nv[1][0].backend_tokenizer,
                                        eos_token="</s>", pad_token="</s>", padding_side="left")
    tokenizer.save_pretrained(tmp_path)
    name = text.resolve_text_encoder(str(tmp_path), "last")
    tokenizer, model, max_tokens = text.load_text_encoder(name, "cpu")
    got = text.embed_texts(TEXTS, tokenizer, model, max_tokens, "last", batch_size=5,
                           prefix="Query:")[0]
    for words, vector in zip(TEXTS, got, strict=True):
        with torch.no_grad():
            ids = torch.tensor([tokenizer("Query:" + words).input_ids])
            hidden = model(ids).last_hidden_state[0]
        np.testing.assert_allclose(vector, F.normalize(hidden[-1], dim=0), atol=1e-5)


# ---------------------------------------------------------------- MusicFM

SMALL = dict(dim=32, channels=4, heads=2, layers=4)
NORM = ("running_mean", "running_var", "weight", "bias")


def small_musicfm(seed=0):
    torch.manual_seed(seed)
    model = musicfm.MusicFM(musicfm.STATISTICS["msd"], **SMALL).eval()
    for name, value in model.named_buffers():  # BatchNorm as after training
        if name.endswith("running_var"):
            value.uniform_(0.2, 0.8)
        if name.endswith("running_mean"):
            value.uniform_(-0.5, 0.5)
    return model


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A small checkpoint in the published form (its positional convolution has the names of an
    older torch), and its model."""
    model = small_musicfm()
    old = {"parametrizations.weight.original0": "weight_g",
           "parametrizations.weight.original1": "weight_v"}
    saved = model.state_dict()
    for new, name in old.items():
        saved = {key.replace(new, name): value for key, value in saved.items()}
    torch.save({"state_dict": {f"model.{key}": value for key, value in saved.items()}},
               tmp_path / "pretrained_msd.pt")
    monkeypatch.setattr(musicfm, "MusicFM", partial(musicfm.MusicFM, **SMALL))
    monkeypatch.setattr(musicfm, "DIM", 32)
    return tmp_path / "pretrained_msd.pt", model


def test_musicfm_has_the_published_shapes():
    with torch.device("meta"):
        model = musicfm.MusicFM(musicfm.STATISTICS["msd"])
    state = model.state_dict()
    assert len(state) == 465
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(328.9e6, abs=0.05e6)
    shapes = {key: tuple(value.shape) for key,
              value in state.items() if not key.startswith(("conformer.", "conv.conv."))}
    assert shapes == {
        "cls_token": (1024,), "preprocessor_melspec_2048.mel_stft.spectrogram.window": (2048,),
        "preprocessor_melspec_2048.mel_stft.mel_scale.fb": (1025, 128),
        "quantizer_melspec_2048_0.random_projection": (512, 16),
        "quantizer_melspec_2048_0.codebook": (4096, 16), "conv.linear.weight": (1024, 16384),
        "conv.linear.bias": (1024,),
        "linear.weight": (4096, 1024), "linear.bias": (4096,)}
    assert state["conv.conv.0.conv1.weight"].shape == (512, 1, 3, 3)
    assert state["conv.conv.1.conv3.weight"].shape == (512, 512, 3, 3)
    assert state["conformer.layers.11.conv_module.depthwise_conv.weight"].shape == (1024, 1, 31)


def test_musicfm_of_the_true_size_hears_a_second():
    model = musicfm.MusicFM(musicfm.STATISTICS["fma"]).eval().keep_layers(7)
    with torch.no_grad():
        vectors = model(torch.from_numpy(tone(440, 1.0, musicfm.RATE))[None])
    assert vectors.shape == (1, 25, 1024) and vectors.isfinite().all() and vectors.std() > 0.1


def test_the_mel_spectrogram_equals_librosas():
    """torchaudio's defaults, with which MusicFM has learnt: HTK mels, no norm, power 2, 10 log10
    from 1e-10 on."""
    n = 2 * musicfm.RATE
    samples = np.random.default_rng(0).normal(size=n).astype(np.float32) * np.linspace(0, 0.3, n)
    mel = librosa.feature.melspectrogram(
        y=samples, sr=24000, n_fft=2048, hop_length=240, n_mels=128, htk=True, norm=None, power=2.0,
        pad_mode="reflect")
    expected = librosa.power_to_db(mel, amin=1e-10, top_db=None)[:, :-1]
    got = musicfm.MelSpectrogram()(torch.from_numpy(samples).float()[None])[0]
    assert got.shape == (128, 200)
    np.testing.assert_allclose(got, expected, atol=2e-2)
    assert musicfm.MelSpectrogram()(torch.zeros(1, 4800)).unique().tolist() == [-100]


def test_subsampling_equals_convolutions_by_hand():
    model, mel = small_musicfm(), torch.randn(2, 128, 30)
    state = model.state_dict()

    def convolve(x, at, n, stride):
        x = F.conv2d(x, state[f"{at}conv{n}.weight"], state[f"{at}conv{n}.bias"], stride, padding=1)
        mean, variance, weight, bias = (state[f"{at}bn{n}.{name}"][:, None, None] for name in NORM)
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    x = mel[:, None]
    for block in range(2):
        at = f"conv.conv.{block}."
        x = F.relu(convolve(F.relu(convolve(x, at, 1, 2)), at, 2, 1) + convolve(x, at, 3, 2))
    assert x.shape == (2, 4, 32, 8) and 0.05 < (x > 0).float().mean() < 0.95
    # (2, 8, 128), channel by channel
    columns = torch.stack([x[:, c, f] for c in range(4) for f in range(32)], 2)
    expected = columns @ state["conv.linear.weight"].T + state["conv.linear.bias"]
    with torch.no_grad():
        torch.testing.assert_close(model.conv(mel), expected, atol=1e-4, rtol=1e-4)


def test_a_conformer_layer_by_hand():
    """Gulati et al. 2020 with what MusicFM chose: swish, a kernel of 31, and rotary positions.

    These turn the input of the queries' and keys' matrices (not, as in Llama, their output).
    """
    model, x = small_musicfm().keep_layers(1), torch.randn(40, 32)
    state = {key.removeprefix("conformer.layers.0."): value
             for key, value in model.state_dict().items()}

    def linear(x, name):
        return x @ state[name + ".weight"].T + state[name + ".bias"]

    def norm(x, name):
        deviation = (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        x = (x - x.mean(-1, keepdim=True)) / deviation
        return x * state[name + ".weight"] + state[name + ".bias"]

    def swish(x):
        return x / (1 + torch.exp(-x))

    def feed_forward(x, name):
        x = linear(norm(x, name + "_layer_norm"), name + ".intermediate_dense")
        return linear(swish(x), name + ".output_dense")

    def rotate(x):  # (40, 16), of one head: pairs (i, i + 8) are turned by position / 10000^(i / 8)
        angle = torch.arange(40)[:, None] / 10000 ** (torch.arange(8) / 8)
        turned = torch.complex(x[:, :8], x[:, 8:]) * torch.polar(torch.ones(1), angle)
        return torch.cat([turned.real, turned.imag], 1)

    with torch.no_grad():
        expected = x + feed_forward(x, "ffn1") / 2
        y = norm(expected, "self_attn_layer_norm")
        turned = torch.cat([rotate(y[:, :16]), rotate(y[:, 16:])], 1)
        q, k, v = (linear(z, f"self_attn.linear_{n}").split(16, 1)
                   for z, n in ((turned, "q"), (turned, "k"), (y, "v")))
        heard = torch.cat([torch.softmax(q[h] @ k[h].T / 4, 1) @ v[h] for h in range(2)], 1)
        expected = expected + linear(heard, "self_attn.linear_out")
        y = norm(expected, "conv_module.layer_norm")
        y = y @ state["conv_module.pointwise_conv1.weight"][:, :, 0].T
        y = F.pad(y[:, :32] * torch.sigmoid(y[:, 32:]), (0, 0, 15, 15))
        kernel = state["conv_module.depthwise_conv.weight"][:, 0].T  # (31, 32)
        y = torch.stack([(y[i:i + 31] * kernel).sum(0) for i in range(40)])
        mean, variance, weight, bias = (state[f"conv_module.batch_norm.{name}"] for name in NORM)
        y = swish((y - mean) / (variance + 1e-5).sqrt() * weight + bias)
        expected = expected + y @ state["conv_module.pointwise_conv2.weight"][:, :, 0].T
        expected = norm(expected + feed_forward(expected, "ffn2") / 2, "final_layer_norm")
        got = model.conformer(x[None]).last_hidden_state[0]
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_layers_are_the_hidden_states(checkpoint):
    """What enters a layer of the whole model, taken by a hook, is the shortened one's output."""
    path, whole = checkpoint
    samples = torch.from_numpy(np.stack([tone(300, 1.0, musicfm.RATE),
                                         tone(700, 1.0, musicfm.RATE)]))
    entered = {}
    for i, layer in enumerate(whole.conformer.layers):
        layer.register_forward_pre_hook(lambda module, args, i=i: entered.update({i: args[0]}))
    with torch.no_grad():
        entered[4] = whole(samples)
        for layer in range(5):
            got = musicfm.load_musicfm(path, layer, "cpu")(samples)
            assert got.shape == (2, 25, 32)
            torch.testing.assert_close(got, entered[layer], atol=1e-5, rtol=1e-5)
        assert (entered[4] - entered[3]).abs().max() > 0.1


def test_a_conformer_layer_sees_what_comes_later():
    samples = np.random.default_rng(0).normal(size=(1, 10 * musicfm.RATE)).astype(np.float32) * 0.1
    changed = samples.copy()
    changed[0, 8 * musicfm.RATE:] *= -0.3
    model = small_musicfm().keep_layers(1)
    with torch.no_grad():
        a, b = (model(torch.from_numpy(x))[0] for x in (samples, changed))
    assert (a[:100] - b[:100]).abs().max() > 1e-5  # 4 s before; the convolutions reach 0.7 s


def test_tracks_are_means_over_all_their_tokens():
    """Windows of 3 lengths from 3 tracks, in batches of 2: as one by one, weighed by length."""
    model, rng = small_musicfm().keep_layers(2), np.random.default_rng(0)
    lengths = (24000, 24000, 12000), (24000,), (18000, 12000)
    tracks = [[rng.normal(size=n).astype(np.float32) for n in of_track] for of_track in lengths]
    got = musicfm.embed_tracks(tracks, model, batch_size=2)
    assert got.shape == (3, 32) and got.dtype == np.float32
    with torch.no_grad():
        for vector, windows in zip(got, tracks, strict=True):
            tokens = torch.cat([model(torch.from_numpy(window)[None])[0] for window in windows])
            np.testing.assert_allclose(vector, tokens.mean(0), atol=1e-5)


def test_windows():
    cut = librosa_features.cut_windows
    assert [len(w) for w in cut(np.arange(30), 10)] == [10, 10, 10]
    assert [len(w) for w in cut(np.arange(25), 10)] == [10, 10, 5]  # half a window counts
    # less does not
    assert [w.tolist() for w in cut(np.arange(24), 10)] == [list(range(10)), list(range(10, 20))]
    assert [len(w) for w in cut(np.arange(23), 10, least=3)] == [10, 10, 3]
    assert len(cut(np.arange(22), 10, least=3)) == 2
    assert [len(w) for w in cut(np.arange(3), 10)] == [3]  # unless there is nothing else


def test_how_much_of_a_file_is_heard(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(440, 65, 8000), 8000)
    lengths = {}
    for seconds in (30, 0, 45):
        windows = librosa_features.read_windows(tmp_path / "a.wav", musicfm.RATE, seconds,
                                                musicfm.WINDOW, musicfm.SHORTEST)
        lengths[seconds] = [len(window) / musicfm.RATE for window in windows]
    assert lengths == {30: [30], 0: [30, 30, 5], 45: [30, 15]}


@pytest.fixture
def songs(tmp_path):
    """Five tracks: three with audio of three kinds, one with a file that is none, one without."""
    folder = tmp_path / "data"
    folder.mkdir()
    for i, (name, rate) in enumerate((("0.wav", 24000), ("1.flac", 44100), ("2.mp3", 22050))):
        soundfile.write(folder / name, np.stack([tone(220 * 2**i, 3, rate)] * (1 + i % 2), 1), rate)
    (folder / "3.wav").write_text("this is not audio")
    paths = ["0.wav", "1.flac", "2.mp3", "3.wav", None]
    data.write_jsonl(folder / "tracks.jsonl",
                     [{"track_id": f"t{i}", "audio_path": path} for i, path in enumerate(paths)])
    return folder


def run_audio(folder, encoder, model, *flags):
    extract.main(["--data-dir", str(folder), "--modalities", "audio", "--audio-encoder", encoder,
                  "--audio-model", str(model), "--device", "cpu", "--workers", "1", *flags])
    array, scaling = (np.load(folder / "embeddings" / f"{name}.npy")
                      for name in ("audio", "audio_scaling"))
    assert np.isnan(array).all(1).tolist() == [False] * 3 + [True] * 2
    assert [(row["track_id"], row["reason"][:10])
            for row in read_failures(folder)] == [("t3", "unreadable")]
    return array, scaling


def test_01_with_musicfm(checkpoint, songs):
    array, (mean, divisor) = run_audio(songs, "musicfm", checkpoint[0], "--audio-layer", "2")
    model = musicfm.load_musicfm(checkpoint[0], 2, "cpu")
    raw = []
    for name in ("0.wav", "1.flac", "2.mp3"):
        samples = librosa_features.read_audio(songs / name, musicfm.RATE)
        with torch.no_grad():
            raw.append(model(torch.from_numpy(samples)[None])[0].mean(0).numpy())
    np.testing.assert_allclose(array[:3] * divisor + mean, raw, atol=1e-4)
    np.testing.assert_allclose(np.nanmean(array, 0), 0, atol=1e-4)
    assert np.nansum(np.nanvar(array, 0)) == pytest.approx(1, rel=1e-3)


def test_chunks_that_are_read_ahead_change_nothing(songs, tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "ProcessPoolExecutor",
                        lambda workers, *_: ThreadPoolExecutor(workers))  # starts faster

    def encode(sounds):
        return [[len(samples), np.abs(np.fft.rfft(samples)).argmax()] for samples in sounds]
    results = []
    for chunk in (2, 256):
        folder = tmp_path / str(chunk)
        folder.mkdir()
        read = partial(librosa_features.read_audio, rate=8000)
        encoder = audio.AudioEncoder(read, encode, 2, (1, 1), chunk)
        extract.write_audio(folder, data.load_tracks(songs), songs, encoder, 2)
        results.append([(folder / name).read_bytes()
                        for name in ("audio.npy", "audio_scaling.npy", "audio_failed.jsonl")])
    assert results[0] == results[1] and not np.isnan(np.load(folder / "audio.npy")[:3]).any()


@pytest.mark.parametrize("flags, message", [
    (["musicfm"], "--audio-model None: musicfm takes the file pretrained_msd.pt or "
                  "pretrained_fma.pt.*hf download"),
    (["musicfm", "--audio-model", "tracks.jsonl"], "its name must say which"),
    (["clap"], "--audio-model None cannot be loaded: not a CLAP model. Accepted: the folder of"),
    (["clap", "--audio-model", "nobody/no-such-clap"],
     "--audio-model nobody/no-such-clap cannot be loaded: .*Accepted: the folder"),
    (["librosa", "--audio-model", "x"], "--audio-model x: only musicfm and clap take one"),
    (["librosa", "--audio-layer", "7"], "--audio-layer 7: only musicfm"),
    (["musicfm", "--audio-layer", "13"], "--audio-layer 13: 0 to 12 is accepted"),
    (["librosa", "--audio-seconds", "-1"], "--audio-seconds -1: 0 or more is accepted")])
def test_audio_flags_that_do_not_fit_change_nothing(songs, monkeypatch, flags, message):
    monkeypatch.chdir(songs)
    with pytest.raises(SystemExit, match=message):
        extract.main(["--data-dir", str(songs), "--modalities", "audio", "--audio-encoder", *flags])
    assert not (songs / "runs").exists()


def test_a_file_that_is_no_checkpoint(tmp_path, checkpoint):
    torch.save({"state_dict": {"model.linear.weight": torch.zeros(2)}}, tmp_path / "fma.pt")
    with pytest.raises(SystemExit, match="fma.pt: not a checkpoint of MusicFM .*Missing key"):
        musicfm.load_musicfm(tmp_path / "fma.pt", 7, "cpu")
    (tmp_path / "fma.pt").write_bytes(b"no checkpoint")
    with pytest.raises(SystemExit, match="fma.pt: not a checkpoint of MusicFM"):
        musicfm.load_musicfm(tmp_path / "fma.pt", 7, "cpu")


# ---------------------------------------------------------------- CLAP

def test_01_with_clap(songs, tmp_path):
    """Rows of length 1, the very ones of baselines/clap.py; nothing is standardised."""
    from baselines.clap import random_clap
    model, tokenizer, extractor = random_clap(["a b"], 0, "cpu")
    for thing in (model, tokenizer, extractor):
        thing.save_pretrained(tmp_path / "small_clap")
    array, scaling = run_audio(songs, "clap", tmp_path / "small_clap")
    assert array.shape == (5, 16) and np.array_equal(scaling, [[0] * 16, [1] * 16])
    np.testing.assert_allclose(np.linalg.norm(array[:3], axis=1), 1, atol=1e-6)
    expected = []
    for name in ("0.wav", "1.flac", "2.mp3"):
        mels = clap.mel_windows(songs / name, extractor)
        expected.append(clap.mean_of_windows(clap.embed_windows(model, mels)))
    np.testing.assert_allclose(array[:3], expected, atol=1e-5)


def test_clap_windows_of_several_tracks_share_batches():
    class Doubling:
        device = "cpu"

        def get_audio_features(self, inputs, is_longer):
            assert len(inputs) == len(is_longer) <= 2
            return type("Output", (), {"pooler_output": inputs[:, 0, 0] * 2})
    tracks = [np.float32([[[[3, 4]]], [[[0, 2]]]]), np.float32([[[[5, 0]]]])]
    got = clap.embed_tracks(tracks, Doubling(), 2)
    np.testing.assert_allclose(got, [np.array([0.6, 1.8]) / 3.6**0.5, [1, 0]], atol=1e-6)
