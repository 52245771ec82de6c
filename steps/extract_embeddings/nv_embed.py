"""NV-Embed-v2 (Lee et al. 2024), written for transformers 5: the model's own code does not run there, and is not needed.

A Mistral 7B in which every token sees the whole text, not only what stands before it. Then each token's vector looks
at 512 learnt vectors, the latents (attention with 8 heads of 4096), and passes a gated feed-forward layer; the text is
the mean over its tokens (steps/extract_embeddings/text.py, pool). A query stands after an instruction, "Instruct: ...\\nQuery: ", which
the model reads but which is left out of the mean. Every text ends with EOS.

The names of the parameters are the published ones, so that the published files load as they are. Not yet verified
against them: the weights (CC-BY-NC-4.0, 16 GB) could not be had where this was written.
"""

import torch
import torch.nn.functional as F
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import MistralConfig, MistralModel, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

LATENT_DEFAULTS = {"num_latents_value": 512, "num_cross_heads": 8, "cross_dim_head": 4096, "latent_dim": 4096,
                   "hidden_dim": 4096}
FOREIGN = ("model_type", "architectures", "auto_map", "_name_or_path")  # names of classes that are not used here


class NVEmbedConfig(PretrainedConfig):
    model_type = "nvembed"
    text_config: dict | PretrainedConfig | None = None  # of Mistral; what it leaves out is as in transformers' MistralConfig
    latent_attention_config: dict | None = None         # what it leaves out is LATENT_DEFAULTS
    is_mask_instruction: bool = True

    def __post_init__(self, **kwargs):
        self.text_config = MistralConfig(**{k: v for k, v in (self.text_config or {}).items() if k not in FOREIGN})
        # Mistral's window of 4096 tokens looks backwards; the published model was run without it.
        self.text_config.sliding_window, self.text_config.is_causal = None, False
        self.latent_attention_config = LATENT_DEFAULTS | (self.latent_attention_config or {})
        super().__post_init__(**kwargs)
        self.hidden_size = self.text_config.hidden_size
        self.max_position_embeddings = self.text_config.max_position_embeddings


class CrossAttention(nn.Module):
    """Attention of tokens (..., dim) to a context (L, context_dim): (..., dim)."""

    def __init__(self, dim, context_dim, heads, head_dim):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, x, context):
        # The context is the same for every token of every text, so all of them are queries of one attention.
        query, key, value = (  # (heads, B * T or L, head_dim)
            y.reshape(-1, self.heads, y.shape[-1] // self.heads).transpose(0, 1)
            for y in (self.to_q(x), *self.to_kv(context).chunk(2, dim=-1)))
        heard = F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
        return self.to_out(heard.transpose(0, 1).reshape(*x.shape[:-1], -1))


class GatedGelu(nn.Module):
    def forward(self, x):
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, 8 * dim), GatedGelu(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        return self.net(x)


class NormedBlock(nn.Module):
    """x -> x + fn(norm(x)), or x + fn(norm(x), norm_context(context))."""

    def __init__(self, fn, dim, context_dim=None):
        super().__init__()
        self.fn, self.norm = fn, nn.LayerNorm(dim)
        if context_dim:
            self.norm_context = nn.LayerNorm(context_dim)

    def forward(self, x, context=None):
        return x + (self.fn(self.norm(x)) if context is None else self.fn(self.norm(x), self.norm_context(context)))


class LatentAttention(nn.Module):
    def __init__(self, num_latents_value, num_cross_heads, cross_dim_head, latent_dim, hidden_dim, **_):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents_value, latent_dim))
        self.cross_attend_blocks = nn.ModuleList([
            NormedBlock(CrossAttention(latent_dim, hidden_dim, num_cross_heads, cross_dim_head), latent_dim, hidden_dim),
            NormedBlock(FeedForward(latent_dim), latent_dim)])

    def forward(self, hidden):
        attend, feed_forward = self.cross_attend_blocks
        return feed_forward(attend(hidden, self.latents))  # (B, T, D)


class NVEmbed(PreTrainedModel):
    config_class = NVEmbedConfig
    _supports_sdpa = _supports_flash_attn = True

    def __init__(self, config):
        super().__init__(config)
        self.embedding_model = MistralModel(config.text_config)
        self.latent_attention_model = LatentAttention(**config.latent_attention_config)
        self.post_init()

    def forward(self, input_ids, attention_mask):
        """(B, T) -> last_hidden_state (B, T, D). Its mean over a text's own tokens is the text's vector."""
        hidden = self.embedding_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return BaseModelOutput(last_hidden_state=self.latent_attention_model(hidden))


def load_nv_embed(name):
    """(tokenizer, model) from a folder or Hugging Face id. Raises SystemExit: files are missing or do not fit."""
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name)
        model, found = NVEmbed.from_pretrained(name, dtype="auto", output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"--text-encoder {name}: {str(error).splitlines()[0]} Accepted: the whole folder of NV-Embed-v2. Get "
                         f"it with: hf download nvidia/NV-Embed-v2 --local-dir NV-Embed-v2")
    wrong = [f"{len(found[kind])} {kind.replace('_', ' ')} such as {sorted(map(str, found[kind]))[0]}"
             for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if found[kind]]
    if wrong:
        raise SystemExit(f"--text-encoder {name}: its weights do not fit its config.json: {'; '.join(wrong)}. Download it "
                         f"again with: hf download nvidia/NV-Embed-v2 --local-dir NV-Embed-v2")
    # Said here and not left to the tokenizer's settings, which transformers 5 reads in another way than 4 did.
    tokenizer.padding_side, tokenizer.pad_token = "right", tokenizer.eos_token
    ends = [token for token in (tokenizer.bos_token, tokenizer.eos_token) if token]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join([*ends[:-1], "$A", ends[-1]]), special_tokens=[(t, tokenizer.convert_tokens_to_ids(t)) for t in ends])
    return tokenizer, model
