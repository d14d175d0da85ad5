"""A small real tokenizer, made without a network."""

from __future__ import annotations

from pathlib import Path

import pytest


def save_tokenizer(path: Path, *, characters: int = 4) -> Path:
    """A tokenizer that cuts text into pieces of so many characters; the emulator takes four."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    pieces = tokenizers.Regex(f"[\\s\\S]{{1,{characters}}}")
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(pieces, "isolated")
    made.enable_truncation(8)  # as some files on the Hub have it
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(str(path))
    return path


def keep_tokenizer(cache: Path, model: str, *, characters: int = 4) -> Path:
    """One in a Hugging Face cache, as huggingface_hub keeps the file of a model."""
    folder, commit = cache / f"models--{model.replace('/', '--')}", "0" * 40
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    path = folder / "snapshots" / commit / "tokenizer.json"
    return save_tokenizer(path, characters=characters)
