"""LoRA (Hu et al. 2022): fine-tune a model of 1B parameters on one 16 GB card.

The matrices of the layers are frozen in bfloat16, and each learns a correction B A of low rank, at
the end added to it. The embedding, which holds the new music tokens, is trained whole in float32.
"""

import torch
from torch import nn

SCALE = 2  # alpha / rank


class LoraLinear(nn.Module):
    """y = W x + SCALE B A x, with W frozen. B starts at zero, so y starts as W x."""

    def __init__(self, linear, rank):
        super().__init__()
        self.linear = linear
        n_in, n_out, device = linear.in_features, linear.out_features, linear.weight.device
        self.a = nn.Parameter(torch.randn(rank, n_in, device=device) / n_in ** 0.5)
        self.b = nn.Parameter(torch.zeros(n_out, rank, device=device))

    def forward(self, x):
        low = (x.to(self.a.dtype) @ self.a.T) @ self.b.T
        return self.linear(x) + (SCALE * low).to(x.dtype)


def add_lora(model, rank, frozen_dtype=torch.float32):
    """Freeze the layers of a causal LM and give each of their matrices a LoRA, in place.

    Embedding, output layer and LoRA stay trainable in float32; frozen_dtype is that of the rest.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    trainable = {id(parameter) for layer in ends for parameter in layer.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in trainable:
            parameter.requires_grad = False
            parameter.data = parameter.data.to(frozen_dtype)
    for module in list(model.base_model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, LoraLinear(child, rank))


def merge_lora(model):
    """Add every LoRA to its matrix, in place: the model is an ordinary one again, in float32."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                weight = child.linear.weight
                weight.data = weight.data.float() + SCALE * child.b.data @ child.a.data
                setattr(module, name, child.linear)
    model.float()
    model.requires_grad_(True)
