"""annotate/: what is shared, tempo and key; lyrics and captions by tiny, untrained models."""

import csv
import importlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
import transformers
from conftest import REAL
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, Qwen2Config, WhisperConfig, WhisperFeatureExtractor

from benchmarks.tempo_key import judge_tempo, split_key
from common import data
from steps.extract_embeddings import audio
from steps.extract_embeddings.librosa_features import read_audio

RATE = 16_000
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())

shared, tempo_key, lyrics, captions = (importlib.import_module(f"annotate.{name}")
                                       for name in ("shared", "tempo_key", "lyrics", "captions"))


def tone(hertz, seconds=2.0, rate=RATE):
    t = np.arange(int(seconds * rate)) / rate
    waves = [np.sin(2 * np.pi * h * t) for h in np.atleast_1d(hertz)]
    return (0.3 * sum(waves) / np.size(hertz)).astype(np.float32)


def clicks(bpm, seconds=12.0, rate=22050):
    samples = np.zeros(int(seconds * rate), np.float32)
    noise = np.random.default_rng(0).normal(size=800).astype(np.float32) / 4
    for start in np.arange(0, len(samples) - 800, 60 / bpm * rate).astype(int):
        samples[start:start + 800] = noise
    return samples


def cadence(tonic, third, rate=22050):
    """I - IV - V - I above `tonic` in Hz; third: 3 (minor) or 4 half tones; V is major in both."""
    chords = [(0, third, 7), (5, 5 + third, 12), (7, 11, 14), (0, third, 7)]
    return np.concatenate([tone([tonic * 2**(n / 12) for n in chord], 1.5, rate)
                           for chord in chords])


@pytest.fixture
def folder(tmp_path):
    """Ten tracks: a to d can be heard, "none" has no file, the others' files cannot be used.

    c knows its tempo.
    """
    (tmp_path / "audio").mkdir()
    for name, hertz in zip("abcd", (220, 330, 440, 550), strict=True):
        sound = tone(hertz) + clicks(120, 2.0, RATE)
        soundfile.write(tmp_path / "audio" / f"{name}.wav", sound, RATE)
    soundfile.write(tmp_path / "audio" / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "audio" / "empty.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "audio" / "cut.flac", tone(440), RATE)
    cut = (tmp_path / "audio" / "cut.flac").read_bytes()
    (tmp_path / "audio" / "cut.flac").write_bytes(cut[:60])
    (tmp_path / "audio" / "text.wav").write_text("this is not audio")
    names = ["a", "silent", "b", "empty", "c", "cut", "text", "missing", "d"]
    files = {name: f"audio/{name}.wav" for name in names}
    files |= {"cut": "audio/cut.flac", "none": None}
    data.write_jsonl(tmp_path / "tracks.jsonl", [
        {"track_id": name, "title": name, "audio_path": path, "tags": ["calm", "piano"],
         "tempo": 87.5 if name == "c" else None} for name, path in files.items()])
    return tmp_path


@pytest.fixture
def threads(monkeypatch):
    """Files are read by threads: starting a process takes seconds."""
    use_threads(monkeypatch)


def use_threads(monkeypatch):
    monkeypatch.setattr(audio, "ProcessPoolExecutor",
                        lambda workers, context, start: ThreadPoolExecutor(workers))


def rows_of(folder, name):
    path = folder / "annotations" / f"{name}.jsonl"
    return {row["track_id"]: row for _, row in data.read_jsonl(path, "")}


# ---------------------------------------------------------------- what they share

def test_which_tracks_are_heard():
    tracks = [{"track_id": i, "audio_path": "x" if i != 3 else None,
               "caption": "c" if i < 2 else None, "tags": [] if i == 1 else ["t"]}
              for i in range(8)]
    def chosen(*args):
        return [track["track_id"]
                for track in shared.choose_tracks(tracks, ("caption", "tags"), *args)]
    assert chosen("1/1", False, 0) == [1, 2, 4, 5, 6, 7]
    assert chosen("1/1", True, 0) == [0, 1, 2, 4, 5, 6, 7]
    assert chosen("1/1", False, 2) == [1, 2]
    thirds = [chosen(f"{i}/3", False, 0) for i in (1, 2, 3)]
    assert sorted(sum(thirds, [])) == chosen("1/1", False, 0)


def test_bad_files_are_listed_and_the_run_goes_on(folder, monkeypatch, capsys):
    tempo_key.main(["--data-dir", str(folder), "--workers", "1"])
    rows = rows_of(folder, "tempo_key")
    assert list(rows) == ["a", "silent", "b", "empty", "c", "cut", "text", "missing", "d"]
    reasons = {name: row["failed"].split(":")[0] for name, row in rows.items() if "failed" in row}
    assert reasons.pop("cut") in ("unreadable", "shorter than 0.5 s")
    assert reasons == {"silent": "silent", "empty": "shorter than 0.5 s", "text": "unreadable",
                       "missing": "file missing"}
    assert rows["silent"] == {"track_id": "silent", "tempo": None, "key": None, "failed": "silent"}
    assert "tempo" not in rows["c"] and rows["c"]["key"] and rows["a"]["tempo"]
    assert rows["a"]["key"] in tempo_key.KEYS
    assert "tempo of 3, key of 4 tracks; 5 files could not be used" in capsys.readouterr().out
    assert json.loads((folder / "runs" / "tempo_key.json").read_text())["failed"]["silent"] == 1
    tracks = {track["track_id"]: track for track in data.load_tracks(folder)}
    assert tracks["c"]["tempo"] == 87.5 and tracks["a"]["tempo"] == rows["a"]["tempo"]
    assert tracks["none"]["tempo"] is None
    assert not (folder / "annotations" / "tempo_key.jsonl.part").exists()

    # another annotator's is no input
    data.write_jsonl(folder / "annotations" / "lyrics.jsonl", [{"track_id": "a", "lyrics": "x"}])
    tempo_key.main(["--data-dir", str(folder)])
    assert "already done" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"another argument: seconds \(was 30.0, is 5.0\)"):
        tempo_key.main(["--data-dir", str(folder), "--seconds", "5"])
    data.write_jsonl(folder / "annotations" / "mine.jsonl", [{"track_id": "a", "tempo": 99}])
    with pytest.raises(SystemExit, match="another input: annotations/mine.jsonl"):
        tempo_key.main(["--data-dir", str(folder)])
    (folder / "annotations" / "mine.jsonl").unlink()
    # afresh: what the first run found does not pass for known
    use_threads(monkeypatch)
    tempo_key.main(["--data-dir", str(folder), "--no-resume", "--workers", "1"])
    assert rows_of(folder, "tempo_key") == rows


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(folder, threads):
    def annotate(where, stop_at=None):
        heard = []

        def describe(found):
            if len(heard) == stop_at:
                raise KeyboardInterrupt
            heard.append([track_id for track_id, _ in found])
            return [{"lyrics": f"{len(samples)} samples"} for _, samples in found]
        args = shared.make_parser("", 0).parse_args(["--data-dir", str(where), "--workers", "1"])
        read = partial(read_audio, rate=8000, seconds=0)
        shared.annotate("trial", ("lyrics",), args, lambda: (read, describe), 2)
        return heard
    with pytest.raises(KeyboardInterrupt):
        annotate(folder, stop_at=2)
    part = folder / "annotations" / "trial.jsonl.part"
    assert len(part.read_text().splitlines()) == 2
    assert not (folder / "annotations" / "trial.jsonl").exists()
    with open(part, "a") as f:
        f.write('[{"track_id": "c", "lyr')  # the kill cut a line
    assert data.load_tracks(folder)[0]["lyrics"] is None  # half a file is laid over nothing
    assert annotate(folder) == [["c"], ["d"]]  # cut, text and missing have no audio to describe
    resumed = (folder / "annotations" / "trial.jsonl").read_bytes()
    for path in (folder / "annotations", folder / "runs"):
        path.rename(path.with_name(f"old_{path.name}"))
    assert annotate(folder) == [["a"], ["b"], ["c"], ["d"]]
    assert (folder / "annotations" / "trial.jsonl").read_bytes() == resumed
    assert b"16000 samples" in resumed


def test_a_model_that_is_not_there_costs_no_finished_work(folder, threads, tmp_path):
    """Neither a finished file nor the journal of a killed run is lost before there is a model."""
    data.write_jsonl(folder / "annotations" / "lyrics.jsonl",
                     [{"track_id": "a", "lyrics": "hours of work"}])
    part = folder / "annotations" / "lyrics.jsonl.part"
    part.write_text('[{"track_id": "a", "lyrics": "half of it"}]\n')
    with pytest.raises(SystemExit, match="--model .*Accepted"):
        lyrics.main(["--data-dir", str(folder), "--model", str(tmp_path / "nowhere"),
                     "--no-resume"])
    assert rows_of(folder, "lyrics")["a"]["lyrics"] == "hours of work"
    assert "half of it" in part.read_text()
    assert not (folder / "runs").exists()


def test_shards_write_files_of_their_own(folder, threads):
    for shard in ("1/2", "2/2"):
        tempo_key.main(["--data-dir", str(folder), "--workers", "1", "--shard", shard])
    first, second = rows_of(folder, "tempo_key-1of2"), rows_of(folder, "tempo_key-2of2")
    assert len(first) == 5 and len(second) == 4 and not set(first) & set(second)
    # the other shard's file is no changed input
    tempo_key.main(["--data-dir", str(folder), "--shard", "1/2"])
    for wrong in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(SystemExit, match="which part of how many"):
            tempo_key.main(["--data-dir", str(folder), "--shard", wrong])


# ---------------------------------------------------------------- tempo and key

@pytest.mark.parametrize("bpm", [84, 100, 128])
def test_tempo_of_clicks(bpm):
    assert abs(tempo_key.estimate_tempo(clicks(bpm), 22050) / bpm - 1) < 0.01
    assert tempo_key.estimate_tempo(np.zeros(22050, np.float32), 22050) is None


@pytest.mark.parametrize("tonic, third, key",
                         [(261.63, 4, "C major"), (220.0, 3, "A minor"), (207.65, 3, "G# minor")])
def test_key_of_a_cadence(tonic, third, key):
    assert tempo_key.estimate_key(cadence(tonic, third), 22050) == key


def test_how_the_benchmark_judges():
    verdicts = {103.9: "right", 96.1: "right", 105: "wrong", 202: "octave", 49: "octave",
                300: "octave", 33.4: "octave", 133: "wrong", None: "wrong"}
    assert {tempo: judge_tempo(tempo, (100.0,)) for tempo in verdicts} == verdicts
    assert judge_tempo(75, (148.0, 74.0)) == "right"
    assert split_key("G# minor") == ("G#", "minor")
    assert split_key("E:minor (chord)") == ("E", "minor")
    assert split_key("C (pitch)") == ("C", None) and split_key("F (blues/dorian)") == ("F", None)
    assert split_key("G") == ("G", None)
    assert split_key("F#:minor (doubtful)") is None and split_key("") is None
    assert split_key(None) is None


def test_keys_of_real_clips():
    folder = REAL / "audio"
    if not (folder / "labels.csv").is_file():
        pytest.skip("no real audio: set TALKPLAY_REAL to the folder that has audio/labels.csv")
    rows = csv.DictReader((folder / "labels.csv").read_text().splitlines())
    tonics = {row["file"]: split_key(row["key"])[0] for row in rows if split_key(row["key"])}
    keys = {file: tempo_key.read_tempo_key(folder / file, 30.0)["key"] for file in tonics}
    assert len(tonics) == 5
    assert {file: key.split()[0] for file, key in keys.items()} == tonics


# ---------------------------------------------------------------- lyrics: guards

def test_compression_ratio():
    assert lyrics.compression_ratio("") < 1
    assert lyrics.compression_ratio("Down by the river I saw you standing, cold and grey") < 1.2
    assert lyrics.compression_ratio("I love you baby\n" * 12) > 2.4


def test_endless_repetition_is_cut():
    cut = lyrics.cut_repeats
    assert cut(["a"] * 9) == ["a"] * 4 and cut(["a"] * 4) == ["a"] * 4 and cut([]) == []
    oh = ["Oh,", "no!", "oh", "No"]
    assert cut(["x", *oh * 5, "y"]) == ["x", *oh * 2, "y"]
    assert cut(list("abc") * 6 + ["d"]) == list("abc") * 4 + ["d"]
    assert cut(list("abcab")) == list("abcab")
    assert cut(list("abcde") * 6) == list("abcde") * 6  # a refrain of five lines is no loop


def test_lyrics_are_cleaned():
    verse = ["Down by the river", "I saw you standing", "(oh, standing there)"]
    assert lyrics.clean_lyrics(verse) == "\n".join(verse)
    noise = ["*applause*", "(upbeat music)", "♪ ♪", "...", "12", "Thanks for watching!",
             "Subtitles by the Amara.org community"]
    assert lyrics.clean_lyrics(["[Music]", *verse, *noise]) == "\n".join(verse)
    yeahs = [" ".join(["yeah"] * 7)] * 9
    assert lyrics.clean_lyrics([*verse, *yeahs]) == "\n".join(verse + ["yeah yeah yeah yeah"] * 4)
    assert lyrics.clean_lyrics(["Thank you."]) is None and lyrics.clean_lyrics([]) is None
    assert lyrics.clean_lyrics(["la la la"] * 20) is None
    assert lyrics.clean_lyrics(["夜の海で泣いた"]) == "夜の海で泣いた"


# ---------------------------------------------------------------- lyrics: a Whisper

@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """The folder of a Whisper of two layers; its tokens are bytes, special tokens and stamps."""
    folder = tmp_path_factory.mktemp("whisper")
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>",
               "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>",
               "<|notimestamps|>"]
    stamps = [f"<|{i * 0.02:.2f}|>" for i in range(1501)]
    vocab = {token: i for i, token in enumerate([*BYTES, *special, *stamps])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    tokenizer = transformers.WhisperTokenizer(*files)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.add_tokens(stamps)
    assert tokenizer.convert_tokens_to_ids("<|30.00|>") == len(vocab) - 1
    torch.manual_seed(1)  # a seed with which the sounds of the tests are not all in one language
    model = transformers.WhisperForConditionalGeneration(WhisperConfig(
        vocab_size=len(vocab), num_mel_bins=16, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_target_positions=32, pad_token_id=256, bos_token_id=256,
        eos_token_id=256, decoder_start_token_id=257, suppress_tokens=None,
        begin_suppress_tokens=None, init_std=0.4))
    model.generation_config = GenerationConfig(
        no_timestamps_token_id=vocab["<|notimestamps|>"],
        lang_to_id={"<|en|>": vocab["<|en|>"], "<|de|>": vocab["<|de|>"]},
        task_to_id={"transcribe": vocab["<|transcribe|>"], "translate": vocab["<|translate|>"]},
        is_multilingual=True, max_length=32, max_initial_timestamp_index=50,
        return_timestamps=False, suppress_tokens=[], begin_suppress_tokens=[220, 256],
        pad_token_id=256, bos_token_id=256, eos_token_id=256, decoder_start_token_id=257)
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=16)
    transformers.WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def listener(whisper):
    return lyrics.load_whisper(str(whisper), "cpu")


@pytest.fixture(scope="module")
def sounds():
    noise = np.random.default_rng(0).normal(size=70 * RATE).astype(np.float32) / 20
    return [tone(300, 70.0) + noise, tone([200, 900], 8.0), tone(2000, 41.3)]


# every window passes
ALL = {"no_speech_threshold": 1.0, "logprob_threshold": -1e9, "compression_ratio_threshold": 1e9}


def test_mean_logprob_by_hand(listener):
    """Three tokens after two start tokens (5, 6); 256 is the end."""
    scores = torch.full((3, listener[0].config.vocab_size), -torch.inf)
    for score, token, p in zip(scores, (1, 2, 256), (0.5, 0.25, 0.125), strict=True):
        score[token], score[9] = np.log(p) + 3, np.log(1 - p) + 3  # any shift is the same
    result = {"sequences": torch.tensor([5, 6, 1, 2, 256]), "scores": list(scores)}
    assert lyrics.mean_logprob(result, listener[0]) == pytest.approx(np.log(0.5 * 0.25 * 0.125) / 3,
                                                                     abs=1e-5)


def test_whole_tracks_are_heard(listener, sounds):
    """Each window of a track, in order, in the language of its middle, as transformers does."""
    model, processor = listener
    told = []
    for sound in sounds:
        lines, language, windows = lyrics.hear(sound, model, processor, ALL)
        inputs = processor.feature_extractor(sound, sampling_rate=RATE, truncation=False,
                                             padding=False, return_tensors="pt")
        expected = model.generate(**inputs, return_timestamps=True, language=language,
                                  task="transcribe")
        expected = processor.tokenizer.decode(expected[0], skip_special_tokens=True)
        assert "".join(lines) == expected.replace("\n", "").strip()
        assert windows["unsure"] == 0 and windows["sung"] >= len(sound) / RATE / 30
        told.append(language)
    assert set(told) == {"en", "de"}
    german, english = (sounds[told.index(language)] for language in ("de", "en"))
    assert lyrics.hear(german, model, processor, ALL, "en")[1] == "en"  # as it is told to
    german, english = np.resize(german, 30 * RATE), np.resize(english, 20 * RATE)
    assert lyrics.hear(np.concatenate([english, german, english]), model, processor, ALL)[1] == "de"


def test_a_window_that_is_never_sure_is_written_again_and_left_out(listener, sounds, monkeypatch):
    model, processor = listener
    asked, write = [], transformers.GenerationMixin.generate

    def watch(self, *args, generation_config, **settings):
        found = write(self, *args, generation_config=generation_config, **settings)
        heat = generation_config.temperature if generation_config.do_sample else 0.0
        # as they were before the temperature
        scores = [score[0] * (heat or 1) for score in found.scores]
        result = {"sequences": found.sequences[0], "scores": scores}
        asked.append((heat, lyrics.mean_logprob(result, model)))
        # among how many it draws; top_k would be 50
        assert torch.isfinite(found.scores[-1]).sum() > 50
        return found
    monkeypatch.setattr(transformers.GenerationMixin, "generate", watch)
    everything = lyrics.hear(sounds[0], model, processor, ALL, "en")[0]
    least = float(np.median([logprob for _, logprob in asked]))  # half of the windows pass at once
    asked.clear()
    limits = ALL | {"logprob_threshold": least}
    lines, _, windows = lyrics.hear(sounds[0], model, processor, limits, "en")
    starts = [i for i, (heat, _) in enumerate(asked) if heat == 0] + [len(asked)]
    tries = [asked[first:last] for first, last in pairwise(starts)]
    for window in tries:
        assert tuple(heat for heat, _ in window) == lyrics.TEMPERATURES[:len(window)]
        assert all(logprob < least for _, logprob in window[:-1])
        assert window[-1][1] >= least or len(window) == 6
    assert windows["sung"] == sum(window[-1][1] >= least for window in tries) > 0
    assert windows["unsure"] == sum(window[-1][1] < least for window in tries) > 0
    assert lines and everything[:len(lines)] != lines != everything
    # nothing passes: no lines; what is drawn last, at temperature 1, is the seed's
    last = []
    limits = ALL | {"logprob_threshold": -1e-9}
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        assert lyrics.hear(sounds[1], model, processor, limits, "en")[0] == []
        last.append(asked[-1])
    assert last[0] == last[1] != last[2] and last[0][0] == 1


def test_lyrics_end_to_end(folder, threads, whisper):
    flags = "--data-dir", str(folder), "--model", str(whisper), "--device", "cpu", "--workers", "1"
    lyrics.main([*flags, "--logprob-threshold=-1e9", "--compression-ratio-threshold", "1e9"])
    rows = rows_of(folder, "lyrics")
    assert [row["sung"] for name, row in rows.items() if "failed" not in row] == [1] * 4
    assert rows["silent"]["lyrics"] is None
    assert sum("failed" in row for row in rows.values()) == 5
    assert {rows[name]["language"] for name in "abcd"} <= {"en", "de"}
    lyrics.main([*flags, "--logprob-threshold=-1e-9", "--no-speech-threshold", "0", "--no-resume"])
    assert all(row["lyrics"] is None and ("failed" in row or row["sung"] == row["unsure"] == 0)
               for row in rows_of(folder, "lyrics").values())


def test_what_lyrics_refuses(folder, whisper, tmp_path):
    with pytest.raises(SystemExit, match="--model .*Accepted: the whole folder of a Whisper"):
        lyrics.main(["--data-dir", str(folder), "--model", str(tmp_path / "nowhere")])
    WhisperConfig().save_pretrained(tmp_path / "half")
    with pytest.raises(SystemExit, match="--model .*Accepted: the whole folder"):
        lyrics.load_whisper(str(tmp_path / "half"), "cpu")
    with pytest.raises(SystemExit, match="--language fr: the model knows de, en"):
        lyrics.load_whisper(str(whisper), "cpu", "fr")


# ---------------------------------------------------------------- captions

def test_tags_are_drawn_by_the_rule():
    tags = ("acoustic guitar", "guitar", "hip hop", "R&B", "drums", "80s", "lo-fi", "bass", "blues",
            "jazz funk", "calm", "deep house")
    vocabulary = {tuple(captions.split_words(tag)): tag for tag in tags}
    draw = partial(captions.draw_tags, vocabulary=vocabulary)
    drawn = draw("A calm Hip-Hop beat with acoustic guitars and a lo fi bass.")
    assert drawn == ["calm", "hip hop", "acoustic guitar", "lo-fi", "bass"]
    drawn = draw("Smooth r&b from the 80s, jazz, funk and more calm. Calm!")
    assert drawn == ["R&B", "80s", "calm"]  # a comma separates jazz and funk
    assert draw("No drums or bass, but a guitar; without any blues") == ["guitar"]
    assert draw("There is not much. Drums enter.") == ["drums"]
    assert draw("calmly drummed, guitarists") == [] and draw("") == []


def test_vocabulary():
    def track(*tags):
        return {"tags": list(tags)}
    tracks = [track("Lo-Fi", "jazz"), track("lo-fi", "jazz", "odd"), track("lo-fi")]
    assert captions.make_vocabulary(tracks) == {("jazz",): "jazz", ("lo", "fi"): "lo-fi"}
    of_lexicon = captions.make_vocabulary([track(), track("once")])
    assert {"hip hop", "melancholic"} <= set(of_lexicon.values())


def test_captions_are_cleaned():
    assert captions.clean_caption("  A slow\n song. ") == "A slow song."
    cut = captions.clean_caption("A slow song at 80.5 BPM. It has a pia", ended=False)
    assert cut == "A slow song at 80.5 BPM."
    assert captions.clean_caption("A slow song with", ended=False) == "A slow song with"
    assert captions.clean_caption("I'm sorry, I cannot hear") is None
    assert captions.clean_caption(" ... ") is None


TEXT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            intermediate_size=64, max_position_embeddings=2048, initializer_range=0.3)
AUDIO = dict(d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=64,
             num_mel_bins=16)
FLAMINGO_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<sound>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def byte_tokenizer(*special):
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(BYTES)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", *special])


def save_qwen(folder):
    tokenizer = byte_tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    config = transformers.Qwen2AudioConfig(
        audio_config=AUDIO | {"model_type": "qwen2_audio_encoder"},
        text_config=Qwen2Config(vocab_size=len(tokenizer), **TEXT),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"))
    transformers.Qwen2AudioForConditionalGeneration(config).save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=16)
    transformers.Qwen2AudioProcessor(extractor, tokenizer).save_pretrained(folder)


def save_flamingo(folder):
    tokenizer = byte_tokenizer("<sound>", "<|sound_bos|>", "<|sound_eos|>")
    sound, begin, end = (tokenizer.convert_tokens_to_ids(token)
                         for token in ("<sound>", "<|sound_bos|>", "<|sound_eos|>"))
    config = transformers.MusicFlamingoConfig(
        audio_config=transformers.AudioFlamingo3EncoderConfig(**AUDIO),
        text_config=Qwen2Config(vocab_size=len(tokenizer), **TEXT),
        audio_token_id=sound, audio_bos_token_id=begin, audio_eos_token_id=end)
    transformers.MusicFlamingoForConditionalGeneration(config).save_pretrained(folder)
    processor = transformers.MusicFlamingoProcessor(
        WhisperFeatureExtractor(feature_size=16), tokenizer, chat_template=FLAMINGO_TEMPLATE)
    processor.save_pretrained(folder)


@pytest.mark.parametrize("save", [save_qwen, save_flamingo])
def test_a_captioner_hears_each_track_of_a_batch(save, tmp_path):
    """The answer depends on the sound, and not on the batch that it is in."""
    torch.manual_seed(0)
    save(tmp_path)
    model, processor = captions.load_captioner(str(tmp_path), "cpu")
    assert processor.feature_extractor.sampling_rate == RATE
    sounds = [tone(300, 3.0),
              np.random.default_rng(0).normal(size=20 * RATE).astype(np.float32) / 10,
              tone(2000, 3.0)]
    together = captions.answer(sounds, model, processor, 8)
    assert together == [captions.answer([sound], model, processor, 8)[0] for sound in sounds]
    assert len({text for text, _ in together}) > 1
    assert all(type(ended) is bool for _, ended in together)
    assert processor.audio_token not in together[0][0]


def test_captions_end_to_end(folder, threads, tmp_path, monkeypatch):
    torch.manual_seed(0)
    save_qwen(tmp_path / "qwen")
    heard = captions.answer

    def answer(sounds, *args):
        return [("A calm piece; no piano. " + text, ended) for text, ended in heard(sounds, *args)]
    monkeypatch.setattr(captions, "answer", answer)
    captions.main(["--data-dir", str(folder), "--model", str(tmp_path / "qwen"), "--device", "cpu",
                   "--workers", "1", "--overwrite", "--max-new-tokens", "4"])
    rows = rows_of(folder, "captions")
    assert all(rows[name]["caption"].startswith("A calm piece; no piano.")
               and rows[name]["tags"] == ["calm"] for name in "abcd")
    assert rows["text"]["failed"].startswith("unreadable") and rows["text"]["tags"] is None
    # a second shard, in a catalogue without tags, draws from the lexicon as the first one did
    monkeypatch.setattr(captions, "answer", lambda sounds,
                        *_: [("A melancholic hip hop piece.", True)] * len(sounds))
    data.write_jsonl(folder / "tracks.jsonl",
                     [{"track_id": name, "audio_path": f"audio/{name}.wav"} for name in "abcd"])
    (folder / "annotations" / "captions.jsonl").unlink()
    data.write_jsonl(folder / "annotations" / "captions-1of2.jsonl",
                     [{"track_id": name, "tags": ["calm"]} for name in "ac"])
    captions.main(["--data-dir", str(folder), "--model", str(tmp_path / "qwen"), "--device", "cpu",
                   "--shard", "2/2"])
    rows = rows_of(folder, "captions-2of2")
    assert [row["tags"] for row in rows.values()] == [["melancholic", "hip hop"]] * 2
    with pytest.raises(SystemExit, match="--model .*Accepted: the whole folder or the"):
        captions.main(["--data-dir", str(folder), "--model", "sshleifer/none", "--no-resume"])
    with pytest.raises(SystemExit, match="--batch-size 0: 1 or more is accepted"):
        captions.main(["--data-dir", str(folder), "--model", str(tmp_path / "qwen"), "--batch-size",
                       "0"])
