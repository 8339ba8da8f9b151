"""The gate: before the first step, a run has tried each thing that it will rely on.

Layouts and ways of sampling are compared on a small twin of the architecture, in rows that outgrow its window. The model
itself samples short rows, and writes its files without weights. `--check full` compares everything on the model itself too.
What isn't exact is not used. Where nothing is left, the model is refused.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...common.console import say
from ...common.text import first_line
from ...config.options import ModelConfig, TrainConfig
from ...data.prompts import check_ids
from ...parallel import ALONE, World
from ...policy.architecture import obstacle
from ...policy.export import SaveFormat, write_model
from ...policy.policy import Policy
from ...policy.reference import Reference
from ...policy.twin import reach
from ...types import Prompt
from .prompts import PromptSource
from .ways import BEYOND, WITHIN, CannotCompute, Found, full_trial, short_trial, try_all, try_twin


def check_model(
    policy: Policy, path: str, longest: int, config: ModelConfig, samples: bool = True, world: World = ALONE
) -> None:
    """Tries what a run will do with its model, takes the ways that are exact, and says what was found.

    A collective where the policy is sharded.

    Args:
        policy: the model; the ways that it can't go are noted on it.
        path: its directory, for messages.
        longest: tokens of the longest row that the run may have.
        config: the configuration.
        samples: whether the model itself samples.
        world: the ranks. What fails on one of them is not done on any.

    Raises:
        ValueError: the head or padded rows are not exact, or no way of sampling is. The message has the measured gap.
    """
    began = time.monotonic()
    far = reach(policy.model)
    found = try_twin(policy.model, BEYOND if far is None or longest > far else WITHIN)
    said = world.gather_json(None if found is None else vars(found))
    take_ways(policy, path, [Found(**of_rank) for of_rank in said if of_rank is not None], longest, samples)
    trial = short_trial(longest, samples, world)
    if config.check == "full":
        budget = config.micro_batch_tokens if isinstance(config, TrainConfig) else trial.budget
        trial = full_trial(longest, config.max_completion_length, samples, budget, world)
    try:
        take_ways(policy, path, [try_all(policy, trial)], longest, samples)
    except CannotCompute as error:
        raise ValueError(f"--model {path}: cannot be computed {trial.where}: {error}") from error
    name, sampled = type(policy.model).__name__, ""
    if samples:
        way = "row by row" if policy.generate_not is not None else "by generate"
        sampled = f", sampled {way if policy.loop_not or obstacle(policy.model, longest) else 'by the loop'}"
    rows = f"; {trial.where.removeprefix('on ')}" if config.check == "full" else ""
    layouts = ["padded", *["packed"] * policy.packs, *["shared prompts"] * (policy.shares_not is None)]
    say(f"checked: {name}: rows {', '.join(layouts)}{sampled}{rows} ({time.monotonic() - began:.1f} s)")


def take_ways(policy: Policy, path: str, everywhere: Sequence[Found], longest: int, samples: bool) -> None:
    """Notes on the policy which ways some rank has found not to be exact.

    Args:
        policy: the model.
        path: its directory, for messages.
        everywhere: what each rank has found.
        longest: tokens of the longest row.
        samples: whether the model itself samples.

    Raises:
        ValueError: no exact way is left. The message has the measured gap.
    """

    def problem(way: str) -> str | None:
        return next((why for found in everywhere if (why := getattr(found, way)) is not None), None)

    name, far = type(policy.model).__name__, reach(policy.model)
    if (why := problem("head")) is not None:
        raise ValueError(f"--model {path}: {why}")
    if (why := problem("padded")) is not None:
        within = ""
        if far is not None and longest > far:
            within = (
                f"; rows of at most {far} tokens can be: lower --max_prompt_length or --max_completion_length"
            )
        raise ValueError(
            f"--model {path}: rows of {name} that are forwarded together differ from each row alone ({why}); it cannot be "
            f"trained exactly{within}"
        )
    policy.packs = policy.packs and problem("packed") is None
    policy.shares_not = policy.shares_not or problem("shared")
    if not samples:
        return
    policy.loop_not = policy.loop_not or problem("loop")
    policy.generate_not = policy.generate_not or problem("generate")
    loop_not, alone_not = policy.loop_not or obstacle(policy.model, longest), problem("alone")
    if loop_not and policy.generate_not and alone_not:
        raise ValueError(
            f"--model {path}: {name} is sampled from another distribution than it is trained in: by the loop ({loop_not}), by "
            f"generate ({policy.generate_not}), and row by row ({alone_not}); use --sampler vllm"
        )


def check_run_models(
    config: TrainConfig,
    policy: Policy,
    reference: Reference | None,
    tokenizer: Any,
    longest: int,
    world: World,
) -> None:
    """Tries what a run will do with its models, and that the policy can be saved. Raises ValueError where something can't work.

    Args:
        config: the run's configuration.
        policy: the model that is trained.
        reference: the reference model, or None.
        tokenizer: the policy's tokenizer.
        longest: tokens of the longest row.
        world: the ranks, of which the main one saves.
    """
    check_model(policy, config.model, longest, config, config.sampler == "transformers", world)
    if isinstance(reference, Policy):
        check_model(reference, config.ref_model or config.model, longest, config, False, world)
    with world.together():
        if world.is_main:
            only_adapter = config.lora_save == "adapter"
            check_save(
                policy, tokenizer, SaveFormat(config.save_dtype, only_adapter), Path(config.output_dir)
            )


def check_tokens(
    policy: Policy, tokenizer: Any, prompts: PromptSource, held_out: Sequence[Prompt] = ()
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
        ValueError: a prompt has a token outside the model's embedding, or the padding token is outside it and there is no eos
            token.
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
