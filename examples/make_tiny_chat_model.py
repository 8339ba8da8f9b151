"""Makes a small chat model and a dataset with GSM8K's columns, to try `grpokit train` on a CPU, offline.

    python examples/make_tiny_chat_model.py --output_dir runs/tiny-chat

writes

    runs/tiny-chat/model/        Qwen2 of 0.8M parameters, BPE tokenizer, ChatML template
    runs/tiny-chat/train.jsonl   {"question", "answer"}, the answer ending in "#### 7"
    runs/tiny-chat/eval.jsonl    questions that are not in train.jsonl

The questions are additions and subtractions of one-digit numbers, told as little stories. The model is warmed up
(about 45 s of one core) on worked answers, and a quarter of them have a wrong result. It then answers fluently and is right
about one time in three when sampled, so that reinforcement learning has something to improve. It knows nothing else.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.utils.logging import disable_progress_bar

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

NAMES = ("Ada", "Ben", "Chen", "Dina", "Emil", "Fay", "Gus", "Hana")
THINGS = ("apples", "books", "coins", "eggs", "kites", "pens", "shells", "stamps")
MORE = (
    "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
    "{name} finds {a} {things} today and {b} tomorrow. How many {things} is that in all?",
    "There are {a} {things} on the table. {name} adds {b}. How many {things} are there?",
)
FEWER = (
    "{name} has {a} {things} and gives away {b}. How many {things} are left?",
    "There are {a} {things} in a box. {name} takes {b}. How many {things} are still in it?",
)


def problem(rng: random.Random) -> tuple[str, int, str, int]:
    """Returns (question, a, sign, b) of a random story. A difference is never below 0."""
    sign = rng.choice("+-")
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    if sign == "-":
        a, b = max(a, b), min(a, b)
    story = rng.choice(MORE if sign == "+" else FEWER)
    return story.format(name=rng.choice(NAMES), things=rng.choice(THINGS), a=a, b=b), a, sign, b


def solution(a: int, sign: str, b: int, error: int = 0) -> str:
    """Writes a worked solution in GSM8K's style, off by `error`."""
    result = (a + b if sign == "+" else a - b) + error
    return f"{a} {sign} {b} = {result}\n#### {result}"


def make_rows(seed: int, count: int, held_out: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Makes (training rows, held-out rows), all with different questions."""
    rng = random.Random(f"problems {seed}")
    rows: dict[str, str] = {}
    while len(rows) < count + held_out:
        question, a, sign, b = problem(rng)
        rows[question] = solution(a, sign, b)
    pairs = [{"question": question, "answer": answer} for question, answer in rows.items()]
    return pairs[held_out:], pairs[:held_out]


def make_tokenizer(rows: list[dict[str, str]]) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on the rows. Every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # any text can be encoded
        show_progress=False,
    )
    text = [row["question"] + "\n" + row["answer"] for row in rows] + [
        "system\n",
        "user\n",
        "assistant\n",
    ] * 9
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """Makes a Qwen2 with random weights."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def batch(
    tokenizer: PreTrainedTokenizerFast, questions: list[str], answers: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (input ids [B, T], labels [B, T]) of chats, right-padded. Labels are -100 outside the answers."""
    asked = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        for question in questions
    ]
    prompts = tokenizer(asked).input_ids
    replies = tokenizer([answer + END for answer in answers]).input_ids
    width = max(len(p) + len(r) for p, r in zip(prompts, replies, strict=True))
    inputs = torch.full((len(prompts), width), tokenizer.pad_token_id)
    labels = torch.full((len(prompts), width), -100)
    for i, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        end = len(prompt) + len(reply)
        inputs[i, :end] = torch.tensor(prompt + reply)
        labels[i, len(prompt) : end] = torch.tensor(reply)
    return inputs, labels


def warm_up(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    known: set[str],
    *,
    steps: int,
    batch_size: int,
    peak: float,
    seed: int,
    wrong: float,
) -> None:
    """Trains on fresh problems (none of `known`, the held-out questions), a share `wrong` of them with a wrong result."""
    rng = random.Random(f"warm-up {seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.0)
    model.train()
    for step in track(range(steps), description="warm-up of the model (supervised)"):
        questions, answers = [], []
        while len(questions) < batch_size:
            question, a, sign, b = problem(rng)
            if question in known:
                continue
            error = rng.choice((-2, -1, 1, 2)) if rng.random() < wrong else 0
            questions.append(question)
            answers.append(solution(a, sign, b, error))
        inputs, labels = batch(tokenizer, questions, answers)
        for group in optimizer.param_groups:  # a rise over a tenth of the steps, a fall over the last third
            group["lr"] = peak * min(1.0, 10 * (step + 1) / steps, 3 * (steps - step) / steps)
        logits = model(input_ids=inputs).logits[:, :-1]  # [B, T-1, V]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes one JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Makes the directory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/tiny-chat"))
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--steps", type=int, default=350, help="supervised warm-up steps (default: 350)")
    parser.add_argument(
        "--wrong", type=float, default=0.25, help="share of wrong results in it (default: 0.25)"
    )
    parser.add_argument("--eval_rows", type=int, default=128, help="held-out questions (default: 128)")
    args = parser.parse_args()

    disable_progress_bar()  # transformers' own, for one small file
    torch.set_num_threads(1)  # the model is too small for more
    train, held_out = make_rows(args.seed, count=2048, held_out=args.eval_rows)
    tokenizer = make_tokenizer(train)
    model = make_model(tokenizer, args.seed)
    known = {row["question"] for row in held_out}
    warm_up(
        model, tokenizer, known, steps=args.steps, batch_size=16, peak=2e-3, seed=args.seed, wrong=args.wrong
    )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.output_dir / "model")
    tokenizer.save_pretrained(args.output_dir / "model")
    write_jsonl(args.output_dir / "train.jsonl", train)
    write_jsonl(args.output_dir / "eval.jsonl", held_out)
    size = sum(p.numel() for p in model.parameters())
    print(f"{args.output_dir}: model/ ({size:,} parameters), train.jsonl ({len(train)} rows), ", end="")
    print(f"eval.jsonl ({len(held_out)} rows)")


if __name__ == "__main__":
    main()
