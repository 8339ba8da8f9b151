"""Converts LaTeX to text for a terminal: ρ, Σⱼ, (a+b)/c. It supports what the losses' formulas use."""

from __future__ import annotations

import re

_SYMBOLS = {
    "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "kappa": "κ", "lambda": "λ", "mu": "μ", "pi": "π",
    "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "omega": "ω", "ell": "ℓ", "alpha": "α", "infty": "∞",
    "leq": " ≤ ", "geq": " ≥ ", "ne": " ≠ ", "in": "∈", "to": "→", "cdot": "·", "times": "×", "|": "‖",
    "left": "", "right": "", "quad": "   ", " ": " ", "{": "{", "}": "}",
}  # fmt: skip
_OPERATORS = {"sum": "Σ", "prod": "Π", "log": "log ", "exp": "exp", "min": "min", "max": "max"}
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[{}^_]|\s+|.")
_LOWERED = dict(zip("0123456789aehijklmnoprstuvx,", "₀₁₂₃₄₅₆₇₈₉ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ,", strict=True))
_RAISED = dict(
    zip("0123456789abcdefghijklmnoprstuvwxyz−+", "⁰¹²³⁴⁵⁶⁷⁸⁹ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ⁻⁺", strict=True)
)


def plain_text(latex: str) -> str:
    r"""Converts `latex` to one line of Unicode text. Raises ValueError for an unmatched brace.

    Example:
        >>> plain_text(r"w_i = \frac{1}{N\,T_i}")
        'wᵢ = 1/(N·Tᵢ)'
    """
    text, rest = _group(_TOKEN.findall(latex))
    if rest:
        raise ValueError(f"formula {latex!r}: has a brace too many")
    text = re.sub(r"(?<=\S) {2}(?=\S)", " ", text)  # one space between words; \quad keeps its three
    text = re.sub(r"log (?=[(\[])|\s+(?=[),])", lambda found: found[0].strip(), text)
    return re.sub(r"(Σ_\([^()]*\))(?=\w)", r"\1 ", text).strip()


def _group(tokens: list[str]) -> tuple[str, list[str]]:
    """Returns the text up to this group's closing brace, and the tokens after it."""
    text = ""
    while tokens and tokens[0] != "}":
        piece, tokens = _atom(tokens, text)
        text += piece
    return text, tokens[1:]


def _atom(tokens: list[str], before: str) -> tuple[str, list[str]]:
    """Returns the text of the first token with its arguments, and the tokens after them. `before` is the text before it."""
    token, rest = tokens[0], tokens[1:]
    if token == "{":
        return _group(rest)
    if token in ("_", "^"):
        script, rest = _argument(rest)
        return _script(script, token), rest
    if token == "\\frac":
        top, rest = _argument(rest)
        bottom, rest = _argument(rest)
        return _bracketed(top) + "/" + _bracketed(bottom), rest
    if token in ("\\mathrm", "\\mathbf", "\\text", "\\operatorname"):
        return _argument(rest)
    if token == "\\,":
        word = re.search(r"(?<![_a-z])[a-z]{2,}$", before)  # sgn A
        return (" " if word or not before or before[-1] in ", (" else "·"), rest
    if token.isspace():
        return ("" if not before or before[-1] == " " else " "), rest
    if token[1:] in _OPERATORS and token[0] == "\\":
        after = ")]|'" if token == "\\sum" else ")]"
        joined = before and (before[-1].isalnum() or before[-1] in after or before[-1] in _LOWERED.values())
        return (" " if joined else "") + _OPERATORS[token[1:]], rest
    if token[0] == "\\":
        return _SYMBOLS.get(token[1:], token[1:]), rest
    return ("−" if token == "-" else token), rest


def _argument(tokens: list[str]) -> tuple[str, list[str]]:
    while tokens and tokens[0].isspace():
        tokens = tokens[1:]
    return _atom(tokens, "") if tokens else ("", tokens)


def _script(script: str, kind: str) -> str:
    """Uses small characters where Unicode has them all, else _old or ^(k−t)."""
    table = _LOWERED if kind == "_" else _RAISED
    if script and all(c in table for c in script):
        return "".join(table[c] for c in script)
    simple = all(c.isalnum() or c == "," for c in script)
    return kind + (script if simple else f"({script})")


def _bracketed(text: str) -> str:
    """Puts `text` in brackets unless it is one factor: 1/(N·T) but |A|/τ."""
    if re.fullmatch(r"\w+'?|\|\w+\|", text) and not re.fullmatch(r"\d+\D+", text):
        return text
    return text if text.startswith("Σ") and not re.search(r"[·+−]", text) else f"({text})"
