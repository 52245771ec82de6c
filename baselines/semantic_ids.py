"""TIGER's Semantic IDs: text embedding -> residual codes -> unique ID (Rajput et al. 2023, 3.1).

Residual codes, by k-means or the paper's RQ-VAE, go from coarse to fine: each level quantises what
the one before leaves over. One more code tells tracks with equal codes apart.
"""

from collections import Counter
from itertools import pairwise

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import nn
from tqdm import tqdm

from common import data
from steps.extract_embeddings.text import embed_texts, load_text_encoder, resolve_text_encoder

COMMITMENT = 0.25  # weight of the RQ-VAE's loss that pulls the encoder to its codes


def embed_items(tracks, encoder, device):
    """Text embeddings of the tracks, (N, D) float32 of length 1. encoder: 01's --text-encoder."""
    texts = [data.item_text(track) for track in tracks]
    return embed_texts(texts, *load_text_encoder(resolve_text_encoder(encoder), device))[0]


def residual_kmeans(vectors, levels, n_codes, seed=0):
    """K-means of the vectors (N, D) float32, then of what the centres leave over, and so on.

    Returns: codes, (N, levels) int64; and each level's centres, (K, D) float32, where K is n_codes,
        or fewer if fewer rows differ.
    """
    residual = np.array(vectors, np.float32)
    codes, books = [], []
    for level in range(levels):
        k = min(n_codes, len(np.unique(residual, axis=0)))
        kmeans = KMeans(k, n_init=1, random_state=seed + level).fit(residual)
        codes.append(kmeans.labels_.astype(np.int64))
        books.append(kmeans.cluster_centers_)
        residual -= books[-1][codes[-1]]
    return np.stack(codes, 1), books


def mlp(*widths):
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class RQVAE(nn.Module):
    """Residual-quantised autoencoder: between two MLPs, a small vector is replaced by its codes."""

    def __init__(self, dim, levels, n_codes, widths=(512, 256, 128, 32)):
        super().__init__()
        self.encoder = mlp(dim, *widths)
        self.decoder = mlp(*reversed(widths), dim)
        self.books = nn.Parameter(torch.zeros(levels, n_codes, widths[-1]))

    def quantize(self, z):
        """z (B, d) -> codes (B, levels), their sum (B, d), the loss that draws both together."""
        residual, total, codes, loss = z, torch.zeros_like(z), [], 0.0
        for book in self.books:
            codes.append(torch.cdist(residual.detach(), book.detach()).argmin(1))
            chosen = book[codes[-1]]  # (B, d)
            loss = loss + squared(residual.detach() - chosen)
            loss = loss + COMMITMENT * squared(residual - chosen.detach())
            residual = residual - chosen.detach()
            total = total + chosen
        return torch.stack(codes, 1), total, loss

    def forward(self, x):
        """x (B, D) -> its reconstruction (B, D) and the loss of the quantisation."""
        z = self.encoder(x)
        _, total, loss = self.quantize(z)
        return self.decoder(z + (total - z).detach()), loss  # the gradient passes straight through


def squared(difference):
    """Squared length of the rows, averaged: (B, d) -> scalar."""
    return difference.square().sum(1).mean()


def train_rqvae(vectors, levels, n_codes, epochs, seed=0, device="cpu", batch_size=256):
    """Train an RQ-VAE on the vectors, which are centred and scaled to a mean variance of 1.

    The first quarter of the epochs trains the autoencoder without codes. These then start from
    residual k-means of its small vectors. With codes from the first step on, the demo's tracks came
    to use a fifth of them.

    Returns: codes, (N, levels) int64; and each epoch's squared reconstruction error, a list.
    """
    torch.manual_seed(seed)
    scale = max(vectors.var(0).mean() ** 0.5, 1e-9)
    x = torch.from_numpy((vectors - vectors.mean(0)) / scale).to(device)
    model = RQVAE(x.shape[1], levels, n_codes).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    errors = []
    for epoch in tqdm(range(epochs), desc="rqvae", unit="epoch"):
        if epoch == epochs // 4:
            with torch.no_grad():
                small = model.encoder(x).cpu().numpy()
                _, books = residual_kmeans(small, levels, n_codes, seed)
                for book, centres in zip(model.books, books, strict=True):
                    book[:len(centres)] = torch.from_numpy(centres)
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(x)))
        total = 0.0
        for rows in order.to(device).split(batch_size):
            if epoch < epochs // 4:
                decoded, loss = model.decoder(model.encoder(x[rows])), 0.0
            else:
                decoded, loss = model(x[rows])
            error = squared(decoded - x[rows])
            optimizer.zero_grad()
            (error + loss).backward()
            optimizer.step()
            total += error.item() * len(rows)
        errors.append(total / len(x))
    with torch.no_grad():
        return model.quantize(model.encoder(x))[0].cpu().numpy(), errors


def add_collision_code(codes):
    """Append a code that makes IDs unique: 0, 1, 2 ... among the tracks with equal codes.

    codes: (N, levels) int. Returns: (N, levels + 1) int64.
    """
    seen = Counter()
    numbers = []
    for row in map(tuple, codes.tolist()):
        numbers.append(seen[row])
        seen[row] += 1
    return np.column_stack([codes, numbers])


def make_ids(tracks, encoder, kind, levels, n_codes, rqvae_epochs, seed, device):
    """Semantic IDs of the tracks: (N, levels + 1) int32.

    kind: "kmeans" or "rqvae". n_codes: per level; 0 = 256, or N / 8 if that is fewer.
    """
    vectors = embed_items(tracks, encoder, device)
    n_codes = n_codes or min(256, max(2, len(tracks) // 8))
    if kind == "kmeans":
        codes, _ = residual_kmeans(vectors, levels, n_codes, seed)
    else:
        codes, errors = train_rqvae(vectors, levels, n_codes, rqvae_epochs, seed, device)
        print(f"rqvae: {errors[-1] / vectors.shape[1]:.1%} of the embeddings' variance is lost in "
              f"the last epoch")
    return add_collision_code(codes).astype(np.int32)
