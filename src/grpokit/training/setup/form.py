"""How the prompts of a configuration are written."""

from __future__ import annotations

from ...config.options import ModelConfig
from ...data.form import PromptForm, ToolsOf, parse_template_kwargs


def prompt_form(config: ModelConfig, tools_of: ToolsOf | None = None) -> PromptForm:
    """Returns how the prompts of a configuration are written, with the tools of its episodes.

    Raises:
        ValueError: --chat_template_kwargs is malformed.
    """
    kwargs = parse_template_kwargs(config.chat_template_kwargs)
    return PromptForm(config.system_prompt, tools_of, kwargs, config.generation_prefix)
