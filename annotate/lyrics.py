"""Lyrics by ear: Whisper (Radford et al. 2022) on the tracks that have none.

Whisper hears 30 s and writes text with time stamps; the next window begins at the last stamp
(section 4.5 of its paper, by transformers). The language is that of the middle of the track, since
intros have no words. Singing is harder than speech: expect errors.

Whisper writes fluent nonsense where nobody sings. The guards, in this order:
1. transformers': a window has no words if P(no speech) > 0.6 and the mean log-probability of its
   tokens is < -1. It is written again at the temperatures 0.2, 0.4 ... 1 if that mean is < -1, or
   if its token ids compress to less than 1 / 1.35.
2. A window that no temperature has mended is left out (Whisper would keep the last try): its mean,
   at the temperature of the draw, is < -1, or its text compresses to less than 1 / 2.4.
3. Lines that describe sounds ("[Music]") and credits of subtitles ("Thanks for watching") are
   dropped. Endless repetition, of words or of blocks of up to four lines, is cut to four times.
4. A text of fewer than five different words is none: instrumental, lyrics null.

Run on random weights only (tests/test_annotate.py), not yet on the published checkpoints. On a
large GPU start several --shard. A window of large-v3 takes up to 93 MB of memory until its track is
done, so for mixes of hours use --seconds 600 (the middle).

Reads   tracks.jsonl, annotations/*.jsonl, the tracks' audio files; the model
Writes  annotations/lyrics.jsonl: track_id, lyrics, language, counts of windows `sung` and `unsure`;
        or `failed`: why there are none

Demo        none: its audio has no singing
Full scale  python annotate/lyrics.py --data-dir data/mpd --device cuda
            Eight GPUs: the same with --shard 1/8 to --shard 8/8.
            Faster: --model openai/whisper-large-v3-turbo
A killed run goes on where it stopped when the same command is given again.
"""

import re
import sys
import zlib
from functools import partial
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository

from annotate.shared import annotate, make_parser
from common.flags import add_shared, check_ranges
from common.models import refuse_bad_model
from steps.extract_embeddings.librosa_features import read_audio

# torch and transformers are imported in functions: each audio worker starts this file again.

RATE = 16_000           # Hz, of every Whisper
WINDOW = 3000           # frames of 10 ms: what Whisper hears at a time
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
LIMITS = {              # of guard 1, by transformers' names
    "no_speech_threshold": 0.6, "logprob_threshold": -1.0, "compression_ratio_threshold": 1.35}
MOST_COMPRESSED = 2.4   # bytes of a window's text / bytes of it compressed
MOST_REPEATS = 4        # times in a row
FEWEST_WORDS = 5
SOUNDS = r"(?i)\[[^]]*\]|[(*][^)*]*\b(music|instrumental|applause|laughter|silence)\b[^)*]*[)*]"
CREDITS = (
    r"(?i)(thanks?( you)?( so much| very much)? for (watching|listening)|please (like and )?"
    r"subscribe|(subtitles?|captions?|transcri(bed|ption)) by|www\.|amara\.org).*")


# ---------------------------------------------------------------- guards: strings

def compression_ratio(text):
    """Bytes of the text over bytes of it compressed by zlib: over 2.4 it repeats itself."""
    return len(text.encode()) / len(zlib.compress(text.encode()))


def cut_repeats(items, most=MOST_REPEATS, longest=4):
    """A list of strings in which no block of up to `longest` items occurs more than `most` times
    in a row. Case and punctuation do not count.
    """
    bare = [re.sub(r"\W+", " ", item.lower()).strip() for item in items]
    kept = []
    i = 0
    while i < len(items):
        keep = step = 1  # unless a block that repeats itself begins here
        for size in range(longest, 0, -1):  # the shortest block wins
            times = 1
            while bare[i + times * size:i + (times + 1) * size] == bare[i:i + size]:
                times += 1
            if times > most:
                keep, step = most * size, times * size
        kept += items[i:i + keep]
        i += step
    return kept


def clean_lyrics(lines):
    """Lines as Whisper wrote them -> lyrics (str), or None if there are none (guards 3 and 4)."""
    lines = [" ".join(cut_repeats(re.sub(SOUNDS, " ", line).split())) for line in lines]
    lines = [line for line in lines
             if re.search(r"[^\W\d_]", line) and not re.fullmatch(CREDITS, line)]
    text = "\n".join(cut_repeats(lines))
    # Chinese and Japanese have no spaces: each character counts as a word.
    words = re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]|\w+", text.lower())
    return text if len(set(words)) >= FEWEST_WORDS else None


# ---------------------------------------------------------------- the model

def languages_of(model):
    """Codes of the languages that a Whisper can be told, such as "en"; [] if it is English only."""
    config = model.generation_config
    known = getattr(config, "lang_to_id", ()) if getattr(config, "is_multilingual", True) else ()
    return sorted(token[2:-2] for token in known)


def load_whisper(name, device, language=None):
    """(model, processor). Raises SystemExit: it is no Whisper, or does not know the language."""
    import torch
    from transformers import AutoConfig, WhisperForConditionalGeneration, WhisperProcessor
    from transformers.utils import logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it warns of what is asked for here
    dtype = torch.float16 if "cuda" in device else torch.float32
    with refuse_bad_model("--model", name, "Accepted: the whole folder of a Whisper, or its id. "
                          "Get one with: hf download openai/whisper-large-v3 --local-dir large-v3"):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.model_type != "whisper":
            raise ValueError("not a Whisper model.")
        processor = WhisperProcessor.from_pretrained(name, trust_remote_code=False)
        model = WhisperForConditionalGeneration.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=dtype)
        if not hasattr(model.generation_config, "no_timestamps_token_id"):
            raise ValueError("its generation_config.json is too old.")
    if language and language not in languages_of(model):
        raise SystemExit(f"--language {language}: the model knows "
                         f"{', '.join(languages_of(model)) or 'English only'}")
    return model.to(device).eval(), processor


def mean_logprob(result, model):
    """Mean log-probability (nats) of the tokens, with the end token, of generate's window."""
    scores = [score[None] for score in result["scores"]]  # (1, V) for each token
    return model.compute_transition_scores(result["sequences"][None], scores,
                                           normalize_logits=True).mean().item()


def hear(samples, model, processor, limits=LIMITS, language=None):
    """(T,) samples at 16 kHz -> (lines, language or None, counts of sung and unsure windows)."""
    from torch.nn.functional import pad
    mel = processor.feature_extractor(samples, sampling_rate=RATE, truncation=False, padding=False,
                                      return_tensors="pt").input_features  # (1, mels, frames)
    mel = mel.to(model.device, model.dtype)
    settings = {}
    if languages_of(model):
        if not language:
            middle = mel[..., max(0, mel.shape[-1] - WINDOW) // 2:][..., :WINDOW]
            token = model.detect_language(pad(middle, (0, WINDOW - middle.shape[-1]))).item()
            language = processor.tokenizer.convert_ids_to_tokens(token)[2:-2]
        settings = {"language": f"<|{language}|>", "task": "transcribe"}

    # One track per call: with several, transformers 5.23 mixes up which of them was silent once
    # some are written again. top_k=0: all tokens can be drawn.
    output = model.generate(mel, return_timestamps=True, return_segments=True,
                            condition_on_prev_tokens=False, num_beams=1, top_k=0, top_p=1.0,
                            temperature=TEMPERATURES, **limits, **settings)
    lines = []
    windows = {"sung": 0, "unsure": 0}
    # The segments of a window share its result.
    for _, segments in groupby(output["segments"][0], key=lambda segment: id(segment["result"])):
        segments = list(segments)
        new = [processor.tokenizer.decode(segment["tokens"], skip_special_tokens=True).strip()
               for segment in segments]
        sure = mean_logprob(segments[0]["result"], model) >= limits["logprob_threshold"]
        sung = sure and compression_ratio("\n".join(new)) <= MOST_COMPRESSED
        windows["sung" if sung else "unsure"] += 1
        lines += new if sung else []
    return lines, language, windows


def main(argv=None):
    parser = make_parser(__doc__.splitlines()[0], 0)
    add_shared(parser, "device", "seed")
    add = parser.add_argument
    add("--model", default="openai/whisper-large-v3",
        help="a Whisper: Hugging Face id or folder (default openai/whisper-large-v3)")
    add("--language", help="of all tracks, such as en (default: detected per track)")
    for name, value in LIMITS.items():
        add(f"--{name.replace('_', '-')}", type=float, default=value,
            help=f"of guard 1 (default {value:g})")
    args = parser.parse_args(argv)
    check_ranges(args, no_speech_threshold=(0, 1), logprob_threshold=(-1e9, 0),
                 compression_ratio_threshold=0)

    def load():
        import torch
        model, processor = load_whisper(args.model, args.device, args.language)
        limits = {name: getattr(args, name) for name in LIMITS}

        def describe(group):
            [(track_id, samples)] = group
            # A seed per track: a run that was cut draws the same as one that was not.
            torch.manual_seed(zlib.crc32(f"{args.seed} {track_id}".encode()))
            lines, language, windows = hear(samples, model, processor, limits, args.language)
            return [{"lyrics": clean_lyrics(lines), "language": language} | windows]
        return partial(read_audio, rate=RATE, seconds=args.seconds), describe

    annotate("lyrics", ("lyrics",), args, load, group=1)


if __name__ == "__main__":
    main()
