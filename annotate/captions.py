"""Captions by an audio language model, and tags drawn from them, in place of LP-MusicCaps.

The model, Qwen2-Audio (Chu et al. 2024) by default, hears 30 s from the middle of a track and answers PROMPT, greedily.
Any other that transformers has works by name, such as Audio Flamingo 3 or Music Flamingo; no code that comes with a
model is run. Mind the licence: Qwen2-Audio is Apache-2.0, Music Flamingo for research only.

Tags: those words and phrases of the caption that stand in a vocabulary. That is the tags that at least two tracks of the
catalogue have; where there are none, those of common/lexicon.json. Case, hyphens and a plural s do not count, of two that
overlap the first and longer one is taken, and one that stands within three words after "no", "not", "without" or "lacks" is
not. Nothing is guessed beyond the words: "a lonely voice" gives "lonely" only if some tracks are tagged so.

Run on random weights only (tests/test_annotate.py). Not yet run on a published checkpoint: how true the captions are is not
known. Read some before you build on them.

Reads   tracks.jsonl, annotations/*.jsonl, common/lexicon.json, the tracks' audio files; the model
Writes  annotations/captions.jsonl (track_id, caption, tags, and `failed`, the reason, for a file of no use)

Demo        none: its tracks have captions, and the model is too large
Full scale  python annotate/captions.py --data-dir data/mpd --device cuda --workers 16
            Eight GPUs: the same with --shard 1/8 to --shard 8/8. Another model, which takes whole tracks:
            --model nvidia/music-flamingo-2601-hf --seconds 0 --batch-size 4
A killed run goes on where it stopped when the same command is given again.
"""

import json
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # common/ and encoders/ lie beside annotate/
from annotate.shared import annotate, make_parser
from common import data
from common.process import resolve_device
from steps.extract_embeddings.librosa_features import AUDIO_SECONDS, read_audio

# torch and transformers are imported where they are used: each audio worker starts this file again, and would load them all.

NAME = "captions"
FEWEST_TRACKS = 2                   # that have a tag of the vocabulary
NEGATIONS = {"no", "not", "without", "lacks", "lacking"}
PROMPT = ("Describe this music in two sentences: its genre, mood, instruments, voice and tempo. Say only what can be heard, and "
          "nothing else.")


# ---------------------------------------------------------------- texts

def clean_caption(text, ended=True):
    """The model's answer as a caption, or None. ended: False where the answer was cut off; its last sentence then goes."""
    text = " ".join(text.split())
    if not ended and (sentences := re.match(r".*[.!?](?=\s|$)", text)):
        text = sentences.group()
    if not re.search(r"[^\W\d_]", text) or re.match(r"(i('| a)m )?sorry|as an ai|i can('|no)t|unfortunately", text, re.IGNORECASE):
        return None
    return text


def split_words(text):
    """Words and punctuation in lower case; hyphens are spaces."""
    return re.findall(r"[\w&']+|[^\w\s]", re.sub(r"[-\u2010\u2011_/]", " ", text.lower()))


def make_vocabulary(tracks):
    """{words: tag} of the catalogue's tags, or of the lexicon's where it has none."""
    counts = Counter(tag for track in tracks for tag in set(track["tags"]))
    tags = [tag for tag, n in counts.most_common() if n >= FEWEST_TRACKS]
    if not tags:
        lexicon = json.loads((ROOT / "common" / "lexicon.json").read_text())
        tags = [tag for concepts in lexicon.values() for concept in concepts.values() for tag in concept.get("tags", ())]
    vocabulary = {}
    for tag in tags:
        if words := tuple(split_words(tag)):
            vocabulary.setdefault(words, tag)  # of two spellings, the more common one
    return vocabulary


def draw_tags(caption, vocabulary, longest=4):
    """The tags of a vocabulary that stand in a caption, in its order, each once. longest: words of a tag that are looked at."""
    words, tags, i = split_words(caption), [], 0
    while i < len(words):
        for size in range(longest, 0, -1):
            found = tuple(words[i:i + size])
            tag = vocabulary.get(found) or vocabulary.get((*found[:-1], found[-1].removesuffix("s")))
            if len(found) == size and tag:
                before = words[max(0, i - 3):i]
                clause = before[max((k + 1 for k, word in enumerate(before) if word in {".", ",", ";", ":", "but"}), default=0):]
                if tag not in tags and not NEGATIONS & set(clause):
                    tags.append(tag)
                i += size
                break
        else:
            i += 1
    return tags


# ---------------------------------------------------------------- the model

def find_captioner(name):
    """The sampling rate, in Hz, of an audio language model. Raises SystemExit: transformers has none of this name or in this folder."""
    from transformers import (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        AutoConfig,
        AutoFeatureExtractor,
    )
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING or not hasattr(config, "audio_config"):
            raise ValueError(f"{config.model_type} is no audio language model.")
        return AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False).sampling_rate
    except (OSError, ValueError) as error:
        raise SystemExit(f"--model {name}: {str(error).splitlines()[0]} Accepted: the folder or Hugging Face id of one that transformers "
                         f"has, such as Qwen/Qwen2-Audio-7B-Instruct or nvidia/music-flamingo-2601-hf")


def load_captioner(name, device):
    """(model, processor) of a folder or Hugging Face id. Raises SystemExit: it cannot be loaded, or cannot be asked."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoProcessor, GenerationConfig
    from transformers.utils import logging
    logging.disable_progress_bar()
    find_captioner(name)
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForSeq2SeqLM.from_pretrained(name, trust_remote_code=False,
                                                      dtype=torch.bfloat16 if "cuda" in device else torch.float32)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--model {name}: {str(error).splitlines()[0]} Its folder is not whole; download it again with: "
                         f"hf download Qwen/Qwen2-Audio-7B-Instruct --local-dir qwen2-audio")
    processor.tokenizer.padding_side = "left"
    ends = model.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), processor.tokenizer.eos_token_id} - {None}
    pad = processor.tokenizer.pad_token_id if processor.tokenizer.pad_token_id is not None else min(ends)
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends), pad_token_id=pad)  # checkpoints bring sampling defaults along
    if prompt_text(processor, PROMPT).count(processor.audio_token) != 1:
        raise SystemExit(f"--model {name}: its chat template does not show the audio once; take another model")
    return model.to(device).eval(), processor


def prompt_text(processor, prompt):
    """The question in the model's chat template, with the place of the audio."""
    message = {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": prompt}]}
    return processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)


def answer(sounds, model, processor, prompt, max_new):
    """The model's answers to the prompt about (T,) sounds at its rate: list of (text, whether it came to an end)."""
    import torch
    # padding for the text alone: an encoder that wants windows of 30 s would get shorter ones
    inputs = processor(text=[prompt_text(processor, prompt)] * len(sounds), audio=sounds, return_tensors="pt",
                       text_kwargs={"padding": True}, audio_kwargs={"sampling_rate": processor.feature_extractor.sampling_rate})
    inputs = inputs.to(model.device, model.dtype)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=max_new, do_sample=False)[:, inputs["input_ids"].shape[1]:]
    ends = set(model.generation_config.eos_token_id)
    return [(processor.tokenizer.decode(row, skip_special_tokens=True), not ends.isdisjoint(row)) for row in ids.tolist()]


def describe(found, model, processor, prompt, max_new, vocabulary):
    """Annotations of a group of tracks; found: list of (track_id, (T,) samples)."""
    captions = [clean_caption(text, ended) for text, ended in answer([sound for _, sound in found], model, processor, prompt, max_new)]
    return [{"caption": caption, "tags": draw_tags(caption, vocabulary) if caption else []} for caption in captions]


def parse_args(argv=None):
    parser = make_parser(__doc__.splitlines()[0], AUDIO_SECONDS)
    add = parser.add_argument
    add("--model", default="Qwen/Qwen2-Audio-7B-Instruct", help="a captioner: Hugging Face id or folder (default "
        "Qwen/Qwen2-Audio-7B-Instruct, which hears no more than 30 s)")
    add("--prompt", default=PROMPT, help=f'the question (default "{PROMPT}")')
    add("--max-new-tokens", type=int, default=128, help="longest answer in tokens (default 128)")
    add("--batch-size", type=int, default=16, help="tracks a batch (default 16)")
    add("--device", type=resolve_device, default="auto", help="auto (default: cuda if there is one), cpu, cuda, ...")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    rate = find_captioner(args.model)

    def load():
        tracks = data.load_tracks(args.data_dir, leave_out=NAME)  # without the tags that another shard has drawn
        model, processor = load_captioner(args.model, args.device)
        return partial(describe, model=model, processor=processor, prompt=args.prompt, max_new=args.max_new_tokens,
                       vocabulary=make_vocabulary(tracks))

    annotate(NAME, ("caption", "tags"), args, partial(read_audio, rate=rate, seconds=args.seconds), load, args.batch_size)


if __name__ == "__main__":
    main()
