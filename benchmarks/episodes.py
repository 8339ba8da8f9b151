"""Tokens per second of episodes with tools, against TRL's tool loop: same model, tools, prompts, limits.

    python benchmarks/episodes.py                                    tools that take 0, 50 and 500 ms, sync and async
    python benchmarks/episodes.py --episodes 16 --delays 0 500 --json episodes.json

A small model is trained on the spot until it calls a tool in each of its first turns, and then answers. Both libraries sample
the same number of episodes with it, in turns with each other. Before any time is reported, their episodes must agree
within 2 % in the number of calls and in the mean number of tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STEPS = 200  # of training the model
TEMPERATURE = 0.3  # low, so that the model nearly always repeats the episode it was trained on
CALLS = 3  # tool calls of an episode; one turn more answers
SAME_LENGTH = 0.02


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--generations", type=int, default=8, help="episodes of each prompt")
    parser.add_argument(
        "--delays", type=int, nargs="+", default=[0, 50, 500], help="milliseconds of a tool's call"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", choices=["", "ours"], help="without the competitor")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


# --------------------------------------------------------------------------- the model, the tools


def chat_template() -> str:
    """Returns TRL's own Qwen3 template: TRL recognises a template by its text, and so knows how to parse its calls."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()


def conversation(number: int) -> list[dict[str, Any]]:
    """Returns an episode: calls, their answers, and a last turn."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"Look up {number}."}]
    for step in range(CALLS):
        call = {"type": "function", "function": {"name": "lookup", "arguments": {"key": step}}}
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "lookup", "content": f"value {step}"},
        ]
    return [*messages, {"role": "assistant", "content": "The values are there."}]


def make_tool(milliseconds: int, is_async: bool) -> Callable[..., Any]:
    """Makes a tool that takes so long."""

    def lookup(key: int) -> str:
        """Look a value up.

        Args:
            key: Which one.
        """
        time.sleep(milliseconds / 1000)
        return f"value {key}"

    async def slowly(key: int) -> str:
        await asyncio.sleep(milliseconds / 1000)
        return f"value {key}"

    if is_async:
        slowly.__name__, slowly.__doc__ = "lookup", lookup.__doc__
        return slowly
    return lookup


def make_model(path: Path, tool: Callable[..., Any]) -> None:
    """Trains a Qwen3 of 5M parameters until it plays the episode, and writes it to `path`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config
    from transformers.utils.chat_template_utils import get_json_schema

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    text = str(conversation(7)) + str(get_json_schema(tool)) + chat_template()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator([text], trainers.BpeTrainer(vocab_size=1024, initial_alphabet=alphabet))
    marks = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    others = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    backend.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in others])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=marks[1], pad_token=marks[2])
    tokenizer.chat_template = chat_template()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=2048,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / STEPS)
        rows = [
            tokenizer.apply_chat_template(conversation(n), tools=[tool], return_dict=False)
            for n in range(step % 4, 16, 4)
        ]
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=-100
        )
        loss = model(input_ids=ids.clamp(min=0), labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


# --------------------------------------------------------------------------- the libraries

Sample = Callable[[], tuple[list[int], int]]
"""Samples all episodes once. Returns their lengths in tokens, the tools' included, and the number of calls."""
LENGTH = 256  # the most tokens of an episode


def ours(args: argparse.Namespace, model: Path, tool: Callable[..., Any], folder: Path) -> Sample:
    """Prepares grpokit."""
    from grpokit import TrainConfig
    from grpokit.training.setup.parts import Parts
    from grpokit.training.setup.start import start

    prompts = args.episodes // args.generations
    rows = [{"prompt": conversation(n)[:1]} for n in range(prompts)]
    config = TrainConfig(
        model=str(model),
        dataset=("python:rows",),
        reward_funcs=("length",),
        tools=("python:lookup",),
        output_dir=str(folder / "ours"),
        prompts_per_step=prompts,
        num_generations=args.generations,
        max_completion_length=LENGTH,
        max_turns=CALLS + 1,
        temperature=TEMPERATURE,
        environment_workers=args.episodes,
        dtype="float32",
        num_threads=args.threads,
    )
    run, _ = start(config, parts=Parts(train_dataset=rows, tools=(tool,)))
    position = 0

    def sample() -> tuple[list[int], int]:
        nonlocal position
        groups = run.rollouts.sampler.sample(run.prompts.take(position, prompts), args.generations)
        position += prompts
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        return [len(r.completion_ids) for r in rollouts], sum(
            (r.episode.calls or {}).get("lookup", 0) for r in rollouts
        )

    return sample


def trl(args: argparse.Namespace, model: Path, tool: Callable[..., Any], folder: Path) -> Sample:
    """Prepares TRL's trainer, of which only the tool loop is used."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    prompts = args.episodes // args.generations
    rows = [{"prompt": conversation(n)[:1]} for n in range(prompts)]
    trainer = GRPOTrainer(
        model=str(model),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=args.episodes,
            num_generations=args.generations,
            max_completion_length=LENGTH,
            max_tool_calling_iterations=CALLS,
            temperature=TEMPERATURE,
            top_k=0,
            beta=0.0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        tools=[tool],
    )
    batch = [row["prompt"] for row in rows for _ in range(args.generations)]
    is_async = asyncio.iscoroutinefunction(tool)
    table: dict[str, Any] = {"lookup": tool}
    trainer._sync_tool_dicts = [{} if is_async else table for _ in batch]
    trainer._async_tool_dicts = [table if is_async else {} for _ in batch]

    def sample() -> tuple[list[int], int]:
        _, completion_ids, _, completions, *_ = trainer._generate(batch)
        calls = sum(message["role"] == "tool" for completion in completions for message in completion)
        return [len(ids) for ids in completion_ids], calls

    return sample


# --------------------------------------------------------------------------- the referee


def measure(
    args: argparse.Namespace, model: Path, delay: int, is_async: bool, folder: Path
) -> dict[str, Any]:
    """Measures both libraries with one kind of tool."""
    tool = make_tool(delay, is_async)
    samples = {"ours": ours(args, model, tool, folder)}
    if not args.only:
        samples["trl"] = trl(args, model, tool, folder)
    seconds: dict[str, list[float]] = {name: [] for name in samples}
    lengths: dict[str, list[int]] = {name: [] for name in samples}
    calls: dict[str, int] = dict.fromkeys(samples, 0)
    for turn in range(args.rounds + 1):
        for name in samples if turn % 2 else reversed(samples):
            began = time.perf_counter()
            found, called = samples[name]()
            if turn:  # the first round includes one-time start-up costs
                seconds[name].append(time.perf_counter() - began)
                lengths[name] += found
                calls[name] += called
    tokens = {name: sum(found) / args.rounds for name, found in lengths.items()}
    result: dict[str, Any] = {
        "delay_ms": delay,
        "async": is_async,
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "tokens": tokens,
        "calls": calls,
    }
    if "trl" in samples:
        gap = abs(tokens["ours"] / tokens["trl"] - 1)
        wanted = CALLS * args.episodes * args.rounds
        if gap > SAME_LENGTH or abs(calls["ours"] - calls["trl"]) > 0.02 * wanted:
            raise SystemExit(f"the episodes differ, so no times are reported: tokens {tokens}, calls {calls}")
        pairs = zip(seconds["ours"], seconds["trl"], strict=True)
        result["ratio_trl"] = statistics.median(a / b for a, b in pairs)
    return result


def main() -> None:
    args = arguments()
    from common import environment, finish, table

    torch.set_num_threads(args.threads)
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    seen, results = environment(args), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_model(folder / "model", make_tool(0, False))
        for delay in args.delays:
            for is_async in (False, True) if delay else (False,):
                results.append(measure(args, folder / "model", delay, is_async, folder))
    base = next((r["seconds"]["ours"] for r in results if r["delay_ms"] == 0), None)
    rows = [["tool", "grpokit, s", "tokens/s", "TRL, s", "ours / TRL", "limit: 1.3 × (0 ms + turns)"]]
    for r in results:
        ours_s, trl_s = r["seconds"]["ours"], r["seconds"].get("trl")
        limit = "-" if base is None else f"{1.3 * (base + (CALLS + 1) * r['delay_ms'] / 1000):.2f} s"
        rows.append(
            [
                f"{r['delay_ms']} ms, {'async' if r['async'] else 'sync'}",
                f"{ours_s:.2f}",
                f"{r['tokens']['ours'] / ours_s:,.0f}",
                "-" if trl_s is None else f"{trl_s:.2f}",
                f"{r['ratio_trl']:.2f}" if "ratio_trl" in r else "-",
                limit,
            ]
        )
    print(table(rows))
    finish({"episodes": args.episodes, "results": results, "environment": seen}, args)


if __name__ == "__main__":
    main()
