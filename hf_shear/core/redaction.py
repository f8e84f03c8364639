"""Commands, names and messages are shown to others: what looks like an access token must not be among them."""

from __future__ import annotations

import re
from typing import Any

REDACTED = "[redacted]"
# Tokens that are known by how they begin, wherever they stand. Other keys (40 hexadecimal digits of Weights & Biases look
# like a commit) are found by the name beside them.
_TOKEN_WORDS = re.compile(
    r"(?:hf|api_org)_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|wandb_v\d_[A-Za-z0-9_]{20,}"
    r"|(?:ghp|gho|ghu|ghs|ghr|github_pat|glpat)[_-][A-Za-z0-9_-]{20,}"
    r"|(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"  # Amazon
    r"|(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}"  # Google
    r"|(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{20,}"  # OpenAI, Anthropic and others
    r"|(?<![A-Za-z0-9])xox[a-z]-[A-Za-z0-9-]{10,}"  # Slack
    r"|(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"  # JSON web tokens
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_HEADER = re.compile(r"\b((?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_USER_OF_ADDRESS = re.compile(r"(\w+://)[^\s/@'\"]+(?=@)")
# The flags of special tokens hold text such as <pad>. Flags that count tokens end otherwise (--mask_tokens).
_SPECIAL = (
    r"(?!(?:additional_special|bos|eos|eot|pad|unk|sep|cls|mask|image|audio|video|prefix|suffix|middle)[_-]token)"
)
_SECRET_NAME = (
    rf"{_SPECIAL}(?:[a-z0-9]+[_-])*(?:(?:access|auth|refresh|session|id)?token|password|passwd|passphrase|pwd|pass|secret"
    r"|credentials?|authorization|cookie|signature"
    r"|(?:api|access|secret|private|account|encryption|signing|client|wandb|aws|hf|openai)[_-]?key)"
)
_QUERY = re.compile(rf"([?&#;](?:{_SECRET_NAME}|key|sig)=)[^\s&#;'\"]+", re.IGNORECASE)
_SHELL_WORD = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'])+"""
_QUOTED_FLAG = re.compile(rf"""(["'])(--?{_SECRET_NAME}=)(?:(?!\1).)*\1""", re.IGNORECASE | re.DOTALL)
_FLAG = re.compile(rf"(?<![\w-])(--?{_SECRET_NAME})(=|\s+)(?!--?[a-z]){_SHELL_WORD}", re.IGNORECASE)
_HEADER_ENTRY = re.compile(r"(?<![\w-])((?:proxy-)?authorization|(?:set-)?cookie)(\s*:\s*)[^\n'\"]+", re.IGNORECASE)
_ASSIGNMENT = re.compile(rf"""(?<![\w?&#;-])({_SECRET_NAME}["']?\s*=\s*){_SHELL_WORD}""", re.IGNORECASE)
_ENTRY = re.compile(
    rf"""(?<![\w?&#;-])({_SECRET_NAME}["']?\s*:\s*)(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"',}}]+)""", re.IGNORECASE
)
_LOGIN = re.compile(r"\b(wandb\s+login\s+(?:--?\S+\s+)*)[0-9A-Za-z_]{20,}")
_IS_SECRET_NAME = re.compile(_SECRET_NAME, re.IGNORECASE)


def redact_tokens(text: str) -> str:
    """``text`` without what looks like a token by itself: words of known services, headers, parts of addresses."""
    text = _TOKEN_WORDS.sub(REDACTED, text)
    text = _HEADER.sub(rf"\1{REDACTED}", text)
    text = _USER_OF_ADDRESS.sub(rf"\1{REDACTED}", text)
    return _QUERY.sub(rf"\1{REDACTED}", text)


def redact_command(command: str) -> str:
    """A command line, or a message that may hold one, without its secrets.

    Words that look like a token go, and the values of flags (``--hub_token X``), of variables (``HF_TOKEN=X``), of
    entries (``"api_key": "X"``) and of headers whose name ends in token, password, secret or key; and whoever logs in, in
    addresses.
    """
    command = redact_tokens(command)
    command = _QUOTED_FLAG.sub(rf"\1\2{REDACTED}\1", command)
    command = _FLAG.sub(rf"\1\2{REDACTED}", command)
    command = _HEADER_ENTRY.sub(rf"\1\2{REDACTED}", command)
    command = _ENTRY.sub(rf"\1{REDACTED}", _ASSIGNMENT.sub(rf"\1{REDACTED}", command))
    return _LOGIN.sub(rf"\1{REDACTED}", command)


def redacted(value: Any) -> Any:
    """A JSON-ready value with ``redact_command`` for each string, names too, and without the values of secret names."""
    if isinstance(value, dict):
        return {
            redact_command(name): REDACTED
            if isinstance(item, str) and _IS_SECRET_NAME.fullmatch(name)
            else redacted(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return redact_command(value) if isinstance(value, str) else value
