"""The base models that 04_train.py fine-tunes: a tiny one, made here, or any Hugging Face model.

The tiny model has Llama's architecture and random weights, for tests and for the demo. Special
tokens, splitting of text and chat template are those of Llama-3, and its embeddings are tied.
"""

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from common.models import refuse_bad_model

LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                  "<|end_header_id|>", "<|eot_id|>", "<|finetune_right_pad_id|>"]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3_TEMPLATE = (
    "{{ '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\n"
    "Today Date: ' + (date_string or '26 Jul 2024') + '\n\n<|eot_id|>' }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")


def load_base(name, dialogues, seed=0):
    """(model, tokenizer) of a base model, in float32.

    name: "tiny", a folder, or a Hugging Face id. dialogues: what the tiny tokenizer is trained on.
    Raises SystemExit: the model cannot be loaded.
    """
    if name == "tiny":
        turns = [turn for dialogue in dialogues for turn in dialogue["turns"]]
        tokenizer = tiny_tokenizer(
            [text for turn in turns for text in (turn["query"], turn["response"] or "")])
        return tiny_llama(tokenizer, seed), tokenizer
    with refuse_bad_model("--base-model", name, "Accepted: tiny, a folder with a model, or a "
                          "Hugging Face id (for gated ones log in with `hf auth login`)"):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
        return model, transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def tiny_tokenizer(texts, vocab_size=2048):
    """A byte-level BPE trained on `texts`, with Llama-3's splitting, tokens and chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    # the words of the chat template occur often, so that each becomes few tokens
    system = "system\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    roles = ["user\n\n", "assistant\n\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=LLAMA3_SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([*texts, *[system] * 100, *roles * 100], trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>")
    fast.chat_template = LLAMA3_TEMPLATE
    return fast


def tiny_llama(tokenizer, seed=0):
    """Llama's architecture with 2 layers of 192 dimensions, 6 heads and random weights."""
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=4096,
        tie_word_embeddings=True, rms_norm_eps=1e-5, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
