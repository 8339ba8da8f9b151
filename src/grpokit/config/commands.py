"""Configurations of the commands that neither train nor evaluate; `options.py` has the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class InspectConfig:
    """Look at a dataset: its rows as the model will see them, lengths, columns, and what is wrong with it."""

    file: tyro.conf.Positional[str]
    """The dataset, as for --dataset: a file, a folder, or org/name[:config]."""
    model: str = ""
    """Directory of the model: its tokenizer and chat template make the prompts (default: rows as they are read)."""
    dataset_split: str = ""
    """Split of a folder or a Hub dataset (default: train, or the only one)."""
    max_samples: int = 0
    """Read only this many rows, the first ones (0: all)."""
    prompt_column: str = ""
    """Column that states the prompt, as for `grpokit train`."""
    system_prompt: str = ""
    """System message before every chat prompt that doesn't have one."""
    chat_template: str = ""
    """File with a chat template to use in place of the model's own."""
    chat_template_kwargs: tuple[str, ...] = ()
    """Arguments for the chat template, as name=value: enable_thinking=false."""
    generation_prefix: str = ""
    """Text that begins every completion."""
    max_prompt_length: int | None = None
    """Also say which prompts are longer than this many tokens."""
    tools: tuple[str, ...] = ()
    """Functions that the model may call, as for `grpokit train`: with --model, the prompts show them."""
    environment: tuple[str, ...] = ()
    """Environment, as for `grpokit train`: with --model, the prompts have what its reset says to the first member of a group."""
    seed: int = 42
    """Seed of the run: what reset gets follows from it."""
    rows: int = 2
    """Rows to show."""


@dataclass(frozen=True)
class PlayConfig:
    """Play one episode with tools or an environment in the terminal, or watch a model play it."""

    environment: tuple[str, ...] = ()
    """Environment to play with, as for train: file.py:Class, or several as name=file.py:Class."""
    tools: tuple[str, ...] = ()
    """Functions that may be called: file.py:function."""
    model: str = ""
    """Directory of a model that plays (default: you do)."""
    dataset: str = ""
    """Dataset whose row gives the prompt and the columns (default: no prompt, no columns)."""
    row: int = 1
    """Number of that row, from 1."""
    seed: int = 42
    """Seed that `reset` gets its own from, and of the model's tokens."""
    tool_parser: str = ""
    """file.py:function that finds the calls in a turn (default: the tokenizer's own, or the common forms)."""
    max_turns: int = 10
    """Most turns of the episode."""
    tool_timeout: float = 60.0
    """Seconds that a call of a tool or an environment may take (0: as long as it likes)."""
    max_completion_length: int = 256
    """--model: most tokens of the episode after its prompt."""
    max_turn_length: int = 0
    """--model: longest turn in tokens (0: what --max_completion_length leaves)."""
    temperature: float = 1.0
    """--model: sampling temperature."""
    top_p: float = 1.0
    """--model: the likeliest tokens whose probabilities add up to this (1: all)."""
    top_k: int = 0
    """--model: so many of the likeliest tokens (0: all)."""
    min_p: float = 0.0
    """--model: tokens with at least this share of the likeliest one's probability (0: all)."""
    repetition_penalty: float = 1.0
    """--model: above 1, tokens that the episode already has become less likely."""
    chat_template: str = ""
    """--model: file with a chat template to use in place of the model's own."""
    chat_template_kwargs: tuple[str, ...] = ()
    """--model: arguments for the chat template, as name=value: enable_thinking=false."""
    generation_prefix: str = ""
    """--model: text that begins every completion."""
    trust_remote_code: bool = False
    """--model: run code that the model's directory brings."""


@dataclass(frozen=True)
class ReportConfig:
    """Make report.html from what a run has written so far."""

    run: tyro.conf.Positional[str]
    """The run's --output_dir."""
    output: str = ""
    """Where to write the page (default: report.html in the run)."""


@dataclass(frozen=True)
class WatchConfig:
    """Show runs on a page in the browser while they train: curves, advice, completions, tokens."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Runs' --output_dir, or directories that hold runs. A run need not have begun."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but a loopback address (127.0.0.1, localhost, ::1) requires the token that is printed."""
    port: int = 8700
    """Port to listen on; if it is taken, the next free one (0: any)."""
    open: bool = False
    """Open the page in the browser."""


@dataclass(frozen=True)
class LossesConfig:
    """List the losses, show one, or plot some."""

    action: tyro.conf.Positional[Literal["list", "show", "plot"]]
    """list: the table. show: formula, parts, defaults, metrics, traps. plot: pictures."""
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of losses (plot: all of them by default)."""
    output: str = "losses.png"
    """plot: where to write; .png, .svg or .html."""


@dataclass(frozen=True)
class CompareBatchConfig:
    """Send one recorded batch through any set of losses and compare what they do to it."""

    file: tyro.conf.Positional[str]
    """A batch from `train --record_batches K`, or an .npz of LossBatch fields."""
    losses: tuple[str, ...] = ()
    """Losses to compare (default: all)."""
    output: str = ""
    """Also draw the comparison to this .png, .svg or .pdf."""
    max_completion_length: int | None = None
    """For losses that divide by it (default: the longest completion of the batch)."""


@dataclass(frozen=True)
class CompareConfig:
    """Compare variants of a training run over paired seeds: train them, test which differ, and write one page.

    Also takes every option of `grpokit train`; they apply to all variants: --model, --learning_rate, ...
    """

    config: str = ""
    """YAML file of the training run that the variants are made from, as for `grpokit train`."""
    vary: tuple[str, ...] = ()
    """Options to vary, as option=value,value: loss_type=grpo,dapo. With several, every combination is a variant."""
    variants: str = ""
    """YAML file of variants, in place of --vary: a name each, and under it the options that differ."""
    seeds: int | None = None
    """Runs of each variant, with the seeds S, S+1, ... where --seed is S (default: 5, or those that --output_dir has)."""
    jobs: int = 1
    """Runs that train at the same time. They share the CPU cores; each gets its own GPU where there are enough."""
    output_dir: str = "runs/compare"
    """Where to write the runs, as VARIANT/seed-SEED, and the page."""
    runs: tuple[str, ...] = ()
    """Directories of existing runs, or directories that hold runs: compare these, and train nothing."""
    metric: str = ""
    """Metric to compare, of the evaluations (eval/...) or of the steps (default: eval/reward, else reward)."""
    baseline: str = ""
    """Name of a variant: compare the others with this one alone (default: all pairs)."""
    alpha: float = 0.05
    """Probability of calling any pair different where all variants are equal."""
    output: str = ""
    """Where to write the page (default: compare.html in --output_dir; with --runs, in the current directory)."""
    training: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The words of the command line that are options of `grpokit train`."""


@dataclass(frozen=True)
class ReplayConfig:
    """Run a micro-batch again whose loss or gradient was NaN or infinite, and show where that begins."""

    file: tyro.conf.Positional[str]
    """A dump from a run's nonfinite/ directory."""
    model: str = ""
    """Weights to use (default: the run's checkpoint of that moment, or the newest one before it)."""
    dtype: Literal["", "auto", "float32", "bfloat16", "float64"] = ""
    """Another compute dtype than the run's, to see whether that fixes it."""


@dataclass(frozen=True)
class ConvertConfig:
    """Turn a run's configuration of TRL or ms-swift (YAML, launch script or command line) into grpokit's, or back into TRL's."""

    file: tyro.conf.Positional[str]
    """Their YAML file, a launch script, or a command line in quotes. With --to trl: a YAML file of grpokit's."""
    source: Annotated[Literal["trl", "swift"] | None, tyro.conf.arg(name="from")] = None
    """Whose options they are (default: as the command or the names of the options tell)."""
    to: Literal["grpokit", "trl"] = "grpokit"
    """trl: write a YAML file for `trl grpo --config` from one of grpokit's."""
    num_processes: int | None = None
    """Processes of their run, in which their batch is counted (default: as the launcher says, else 1)."""
    output: str = ""
    """Where to write the result (default: print it)."""


@dataclass(frozen=True)
class TaskConfig:
    """Make an offline task: a tiny model, training and evaluation prompts."""

    name: tyro.conf.Positional[str]
    """The task: sort_digits."""
    output_dir: str = ""
    """Where to write model/, train.jsonl and eval.jsonl (default: runs/NAME)."""
    seed: int = 42
    """Seed of the prompts, the model and its warm-up."""
