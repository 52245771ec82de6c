"""The token format: five music tokens a track, and dialogues as token ids (paper, sections 2.2 and 2.4).

A track is `<start_of_music><|playlist-59|><|semantic-361|><|metadata-7|><|lyrics-98|><|audio-29|><end_of_music>`.
The order of the modalities is fixed, coarse to fine. A modality that a track lacks (code -1) is left
out. In a chat the music stands at the head of the assistant's message, before the text.

`encode_dialogue` is the only function that turns a dialogue into ids: training, prediction and chat all
call it, so that they cannot drift apart. Text is encoded as text: `<|audio-3|>` or `<|eot_id|>` typed by
a listener stays the characters that it is.
"""

from typing import NamedTuple

import numpy as np
from tokenizers import AddedToken

MODALITIES = ("playlist", "semantic", "metadata", "lyrics", "audio")
START, END = "<start_of_music>", "<end_of_music>"
DATE = "26 Jul 2024"  # Llama-3's template prints a date; today's would change the ids from day to day
# parts of an encoded dialogue. REJECTED: music that is turned down; UNSAID: where an answer would stand that nobody knows
TEMPLATE, USER, MUSIC, RESPONSE, REJECTED, UNSAID = range(6)
ALL_PARTS = (TEMPLATE, USER, MUSIC, RESPONSE, REJECTED)  # the parts to learn from


def token_string(modality, code):
    """("playlist", 59) -> "<|playlist-59|>"."""
    return f"<|{modality}-{code}|>"


def music_string(codes):
    """Five codes -> the text of the music block; codes of -1 are left out."""
    return START + "".join(token_string(m, c) for m, c in zip(MODALITIES, codes) if c >= 0) + END


def add_music_tokens(tokenizer, k):
    """Add the 5 k + 2 music tokens to a tokenizer, in place.

    They are added as special tokens, which is what keeps text from being parsed for them
    (split_special_tokens) and leaves them out of decoded text.
    """
    names = [START, END] + [token_string(m, c) for m in MODALITIES for c in range(k)]
    tokenizer.add_tokens([AddedToken(n, special=True, normalized=False) for n in names], special_tokens=True)


class Vocabulary(NamedTuple):
    """Ids of the music tokens: that of (modality m, code c) is `first + m * k + c`."""
    start: int
    end: int
    first: int
    k: int


def music_vocabulary(tokenizer):
    """Find the music tokens in a tokenizer.

    Raises SystemExit: it has none (a model that 04_train.py has not made).
    """
    start, first = (tokenizer.convert_tokens_to_ids(t) for t in (START, token_string("playlist", 0)))
    unknown = (None, tokenizer.unk_token_id)
    if start in unknown or first in unknown:
        raise SystemExit(f"the tokenizer in {tokenizer.name_or_path} has no music tokens; a folder made by "
                         f"04_train.py is expected. Make one with: python 04_train.py")
    k = sum(t.startswith("<|playlist-") for t in tokenizer.get_added_vocab())
    return Vocabulary(start, tokenizer.convert_tokens_to_ids(END), first, k)


def codes_to_ids(vocabulary, codes):
    """Five codes -> ids of the whole music block, with its start and end tokens."""
    ids = [vocabulary.first + m * vocabulary.k + int(c) for m, c in enumerate(codes) if c >= 0]
    return [vocabulary.start, *ids, vocabulary.end]


def ids_to_codes(vocabulary, ids):
    """Ids of a music block -> five codes (-1 where missing), or None if the block is not valid.

    Valid: the start token, one to five music tokens in the order of the modalities, none twice,
    the end token.
    """
    if len(ids) < 3 or ids[0] != vocabulary.start or ids[-1] != vocabulary.end:
        return None
    codes, last = [-1] * 5, -1
    for i in ids[1:-1]:
        modality, code = divmod(i - vocabulary.first, vocabulary.k)
        if not last < modality < 5:
            return None
        codes[modality], last = code, modality
    return codes


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
        raise SystemExit(f"the tokenizer in {tokenizer.name_or_path} has no chat template; an instruct model is expected "
                         f"(for instance meta-llama/Llama-3.2-1B-Instruct)")

    def render(n):
        messages = [{"role": role, "content": f"@{role}{t}@"} for t in range(n) for role in ("user", "assistant")]
        return tokenizer.apply_chat_template(messages, tokenize=False, date_string=DATE)

    text = render(2)
    head, rest = text.split("@user0@")
    middle, rest = rest.split("@assistant0@")
    between, rest = rest.split("@user1@")
    tail = rest.split("@assistant1@")[1]
    whole = head + between.join(f"@user{t}@{middle}@assistant{t}@" for t in range(3)) + tail
    if whole != render(3):
        raise SystemExit(f"the chat template of {tokenizer.name_or_path} does not repeat turn by turn; "
                         f"a template such as Llama-3's is expected")
    return ChatFormat(*(tokenizer.encode(piece, add_special_tokens=False) for piece in (head, middle, between, tail)))


class DialogueTokenizer(NamedTuple):
    """What is needed to encode a dialogue: a tokenizer, its music tokens, its chat template."""
    tokenizer: object
    vocabulary: Vocabulary
    format: ChatFormat


def make_dialogue_tokenizer(tokenizer):
    return DialogueTokenizer(tokenizer, music_vocabulary(tokenizer), chat_format(tokenizer))


def encode_text(tokenizer, text):
    """Text -> ids, never parsed for special tokens."""
    return tokenizer(text.strip(), add_special_tokens=False, split_special_tokens=True).input_ids


def encode_dialogue(dialogue_tokenizer, turns, codes_of, prompt=False):
    """A dialogue -> ids, and the part of the dialogue that each id belongs to.

    turns: dicts with query (str), music (track_id or None), response (str or None).
    codes_of: {track_id: five codes}.
    prompt: stop after the query of the last turn, where the model's answer begins; nothing else of
        that turn is looked at.
    Returns: ids (L,) int32, parts (L,) uint8. The token that ends an answer counts as RESPONSE, since the
        model has to learn to stop; after a response of None it is UNSAID, or the model would learn to say nothing.
    """
    template, ids, parts = dialogue_tokenizer.format, [], []

    def add(piece, part):
        ids.extend(piece)
        parts.extend([part] * len(piece))

    add(template.head, TEMPLATE)
    for t, turn in enumerate(turns):
        last = t == len(turns) - 1
        add(encode_text(dialogue_tokenizer.tokenizer, turn["query"]), USER)
        add(template.middle, TEMPLATE)
        if prompt and last:
            break
        if turn["music"] is not None:
            add(codes_to_ids(dialogue_tokenizer.vocabulary, codes_of[turn["music"]]), REJECTED if turn.get("rejected") else MUSIC)
        add(encode_text(dialogue_tokenizer.tokenizer, turn["response"] or ""), RESPONSE)
        ending = template.tail if last else template.between
        add(ending[:1], UNSAID if turn["response"] is None else RESPONSE)
        add(ending[1:], TEMPLATE)
    return np.array(ids, np.int32), np.array(parts, np.uint8)
