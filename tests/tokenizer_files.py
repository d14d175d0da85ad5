"""A small real tokenizer, made without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

FOUR_CHARACTERS = r"[\s\S]{1,4}"
WORDS = r"\s?\S+|\s"


def save_tokenizer(path: Path, pieces: str = FOUR_CHARACTERS) -> Path:
    """A tokenizer that cuts text into such pieces; the emulator takes four bytes."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pieces), "isolated")
    made.enable_truncation(8)  # as some files on the Hub have it
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(str(path))
    return path


def keep_tokenizer(cache: Path, model: str, pieces: str = FOUR_CHARACTERS) -> Path:
    """One in a Hugging Face cache, as huggingface_hub keeps the file of a model."""
    folder, commit = cache / f"models--{model.replace('/', '--')}", "0" * 40
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return save_tokenizer(folder / "snapshots" / commit / "tokenizer.json", pieces)
