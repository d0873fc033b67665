"""A formula written as plain text, set as mathematics."""

from __future__ import annotations

import re

__all__ = ["typeset"]

GREEK = {
    "beta": r"\beta",
    "eps": r"\varepsilon",
    "alpha": r"\alpha",
    "gamma": r"\gamma",
    "sigma": r"\sigma",
    "lambda": r"\lambda",
    "xi": r"\xi",
}
FUNCTIONS = ("max", "min", "mean", "sum", "log", "exp", "softmax", "median", "abs", "sqrt")
TOKEN = re.compile(r"[A-Za-z][A-Za-z_]*|<-|\d+(?:\.\d+)?|\s+|.", re.ASCII)


def typeset(formula: str) -> str:
    """The same formula for matplotlib: letters slanted, functions upright, powers raised, Greek letters, times signs.

    >>> typeset("y = (mean(x^p))^(1/p)")
    '$y\\\\ =\\\\ (\\\\mathrm{mean}(x^{p}))^{1/p}$'
    """
    formula = re.sub(r"\b(\w+) x \1\b", r"\1 × \1", formula)
    tokens = TOKEN.findall(formula)
    return "$" + joined(tokens) + "$"


def joined(tokens: list[str]) -> str:
    done = []
    at = 0
    while at < len(tokens):
        token = tokens[at]
        at += 1
        if token in "^_" and at < len(tokens):
            end = group_end(tokens, at)
            inner = tokens[at:end]
            if inner[0] == "(" and inner[-1] == ")":
                inner = inner[1:-1]
            done.append(token + "{" + joined(inner) + "}")
            at = end
        else:
            done.append(one(token))
    return "".join(done)


def group_end(tokens: list[str], start: int) -> int:
    """Where the power that begins at `start` ends: one token, or a pair of brackets with what it holds."""
    if tokens[start] != "(":
        return start + 1
    depth = 0
    for at in range(start, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[at], 0)
        if depth == 0:
            return at + 1
    return len(tokens)


def one(token: str) -> str:
    if token.isspace():
        return r"\ "
    if token in GREEK:
        return GREEK[token]
    head, mark, tail = token.partition("_")
    if mark and len(head) == 1 and tail:
        return head + "_{" + (tail if len(tail) == 1 else r"\mathrm{" + tail.replace("_", r"\_") + "}") + "}"
    if len(token) > 1 and token[0].isalpha():
        return r"\mathrm{" + token.replace("_", r"\_") + "}"
    return {
        "<-": r"\leftarrow",
        "×": r"\times",
        "*": r"\cdot",
        "|": r"\,\vert\,",
        "#": r"\#",
        "$": r"\$",
        "%": r"\%",
        "&": r"\&",
        "{": r"\{",
        "}": r"\}",
        "\\": r"\backslash",
    }.get(token, token)
