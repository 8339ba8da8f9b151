"""Converts the upload to the Hub: their flag and repository name become one option, --push_to_hub ORG/NAME."""

from __future__ import annotations

from ...config.conversion.draft import Draft
from ...config.hub_rules import REPOSITORY


def convert_hub(draft: Draft) -> None:
    """Converts push_to_hub, hub_model_id and what goes with them."""
    pushes, name = draft.take_flag("push_to_hub"), draft.take_word("hub_model_id")
    private, revision = draft.take_flag("hub_private_repo"), draft.take_word("hub_revision")
    if not pushes:
        if name:
            draft.say(f"hub_model_id: {name} is not used without push_to_hub; left out")
        return
    if not REPOSITORY.fullmatch(name):
        draft.say(
            f"push_to_hub: {name or 'without hub_model_id'}: here it is the repository's whole name, ORG/NAME; left out, "
            "add --push_to_hub ORG/NAME"
        )
        return
    if draft.trainer == "swift" and "use_hf" not in draft.given:
        draft.say("push_to_hub: goes to the Hub of Hugging Face, not to ModelScope")
    draft.put("push_to_hub", name, "hub_model_id")
    if private:
        draft.put("hub_private_repo", True)
    if revision:
        draft.put("hub_revision", revision)
