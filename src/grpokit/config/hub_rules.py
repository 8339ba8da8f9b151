"""The rules of the Hub's options, as far as they can be checked without the network."""

from __future__ import annotations

import re

from .rules import Rule

# The Hub's own rule for a repository's name, with the organization or user before it.
REPOSITORY = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*(?<![.-])/\w[\w.-]{0,95}(?<![.-])(?<!\.git)", re.ASCII)

HUB_RULES = [
    Rule(
        "push_to_hub",
        lambda c: c.push_to_hub == "" or REPOSITORY.fullmatch(c.push_to_hub) is not None,
        "expected ORG/NAME, a repository of the Hub: letters, digits, -, _ and .",
    ),
    Rule(
        "hub_private_repo",
        lambda c: not c.hub_private_repo or c.push_to_hub != "",
        "is not used without --push_to_hub ORG/NAME",
    ),
    Rule(
        "hub_revision",
        lambda c: c.hub_revision == "" or c.push_to_hub != "",
        "is not used without --push_to_hub ORG/NAME",
    ),
    Rule(
        "hub_revision",
        lambda c: (
            c.hub_revision == "" or re.fullmatch(r"[\w.-]+(/[\w.-]+)*", c.hub_revision, re.ASCII) is not None
        ),
        "is no name of a branch, such as v2",
    ),
]
