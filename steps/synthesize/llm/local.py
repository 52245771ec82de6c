"""The local backend of 03_synthesize.py: any chat model of Hugging Face's, in batches.

Every answer has a random stream of its own, so that it depends neither on the batch that it happened to be in nor on
what a killed run had done before (but for rounding, which differs with the padding).
"""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor

from common.tokens import DATE, encode_text
from steps.synthesize.llm.jobs import Answer, Stop


class Sampler(LogitsProcessor):
    """Makes greedy decoding sample: the largest logit + Gumbel noise is a draw from the softmax.

    generators: a torch.Generator a row. temperature: 0 = greedy. top_p: the smallest set of tokens with this probability.
    """

    def __init__(self, generators, temperature, top_p):
        self.generators, self.temperature, self.top_p = generators, temperature, top_p

    def __call__(self, input_ids, scores):  # (B, T) ids, (B, V) logits
        if not self.temperature:
            return scores
        scores = scores.float() / self.temperature
        if self.top_p < 1:
            ordered, order = scores.sort(descending=True)
            p = ordered.softmax(-1)
            beyond = p.cumsum(-1) - p >= self.top_p  # (B, V); the first is always kept
            scores = scores.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), float("-inf"))
        noise = [torch.empty(scores.shape[1]).exponential_(generator=g).clamp_min(1e-20) for g in self.generators]
        return scores - torch.stack(noise).log().to(scores.device)  # -log of an exponential draw is a Gumbel draw


def load_model(name, device):
    """(model, tokenizer) by a Hugging Face name or from a folder. Raises SystemExit: none there, or no chat model."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16 if "cuda" in device else torch.float32)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--model {name} cannot be loaded: {str(error).strip().splitlines()[0]} A Hugging Face name or a "
                         f"folder with a chat model is expected, for instance Qwen/Qwen3-4B-Instruct-2507")
    if tokenizer.chat_template is None:
        raise SystemExit(f"the tokenizer of {name} has no chat template; --model takes a chat (instruct) model, for instance "
                         f"Qwen/Qwen3-4B-Instruct-2507")
    ends = model.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends)
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends), pad_token_id=pad)  # checkpoints bring sampling defaults along
    prompt_ids(tokenizer, "x")  # its template shows the message
    return model.to(device).eval(), tokenizer


def prompt_ids(tokenizer, prompt):
    """A prompt in the chat template as token ids; nothing in it is taken for a special token."""
    # DATE: Llama-3's template would print today's; enable_thinking: Qwen3's would ask for a train of thought
    text = tokenizer.apply_chat_template([{"role": "user", "content": "@prompt@"}], tokenize=False, add_generation_prompt=True,
                                         date_string=DATE, enable_thinking=False)
    head, cut, tail = text.partition("@prompt@")
    if not cut:
        raise SystemExit(f"the chat template of {tokenizer.name_or_path} does not show the user's message; take another --model")
    return [*tokenizer.encode(head, add_special_tokens=False), *encode_text(tokenizer, prompt),
            *tokenizer.encode(tail, add_special_tokens=False)]


@torch.inference_mode()
def generate(model, tokenizer, prompts, seeds, max_new, temperature, top_p):
    """A batch of prompts -> list of Answers. seeds: an int a prompt."""
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    longest = max(map(len, ids))
    context = getattr(model.config, "max_position_embeddings", None) or longest + max_new
    room = min(max_new, context - longest)
    if room < max_new / 4:
        raise Stop(f"a prompt of {longest} tokens leaves {max(0, room)} to the answer, since the model's context is {context}: lower "
                   f"--chunk, --chunk-test or --lyrics-words, or take a model with a longer context")
    pad = model.generation_config.pad_token_id
    batch = torch.tensor([[pad] * (longest - len(row)) + row for row in ids], device=model.device)         # (B, T), padded on the left
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=model.device)
    sampler = Sampler([torch.Generator().manual_seed(seed) for seed in seeds], temperature, top_p)
    out = model.generate(input_ids=batch, attention_mask=mask, max_new_tokens=room, do_sample=False, logits_processor=[sampler])
    answers = []
    for row, new in zip(ids, out[:, longest:].tolist()):
        ends = [i for i, token in enumerate(new) if token in model.generation_config.eos_token_id]
        new = new[:ends[0]] if ends else new
        answers.append(Answer(tokenizer.decode(new, skip_special_tokens=True), len(row), len(new)))
    return answers
