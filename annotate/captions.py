"""Captions by an audio language model, and tags from their words, instead of LP-MusicCaps.

The model, Qwen2-Audio (Chu et al. 2024) by default, hears 30 s from the middle of a track and
answers PROMPT, greedily. Other models that transformers has work by name, such as Music Flamingo.
Mind the licence: Qwen2-Audio is Apache-2.0, Music Flamingo is for research only.

Tags are the words and phrases of the caption that a vocabulary has: the tags of at least two
tracks of the catalogue or, if there are none, those of common/lexicon.json. Case, hyphens and a
plural s do not count. If two tags overlap, the first and longer one is taken. A tag within three
words after "no", "not", "without" or "lacks" is left out.

Run on random weights only (tests/test_annotate.py), not yet on a published checkpoint: how true the
captions are is not known. Read some before you build on them.

Reads   tracks.jsonl, annotations/*.jsonl, common/lexicon.json, the tracks' audio files; the model
Writes  annotations/captions.jsonl: track_id, caption, tags, or `failed`: why there are none

Demo        none: its tracks have captions, and the model is too large
Full scale  python annotate/captions.py --data-dir data/mpd --device cuda --workers 16
            Eight GPUs: the same with --shard 1/8 to --shard 8/8. Another model, on whole tracks:
            --model nvidia/music-flamingo-2601-hf --seconds 0 --batch-size 4
A killed run goes on where it stopped when the same command is given again.
"""

import json
import re
import sys
from collections import Counter
from functools import partial
from itertools import takewhile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository

from annotate.shared import annotate, make_parser
from common import data
from common.flags import add_shared
from common.models import refuse_bad_model
from steps.extract_embeddings.librosa_features import AUDIO_SECONDS, read_audio

# torch and transformers are imported in functions: each audio worker starts this file again.

LEXICON = Path(__file__).resolve().parent.parent / "common" / "lexicon.json"
FEWEST_TRACKS = 2  # that have a tag of the vocabulary
NEGATIONS = {"no", "not", "without", "lacks", "lacking"}
CLAUSE_ENDS = {".", ",", ";", ":", "but"}
PROMPT = ("Describe this music in two sentences: its genre, mood, instruments, voice and tempo. "
          "Say only what can be heard, and nothing else.")
REFUSAL = r"(i('| a)m )?sorry|as an ai|i can('|no)t|unfortunately"


# ---------------------------------------------------------------- texts

def clean_caption(text, ended=True):
    """The model's answer as a caption, or None. If it has not `ended`, its last sentence goes."""
    text = " ".join(text.split())
    if not ended and (sentences := re.match(r".*[.!?](?=\s|$)", text)):
        text = sentences.group()
    refused = not re.search(r"[^\W\d_]", text) or re.match(REFUSAL, text, re.IGNORECASE)
    return None if refused else text


def split_words(text):
    """Words and punctuation in lower case; hyphens are spaces."""
    return re.findall(r"[\w&']+|[^\w\s]", re.sub(r"[-\u2010\u2011_/]", " ", text.lower()))


def make_vocabulary(tracks):
    """{words: tag} of the catalogue's tags, or of the lexicon's if the catalogue has none."""
    counts = Counter(tag for track in tracks for tag in set(track["tags"]))
    tags = [tag for tag, n in counts.most_common() if n >= FEWEST_TRACKS]
    if not tags:
        tags = [tag for concepts in json.loads(LEXICON.read_text()).values()
                for concept in concepts.values() for tag in concept.get("tags", ())]
    # Of two spellings the more common one, which comes first, is kept.
    return {words: tag for tag in reversed(tags) if (words := tuple(split_words(tag)))}


def draw_tags(caption, vocabulary, longest=4):
    """The tags of a vocabulary that a caption has, in its order. longest: in words."""
    words = split_words(caption)
    tags = {}  # as an ordered set
    i = 0
    while i < len(words):
        for size in range(min(longest, len(words) - i), 0, -1):  # the longest tag that begins here
            *rest, last = words[i:i + size]
            tag = vocabulary.get((*rest, last)) or vocabulary.get((*rest, last.removesuffix("s")))
            if tag:
                break
        before = takewhile(lambda word: word not in CLAUSE_ENDS, words[max(i - 3, 0):i][::-1])
        if tag and NEGATIONS.isdisjoint(before):
            tags[tag] = None
        i += size  # 1 if there is no tag
    return list(tags)


# ---------------------------------------------------------------- the model

def load_captioner(name, device):
    """(model, processor) of a folder or id. Raises SystemExit: it is no audio language model."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoProcessor, GenerationConfig
    from transformers.utils import logging
    logging.disable_progress_bar()
    dtype = torch.bfloat16 if "cuda" in device else torch.float32
    with refuse_bad_model("--model", name, "Accepted: the whole folder or the Hugging Face id of "
                          "Qwen/Qwen2-Audio-7B-Instruct or another audio language model"):
        model = AutoModelForSeq2SeqLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=dtype)
        if not hasattr(model.config, "audio_config"):
            raise ValueError(f"{model.config.model_type} is no audio language model.")
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        if prompt_text(processor).count(processor.audio_token) != 1:
            raise ValueError("its chat template does not show the audio once.")
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"

    # Checkpoints bring defaults for sampling along: keep only the special tokens.
    ends = model.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    pad = min(ends) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends), pad_token_id=pad)
    return model.to(device).eval(), processor


def prompt_text(processor):
    """PROMPT in the model's chat template, with the place of the audio."""
    content = [{"type": "audio"}, {"type": "text", "text": PROMPT}]
    return processor.apply_chat_template([{"role": "user", "content": content}],
                                         add_generation_prompt=True, tokenize=False)


def answer(sounds, model, processor, max_new):
    """The model's answers about (T,) sounds at its rate: list of (text, whether it ended)."""
    import torch
    # Padding for the text alone: an encoder that wants windows of 30 s would get shorter ones.
    rate = processor.feature_extractor.sampling_rate
    inputs = processor(text=[prompt_text(processor)] * len(sounds), audio=sounds,
                       return_tensors="pt", text_kwargs={"padding": True},
                       audio_kwargs={"sampling_rate": rate}).to(model.device, model.dtype)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=max_new, do_sample=False)
    ids = ids[:, inputs["input_ids"].shape[1]:].tolist()  # without the prompt
    ends = set(model.generation_config.eos_token_id)
    return [(processor.tokenizer.decode(row, skip_special_tokens=True), not ends.isdisjoint(row))
            for row in ids]


def main(argv=None):
    parser = make_parser(__doc__.splitlines()[0], AUDIO_SECONDS)
    add_shared(parser, "device")
    add = parser.add_argument
    add("--model", default="Qwen/Qwen2-Audio-7B-Instruct", help="a captioner: Hugging Face id or "
        "folder (default Qwen/Qwen2-Audio-7B-Instruct, which hears no more than 30 s)")
    add("--max-new-tokens", type=int, default=128, help="longest answer in tokens (default 128)")
    add("--batch-size", type=int, default=16, help="tracks per batch (default 16)")
    args = parser.parse_args(argv)

    def load():
        model, processor = load_captioner(args.model, args.device)
        # Without the tags that another shard has drawn.
        vocabulary = make_vocabulary(data.load_tracks(args.data_dir, leave_out="captions"))

        def describe(group):
            answers = answer([sound for _, sound in group], model, processor, args.max_new_tokens)
            captions = [clean_caption(text, ended) for text, ended in answers]
            return [{"caption": caption, "tags": draw_tags(caption or "", vocabulary)}
                    for caption in captions]
        rate = processor.feature_extractor.sampling_rate
        return partial(read_audio, rate=rate, seconds=args.seconds), describe

    annotate("captions", ("caption", "tags"), args, load, args.batch_size)


if __name__ == "__main__":
    main()
