"""NV-Embed-v2 (Lee et al. 2024) for transformers 5, on which the model's own code does not run.

A Mistral 7B in which every token sees the whole text. Then each token's vector attends to 512
learnt vectors, the latents (8 heads of 4096), and passes a gated feed-forward layer. The text is
the mean over its tokens (`pool` in text.py), without those of a query's instruction. The parameters
have the published names, so that the published files load as they are. Not yet verified against
them: the weights (CC-BY-NC-4.0, 16 GB) could not be had where this was written.
"""

import torch
import torch.nn.functional as F
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import MistralConfig, MistralModel, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.modeling_outputs import BaseModelOutput

LATENT_DEFAULTS = {"num_latents_value": 512, "num_cross_heads": 8, "cross_dim_head": 4096,
                   "latent_dim": 4096, "hidden_dim": 4096}
FOREIGN = ("model_type", "architectures", "auto_map", "_name_or_path")  # keys of text_config


class NVEmbedConfig(PretrainedConfig):
    model_type = "nvembed"
    text_config: dict | PretrainedConfig | None = None  # laid over transformers' MistralConfig
    latent_attention_config: dict | None = None         # laid over LATENT_DEFAULTS
    is_mask_instruction: bool = True

    def __post_init__(self, **kwargs):
        settings = {k: v for k, v in (self.text_config or {}).items() if k not in FOREIGN}
        self.text_config = MistralConfig(**settings)
        # Mistral's window of 4096 tokens looks backwards; the published model was run without it.
        self.text_config.sliding_window = None
        self.text_config.is_causal = False
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
        # All tokens of all texts have the same context, so they are queries of one attention.
        query, key, value = (  # (heads, B * T or L, head_dim)
            y.reshape(-1, self.heads, y.shape[-1] // self.heads).transpose(0, 1)
            for y in (self.to_q(x), *self.to_kv(context).chunk(2, dim=-1)))
        mixed = F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
        return self.to_out(mixed.transpose(0, 1).reshape(*x.shape[:-1], -1))


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.net = nn.ModuleDict({"0": nn.Linear(dim, 8 * dim), "2": nn.Linear(4 * dim, dim)})

    def forward(self, x):
        value, gate = self.net["0"](x).chunk(2, dim=-1)
        return self.net["2"](value * F.gelu(gate))


class NormedBlock(nn.Module):
    """x -> x + fn(norm(x)), or x + fn(norm(x), norm_context(context))."""

    def __init__(self, fn, dim, context_dim=None):
        super().__init__()
        self.fn = fn
        self.norm = nn.LayerNorm(dim)
        if context_dim:
            self.norm_context = nn.LayerNorm(context_dim)

    def forward(self, x, context=None):
        if context is None:
            return x + self.fn(self.norm(x))
        return x + self.fn(self.norm(x), self.norm_context(context))


class LatentAttention(nn.Module):
    def __init__(self, config):  # dict, LATENT_DEFAULTS with changes
        super().__init__()
        dim, hidden_dim = config["latent_dim"], config["hidden_dim"]
        self.latents = nn.Parameter(torch.randn(config["num_latents_value"], dim))
        attention = CrossAttention(dim, hidden_dim, config["num_cross_heads"],
                                   config["cross_dim_head"])
        self.cross_attend_blocks = nn.ModuleList([
            NormedBlock(attention, dim, hidden_dim), NormedBlock(FeedForward(dim), dim)])

    def forward(self, hidden):
        attend, feed_forward = self.cross_attend_blocks
        return feed_forward(attend(hidden, self.latents))  # (B, T, D)


class NVEmbed(PreTrainedModel):
    config_class = NVEmbedConfig
    _supports_sdpa = _supports_flash_attn = True

    def __init__(self, config):
        super().__init__(config)
        self.embedding_model = MistralModel(config.text_config)
        self.latent_attention_model = LatentAttention(config.latent_attention_config)
        self.post_init()

    def forward(self, input_ids, attention_mask):
        """(B, T) -> last_hidden_state (B, T, D), whose mean over a text's tokens is its vector."""
        outputs = self.embedding_model(input_ids=input_ids, attention_mask=attention_mask,
                                       use_cache=False)
        hidden = self.latent_attention_model(outputs.last_hidden_state)
        return BaseModelOutput(last_hidden_state=hidden)


def load_nv_embed(name):
    """(tokenizer, model) of a folder or id. Raises ValueError, OSError ...: files do not fit."""
    tokenizer = FastTokenizer.from_pretrained(name, trust_remote_code=False)
    model, info = NVEmbed.from_pretrained(name, trust_remote_code=False, use_safetensors=True,
                                          dtype="auto", output_loading_info=True)
    wrong = [f"{len(info[kind])} {kind.replace('_', ' ')} such as {min(map(str, info[kind]))}"
             for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]]
    if wrong:
        raise ValueError(f"its weights do not fit its config.json: {'; '.join(wrong)}.")

    # Set here: transformers 5 reads the tokenizer's settings in another way than 4 did.
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.eos_token
    ends = [token for token in (tokenizer.bos_token, tokenizer.eos_token) if token]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join([*ends[:-1], "$A", ends[-1]]),
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in ends])
    return tokenizer, model
