"""Generate tokens with a Hugging Face model, batch by batch and reproducibly (paper, section 2.4).

Unlike transformers' `generate`: each row of a batch has a random stream of its own, so an answer
does not depend on its batch; and a prompt that has been read can be continued in several ways.
"""

import numpy as np
import torch
from transformers import DynamicCache

from common.tokens import MODALITIES


def shared_prefixes(prompts):
    """Which prompts to read: not those that begin a longer one, like the turns of a dialogue.

    Returns: the indices of the prompts to read; and for each prompt, its place among these.
    """
    prompts = [list(prompt) for prompt in prompts]
    to_read = []
    place = [0] * len(prompts)
    # in reverse order, a beginning comes right after its whole
    for i in sorted(range(len(prompts)), key=lambda i: prompts[i], reverse=True):
        if not to_read or prompts[to_read[-1]][:len(prompts[i])] != prompts[i]:
            to_read.append(i)
        place[i] = len(to_read) - 1
    return to_read, place


class PromptCache:
    """A batch of B prompts that the model has read.

    `read` appends tokens to every prompt, `truncate` forgets them again.

    past: keys and values of all layers, as transformers keeps them
    mask: (B, T) int64, 1 where a place of `past` belongs to the prompt
    end: (B, d) hidden state at the last token of each prompt
    """

    def __init__(self, model, prompts):
        self.model = model
        self.device = model.device
        self.past = DynamicCache(config=model.config)

        # read the longest prompts, left-aligned
        to_read, place = shared_prefixes(prompts)
        ids = np.zeros((len(to_read), max(map(len, prompts))), np.int64)
        keep = np.zeros_like(ids)
        for row, i in enumerate(to_read):
            ids[row, :len(prompts[i])] = prompts[i]
            keep[row, :len(prompts[i])] = 1
        self.mask = torch.zeros(len(to_read), 0, dtype=torch.long, device=self.device)
        hidden = self.read(ids, keep)                                    # (len(to_read), T, d)

        # a shorter prompt has the cache of the longer one, and a mask that ends earlier
        rows = torch.tensor(place, device=self.device)
        lengths = torch.tensor([*map(len, prompts)], device=self.device)
        self.end = hidden[rows, lengths - 1]                             # (B, d)
        self.mask = (torch.arange(ids.shape[1], device=self.device) < lengths[:, None]).long()
        if place != list(range(len(prompts))):
            self.past.batch_select_indices(rows)

    def read(self, ids, keep):
        """Append ids (B, T), but for places where keep (B, T) is 0: hidden states (B, T, d)."""
        ids = torch.as_tensor(ids, device=self.device, dtype=torch.long)
        keep = torch.as_tensor(keep, device=self.device, dtype=torch.long)
        self.mask = torch.cat([self.mask, keep], 1)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1]:]
        return self.forward(ids, self.mask, positions)

    def read_tree(self, ids, sees):
        """Append ids (B, W) that are alternatives to each other: hidden states (B, W, d).

        sees: (B, W, T + W) bool, which places of the cache each of them attends to
        """
        mask = torch.zeros(sees.shape, dtype=self.end.dtype, device=self.device)
        mask = mask.masked_fill(~sees, torch.finfo(mask.dtype).min)
        return self.forward(ids, mask[:, None], sees.sum(2) - 1)

    def forward(self, ids, mask, positions):
        return self.model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions,
                                     past_key_values=self.past).last_hidden_state

    def truncate(self, length):
        """Forget all but the first `length` places: len(cache) from before something was read."""
        appended = self.past.get_seq_length() - length
        if appended:
            self.past.crop(-appended)
        self.mask = self.mask[:, :length]

    def __len__(self):
        return self.mask.shape[1]


def choose(logits, rngs, temperature=1.0, top_p=0.9):
    """One token per row of logits (B, V), by nucleus sampling; the best if temperature is 0: (B,).

    rngs: a numpy Generator per row, so that a row's draw does not depend on its batch
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, order = torch.softmax(logits.float() / temperature, -1).sort(descending=True)

    # the nucleus: a token is in while those ranked higher have less than top_p
    above = probabilities.cumsum(-1) - probabilities                     # (B, V)
    probabilities[above >= top_p] = 0

    # draw the first token whose cumulative probability reaches a random number
    cumulative = probabilities.cumsum(-1)
    draws = torch.tensor([[rng.random()] for rng in rngs], device=logits.device,
                         dtype=cumulative.dtype)                         # (B, 1)
    place = torch.searchsorted(cumulative, draws * cumulative[:, -1:])
    return order.gather(1, place.clamp(max=logits.shape[-1] - 1))[:, 0]


def sample(cache, hidden, rngs, stop, max_new, temperature=1.0, top_p=0.9, repetition_penalty=1.0,
           grammar=None, on_token=None, may_be_empty=True):
    """Generate up to max_new tokens per row.

    cache: PromptCache of B prompts; the caller truncates it. hidden: (B, d) at the last token read
    stop: ids that end a row; it keeps the one that ended it
    repetition_penalty: as in transformers, over what is generated here; 1 = none
    grammar: None, or from `music_grammar`. on_token: called with the row's ids after each token
    may_be_empty: whether the first token may be one of `stop`
    Returns: B lists of ids.
    """
    out = [[] for _ in rngs]
    open_rows = torch.ones(len(rngs), dtype=torch.bool, device=hidden.device)
    state = torch.zeros(len(rngs), dtype=torch.long, device=hidden.device)
    for step in range(max_new):
        logits = cache.model.get_output_embeddings()(hidden).float()     # (B, V)

        # what may not be said, or is made less likely
        if step == 0 and not may_be_empty:
            logits[:, stop] = float("-inf")
        if repetition_penalty != 1.0:
            for row, seen in enumerate(out):
                scores = logits[row, seen]
                logits[row, seen] = torch.where(scores > 0, scores / repetition_penalty,
                                                scores * repetition_penalty)
        if grammar:
            logits = logits.masked_fill(~grammar[0][state], float("-inf"))

        # one token per row; a row that has ended draws on, but keeps nothing
        token = choose(logits, rngs, temperature, top_p)                 # (B,)
        if grammar:
            state = grammar[1][token]
        for row in torch.nonzero(open_rows)[:, 0].tolist():
            out[row].append(int(token[row]))
            if on_token:
                on_token(out[row])

        open_rows &= ~torch.isin(token, torch.tensor(stop, device=token.device))
        if not open_rows.any():
            break
        hidden = cache.read(token[:, None], open_rows[:, None].long())[:, -1]
    return out


def stop_ids(dialogue_tokenizer):
    """Ids that end the model's answer."""
    return [dialogue_tokenizer.format.tail[0], dialogue_tokenizer.tokenizer.eos_token_id]


def stream_text(tokenizer, on_text):
    """An on_token for `sample` with one row: on_text gets what each token adds to the text."""
    shown = 0

    def on_token(ids):
        nonlocal shown
        text = tokenizer.decode(ids, skip_special_tokens=True).lstrip()
        if not text.endswith("\ufffd"):  # wait for the rest of a character
            on_text(text[shown:])
            shown = len(text)
    return on_token


def music_grammar(vocabulary, model):
    """The grammar of a music block: start, music tokens in the order of the modalities, end.

    State 0: nothing written; 1: after the start; m + 2: after a token of modality m; then the end.
    Returns: allowed (S, V) bool, the tokens that may come in a state; next_state (V,) int64.
    """
    done = len(MODALITIES) + 2
    size = model.config.vocab_size
    allowed = torch.zeros(done + 1, size, dtype=torch.bool, device=model.device)
    next_state = torch.zeros(size, dtype=torch.long, device=model.device)
    allowed[0, vocabulary.start] = True
    next_state[vocabulary.start] = 1
    for m in range(len(MODALITIES)):
        first = vocabulary.first + m * vocabulary.k
        codes = slice(first, first + vocabulary.k)
        allowed[1:m + 2, codes] = True
        allowed[m + 2, vocabulary.end] = True
        next_state[codes] = m + 2
    allowed[done, vocabulary.end] = True
    next_state[vocabulary.end] = done
    return allowed, next_state
