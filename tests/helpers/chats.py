"""Tokenizers with and without a chat template, and rows for them."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from grpokit.data.rows import DatasetRow

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
REFUSING = "{{ raise_exception('no system turn,\n please') if messages[0].role == 'system' }}" + TEMPLATE
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 =+?<>\n"


def characters(template: str | None = None, **options) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each character, and no special tokens around a text."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", **options
    )
    fast.chat_template = template
    return fast


def bpe(template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that begins a text with <bos>, as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["sort the digits of the number"] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = template
    return fast


PLAIN, CHAT = characters(), characters(TEMPLATE)


def rows_of(*texts: str, **columns) -> list[DatasetRow]:
    """Text rows as `read_rows` gives them."""
    return [DatasetRow(text, columns, f"t.jsonl:{n}", "prompt") for n, text in enumerate(texts, 1)]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def text_of(prompt, tokenizer) -> str:
    return tokenizer.decode(list(prompt.ids))
