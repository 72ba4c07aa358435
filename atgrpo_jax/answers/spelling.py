"""Brings layout, quotes and spelling of a text into one form."""

import re
import unicodedata

_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "*", "·": "*", "⋅": "*", "∙": "*", "∗": "*",
    "÷": "/", "⁄": "/", "∕": "/", "≤": "<=", "⩽": "<=", "≦": "<=", "≥": ">=", "⩾": ">=", "≧": ">=",
    "≠": r"\ne ", "≈": "=", "≃": "=", "∞": r"\infty ", "√": r"\sqrt ", "∛": r"\cbrt ", "±": r"\pm ",
    "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ", "∅": r"\emptyset ", "∈": r"\in ",
    "∧": "&", "∨": "|", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "ℕ": r"\mathbb{N}", "°": r"^\circ ", "º": r"^\circ ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "…": r"\ldots ", "⋯": r"\ldots ",
    "‘": "'", "’": "'", "“": '"', "”": '"', "€": r"\euro ", "£": r"\pound ", "¥": r"\yen ", "¢": " cents",
    "ϕ": "φ", "ϵ": "ε", "ϑ": "θ",
}  # fmt: skip
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789n", strict=True))
GREEK = (
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu",
    "nu", "xi", "omicron", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
)  # fmt: skip
_GREEK_LETTERS = dict(zip("αβγδεζηθικλμνξοπρστυφχψω", GREEK, strict=True))


def plain(text: str) -> str:
    """Returns a text in ASCII, with LaTeX commands for the signs that ASCII lacks."""
    text = re.sub(r"[\u200b-\u200f\u2060\ufeff\u00ad]", "", text)
    text = _shifted(_shifted(text, _RAISED, "^"), _LOWERED, "_")
    text = re.sub(r"[¼-¾⅐-⅞]", lambda found: _vulgar(found[0]), text)
    return "".join(map(_ascii, text))


def _ascii(letter: str) -> str:
    if letter in _SIGNS and len(letter := _SIGNS[letter]) > 1:
        return letter
    plain_ones = []
    for one in unicodedata.normalize("NFKC", letter):
        name = _GREEK_LETTERS.get(one) or _GREEK_LETTERS.get(one.lower(), "").capitalize()
        plain_ones.append(f"\\{name} " if name else _SIGNS.get(one, one))
    return "".join(plain_ones)


def _shifted(text: str, signs: dict[str, str], mark: str) -> str:
    def group(found: re.Match) -> str:
        return mark + "{" + "".join(map(signs.__getitem__, found[0])) + "}"

    return re.sub(f"[{''.join(signs)}]+", group, text)


def _vulgar(letter: str) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", letter).partition("⁄")
    return rf"\frac{{{top}}}{{{bottom}}}" if bottom else letter


_LAYOUT = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr|biggl|biggr|middle|displaystyle|textstyle|limits|"
    r"nolimits|quad|qquad|hfill|allowbreak|thinspace)(?![a-zA-Z])\.?|"
    r"(?<!\\)\\[,;:!> \n()\[\]]|~|\\hspace\{[^{}]*\}|\$"  # \\[2pt] ends a row of a matrix
)
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mbox|hbox|math(?:rm|bf|it|sf|tt|cal|scr)|boldsymbol|bm|emph|"
    r"operatorname\*?)\s*\{((?:[^{}]|\^\{\d\})*)\}"
)
_JOINERS = re.compile(r"((?:[\s,]|\band\b|\bor\b)*)(.*?)((?:[\s,]|\band\b|\bor\b)*)", re.DOTALL)
_NUMBER = re.compile(
    r"(?!\d+(?:st\b|nd\b|rd\b|th\b|-[a-zA-Z]))[-+]?\s*(?:\\(?:dollar|euro|pound|yen)\s*)?[-+]?\.?\d"
)
MARK = "\ue000", "\ue001"  # put around the content of \text{...}


def normal(text: str) -> str:
    """Returns a text with its layout, quotes and spelling in one form."""
    text = plain(text).strip()
    if "\\\\begin" in text or ("matrix" not in text and "array" not in text):
        text = re.sub(r"\\\\(?=[a-zA-Z{},;!%$])", r"\\", text)  # printed with doubled backslashes
    text = re.sub(r"(?<=\d)(?:\{,\}|,?\\[,!; ]|,\\!|~)(?=\d{3}(?!\d))", "\ue002", text)  # thousands
    text = re.sub(r"\\\$|(?<!\\)\$(?=\s*[\d.])", r"\\dollar ", text)
    text = _LAYOUT.sub(" ", text)
    text = re.sub(r"\\(?:rm|bf|it)\s+", " ", text)
    text = _TEXT.sub(_text, text)
    text = re.sub(r"\\(?:d|t|c)frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\(?:begin|end)\{(?:equation|align|aligned|gathered|math)\*?\}", " ", text)
    text = re.sub(r"""(["'])([^"']*)\1""", r"\2", text)  # quotes of Python
    text = re.sub(r"\b(and|or)\b(?=\s)", lambda m: ";" if m[1] == "or" else ",", text)
    text = re.sub(r"\{([^{}]*)\\(choose|over)(?![a-zA-Z])([^{}]*)\}", _stacked, text)
    text = re.sub(r"(?<=[\d}\s%])\s*\b(?:percent|percentage)\b", r"\\%", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|(?<=[\d}])\s*\\?\bdeg(?:rees?)?\b", r"\\degree ", text)
    text = re.sub(r"\\degree\s+([CF])\b", lambda found: f"\\degree {_TEMPERATURES[found[1]]}", text)
    text = re.sub(r"(?<=\d)\s+[xX]\s+(?=\d)", " * ", text)
    text = re.sub(r"\b([ap])\.\s*m\b\.?", r"\1m", text)
    text = re.sub(r"^\s*[=:]|(?<!\.)[.,;:?]\s*$", "", text)
    return text.strip()


_TEMPERATURES = {"C": "celsius", "F": "fahrenheit"}
_UPRIGHT = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log",
    "ln", "exp", "gcd", "lcm", "max", "min", "det", "arg", "Re", "Im", "infinity",
}  # fmt: skip


def _stacked(found: re.Match) -> str:
    return rf"\{'binom' if found[2] == 'choose' else 'frac'}{{{found[1]}}}{{{found[3]}}}"


def _text(found: re.Match) -> str:
    joined = _JOINERS.fullmatch(found[1])
    assert joined is not None
    before, inside, after = joined.groups()
    if not inside:
        return _joiner(before) or " "
    another = re.search(r"\d\s*$", found.string[: found.start()]) and re.search(r"\s\d", inside)
    if inside in _UPRIGHT or not re.search(r"[a-zA-Z]", inside) or _NUMBER.match(inside) or another:
        inside = f" {inside} "
    elif len(inside) > 1 and not re.fullmatch(r"[A-Z](\s*,\s*[A-Z])+", inside):
        inside = f" {MARK[0]}{inside}{MARK[1]} "
    return _joiner(before) + inside + _joiner(after)


def _joiner(text: str) -> str:
    return ";" if "or" in text else "," if text.strip() else ""
