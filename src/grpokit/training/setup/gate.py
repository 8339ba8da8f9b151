"""The gate: before the first step, a run has tried each thing that it will rely on.

Long rows, batches and saving are tried on a small twin of the architecture; the weights are tried on the model itself,
in short rows. A way that fails is refused, or another one is taken and said.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...batch.collate import collate
from ...common.console import say
from ...common.text import first_line
from ...config.options import TrainConfig
from ...data.prompts import Prompts, check_ids
from ...data.stream import PromptStream
from ...parallel import World
from ...policy.architecture import obstacle
from ...policy.export import SaveFormat, write_model
from ...policy.policy import Policy
from ...policy.probes import probe_head
from ...policy.reference import Reference
from ...policy.twin import make_twin, reach
from ...rollouts.trial import log_probs_alone, trial_prompts, try_sampling
from ...types import Layout, Prompt, Sample

CLOSE = 1e-3  # mean gap of log-probs in float32 that rounding explains
# Tokens of prompts that stay within the twin's window, and that outgrow it. With their completions, rows have at most 7
# tokens, or up to 34.
WITHIN, BEYOND = (1, 2, 4), (3, 11, 20, 26)
NEW_TOKENS = {WITHIN: 1, BEYOND: 6}


@dataclass(frozen=True)
class Found:
    """The layouts and ways of sampling that a model's twin computes exactly. None: it is exact; else the reason why not.

    Example: `Found(padded=None, packed="...", shared=None, loop=None, generate="...", alone=None, head=None)`
    """

    padded: str | None
    packed: str | None
    shared: str | None
    loop: str | None  # sampled by the decode loop
    generate: str | None  # sampled by generate, rows padded to one length
    alone: str | None  # sampled by generate, row by row
    head: str | None


def check_model(policy: Policy, path: str, longest: int, samples: bool = True) -> None:
    """Tries what a run will do with its model, takes the ways that are exact, and says what was found.

    Args:
        policy: the model; the ways that it can't go are noted on it.
        path: its directory, for messages.
        longest: tokens of the longest row that the run may have.
        samples: whether the model itself samples.

    Raises:
        ValueError: no way is exact. The message has the measured gap.
    """
    began = time.monotonic()
    far = reach(policy.model)
    lengths = BEYOND if far is None or longest > far else WITHIN
    found = try_twin(policy.model, lengths)
    if found is None:
        return
    name = type(policy.model).__name__
    if found.head is not None:
        raise ValueError(f"--model {path}: {found.head}")
    if found.padded is not None:
        shorter = (
            "; rows of at most {} tokens may be, with a lower --max_prompt_length or --max_completion_length"
        )
        within = shorter.format(far) if far is not None and lengths == BEYOND else ""
        raise ValueError(
            f"--model {path}: rows of {name} that are forwarded together differ from each row alone ({found.padded}); it "
            f"cannot be trained exactly{within}"
        )
    policy.packs = policy.packs and found.packed is None
    if policy.shares_not is None and found.shared is not None:
        policy.shares_not = found.shared
    sampled = ""
    if samples:
        policy.loop_not, policy.generate_not = found.loop, found.generate
        loop_not = found.loop or obstacle(policy.model, longest)
        if loop_not and found.generate is not None and found.alone is not None:
            raise ValueError(
                f"--model {path}: {name} is sampled from another distribution than it is trained in: by the loop "
                f"({loop_not}), by generate ({found.generate}), and row by row ({found.alone}); use --sampler vllm"
            )
        way = "row by row" if found.generate is not None else "by generate"
        sampled = f", sampled {way if loop_not else 'by the loop'}"
    layouts = ["padded", *["packed"] * policy.packs, *["shared prompts"] * (policy.shares_not is None)]
    say(f"checked: {name}: rows {', '.join(layouts)}{sampled} ({time.monotonic() - began:.1f} s)")


def check_run_models(
    config: TrainConfig,
    policy: Policy,
    reference: Reference | None,
    tokenizer: Any,
    longest: int,
    world: World,
) -> None:
    """Tries what a run will do with its models, and that they can be saved. Raises ValueError where something can't work.

    Args:
        config: the run's configuration.
        policy: the model that is trained.
        reference: the reference model, or None.
        tokenizer: the policy's tokenizer.
        longest: tokens of the longest row.
        world: the ranks, of which the main one saves.
    """
    check_model(policy, config.model, longest, samples=config.sampler == "transformers")
    if isinstance(reference, Policy):
        check_model(reference, config.ref_model or config.model, longest, samples=False)
    described = policy.model.config.get_text_config()
    coefficient = getattr(described, "router_aux_loss_coef", None)
    if coefficient and getattr(described, "output_router_logits", False):
        say(
            f"note: the model's router auxiliary loss (router_aux_loss_coef {coefficient:g}) is not part of the training loss"
        )
    with world.together():
        if world.is_main:
            only_adapter = config.lora_save == "adapter"
            check_save(
                policy, tokenizer, SaveFormat(config.save_dtype, only_adapter), Path(config.output_dir)
            )


def check_tokens(
    policy: Policy, tokenizer: Any, prompts: Prompts | PromptStream, held_out: Sequence[Prompt] = ()
) -> Any:
    """Checks that model and tokenizer fit each other. Returns the tokenizer, with the eos token for padding if need be.

    Args:
        policy: the model.
        tokenizer: its tokenizer, which is not changed.
        prompts: the prompts; those of a stream are checked as they are read.
        held_out: the prompts to evaluate on.

    Returns:
        The tokenizer to use.

    Raises:
        ValueError: a prompt has a token that the model has no row for.
    """
    rows = policy.model.get_input_embeddings().weight.shape[0]
    prompts.check_ids(rows)
    for prompt in held_out:
        check_ids(prompt, rows)
    pad = tokenizer.pad_token_id
    beyond = [
        token for token, number in tokenizer.get_added_vocab().items() if number >= rows and number != pad
    ]
    if beyond:
        say(
            f"note: {len(beyond)} tokens of the tokenizer, such as {beyond[0]!r}, have no row in the model's embedding of "
            f"{rows} rows; they can't be in prompts, and are never sampled"
        )
    if pad is None or pad < rows:
        return tokenizer
    if tokenizer.eos_token is None:
        raise ValueError(
            f"--model: the padding token {tokenizer.pad_token!r} has no row in the model's embedding of {rows} rows, and there "
            "is no eos token to take its place; set one in the tokenizer"
        )
    say(
        f"note: the padding token {tokenizer.pad_token!r} has no row in the model's embedding; the eos token is used"
    )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


_found: dict[tuple[type, str, tuple[int, ...]], Found | None] = {}  # what was found in this process


def try_twin(model: Any, lengths: tuple[int, ...]) -> Found | None:
    """Tries a model's twin on prompts of these lengths, once in a process; None where none can be built or computed."""
    described = f"{model.config.to_json_string()} {model.config._attn_implementation} {model.device}"
    key = type(model), described, lengths
    if key not in _found:
        _found[key] = _build_and_try(model, lengths)
    return _found[key]


def _build_and_try(model: Any, lengths: tuple[int, ...]) -> Found | None:
    try:
        twin = make_twin(model)
    except ValueError as error:
        say(f"note: {error}; only the model itself was tried, in short rows")
        return None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # fastest for something so small
    try:
        return _try(Policy(twin, 1.0, torch.float32, torch.float32), lengths)
    finally:
        torch.set_num_threads(threads)


def _try(policy: Policy, lengths: tuple[int, ...]) -> Found | None:
    """Tries every way on a twin."""
    twin, new = policy.model, NEW_TOKENS[lengths]
    samples = [
        Sample(
            index=i,
            group=i // 2,
            prompt_ids=prompt.ids,
            completion_ids=ids,
            trainable=torch.ones(len(ids), dtype=torch.bool),
            advantage=0.0,
            weight=0.0,
            length=len(ids),
            sampler_logps=torch.zeros(len(ids)),
        )
        for i, (prompt, ids) in enumerate(_pairs(lengths, new, twin))
    ]
    try:
        alone = [
            log_probs_alone(policy, [*s.prompt_ids, *s.completion_ids.tolist()])[len(s.prompt_ids) - 1 :]
            for s in samples
        ]
    except Exception as error:  # noqa: BLE001 - kernels raise what they like
        say(f"note: a small {type(twin).__name__} could not be tried ({first_line(error)})")
        return None
    want = torch.cat(alone)

    def layout(kind: Layout) -> str | None:
        try:
            with torch.no_grad():
                got = policy(collate(samples, kind, policy.device))[0].logps.double().cpu()
        except Exception as error:  # noqa: BLE001 - architectures and kernels raise what they like; the reason is said
            return f"its forward fails: {first_line(error)}"
        return _reason(float((got - want).abs().mean()))

    def sampling(decode: str, batch_size: int = 256) -> str | None:
        gap, problem = try_sampling(policy, decode, lengths, new, batch_size)
        return problem or _reason(gap)

    try:
        probe_head(policy, "")
        head = None
    except ValueError as error:
        head = str(error).partition(": ")[2]
    generate = sampling("generate")
    return Found(
        padded=layout("padded"),
        packed=layout("packed"),
        shared=layout("shared"),
        # The loop's own limits, such as a window, are asked of the model itself, batch by batch.
        loop=None if obstacle(twin, max(lengths) + new) else sampling("loop"),
        generate=generate,
        alone=None if generate is None else sampling("generate", 1),
        head=head,
    )


def _pairs(lengths: tuple[int, ...], new: int, twin: Any) -> list[tuple[Any, torch.Tensor]]:
    """Prompts of these lengths, each with two completions of different lengths."""
    vocabulary = twin.config.get_text_config().vocab_size
    return [
        (prompt, (torch.arange(new + extra) * 5 + 3 * prompt.position + extra) % vocabulary)
        for prompt in trial_prompts(lengths, vocabulary)
        for extra in (0, 2)
    ]


def _reason(gap: float) -> str | None:
    if gap <= CLOSE:
        return None
    return f"log-probs differ by {gap:.2g} from each row alone, on a small twin of it"


def check_save(policy: Policy, tokenizer: Any, save_format: SaveFormat, output: Path) -> None:
    """Writes everything of the model but its weights, as the run will write it.

    Args:
        policy: the model.
        tokenizer: its tokenizer.
        save_format: how the run saves.
        output: the run's directory.

    Raises:
        ValueError: transformers refuses to write it.
        OSError: the directory cannot be written to.
    """
    with tempfile.TemporaryDirectory(dir=output, prefix=".trial-", suffix=".writing") as folder:
        try:
            write_model(Path(folder), {}, policy, tokenizer, save_format)
        except OSError as error:
            raise OSError(f"--output_dir {output}: a model cannot be written: {error}") from error
        except Exception as error:
            raise ValueError(
                f"--model {policy.model.config._name_or_path}: cannot be saved again: {type(error).__name__}: "
                f"{first_line(error)}; correct the files of its directory"
            ) from error
