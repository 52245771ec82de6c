"""The token format: five music tokens per track, and dialogues as token ids (paper, 2.1 and 2.2).

A track is `<start_of_music><|playlist-59|><|semantic-361|><|metadata-7|><|lyrics-98|><|audio-29|>
<end_of_music>`. The order of the modalities is fixed, coarse to fine. A modality that a track lacks
(code -1) is left out. In a chat the music comes first in the assistant's message, before the text.

`encode_dialogue` is the only function that turns a dialogue into ids. Training, prediction and chat
all call it, so that they cannot drift apart. Text is encoded as text: `<|audio-3|>` or `<|eot_id|>`
typed by a listener stays the characters that it is.
"""

from typing import NamedTuple

import numpy as np
from tokenizers import AddedToken

MODALITIES = ("playlist", "semantic", "metadata", "lyrics", "audio")
START = "<start_of_music>"
END = "<end_of_music>"
DATE = "26 Jul 2024"  # Llama-3's template prints a date; today's would change the ids every day
ANSWER_ROOM = 64      # tokens of the context that a prompt leaves to the answer

# Parts of an encoded dialogue. REJECTED: music that the listener turns down.
# UNSAID: the place of an answer that nobody knows.
TEMPLATE, USER, MUSIC, RESPONSE, REJECTED, UNSAID = range(6)
ALL_PARTS = (TEMPLATE, USER, MUSIC, RESPONSE, REJECTED)  # the parts to learn from


# ---------------------------------------------------------------- music tokens

def token_string(modality, code):
    """("playlist", 59) -> "<|playlist-59|>"."""
    return f"<|{modality}-{code}|>"


def music_string(codes):
    """Five codes -> the text of the music block; codes of -1 are left out."""
    names = (token_string(m, c) for m, c in zip(MODALITIES, codes, strict=True) if c >= 0)
    return START + "".join(names) + END


def add_music_tokens(tokenizer, k):
    """Add the 5 k + 2 music tokens to a tokenizer, in place.

    They are added as special tokens. So text is not parsed for them (split_special_tokens), and
    decoded text leaves them out.
    """
    names = [START, END] + [token_string(m, c) for m in MODALITIES for c in range(k)]
    added = [AddedToken(name, special=True, normalized=False) for name in names]
    tokenizer.add_tokens(added, special_tokens=True)


class Vocabulary(NamedTuple):
    """Ids of the music tokens: that of (modality m, code c) is `first + m * k + c`."""
    start: int
    end: int
    first: int
    k: int


def music_vocabulary(tokenizer):
    """The `Vocabulary` of a tokenizer.

    Raises SystemExit: it has no music tokens (a model that 04_train.py has not made).
    """
    start = tokenizer.convert_tokens_to_ids(START)
    end = tokenizer.convert_tokens_to_ids(END)
    first = tokenizer.convert_tokens_to_ids(token_string(MODALITIES[0], 0))
    unknown = (None, tokenizer.unk_token_id)
    if start in unknown or first in unknown:
        raise SystemExit(f"the tokenizer in {tokenizer.name_or_path} has no music tokens; a folder "
                         f"made by 04_train.py is expected. Make one with: python 04_train.py")
    k = sum(t.startswith(f"<|{MODALITIES[0]}-") for t in tokenizer.get_added_vocab())
    return Vocabulary(start, end, first, k)


def codes_to_ids(vocabulary, codes):
    """Five codes -> ids of the whole music block, with its start and end tokens."""
    ids = [vocabulary.first + m * vocabulary.k + int(c) for m, c in enumerate(codes) if c >= 0]
    return [vocabulary.start, *ids, vocabulary.end]


def ids_to_codes(vocabulary, ids):
    """Ids of a music block -> five codes (-1 where missing), or None if it is not well-formed.

    Well-formed: the start token, one to five music tokens in the order of the modalities, none
    twice, the end token.
    """
    if len(ids) < 3 or ids[0] != vocabulary.start or ids[-1] != vocabulary.end:
        return None
    codes = [-1] * len(MODALITIES)
    last = -1
    for i in ids[1:-1]:
        modality, code = divmod(i - vocabulary.first, vocabulary.k)
        if not last < modality < len(MODALITIES):
            return None
        codes[modality] = code
        last = modality
    return codes


# ---------------------------------------------------------------- dialogues

class ChatFormat(NamedTuple):
    """Ids of the chat template around the messages of a dialogue."""
    head: list     # before the first query
    middle: list   # between a query and its answer
    between: list  # between an answer and the next query
    tail: list     # after the last answer


def chat_format(tokenizer):
    """Cut a tokenizer's chat template into its four repeating pieces.

    Raises SystemExit: no template, or one that treats the turns of a dialogue differently.
    """
    if tokenizer.chat_template is None:
        raise SystemExit(f"the tokenizer in {tokenizer.name_or_path} has no chat template; an "
                         f"instruct model is expected (for instance "
                         f"meta-llama/Llama-3.2-1B-Instruct)")

    def render(n):
        messages = [{"role": role, "content": f"@{role}{t}@"}
                    for t in range(n) for role in ("user", "assistant")]
        return tokenizer.apply_chat_template(messages, tokenize=False, date_string=DATE)

    head, rest = render(2).split("@user0@")
    middle, rest = rest.split("@assistant0@")
    between, rest = rest.split("@user1@")
    tail = rest.split("@assistant1@")[1]
    turns = between.join(f"@user{t}@{middle}@assistant{t}@" for t in range(3))
    if head + turns + tail != render(3):
        raise SystemExit(f"the chat template of {tokenizer.name_or_path} does not repeat turn by "
                         f"turn; a template such as Llama-3's is expected")
    return ChatFormat(*(tokenizer.encode(piece, add_special_tokens=False)
                        for piece in (head, middle, between, tail)))


class DialogueTokenizer:
    """What is needed to encode a dialogue: a tokenizer, its music tokens, its chat template.

    Raises SystemExit: see `music_vocabulary` and `chat_format`.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.vocabulary = music_vocabulary(tokenizer)
        self.format = chat_format(tokenizer)


def encode_text(tokenizer, text):
    """Text -> ids, never parsed for special tokens."""
    return tokenizer(text.strip(), add_special_tokens=False, split_special_tokens=True).input_ids


def encode_dialogue(dialogue_tokenizer, turns, codes_of, prompt=False):
    """A dialogue -> ids, and the part of the dialogue that each id belongs to (paper, section 2.3).

    turns: dicts with query (str), music (track_id or None), response (str or None).
    codes_of: {track_id: five codes}.
    prompt: stop after the query of the last turn, where the model's answer begins. Nothing else of
        that turn is looked at.
    Returns: ids (L,) int32, parts (L,) uint8. The token that ends an answer counts as RESPONSE,
        since the model has to learn to stop. After a response of None it is UNSAID, or the model
        would learn to say nothing.
    """
    template = dialogue_tokenizer.format
    ids = []
    parts = []

    def add(some_ids, part):
        ids.extend(some_ids)
        parts.extend([part] * len(some_ids))

    add(template.head, TEMPLATE)
    for t, turn in enumerate(turns):
        last = t == len(turns) - 1
        add(encode_text(dialogue_tokenizer.tokenizer, turn["query"]), USER)
        add(template.middle, TEMPLATE)
        if prompt and last:
            break
        if turn["music"] is not None:
            block = codes_to_ids(dialogue_tokenizer.vocabulary, codes_of[turn["music"]])
            add(block, REJECTED if turn.get("rejected") else MUSIC)
        add(encode_text(dialogue_tokenizer.tokenizer, turn["response"] or ""), RESPONSE)
        ending = template.tail if last else template.between
        add(ending[:1], UNSAID if turn["response"] is None else RESPONSE)
        add(ending[1:], TEMPLATE)
    return np.array(ids, np.int32), np.array(parts, np.uint8)
