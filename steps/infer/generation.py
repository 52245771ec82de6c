"""Generate tokens with a Hugging Face model, batch by batch, reproducibly (paper, section 2.5: sampling).

transformers' own generate draws all rows of a batch from one stream and forgets its cache when it returns.
Here each row has a random stream of its own, so that an answer does not depend on its batch, and a
prompt that has been read once can be continued in several ways.
"""

import numpy as np
import torch
from transformers import DynamicCache


def shared_prefixes(prompts):
    """What has to be read so that all prompts have been read: a prompt that begins a longer one comes for nothing.

    The turns of a dialogue are such prompts. Returns: the indices of the prompts to read (the trunks), and
    for each prompt its place among them.
    """
    prompts = [list(p) for p in prompts]
    trunks, trunk_of = [], [0] * len(prompts)
    for i in sorted(range(len(prompts)), key=lambda i: prompts[i], reverse=True):  # a beginning comes right after its whole
        if not trunks or prompts[trunks[-1]][:len(prompts[i])] != prompts[i]:
            trunks.append(i)
        trunk_of[i] = len(trunks) - 1
    return trunks, trunk_of


class PromptCache:
    """A batch of prompts that the model has read: its cache, and which places of it count for which prompt.

    A prompt that is the beginning of another is not read a second time (`shared_prefixes`): its row has the
    longer one's cache, and a mask. read() appends tokens to every prompt; rewind() forgets what was appended.
    """

    def __init__(self, model, prompts):
        self.model, self.device = model, model.device
        trunks, trunk_of = shared_prefixes(prompts)
        self.cache, self.mask = DynamicCache(config=model.config), torch.zeros(len(trunks), 0, dtype=torch.long, device=self.device)
        ids = np.zeros((len(trunks), max(len(p) for p in prompts)), np.int64)
        keep = np.zeros_like(ids)
        for row, i in enumerate(trunks):
            ids[row, :len(prompts[i])], keep[row, :len(prompts[i])] = prompts[i], 1
        hidden = self.read(ids, keep)                                          # (trunks, T, d)
        rows = torch.tensor(trunk_of, device=self.device)
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        self.end = hidden[rows, lengths - 1]                                   # (B, d) hidden state after the prompt
        self.mask = (torch.arange(ids.shape[1], device=self.device) < lengths[:, None]).long()
        if trunk_of != list(range(len(prompts))):
            self.cache.batch_select_indices(rows)

    def read(self, ids, keep):
        """Append ids (B, T); places with keep (B, T) = 0 are holes. Returns hidden states (B, T, d)."""
        ids, keep = (torch.as_tensor(x, device=self.device, dtype=torch.long) for x in (ids, keep))
        self.mask = torch.cat([self.mask, keep], 1)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1]:]
        return self.model.base_model(input_ids=ids, attention_mask=self.mask, position_ids=positions,
                                     past_key_values=self.cache).last_hidden_state

    def truncate(self, length):
        appended = self.cache.get_seq_length() - length
        if appended:
            self.cache.crop(-appended)
        self.mask = self.mask[:, :length]

    def __len__(self):
        return self.mask.shape[1]


def choose(logits, rngs, temperature=1.0, top_p=0.9):
    """One token a row from logits (B, V): nucleus sampling, or the best one where temperature is 0.

    rngs: a numpy Generator for each row, so that a row's draw does not depend on its batch.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, order = torch.softmax(logits.float() / temperature, -1).sort(descending=True, dim=-1)
    above = probabilities.cumsum(-1) - probabilities  # mass of the tokens ranked higher
    probabilities[above >= top_p] = 0
    cumulative = probabilities.cumsum(-1)
    draws = torch.tensor([[rng.random()] for rng in rngs], device=logits.device, dtype=cumulative.dtype)
    place = torch.searchsorted(cumulative, draws * cumulative[:, -1:]).clamp(max=logits.shape[-1] - 1)
    return order.gather(1, place)[:, 0]


def sample(reading, hidden, rngs, stop, max_new, temperature=1.0, top_p=0.9, repetition_penalty=1.0, grammar=None,
           on_token=None, may_be_empty=True):
    """Generate up to max_new tokens a row.

    hidden: (B, d) at the last token read. stop: ids that end a row (kept at its end). grammar: None, or
    (allowed, next_state): allowed (S, V) bool, next_state (V,) int, a row's state starts at 0.
    repetition_penalty: as in transformers, over what is generated here; 1 = none.
    may_be_empty: whether the first token may be one of `stop`.
    Returns: list of B lists of ids.
    """
    out, open_rows = [[] for _ in rngs], torch.ones(len(rngs), dtype=torch.bool, device=hidden.device)
    state = torch.zeros(len(rngs), dtype=torch.long, device=hidden.device)
    for step in range(max_new):
        logits = reading.model.get_output_embeddings()(hidden).float()
        if step == 0 and not may_be_empty:
            logits[:, stop] = float("-inf")
        if repetition_penalty != 1.0:
            for row, seen in enumerate(out):
                scores = logits[row, seen]
                logits[row, seen] = torch.where(scores > 0, scores / repetition_penalty, scores * repetition_penalty)
        if grammar:
            logits = logits.masked_fill(~grammar[0][state], float("-inf"))
        token = choose(logits, rngs, temperature, top_p)
        if grammar:
            state = grammar[1][token]
        for row in torch.nonzero(open_rows)[:, 0].tolist():
            out[row].append(int(token[row]))
            if on_token:
                on_token(out[row])
        open_rows &= ~torch.isin(token, torch.tensor(stop, device=token.device))
        if not open_rows.any():
            break
        hidden = reading.read(token[:, None], open_rows[:, None].long())[:, -1]
    return out


def music_grammar(vocabulary, vocab_size, device):
    """The grammar of a music block for `sample`: start, music tokens in the order of the modalities, end."""
    k = vocabulary.k
    allowed = torch.zeros(8, vocab_size, dtype=torch.bool, device=device)
    allowed[0, vocabulary.start] = True
    state = torch.zeros(vocab_size, dtype=torch.long, device=device)
    state[vocabulary.start] = 1
    for m in range(5):  # state 1: after the start; state m + 2: after a token of modality m
        first = vocabulary.first + m * k
        allowed[1:m + 2, first:first + k] = True
        allowed[m + 2, vocabulary.end] = True
        state[first:first + k] = m + 2
    allowed[7, vocabulary.end] = True
    state[vocabulary.end] = 7
    return allowed, state
