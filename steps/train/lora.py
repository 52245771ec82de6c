"""LoRA (Hu et al. 2022): fine-tune a model of 1B parameters on one 16 GB card (part of 04_train.py).

The layers' matrices are frozen in bfloat16, and each learns a correction B A of low rank. The embedding,
which holds the new music tokens and is the output layer too, is trained whole in float32: a LoRA that leaves it out
never learns a music token. At the end the corrections are added to the matrices, so the saved folder is
an ordinary model.
"""

import torch
from torch import nn


class LoraLinear(nn.Module):
    """y = W x + (alpha / rank) B A x, with W frozen; B starts at zero, so y starts as W x."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear, self.scale = linear, alpha / rank
        device = linear.weight.device
        self.a = nn.Parameter(torch.randn(rank, linear.in_features, device=device) / linear.in_features ** 0.5)
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))

    def forward(self, x):
        low = (x.to(self.a.dtype) @ self.a.T) @ self.b.T
        return self.linear(x) + (self.scale * low).to(x.dtype)


def add_lora(model, rank, alpha=None, frozen_dtype=torch.float32):
    """Freeze the layers of a causal LM, in `frozen_dtype`, and give each of their matrices a LoRA, in place.

    Embedding, output layer and LoRA stay trainable in float32. alpha: default 2 x rank.
    """
    embeddings = {id(p) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) for p in layer.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in embeddings:
            parameter.requires_grad = False
            parameter.data = parameter.data.to(frozen_dtype)
    for module in list(model.base_model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, LoraLinear(child, rank, alpha or 2 * rank))


def merge_lora(model):
    """Add every LoRA to its matrix, in place: the model is an ordinary one again, in float32."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                child.linear.weight.data = child.linear.weight.data.float() + child.scale * child.b.data @ child.a.data
                setattr(module, name, child.linear)
    model.float()
    for parameter in model.parameters():
        parameter.requires_grad = True
