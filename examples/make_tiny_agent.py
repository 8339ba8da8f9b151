"""Makes a small chat model that can call a tool, and questions that can't be answered without it, offline.

    python examples/make_tiny_agent.py --output_dir runs/tiny-agent

writes

    runs/tiny-agent/model/        Qwen3 of 0.1M parameters, BPE tokenizer, ChatML template that shows tools
    runs/tiny-agent/train.jsonl   {"prompt", "answer"}: 'What does the "brave otter" eat?', "oats"
    runs/tiny-agent/eval.jsonl    animals that are not in train.jsonl

The tool is `lookup` of zoo.py. The model is warmed up on made-up episodes (about 30 s of one core). In some of them it
answers at once with a random food, looks up another animal, or contradicts the tool. So the model knows the form of a call
and of an answer, but only about one sampled answer in three is right. Reinforcement learning has something to improve.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import get_json_schema
from transformers.utils.logging import disable_progress_bar
from zoo import ANIMALS, FOODS, KINDS, food_of, lookup

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
# Tools are shown by their names, arguments and descriptions. A larger model would get their whole schemas.
CHAT_TEMPLATE = """\
{%- for tool in tools or [] %}{% set f = tool.function %}<|im_start|>system
{{ f.name }}({{ f.parameters.properties | join(', ') }}): {{ f.description }}<|im_end|>
{% endfor %}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
<tool_response>{{ message.content }}</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] -%}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TOOLS = [get_json_schema(lookup)]

# Probabilities that a warm-up episode answers at once, looks up another animal, contradicts the tool.
GUESSES, OTHER_ANIMALS, OTHER_FOODS = 0.55, 0.1, 0.1


def question(animal: str) -> str:
    """Returns the prompt of a row."""
    return f'What does the "{animal}" eat?'


def conversation(asked: str, looked_up: str, found: str, answer: str) -> list[dict[str, Any]]:
    """Returns an episode of two turns as messages.

    Args:
        asked: the animal of the question.
        looked_up: the animal that the model looks up.
        found: what the tool says.
        answer: what the model says.
    """
    function = {"name": "lookup", "arguments": {"animal": looked_up}}
    return [
        {"role": "user", "content": question(asked)},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "name": "lookup", "content": found},
        {"role": "assistant", "content": answer},
    ]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on conversations. Every word of the zoo is a token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # any text can be encoded
        show_progress=False,
    )
    form = 'lookup(animal): Find out what an animal eats. system user assistant {"name": "lookup", "arguments": {}}'
    words = " ".join(f'"{kind} {name}"' for kind, name in zip(KINDS, ANIMALS, strict=True))
    text = f"{form} {question('x')} {words}\n" + "\n".join(FOODS)
    backend.train_from_iterator([text] * 9, trainer)
    backend.add_special_tokens([AddedToken(token, special=True) for token in (END_OF_TEXT, START, END)])
    backend.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """Makes a Qwen3 with random weights."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.1,  # with the usual 0.02, so small a model learns to copy much later
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def episode(animal: str, rng: random.Random, is_clean: bool) -> list[dict[str, Any]]:
    """Returns an episode of the warm-up. Foods are drawn at random, so there is nothing to memorise.

    Args:
        animal: the animal of the question.
        rng: draws what happens.
        is_clean: nothing goes wrong.
    """
    guesses, asks_other, says_other = (
        not is_clean and rng.random() < share for share in (GUESSES, OTHER_ANIMALS, OTHER_FOODS)
    )
    looked_up = f"{rng.choice(KINDS)} {rng.choice(ANIMALS)}" if asks_other else animal
    found = rng.choice(FOODS)
    messages = conversation(animal, looked_up, found, rng.choice(FOODS) if says_other or guesses else found)
    return [messages[0], messages[-1]] if guesses else messages


def batch(
    tokenizer: PreTrainedTokenizerFast, episodes: list[list[dict[str, Any]]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (input ids [B, T], labels [B, T]), right-padded. Labels are -100 outside the model's turns."""
    rows: list[tuple[list[int], list[int]]] = []
    for messages in episodes:
        text, ids, labels = "", [], []
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                ends = [(messages[:place], True), (messages[: place + 1], False)]
                for some, goes_on in ends:
                    whole = tokenizer.apply_chat_template(
                        some, tools=TOOLS, tokenize=False, add_generation_prompt=goes_on
                    )
                    whole = whole if goes_on else whole.removesuffix("\n")
                    new = tokenizer(whole.removeprefix(text)).input_ids
                    text, ids = whole, ids + new
                    labels += [-100] * len(new) if goes_on else new
        rows.append((ids, labels))
    width = max(len(ids) for ids, _ in rows)
    inputs = torch.full((len(rows), width), tokenizer.pad_token_id)
    targets = torch.full((len(rows), width), -100)
    for i, (ids, labels) in enumerate(rows):
        inputs[i, : len(ids)], targets[i, : len(ids)] = torch.tensor(ids), torch.tensor(labels)
    return inputs, targets


def warm_up(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, animals: list[str], steps: int, seed: int
) -> None:
    """Trains on made-up episodes. Nothing goes wrong in the first half, so that the model learns to copy words.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        animals: those that are asked about.
        steps: the number of AdamW steps.
        seed: of the episodes.
    """
    rng, peak = random.Random(f"warm-up {seed}"), 5e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.0)
    model.train()
    for step in track(range(steps), description="warm-up of the model (supervised)"):
        episodes = [episode(animal, rng, is_clean=2 * step < steps) for animal in rng.choices(animals, k=24)]
        inputs, labels = batch(tokenizer, episodes)
        for group in optimizer.param_groups:  # a rise over a tenth of the steps, a fall over the last third
            group["lr"] = peak * min(1.0, 10 * (step + 1) / steps, 3 * (steps - step) / steps)
        logits = model(input_ids=inputs).logits[:, :-1]  # [B, T-1, V]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def main() -> None:
    """Makes the directory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/tiny-agent"))
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--steps", type=int, default=320, help="supervised warm-up steps (default: 320)")
    args = parser.parse_args()

    disable_progress_bar()  # transformers' own, for one small file
    rng = random.Random(f"zoo {args.seed}")
    animals = [f"{kind} {name}" for kind in KINDS for name in ANIMALS]
    rng.shuffle(animals)
    held_out, known = animals[:128], animals[128:]
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, args.seed)
    torch.set_num_threads(1)  # the model is too small for more

    warm_up(model, tokenizer, known, args.steps, args.seed)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.output_dir / "model")
    tokenizer.save_pretrained(args.output_dir / "model")
    for name, chosen in (("train.jsonl", known), ("eval.jsonl", held_out)):
        rows = [{"prompt": question(animal), "answer": food_of(animal)} for animal in chosen]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (args.output_dir / name).write_text(text, encoding="utf-8")
    size = sum(p.numel() for p in model.parameters())
    print(f"{args.output_dir}: model/ ({size:,} parameters), train.jsonl ({len(known)} rows), ", end="")
    print(f"eval.jsonl ({len(held_out)} rows)")


if __name__ == "__main__":
    main()
