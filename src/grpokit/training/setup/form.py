"""How the prompts of a configuration are written, and the tokenizer that writes them."""

from __future__ import annotations

from typing import Any

from ...common.console import say
from ...config.options import ModelConfig
from ...data.form import PromptForm, ToolsOf, parse_template_kwargs, with_chat_template
from ...policy.load import load_tokenizer
from .parts import Parts


def prompt_form(config: ModelConfig, tools_of: ToolsOf | None = None) -> PromptForm:
    """Returns how the prompts of a configuration are written, with the tools of its episodes.

    Raises:
        ValueError: --chat_template_kwargs is malformed.
    """
    kwargs = parse_template_kwargs(config.chat_template_kwargs)
    return PromptForm(
        config.system_prompt, tools_of, kwargs, config.chat_template, prefix=config.generation_prefix
    )


def find_tokenizer(config: ModelConfig, parts: Parts, path: str) -> Any:
    """Returns the tokenizer that was given, or that of the model at `path`, with the chat template of --chat_template.

    Raises:
        ValueError: the model has no tokenizer, the template's file can't be read, or the checkpoint at `path` has another one.
    """
    tokenizer = parts.tokenizer or load_tokenizer(path, config.trust_remote_code)
    own = getattr(tokenizer, "chat_template", None)
    tokenizer = with_chat_template(tokenizer, config.chat_template)
    if config.chat_template and path != config.model and own != tokenizer.chat_template:
        raise ValueError(
            f"--chat_template {config.chat_template}: the file has changed since {path} was written with its template; "
            "restore the file, or start a new run"
        )
    for name in parse_template_kwargs(config.chat_template_kwargs):
        if name not in str(tokenizer.chat_template):
            say(
                f"note: --chat_template_kwargs {name}: the chat template does not read it, so it does nothing"
            )
    return tokenizer
