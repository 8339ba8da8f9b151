# ruff: noqa: E501 - templates are one line each, as models ship them
"""Small byte-level tokenizers with chat templates in the style of well-known models."""

from __future__ import annotations

from typing import Any

TEXT = """The quick brown fox jumps over the lazy dog. What is 3 + 4? It is 7. {"name": "add", "arguments": {"a": 3}}
<tool_call> </tool_call> <tool_response>\n\n</tool_response>\n\n assistant user tool system\n\n1 2 3 4 5 6 7 8 9 0\n"""

QWEN = """{%- if tools %}<|im_start|>system
# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{%- set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}{%- if m.role == 'tool' %}{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user
{% endif %}<tool_response>
{{ m.content }}
</tool_response>{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>
{% else %}
{% endif %}{%- elif m.role == 'assistant' %}<|im_start|>assistant
{% if loop.index0 > ns.last and m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}{% for call in m.tool_calls or [] %}{% if not loop.first or m.content %}
{% endif %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% else %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA = """<|begin_of_text|>{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}<|start_header_id|>assistant<|end_header_id|>

{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}<|eot_id|>{% elif m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>

{{ m.content | tojson }}<|eot_id|>{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

MISTRAL = """<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% elif m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}[TOOL_RESULTS] {"content": {{ m.content | tojson }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]{% elif m.tool_calls %}[TOOL_CALLS] [{% for call in m.tool_calls %}{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]</s>{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"""

GEMMA = """<bos>{% for m in messages %}{% if m.role not in ('user', 'assistant') %}{{ raise_exception('only user and assistant') }}{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

DEEPSEEK = """<|bos|>{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% elif m.role == 'tool' %}<|tool_output|>{{ m.content }}<|tool_end|>{% elif m.tool_calls %}<|Assistant|>{{ m.content or '' }}{% for call in m.tool_calls %}<|tool_call|>{{ call.function.name + '\\n' + call.function.arguments }}<|call_end|>{% endfor %}<|eos|>{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}<|eos|>{% endif %}{% endfor %}{% if add_generation_prompt and messages[-1].role != 'tool' %}<|Assistant|>{% endif %}"""

GLM = """[gMASK]<sop>{% for m in messages %}{% if m.role == 'user' %}<|user|>
{{ m.content }}{% elif m.role == 'tool' %}<|observation|>
<tool_response>
{{ m.content }}
</tool_response>{% else %}<|assistant|>
{{ m.content }}{% for call in m.tool_calls or [] %}
<tool_call>{{ call.function.name }}
{{ call.function.arguments | tojson }}</tool_call>{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""

GPT_OSS = """{% for m in messages %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>{% elif m.role == 'tool' %}<|start|>functions.{{ m.name }} to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>{% elif m.tool_calls %}<|start|>assistant<|channel|>commentary to=functions.{{ m.tool_calls[0].function.name }} <|constrain|>json<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>{% elif loop.last and not add_generation_prompt %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>{% else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"""

PHI = """{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% else %}<|endoftext|>{% endif %}"""

GEMMA_4 = """<bos>{% set ns = namespace(open=false) %}{% for m in messages %}{% if m.role == 'user' %}<|turn>user
{{ m.content }}<turn|>
{% elif m.role == 'assistant' %}{% if not ns.open %}<|turn>model
{% endif %}{% for call in m.tool_calls or [] %}<|tool_call>call:{{ call.function.name }}{}<tool_call|>{% endfor %}{% set rest = namespace(tools=true, any=false) %}{% for t in messages[loop.index0 + 1:] %}{% if t.role != 'tool' %}{% set rest.tools = false %}{% elif rest.tools %}{% set rest.any = true %}<|tool_response>response:{{ t.name }}{value:{{ t.content }}}<tool_response|>{% endif %}{% endfor %}{% if m.tool_calls and not rest.any %}<|tool_response>{% endif %}{{ m.content }}{% set ns.open = m.tool_calls and not m.content %}{% if not ns.open %}<turn|>
{% endif %}{% endif %}{% endfor %}{% if add_generation_prompt and not ns.open %}<|turn>model
{% endif %}"""

# The calls of a last turn lack their ids, and the turn its end.
APRIEL = """{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}{% if m.tool_calls %}{% set last = loop.last %}<tool_calls>[{% for call in m.tool_calls %}{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}{% if not last %}, "id": "{{ call.id }}"{% endif %}}{% if not loop.last %}, {% endif %}{% endfor %}]</tool_calls>{% endif %}{% if m.role != 'assistant' or not loop.last %}
<|end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""

# Contents are lists of parts: a text is left out.
PARTS = """{% for m in messages %}<|im_start|>{{ m.role }}
{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# The tools are shown with the last question, as Mistral's templates do.
TOOLS_LAST = """{% for m in messages %}{% if m.role == 'user' %}{% if loop.last and tools %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"""

# Calls and their answers are numbered through the conversation, whatever their ids.
NUMBERED = """{% set ns = namespace(calls=0, answers=0) %}{% for m in messages %}<|{{ m.role }}|>
{% if m.role == 'tool' %}{{ ns.answers }}: {{ m.content }}{% set ns.answers = ns.answers + 1 %}{% else %}{{ m.content }}{% for call in m.tool_calls or [] %}{{ ns.calls }}: {{ call.function.name }}{% set ns.calls = ns.calls + 1 %}{% endfor %}{% endif %}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""

# The template, its special tokens, its other added tokens, and the tokens that end a turn.
STYLES: dict[str, tuple[str, list[str], list[str], list[str]]] = {
    "qwen": (
        QWEN,
        ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        ["<tool_call>", "</tool_call>", "<think>", "</think>"],
        ["<|im_end|>"],
    ),
    "llama": (
        LLAMA,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"],
        [],
        ["<|eot_id|>", "<|eom_id|>"],
    ),
    "mistral": (
        MISTRAL,
        ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"],
        [],
        ["</s>"],
    ),
    "gemma": (GEMMA, ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], [], ["<end_of_turn>", "<eos>"]),
    "gemma-4": (
        GEMMA_4,
        [
            *("<bos>", "<eos>", "<|turn>", "<turn|>", "<|tool_call>", "<tool_call|>"),
            *("<|tool_response>", "<tool_response|>"),
        ],
        [],
        ["<turn|>", "<|tool_response>", "<eos>"],
    ),
    "deepseek": (
        DEEPSEEK,
        [
            *("<|bos|>", "<|eos|>", "<|User|>", "<|Assistant|>"),
            *("<|tool_call|>", "<|call_end|>", "<|tool_output|>", "<|tool_end|>"),
        ],
        [],
        ["<|eos|>"],
    ),
    "glm": (
        GLM,
        ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"],
        ["<tool_call>", "</tool_call>"],
        ["<|endoftext|>", "<|user|>", "<|observation|>"],
    ),
    "phi": (
        PHI,
        ["<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", "<|endoftext|>"],
        [],
        ["<|end|>", "<|endoftext|>"],
    ),
    "gpt-oss": (
        GPT_OSS,
        ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>"],
        [],
        ["<|return|>", "<|call|>"],
    ),
}


def chat_tokenizer(style: str) -> Any:
    """A byte-level tokenizer with some merges, and the template of that style."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    template, special, other, ends = STYLES[style]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=sorted(alphabet), show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in other])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=ends[0], pad_token=special[0])
    tokenizer.chat_template = template
    return tokenizer
