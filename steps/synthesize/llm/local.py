"""The backend local of 03_synthesize.py: any chat model from Hugging Face, in batches.

Every answer has a random stream of its own. So it depends (but for rounding) neither on its batch
nor on what a killed run had done before.
"""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor

from common.models import refuse_bad_model
from common.tokens import DATE, encode_text
from steps.synthesize.llm.jobs import Answer, Stop


class Sampler(LogitsProcessor):
    """Makes greedy decoding sample: the largest logit + Gumbel noise is a draw from the softmax.

    generators: one torch.Generator per row; temperature: 0 = greedy
    top_p: the smallest set of tokens with this probability
    """

    def __init__(self, generators, temperature, top_p):
        self.generators = generators
        self.temperature = temperature
        self.top_p = top_p

    def __call__(self, input_ids, scores):  # (B, T) ids, (B, V) logits
        if not self.temperature:
            return scores
        scores = scores.float() / self.temperature
        if self.top_p < 1:
            ordered, order = scores.sort(descending=True)
            p = ordered.softmax(-1)
            beyond = p.cumsum(-1) - p >= self.top_p  # (B, V); the first is always kept
            beyond = torch.zeros_like(beyond).scatter(1, order, beyond)  # in the order of the ids
            scores = scores.masked_fill(beyond, float("-inf"))
        # -log of an exponential draw is a Gumbel draw.
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=g).clamp_min(1e-20)
                             for g in self.generators])  # (B, V)
        return scores - noise.log().to(scores.device)


def load_model(name, device):
    """(model, tokenizer) by a Hugging Face name or from a folder.

    Raises SystemExit: none there, or no chat model.
    """
    dtype = torch.bfloat16 if "cuda" in device else torch.float32
    with refuse_bad_model("--model", name, "A Hugging Face name or a folder with a chat model is "
                          "expected"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=dtype)

    # Checkpoints bring sampling defaults along: keep only what ends an answer.
    ends = model.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends)
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends), pad_token_id=pad)
    prompt_ids(tokenizer, "x")  # check that its template shows the message
    return model.to(device).eval(), tokenizer


def prompt_ids(tokenizer, prompt):
    """A prompt in the chat template as token ids; nothing in it is taken for a special token.

    Raises SystemExit: the template does not show the message, or there is none.
    """
    # Llama-3's template would print today's date, Qwen3's would ask for a train of thought.
    text = tokenizer.chat_template and tokenizer.apply_chat_template(
        [{"role": "user", "content": "@prompt@"}], tokenize=False, add_generation_prompt=True,
        date_string=DATE, enable_thinking=False)
    if "@prompt@" not in (text or ""):
        raise SystemExit(f"{tokenizer.name_or_path} has no chat template, or one without the "
                         f"user's message; --model takes a chat (instruct) model")
    head, _, tail = text.partition("@prompt@")
    return [*tokenizer.encode(head, add_special_tokens=False), *encode_text(tokenizer, prompt),
            *tokenizer.encode(tail, add_special_tokens=False)]


@torch.inference_mode()
def generate(model, tokenizer, prompts, seeds, temperature, top_p, max_new_tokens):
    """A batch of prompts -> list of Answers. seeds: one int per prompt."""
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    longest = max(map(len, ids))
    context = getattr(model.config, "max_position_embeddings", None) or longest + max_new_tokens
    room = min(max_new_tokens, context - longest)
    if room < max_new_tokens / 4:
        raise Stop(f"a prompt of {longest} tokens leaves {max(0, room)} of the model's {context} "
                   f"to the answer: lower --chunk, --chunk-test or --lyrics-words")

    # (B, T), padded on the left
    pad = model.generation_config.pad_token_id
    batch = torch.tensor([[pad] * (longest - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    sampler = Sampler([torch.Generator().manual_seed(seed) for seed in seeds], temperature, top_p)
    out = model.generate(input_ids=batch.to(model.device), attention_mask=mask.to(model.device),
                         max_new_tokens=room, do_sample=False, logits_processor=[sampler])

    answers = []
    for row, new in zip(ids, out[:, longest:].tolist(), strict=True):
        ends = [i for i, token in enumerate(new) if token in model.generation_config.eos_token_id]
        new = new[:ends[0]] if ends else new
        answers.append(Answer(tokenizer.decode(new, skip_special_tokens=True), len(row), len(new)))
    return answers
