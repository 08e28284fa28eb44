"""Tiny networks and data for the Trainer, built from configurations, nothing downloaded."""

import gc
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.zoo import hugging_face

transformers = hugging_face()
_ = transformers.Trainer, transformers.BertForSequenceClassification  # imported only now
gc.freeze()  # every training begins with a collection, which need not look at what the imports have made
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


class Sentences(torch.utils.data.Dataset):
    """Twenty-six sentences of three classes, each always the same."""

    def __len__(self) -> int:
        return 26

    def __getitem__(self, index: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(index)
        return {"input_ids": torch.randint(50, (8,), generator=draw), "labels": index % 3}


class Recordings(torch.utils.data.Dataset):
    """Eight recordings of noise, each with four labels."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(index)
        return {"input_values": torch.randn(400, generator=draw), "labels": torch.arange(4) + 1 + index}


def bert(**sizes: int) -> nn.Module:
    """A BERT of two layers, dropout included, that classifies sentences."""
    torch.manual_seed(1)
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, num_labels=3, **{**SIZES, **sizes})
    return transformers.BertForSequenceClassification(config)


def wav2vec2() -> nn.Module:
    """A wav2vec 2.0 of two layers with a CTC head."""
    torch.manual_seed(1)
    config = transformers.Wav2Vec2Config(
        vocab_size=12,
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        **SIZES,
    )
    return transformers.Wav2Vec2ForCTC(config)


def arguments(folder: Path, **options: Any) -> Any:
    """Ten steps over two epochs of seven batches, at a rate at which weights move."""
    defaults = {"per_device_train_batch_size": 4, "max_steps": 10, "learning_rate": 0.01, "save_strategy": "no"}
    quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 4, "log_level": "error"}
    return transformers.TrainingArguments(output_dir=str(folder), **{**defaults, **quiet, **options})


def trainer(model: nn.Module, folder: Path, *callbacks: Any, **options: Any) -> Any:
    """A Trainer of this model that trains and evaluates on the sentences."""
    data, extra = Sentences(), {"optimizers": options.pop("optimizers", (None, None))}
    settings = arguments(folder, **options)
    made = transformers.Trainer(
        model, settings, train_dataset=data, eval_dataset=data, callbacks=list(callbacks), **extra
    )
    made.remove_callback(transformers.trainer_callback.PrinterCallback)
    return made
