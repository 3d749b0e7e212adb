"""Warm-up of an image tower: a stand-in for pretrained weights where none can be had.

The tower learns to tell its images apart by the words and word pairs of their captions: symmetric cross-entropy
between image features and a linear map of the words, which is thrown away. It does so on a split of its own that no
teacher or student trains on, and every expert and student starts from it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ptmst.config import EncoderConfig
from ptmst.data import Pairs, image_batches
from ptmst.data.pixels import decoded_once
from ptmst.students.image_towers import image_tower
from ptmst.students.losses import contrastive_logits, hard_label_loss
from ptmst.support import progress
from ptmst.support.seeds import generator, seeded

_BATCH, _LR = 64, 2e-3


def warm_tower(config: EncoderConfig, pairs: Pairs, seed: int, device: torch.device) -> dict[str, Tensor]:
    """Train the tower for `config.warmup_epochs`; returns its weights, by the names of its state dict."""
    tower, width = image_tower(config, pairs.image_size)
    labels = caption_words(pairs)
    with seeded(seed, "warm-up"):
        words = nn.Linear(labels.shape[1], width, bias=False)
        model = nn.ModuleList([tower, words]).to(device)
    labels, pairs = labels.to(device), decoded_once(pairs)
    steps_per_epoch = -(-len(labels) // _BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.warmup_epochs * steps_per_epoch)
    note = ""
    with progress.bar("warm-up", config.warmup_epochs * steps_per_epoch) as bar:
        for epoch in range(config.warmup_epochs):
            order = torch.randperm(len(labels), generator=generator(seed, "warm-up", epoch))
            batches = image_batches(pairs, order.split(_BATCH), device)
            for index, images in zip(order.to(device).split(_BATCH), batches, strict=True):
                loss = hard_label_loss(contrastive_logits(tower(images), words(labels[index]), 0.07))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.advance(note)
            # Not batch by batch: to ask for a loss is to wait for it.
            note = f"loss {loss.item():.3f}"
    return {name: value.detach().cpu() for name, value in tower.state_dict().items()}


def caption_words(pairs: Pairs) -> Tensor:
    """Which words and word pairs the captions of each image hold: float32 [I, words], those of 1–90 % of all images."""
    from sklearn.feature_extraction.text import CountVectorizer

    documents: list[list[str]] = [[] for _ in pairs.image_paths]
    for caption, image in zip(pairs.captions, pairs.image_of_text.tolist(), strict=True):
        documents[image].append(caption)
    counts = CountVectorizer(binary=True, ngram_range=(1, 2), min_df=0.01, max_df=0.9).fit_transform(
        " ".join(d) for d in documents
    )
    return torch.from_numpy(counts.toarray().astype(np.float32))
