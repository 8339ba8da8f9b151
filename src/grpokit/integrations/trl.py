"""TRL's GRPOTrainer with any of grpokit's losses: denominators and statistics are of the whole optimizer step.

    from grpokit.integrations.trl import GRPOTrainer

    GRPOTrainer(model, reward_funcs, args, train_dataset, grpokit_loss="gmpo").train()

It is TRL's class in everything but the loss: `grpokit_loss` names it (default: `args.loss_type`), and `loss_kwargs` has the
options that a GRPOConfig lacks. TRL is imported when `GRPOTrainer` is.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..common.console import say
from ..losses import Loss
from .trl_head import add_head
from .trl_options import check_with_trl, loss_from_trl
from .versions import import_tested
from .windows import Rows, Window

GRPOTrainer: Any

TESTED = "1.16"
# What TRL passes to a forward pass beside the rows.
FORWARD = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)
_Base: Any = object  # TRL's GRPOTrainer, which is known once TRL is imported


def __getattr__(name: str) -> Any:
    if name == "GRPOTrainer":
        return _trainer_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _trainer_class() -> type:
    base = _import_trl().GRPOTrainer
    names = {"__doc__": f"{GrpokitLoss.__doc__}", "__module__": __name__, "__qualname__": "GRPOTrainer"}
    return type("GRPOTrainer", (GrpokitLoss, base), names)


def _import_trl() -> Any:
    """Imports TRL. Raises ImportError where it is missing, or another version than the one that was tested."""
    return import_tested("trl", TESTED, "trl")[0]


class GrpokitLoss(_Base):
    """TRL's GRPOTrainer, whose loss is one of grpokit's.

    Args:
        *args: as TRL's.
        grpokit_loss: a key of `grpokit.losses.LOSSES`, or a Loss from `make_loss`. None: that of `GRPOConfig(loss_type=)`.
        loss_kwargs: options of the loss that a GRPOConfig lacks, such as {"real_tau": 0.3}.
        **named: as TRL's.

    Raises:
        ValueError: options that don't go together; the message names values that do.
    """

    def __init__(
        self,
        *args: Any,
        grpokit_loss: str | Loss | None = None,
        loss_kwargs: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> None:
        theirs = super().__init__
        given = inspect.signature(theirs).bind(*args, **named).arguments
        config = given.get("args") or _import_trl().GRPOConfig()
        self.grpokit_loss = loss_from_trl(config, grpokit_loss, loss_kwargs)
        has_sampler = config.use_vllm or given.get("rollout_func") is not None
        check_with_trl(config, self.grpokit_loss, has_sampler)
        self._window: Window | None = None
        theirs(*args, **named)
        self._add_heads()
        if self.accelerator.is_main_process:
            say(f"loss: {self.grpokit_loss}")

    def _add_heads(self) -> None:
        """Scores tokens by grpokit's head. TRL's stays for the router auxiliary loss, and where DeepSpeed shards the head."""
        if self.aux_loss_enabled or self.is_deepspeed_enabled:
            return
        output = importlib.import_module("trl.trainer.utils").FusedCausalLMOutput
        for model in (self.model, self.ref_model):
            if model is not None:
                model = self.accelerator.unwrap_model(model)
                plain = model.get_base_model() if hasattr(model, "peft_config") else model
                add_head(plain, self.temperature, output)

    # ----------------------------------------------------------------------- the batch

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Numbers completions and groups over all processes. TRL shuffles and splits the numbers with the rest."""
        output = super()._generate_and_score_completions(inputs)
        mask = output["completion_mask"]
        count = len(mask)
        ids = torch.arange(count, device=mask.device) + count * self.accelerator.process_index
        generations = self.num_generations if self.model.training else self.num_generations_eval
        output["sequence_ids"], output["group_ids"] = ids, ids // generations
        return output

    def get_batch_samples(self, epoch_iterator: Iterator, *rest: Any, **named: Any) -> Any:
        """Begins an optimizer step. See TRL's, and transformers'."""
        self._window = None
        return super().get_batch_samples(epoch_iterator, *rest, **named)

    def _rows(self, inputs: Mapping[str, Any]) -> Rows:
        mask = inputs["completion_mask"]
        return Rows(
            mask=(mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).bool(),
            advantages=inputs["advantages"],
            sequence_ids=inputs["sequence_ids"],
            group_ids=inputs["group_ids"],
            old_logps=inputs.get("old_per_token_logps"),
            ref_logps=inputs.get("ref_per_token_logps"),
            sampler_logps=inputs.get("sampling_per_token_logps"),
        )

    def _micro_batches(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the micro-batches of the optimizer step that `inputs` begins. In evaluation that is one batch."""
        if not self.model.training:
            return [inputs]
        # A last step of an epoch may have fewer than gradient_accumulation_steps: transformers sets the real number.
        start, count = self._step % self.args.steps_per_generation, self.current_gradient_accumulation_steps
        found = self._buffered_inputs[start : start + count]
        if len(found) < count or found[0] is not inputs:
            raise ValueError(
                f"gradient_accumulation_steps {self.args.gradient_accumulation_steps}: an optimizer step begins at micro-batch "
                f"{start} of {self.args.steps_per_generation} (steps_per_generation) and ends in the next generation, because an "
                "epoch before had a shorter last step; give each epoch a multiple of gradient_accumulation_steps micro-batches"
            )
        return found

    # ----------------------------------------------------------------------- the loss

    def _score(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Computes log-probs [B, T], entropies [B, T] and the router auxiliary loss, by the head that `_add_heads` left."""
        ids, mask = (
            torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], dim=1)
            for name in ("ids", "mask")
        )
        return self._get_per_token_logps_and_entropies(
            model,
            ids,
            mask,
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs.get(name) for name in FORWARD},
        )

    def _plan(self, model: Any, inputs: dict[str, Any]) -> Window:
        """Fixes the denominators of the optimizer step, and the statistics of a loss that needs them. A collective."""
        batches = self._micro_batches(inputs)
        window = Window.plan(self.grpokit_loss, [self._rows(batch) for batch in batches], self._gather)
        if self.grpokit_loss.needs_stats:
            with torch.no_grad():
                scores = [self._score(model, batch)[:2] for batch in batches]
            window.fix_statistics(scores, self.args.seed, self.state.global_step)
        return window

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        training = self.model.training
        if not training or self._window is None:
            window = self._plan(model, inputs)
        else:
            window = self._window
        logps, entropies, aux_loss = self._score(model, inputs)
        share = window.share(logps, entropies) * self._processes_and_steps(training)
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if training else 1
            share = share + self.router_aux_loss_coef * aux_loss * self._steps_divided(training) / steps
            mean = self.accelerator.gather_for_metrics(aux_loss).mean().item()
            self._metrics["train" if training else "eval"]["aux_loss"].append(mean)
        if window.is_complete:
            self._log_window(window, "train" if training else "eval")
        if training:
            self._window = window
        return share

    def _processes_and_steps(self, training: bool) -> int:
        """Returns the factor to multiply this process's share of the loss by, so that the gradient is that of the sum.

        Shares are summed over processes and micro-batches. Data parallelism averages gradients over processes, and Trainer or
        accelerate may divide by the number of micro-batches.
        """
        return self.accelerator.num_processes * self._steps_divided(training)

    def _steps_divided(self, training: bool) -> int:
        """Returns what Trainer and accelerate divide a micro-batch's loss by, before its backward pass."""
        if not training:
            return 1
        # Older Trainers don't read `loss_is_scaled_for_ga`. They divide the loss if the model takes no loss arguments, or if
        # the batch has no number of labels; TRL's batches have none.
        reads = any(
            "loss_is_scaled_for_ga" in vars(c)
            for c in type(self).__mro__
            if c.__module__.startswith("transformers.")
        )
        by_trainer = 1 if reads and self.loss_is_scaled_for_ga else self.current_gradient_accumulation_steps
        return by_trainer * self.accelerator.gradient_accumulation_steps

    # ----------------------------------------------------------------------- ranks and metrics

    def _gather(self, value: Any) -> list[Any]:
        if self.accelerator.num_processes == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def _log_window(self, window: Window, mode: str) -> None:
        """Adds the step's metrics to TRL's. The loss itself is logged by transformers' Trainer."""
        for name, value in window.joined_metrics().items():
            if name != "loss" and not math.isnan(value):  # a step without a signal has no ratios
                self._metrics[mode][name].append(value)
