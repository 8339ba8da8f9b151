r"""A process that compares answers by math-verify: started by `accuracy.py` as a script, killed by it when late.

It reads requests and writes replies as lines of JSON, and imports nothing of grpokit: a worker with torch would take
seconds to start and hundreds of megabytes. For each request {"reference", "answer"} it writes two lines: whether the
reference can be read, then the score; so that a time-out tells which of them is to blame.

No answer is ever evaluated as Python. math-verify's parser for plain text would do that, through sympy's `parse_expr`:
so a plain number is found here, and handed on as LaTeX. The parser of LaTeX makes its numbers that way too: so the
function of sympy's that calls `eval` is replaced by one that makes numbers, and nothing else.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from functools import lru_cache

MEMORY = 2 << 30  # bytes of address space: 9^9^9^9 must not take the machine's
PATIENCE = 5.0  # seconds between looks at whether the parent is still there

# An integer with or without separators, a decimal, a fraction, a percentage: the last one in a text is its answer.
NUMBER = re.compile(
    r"(?<![\w.\\])-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:(?<=\d)|(?=\.\d))(?:\.\d+)?(?:\s?/\s?\d+)?\s?%?"
)
LATEX = re.compile(r"\$|\\\(|\\\[|\\boxed\b")
LATEX_END = re.compile(r"\$|\\\)|\\\]")
PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")


def extract(text: str, is_reference: bool) -> list:
    r"""What a text says its answer is: sympy objects, and the text of the last; [] where nothing is found.

    The last `\boxed{}`; else LaTeX after "final answer is" or "answer:"; else the last LaTeX or number, whichever
    comes later. A reference is what follows "####" if it has that (GSM8K), and a formula as a whole if it looks
    like one.
    """
    if is_reference:
        text = text.rpartition("####")[2].strip().removesuffix(".")
        if not LATEX.search(text) and not PROSE.search(text):
            text = f"${text}$"
    after = LATEX_END.split(text)[-1]
    return _parsed(text, anchored=True) or _last_number(after) or _parsed(text) or _last_number(text)


def _parsed(text: str, anchored: bool = False) -> list:
    from math_verify import LatexExtractionConfig, parse

    if not LATEX.search(text):
        return []
    config = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=not anchored)
    # No time-outs of its own: those are alarms, and the one that counts ends this process.
    return parse(text, [config], extraction_mode="first_match", parsing_timeout=0)


def _last_number(text: str) -> list:
    found = [match[0].strip() for match in NUMBER.finditer(text) if match[0].strip()]
    return _parsed(f"${found[-1].replace('%', chr(92) + '%')}$") if found else []


def evaluate_nothing() -> None:
    """Put `number_of` in the place of sympy's `eval_expr`, in this process."""
    from sympy.parsing import sympy_parser

    sympy_parser.eval_expr = number_of


def number_of(code: str, *namespaces: dict) -> object:
    """The number of sympy's own way to write one, `Integer (42 )`. Raises ValueError for anything else."""
    import sympy

    call = ast.parse(code, mode="eval").body
    makers = {"Integer": sympy.Integer, "Float": sympy.Float, "Rational": sympy.Rational}
    if not isinstance(call, ast.Call) or call.keywords or ast.unparse(call.func) not in makers:
        raise ValueError(f"not a number: {code[:80]}")
    return makers[ast.unparse(call.func)](*map(ast.literal_eval, call.args))


@lru_cache(maxsize=256)
def reference(text: str) -> tuple:
    """The parts of a reference answer. Kept: a group's completions all have the same one."""
    return tuple(extract(text, True))


def serve(requests: Iterator[dict], reply) -> None:
    """Answer requests for as long as there are any."""
    from math_verify import verify

    for request in requests:
        # The kernel then ends this process, whatever it is in.
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        gold = list(reference(request["reference"]))
        reply({"reference": bool(gold)})
        right = bool(gold) and verify(gold, extract(request["answer"], False), timeout_seconds=0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply({"score": float(right)})


def lines(fd: int, parent: int) -> Iterator[dict]:
    """Requests from a pipe, until it is closed or the parent is gone (a child of its may hold the pipe open)."""
    buffer = b""
    while True:
        if not select.select([fd], [], [], PATIENCE)[0]:
            if os.getppid() != parent:
                return
            continue
        read = os.read(fd, 1 << 16)
        if not read:
            return
        *whole, buffer = (buffer + read).split(b"\n")
        yield from map(json.loads, whole)


def main() -> None:
    """Set limits, import math-verify, say so, and serve."""
    parent = int(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    out = os.dup(1)
    os.dup2(2, 1)  # what sympy prints isn't a reply

    def reply(message: dict) -> None:
        os.write(out, json.dumps(message).encode() + b"\n")

    import logging

    logging.disable(logging.CRITICAL)
    try:
        import resource

        evaluate_nothing()
        extract("$1$", True)  # compiles its expressions
    except ImportError as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        return
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    reply({"ready": True})
    with contextlib.suppress(BrokenPipeError):
        serve(lines(0, parent), reply)


if __name__ == "__main__":
    main()
