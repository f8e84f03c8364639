"""Commands and names are shown to others: what looks like an access token must not be among them."""

from __future__ import annotations

import re

REDACTED = "[redacted]"
# Hugging Face's user and organisation tokens, wherever they stand; other services' keys are found by their flag.
_TOKEN_WORD = re.compile(r"(?:hf|api_org)_[A-Za-z0-9]{20,}")
# The flags of special tokens hold text such as <pad>. Flags that count tokens end otherwise (--mask_tokens).
_SPECIAL = r"(?!(?:additional_special|bos|eos|pad|unk|sep|cls|mask|image)[_-]token)"
_SECRET_NAME = (
    rf"{_SPECIAL}(?:[a-z0-9]+[_-])*(?:token|password|passwd|secret|credentials?|(?:api|access|secret)[_-]?key)"
)
_SHELL_WORD = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'])+"""
_QUOTED_FLAG = re.compile(rf"""(["'])(--?{_SECRET_NAME}=)(?:(?!\1).)*\1""", re.IGNORECASE | re.DOTALL)
_FLAG = re.compile(rf"(?<![\w-])(--?{_SECRET_NAME})(=|\s+)(?!--?[a-z]){_SHELL_WORD}", re.IGNORECASE)
_ASSIGNMENT = re.compile(rf"""(?<![\w-])({_SECRET_NAME}["']?\s*[=:]\s*){_SHELL_WORD}""", re.IGNORECASE)
_USER_OF_ADDRESS = re.compile(r"(\w+://[^\s/:@]*:)[^\s/@]+(?=@)")


def redact_tokens(text: str) -> str:
    """``text`` without the words that look like a Hugging Face token."""
    return _TOKEN_WORD.sub(REDACTED, text)


def redact_command(command: str) -> str:
    """A command line without its secrets.

    Words that look like a token go, and the values of flags (``--hub_token X``), of variables (``HF_TOKEN=X``) and of
    entries (``"api_key": "X"``) whose name ends in token, password, secret or key; and passwords in addresses.
    """
    command = redact_tokens(command)
    command = _QUOTED_FLAG.sub(rf"\1\2{REDACTED}\1", command)
    command = _FLAG.sub(rf"\1\2{REDACTED}", command)
    command = _ASSIGNMENT.sub(rf"\1{REDACTED}", command)
    return _USER_OF_ADDRESS.sub(rf"\1{REDACTED}", command)
