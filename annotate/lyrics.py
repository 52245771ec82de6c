"""Lyrics by ear: Whisper (Radford et al. 2022) on the tracks that have none.

Whisper hears 30 s at a time and writes text with time stamps; the next window begins at the last stamp (section 4.5 of its
paper), so that no line is cut in two. Tracks are heard several at a time, a window of each. The language is told from the
middle of a track, since intros have no words; --language gives it. What is sung is harder than what is said: expect errors.

Whisper writes fluent nonsense where nobody sings. The guards, in this order:
1. A window with P(no speech) > 0.6 whose tokens have a mean log-probability < -1 has no words.
2. A window whose text compresses to less than 1 / 2.4, or whose mean log-probability is < -1, is written again at the
   temperatures 0.2, 0.4 ... 1; where that never mends it, it is left out. (Whisper would keep the last.)
3. Lines that describe sounds ("[Music]") and credits of subtitles ("Thanks for watching") go; of words, and of blocks of up
   to four lines, that are repeated without end, four are kept.
4. A text of fewer than five different words is none: instrumental, lyrics null.
The log-probability is of the model's own logits: where it would rather write a note sign, which is forbidden, it is unsure.

Run on random weights only (tests/test_annotate.py), where it writes what transformers' own long-form generation writes.
Not yet run on the published checkpoints.

Reads   tracks.jsonl, annotations/*.jsonl, the tracks' audio files; the model
Writes  annotations/lyrics.jsonl (track_id, lyrics, language; how many windows had `sung`, `no_speech` and `unsure` text;
        `failed`, the reason, for a file of no use)

Demo        none: the demo's audio has no singing
Full scale  python annotate/lyrics.py --data-dir data/mpd --device cuda --workers 16
            Eight GPUs: the same with --shard 1/8 to --shard 8/8. Faster: --model openai/whisper-large-v3-turbo
A killed run goes on where it stopped when the same command is given again.
"""

import re
import sys
import zlib
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ and encoders/ lie beside annotate/
from annotate.shared import annotate, make_parser
from encoders.librosa_features import read_audio
from encoders.text import device_of

# torch and transformers are imported where they are used: each audio worker starts this file again, and would load them all.

NAME = "lyrics"
RATE = 16_000                       # Hz, of every Whisper
WINDOW = 3000                       # frames of 10 ms: what Whisper hears at a time
STAMP = 2                           # frames between two time stamps
SHORTEST = 100                      # frames; a rest below it is left unheard
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MOST_REPEATS = 4                    # times in a row
FEWEST_WORDS = 5
SOUNDS = re.compile(r"\[[^]]*\]|[(*][^)*]*\b(music|instrumental|applause|laughter|silence)\b[^)*]*[)*]", re.IGNORECASE)
CREDITS = re.compile(r"(thanks?( you)?( so much| very much)? for (watching|listening)|please (like and )?subscribe|"
                     r"(subtitles?|captions?|transcri(bed|ption)) by|www\.|amara\.org).*", re.IGNORECASE)


class Limits(NamedTuple):
    no_speech: float = 0.6          # probability
    logprob: float = -1.0           # nats a token
    compression: float = 2.4        # bytes of the text / bytes of it compressed


# ---------------------------------------------------------------- guards: strings and numbers

def compression_ratio(text):
    """Bytes of the text over bytes of it compressed by zlib: over 2.4 it repeats itself."""
    return len(text.encode()) / len(zlib.compress(text.encode()))


def judge(text, no_speech, logprob, limits):
    """"sung", "no_speech" or "unsure": what to make of a window's text (guards 1 and 2)."""
    if no_speech > limits.no_speech and logprob < limits.logprob:
        return "no_speech"
    if logprob < limits.logprob or compression_ratio(text) > limits.compression:
        return "unsure"
    return "sung"


def cut_repeats(items, most=MOST_REPEATS, longest=4):
    """A list of strings without endless repetition: of a block of up to `longest` items that stands more than `most` times in
    a row, that many are kept. Case and punctuation do not count."""
    bare = [re.sub(r"\W+", " ", item.lower()).strip() for item in items]
    kept, i = [], 0
    while i < len(items):
        for size in range(1, longest + 1):
            times = 1
            while bare[i + times * size:i + (times + 1) * size] == bare[i:i + size]:
                times += 1
            if times > most:
                kept += items[i:i + most * size]
                i += times * size
                break
        else:
            kept.append(items[i])
            i += 1
    return kept


def clean_lyrics(lines):
    """Lines as Whisper wrote them -> lyrics, lines parted by "\\n", or None where there are none (guards 3 and 4)."""
    lines = [" ".join(cut_repeats(SOUNDS.sub(" ", line).split())) for line in lines]
    lines = [line for line in lines if re.search(r"[^\W\d_]", line) and not CREDITS.fullmatch(line)]
    text = "\n".join(cut_repeats(lines))
    words = re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]|\w+", text.lower())  # Chinese and Japanese have no spaces
    return text if len(set(words)) >= FEWEST_WORDS else None


# ---------------------------------------------------------------- a window

def split_at_stamps(tokens, first_stamp, frames):
    """What Whisper wrote of a window, without the start and end tokens: (list of lines, each a list of tokens; how many frames
    to go on).

    tokens: list of ints, those from `first_stamp` on are times in steps of 20 ms. frames: of sound in the window. A line
    stands between two stamps. What comes after the last pair of stamps is cut off by the window's end, and is heard again in
    the next one, which begins there; a single stamp at the end means that nothing follows.
    """
    stamps = [token >= first_stamp for token in tokens]
    cuts = [i + 1 for i in range(len(tokens) - 1) if stamps[i] and stamps[i + 1]]
    on = frames
    if not cuts or stamps[-2:] == [False, True]:
        cuts.append(len(tokens))
    else:
        on = (tokens[cuts[-1] - 1] - first_stamp) * STAMP
    lines = [[token for token in tokens[first:last] if token < first_stamp] for first, last in zip([0, *cuts], cuts)]
    return lines, on if 0 < on < frames else frames


def read_confidence(logits, ids, n_start, no_speech_id, end_id):
    """(P(no speech), mean log-probability of a token) of each text: two (B,) float arrays.

    logits: (B, T, V), of the token after each of ids (B, T). The first n_start ids are the start tokens; the end token counts,
    the padding after it does not.
    """
    import torch
    no_speech = logits[:, 0].float().softmax(-1)[:, no_speech_id]
    written = ids[:, n_start:]                                                            # (B, T - n_start)
    logprobs = torch.stack([row[n_start - 1:-1].float().log_softmax(-1).gather(1, ids_of[:, None])[:, 0]  # a row at a time: V is large
                            for row, ids_of in zip(logits, written)])
    ended = (written == end_id).cumsum(1)
    mask = (ended == 0) | (ended == 1) & (written == end_id)  # up to the first end token
    return no_speech.cpu().numpy(), ((logprobs * mask).sum(1) / mask.sum(1)).cpu().numpy()


# ---------------------------------------------------------------- the model

class Listener(NamedTuple):
    """A Whisper that load_whisper has loaded. languages: {id: "<|en|>"}; {} for a model of English only."""
    model: object
    processor: object
    languages: dict
    first_stamp: int
    no_speech_id: int


def find_whisper(name):
    """Raises SystemExit: no Whisper of this name or in this folder."""
    from transformers import AutoConfig
    try:
        if AutoConfig.from_pretrained(name).model_type != "whisper":
            raise ValueError("not a Whisper model.")
    except (OSError, ValueError) as error:
        raise SystemExit(f"--model {name}: {str(error).splitlines()[0]} Accepted: the folder of a Whisper, or its Hugging Face id. Get "
                         f"one with: hf download openai/whisper-large-v3 --local-dir whisper-large-v3")


def load_whisper(name, device, language=None):
    """The Listener of a folder or Hugging Face id. language: code such as "en" that all tracks have, or None.

    Raises SystemExit: it cannot be loaded, or does not know the language."""
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor
    from transformers.utils import logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it warns of what is asked for here
    find_whisper(name)
    device = device_of(device)
    try:
        processor = WhisperProcessor.from_pretrained(name)
        model = WhisperForConditionalGeneration.from_pretrained(name, dtype=torch.float16 if "cuda" in device else torch.float32)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--model {name}: {str(error).splitlines()[0]} Its folder is not whole; download it again with: "
                         f"hf download openai/whisper-large-v3 --local-dir whisper-large-v3")
    settings = model.generation_config
    if not hasattr(settings, "no_timestamps_token_id"):
        raise SystemExit(f"--model {name}: its generation_config.json has no no_timestamps_token_id, so that time stamps cannot be told "
                         f"from words. Take a newer copy of the checkpoint")
    languages = {number: token for token, number in getattr(settings, "lang_to_id", {}).items()}
    if not getattr(settings, "is_multilingual", True):
        languages = {}
    if language and f"<|{language}|>" not in languages.values():
        raise SystemExit(f"--language {language}: the model knows {', '.join(sorted(t[2:-2] for t in languages.values())) or 'English only'}")
    stamp = settings.no_timestamps_token_id + 1
    return Listener(model.to(device).eval(), processor, languages, stamp, stamp - 2)


def mel_of(samples, processor):
    """(T,) samples at 16 kHz -> (mels, frames) float32, log-mel of the whole track."""
    found = processor.feature_extractor(samples, sampling_rate=RATE, truncation=False, padding=False, return_tensors="np")
    return np.asarray(found.input_features[0], np.float32)


def cut_windows(mels, starts, model):
    """A window of each track: (B, mels, 3000) on the model's device, filled up with zeros as Whisper was trained."""
    import torch
    windows = np.zeros((len(mels), mels[0].shape[0], WINDOW), np.float32)
    for window, mel, start in zip(windows, mels, starts):
        piece = mel[:, start:start + WINDOW]
        window[:, :piece.shape[1]] = piece
    return torch.from_numpy(windows).to(model.device, model.dtype)


def tell_languages(mels, listener):
    """The language token, such as "<|en|>", of each track, from its middle; None for a model of English only."""
    if not listener.languages:
        return [None] * len(mels)
    middles = cut_windows(mels, [max(0, mel.shape[1] - WINDOW) // 2 for mel in mels], listener.model)
    ids = listener.model.detect_language(input_features=middles, generation_config=listener.model.generation_config)
    return [listener.languages[number] for number in ids.tolist()]


def write_windows(windows, languages, temperature, listener):
    """Whisper's text of windows (B, mels, 3000): ids with start and end tokens, (B, T), padded on the right; start tokens of each."""
    settings = {"language": languages, "task": "transcribe"} if listener.languages else {}
    settings |= {"top_k": 0, "top_p": 1.0} if temperature else {}  # all tokens can be drawn
    ids = listener.model.generate(windows, return_timestamps=True, force_unique_generate_call=True, temperature=temperature, num_beams=1,
                                  **settings)
    return ids, 3 if listener.languages else 1


def hear_windows(windows, frames, languages, listener, limits, temperatures=TEMPERATURES):
    """Windows (B, mels, 3000) -> for each (verdict, lines, frames to go on). frames: of sound in each window."""
    found, left = [None] * len(windows), list(range(len(windows)))
    end = listener.model.generation_config.eos_token_id
    for temperature in temperatures:
        ids, n_start = write_windows(windows[left], [languages[i] for i in left], temperature, listener)
        logits = listener.model(input_features=windows[left], decoder_input_ids=ids).logits
        confidence = zip(*read_confidence(logits, ids, n_start, listener.no_speech_id, end))
        for i, row, (no_speech, logprob) in zip(left, ids[:, n_start:].tolist(), confidence):
            tokens = row[:next((k for k, token in enumerate(row) if token == end), len(row))]
            lines, on = split_at_stamps(tokens, listener.first_stamp, frames[i])
            lines = [listener.processor.tokenizer.decode(line, skip_special_tokens=True).strip() for line in lines]
            verdict = judge("\n".join(lines), no_speech, logprob, limits)
            found[i] = (verdict, lines, on) if verdict == "sung" else (verdict, [], frames[i])
        left = [i for i in left if found[i][0] == "unsure"]
        if not left:
            break
    return found


def transcribe(mels, listener, limits=Limits(), language=None, temperatures=TEMPERATURES):
    """Tracks, each (mels, frames), heard side by side -> for each (lines, language code, Counter of the windows' verdicts)."""
    import torch
    with torch.inference_mode():
        languages = [f"<|{language}|>"] * len(mels) if language else tell_languages(mels, listener)
        starts, lines, verdicts = [0] * len(mels), [[] for _ in mels], [Counter() for _ in mels]
        while active := [i for i, mel in enumerate(mels) if starts[i] == 0 or mel.shape[1] - starts[i] >= SHORTEST]:
            windows = cut_windows([mels[i] for i in active], [starts[i] for i in active], listener.model)
            frames = [min(WINDOW, mels[i].shape[1] - starts[i]) for i in active]
            heard = hear_windows(windows, frames, [languages[i] for i in active], listener, limits, temperatures)
            for i, (verdict, new, on) in zip(active, heard):
                lines[i] += new
                verdicts[i][verdict] += 1
                starts[i] += on
    return [(line, told and told[2:-2], verdict) for line, told, verdict in zip(lines, languages, verdicts)]


def describe(found, listener, limits, language, seed):
    """Annotations of a group of tracks; found: list of (track_id, (T,) samples at 16 kHz)."""
    import torch
    torch.manual_seed(zlib.crc32(f"{seed} {found[0][0]}".encode()))  # a run that was cut draws the same as one that was not
    mels = [mel_of(samples, listener.processor) for _, samples in found]
    return [{"lyrics": clean_lyrics(lines), "language": told} | {key: verdicts[key] for key in ("sung", "no_speech", "unsure")}
            for lines, told, verdicts in transcribe(mels, listener, limits, language)]


def parse_args(argv=None):
    parser = make_parser(__doc__.splitlines()[0], 0)
    add = parser.add_argument
    add("--model", default="openai/whisper-large-v3", help="a Whisper: Hugging Face id or folder (default openai/whisper-large-v3)")
    add("--language", default=None, help='code of the language of all tracks, such as "en" (default: told for each track)')
    add("--no-speech-threshold", type=float, default=Limits().no_speech, help="probability (default 0.6)")
    add("--logprob-threshold", type=float, default=Limits().logprob, help="nats a token (default -1)")
    add("--compression-ratio-threshold", type=float, default=Limits().compression, help="default 2.4")
    add("--batch-size", type=int, default=16, help="tracks heard side by side (default 16)")
    add("--device", default="auto", help="auto (default: cuda if there is one), cpu, cuda, ...")
    add("--seed", type=int, default=0, help="of what is drawn at a temperature above 0 (default 0)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    find_whisper(args.model)
    limits = Limits(args.no_speech_threshold, args.logprob_threshold, args.compression_ratio_threshold)

    def load(tracks):
        listener = load_whisper(args.model, args.device, args.language)
        return partial(describe, listener=listener, limits=limits, language=args.language, seed=args.seed)

    annotate(NAME, ("lyrics",), args, partial(read_audio, rate=RATE, seconds=args.seconds), load, args.batch_size)


if __name__ == "__main__":
    main()
