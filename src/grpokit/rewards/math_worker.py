"""A process that compares answers by math-verify. `accuracy.py` starts it as a script and kills it when it is late.

It reads requests and writes replies as lines of JSON. It imports nothing of grpokit: with torch, a worker would take
seconds to start and hundreds of megabytes. For each request {"reference", "answer"} it writes two lines: whether the
reference can be read, then the score. So after a time-out it is clear which of the two was too slow.

No answer is ever evaluated as Python. math-verify's parser for plain text would do that, through sympy's `parse_expr`, so
plain numbers are found here and passed on as LaTeX. The LaTeX parser also makes its numbers that way, so the sympy
function that calls `eval` is replaced by one that only makes numbers.
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

MEMORY = 2 << 30  # bytes of address space, because 9^9^9^9 must not take the machine's memory
PATIENCE = 5.0  # seconds between checks that the parent is still there

# An integer with or without separators, a decimal, a fraction or a percentage. The last one in a text is its answer.
NUMBER = re.compile(
    r"(?<![\w.\\])-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:(?<=\d)|(?=\.\d))(?:\.\d+)?(?:\s?/\s?\d+)?\s?%?"
)
LATEX = re.compile(r"\$|\\\(|\\\[|\\boxed\b")
LATEX_END = re.compile(r"\$|\\\)|\\\]")
PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")


def extract(text: str, is_reference: bool) -> list:
    r"""Finds the answer in a text: sympy objects, and the text of the last one; [] where nothing is found.

    The answer is the last `\boxed{}`; else LaTeX after "final answer is" or "answer:"; else the last LaTeX or number,
    whichever comes later. In a reference it is the text after "####" if there is one (GSM8K), and the whole text if it looks
    like a formula.
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
    # No time-outs of its own: those are alarms, and the alarm set here ends this process.
    return parse(text, [config], extraction_mode="first_match", parsing_timeout=0)


def _last_number(text: str) -> list:
    found = [match[0].strip() for match in NUMBER.finditer(text) if match[0].strip()]
    return _parsed(f"${found[-1].replace('%', chr(92) + '%')}$") if found else []


def evaluate_nothing() -> None:
    """Replaces sympy's `eval_expr` by `number_of`, in this process."""
    from sympy.parsing import sympy_parser

    sympy_parser.eval_expr = number_of


def number_of(code: str, *namespaces: dict) -> object:
    """Makes a number from sympy's own notation, `Integer (42 )`. Raises ValueError for anything else."""
    import sympy

    call = ast.parse(code, mode="eval").body
    makers = {"Integer": sympy.Integer, "Float": sympy.Float, "Rational": sympy.Rational}
    if not isinstance(call, ast.Call) or call.keywords or ast.unparse(call.func) not in makers:
        raise ValueError(f"not a number: {code[:80]}")
    return makers[ast.unparse(call.func)](*map(ast.literal_eval, call.args))


@lru_cache(maxsize=256)
def reference(text: str) -> tuple:
    """Returns the parts of a reference answer. Cached, because a group's completions all have the same one."""
    return tuple(extract(text, True))


def serve(requests: Iterator[dict], reply) -> None:
    """Answers requests until there are no more."""
    from math_verify import verify

    for request in requests:
        # The kernel then ends this process, whatever it is doing.
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        gold = list(reference(request["reference"]))
        reply({"reference": bool(gold)})
        right = bool(gold) and verify(gold, extract(request["answer"], False), timeout_seconds=0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply({"score": float(right)})


def lines(fd: int, parent: int) -> Iterator[dict]:
    """Yields requests from a pipe until it is closed or the parent is gone (whose child may hold the pipe open)."""
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
    """Sets limits, imports math-verify, reports that it is ready, and serves."""
    parent = int(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    out = os.dup(1)
    os.dup2(2, 1)  # what sympy prints is no reply

    def reply(message: dict) -> None:
        os.write(out, json.dumps(message).encode() + b"\n")

    import logging

    logging.disable(logging.CRITICAL)
    try:
        import resource

        evaluate_nothing()
        extract("$1$", True)  # compiles math-verify's expressions
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
