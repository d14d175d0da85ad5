"""Make a tiny Llama of random weights and its BPE tokenizer: `python tiny_llama.py DIRECTORY`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 20
SPECIAL_TOKENS = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
TEXT = [
    "a meter counts the tokens that a model reads and the tokens that a model writes",
    "the small model answers the question and the test reads the bill of the call",
    "when the budget is spent the next call is stopped before it costs more money",
    "a stream sends one word after the other and the last part tells how many there were",
    "who closes the stream early pays for the words that were written before the end",
    "every price is for one thousand tokens and the sum is never rounded down to less",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the text above, to words: any text at all can still be encoded."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        min_frequency=1,
        show_progress=False,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def word_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids of the whole words of the text, each with its leading space."""
    words = sorted({word for line in TEXT for word in line.split()})
    encoded = [tokenizer.encode(f" {word}", add_special_tokens=False) for word in words]
    return [ids[0] for ids in encoded if len(ids) == 1]


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama whose greedy answer is made of whole words and ends only at its length limit.

    The other tokens' output rows are zero, so that a random word always beats them. The text of
    an answer then encodes to the very tokens that were made: anyone can recount them from it.
    """
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        initializer_range=0.5,  # the usual 0.02 makes a net this small repeat one word for ever
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    words = torch.zeros(len(tokenizer), 1)
    words[word_ids(tokenizer)] = 1.0
    with torch.no_grad():
        model.lm_head.weight.mul_(words)
    return model


def make(directory: Path) -> None:
    """Save the model and its tokenizer in the directory, as `from_pretrained` reads them."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(directory)
    make_model(tokenizer).save_pretrained(directory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    make(parser.parse_args().directory)
