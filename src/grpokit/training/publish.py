"""Uploads a run's final model to the Hub, and checks at the start that the upload will be possible."""

from __future__ import annotations

from ..common.console import say
from ..common.hub import is_hub_model
from ..common.push import check_push, push_command, push_folder, reason_of
from ..config.options import TrainConfig
from ..parallel import World
from .run import Run


def check_publishing(config: TrainConfig, world: World) -> None:
    """Raises ValueError on every rank where --push_to_hub would fail at the end. A collective."""
    if not config.push_to_hub:
        return
    with world.together():
        if world.is_main:
            check_push(config.push_to_hub, config.hub_private_repo, config.hub_revision)
    if config.lora_r and config.lora_save == "adapter" and not is_hub_model(config.model):
        say(
            f"note: --push_to_hub {config.push_to_hub}: the adapter's base model {config.model} is a directory of this machine; "
            "others must correct base_model_name_or_path in adapter_config.json (--lora_save merged uploads a whole model)"
        )


def publish(run: Run) -> None:
    """Uploads final/ where --push_to_hub asks for it. The main rank does it, and the others don't wait.

    If the upload fails, a warning shows the command that does it by hand. The run still succeeds: if it failed, a launcher
    would train again.
    """
    name, revision, final = run.config.push_to_hub, run.config.hub_revision, run.output / "final"
    if not name or not run.world.is_main:
        return
    message = f"grpokit: model after {run.state.step} steps"
    by_hand = f"the model is in {final}; upload it with\n  {push_command(final, name, revision)}"
    try:
        say(f"uploading {final} to {name}")
        address = push_folder(final, name, revision, message)
    except KeyboardInterrupt:
        say(f"warning: --push_to_hub {name}: stopped by Ctrl-C; {by_hand}")
        raise
    except Exception as error:  # noqa: BLE001 - everything is saved, and the run has succeeded
        say(f"warning: --push_to_hub {name}: could not be uploaded ({reason_of(error)}); {by_hand}")
    else:
        say(f"uploaded: {address}")
