"""Save a tokenizer so that readers of before transformers 5 split text as it does.

transformers 5 names classes that transformers 4 does not know, keeps the chat template in a file of its own, and lists
special tokens where transformers 4 fails on them. It notes where it was loaded, and reads a SentencePiece model but does
not write it again. Engines that tokenise by themselves need that: llama.cpp's converter takes the scores of the pieces
from it, and without them splits text into other pieces than the model was trained on.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..core import UsageError

SENTENCEPIECE_NAME = "tokenizer.model"
CONFIG_NAME = "tokenizer_config.json"
SAMPLE = "A red house, 42."
"""A text that every tokenizer splits, to see what it puts around."""

_OF_THIS_MACHINE = ("is_local", "local_files_only", "name_or_path", "cache_dir", "token", "revision", "_commit_hash")

_GENERIC, _OLDER_GENERIC = "TokenizersBackend", "PreTrainedTokenizerFast"

# Of transformers 4; each puts bos and eos around the text as its flags say, whatever tokenizer.json says.
_WITH_FLAGS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer", "GPTNeoXTokenizer")


def save_tokenizer(processing_class, folder: Path) -> None:
    """Save what ``save_pretrained`` writes, in a form for older readers too, and the source's ``tokenizer.model``."""
    processing_class.save_pretrained(folder)
    write_for_older_readers(processing_class, folder)
    pieces = sentencepiece_file(processing_class)
    if pieces is not None and not (folder / SENTENCEPIECE_NAME).exists():
        shutil.copyfile(pieces, folder / SENTENCEPIECE_NAME)


def write_for_older_readers(processing_class, folder: Path) -> None:
    """Change the tokenizer_config.json that ``processing_class`` wrote to ``folder`` to one that transformers 4 reads."""
    path = folder / CONFIG_NAME
    if not path.is_file():  # a tokenizer of another library
        return
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields = {name: value for name, value in fields.items() if name not in _OF_THIS_MACHINE}
    if fields.get("add_prefix_space", 0) is None:
        del fields["add_prefix_space"]
    fields |= _older_class(processing_class, fields)
    if isinstance(fields.get("extra_special_tokens"), list):  # transformers 4 knows it as a dict only
        fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
    template = getattr(processing_class, "chat_template", None)
    if isinstance(template, dict):
        fields["chat_template"] = [{"name": name, "template": text} for name, text in template.items()]
    elif template is not None:
        fields["chat_template"] = template
    path.write_text(json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def sentencepiece_file(processing_class) -> Path | None:
    """The ``tokenizer.model`` that the tokenizer was loaded beside, None if there is none.

    Raises:
        UsageError: it is a link that leads out of the checkpoint.
    """
    vocab_file = getattr(processing_class, "vocab_file", None)
    path = Path(vocab_file) if vocab_file else None
    if path is None or path.name != SENTENCEPIECE_NAME or not path.is_file():
        return None
    folder, target = path.parent.resolve(), path.resolve()
    if target.parent not in (folder, folder.parents[min(1, len(folder.parents) - 1)] / "blobs"):  # of the Hub's cache
        raise UsageError(
            f"{str(path)!r} is a link to {str(target)!r}, outside of its checkpoint: what lies there would be copied to the"
            " result, and published with it. Put the file itself in its place."
        )
    return path


def _older_class(processing_class, fields: dict) -> dict:
    """The fields that make transformers 4 split a text, and put around it, what this tokenizer does."""
    name = fields["tokenizer_class"]
    if name == _GENERIC:
        return {"tokenizer_class": _OLDER_GENERIC}
    if name.removesuffix("Fast") not in _WITH_FLAGS:
        return {}
    if "add_prefix_space" in fields:  # transformers 4 then reads the SentencePiece model in place of tokenizer.json
        return {"tokenizer_class": _OLDER_GENERIC}
    ids = processing_class(SAMPLE).input_ids
    inner = processing_class(SAMPLE, add_special_tokens=False).input_ids
    bos, eos = [processing_class.bos_token_id], [processing_class.eos_token_id]
    for add_bos in (False, True):
        for add_eos in (False, True):
            if ids == bos * add_bos + inner + eos * add_eos:
                return {"add_bos_token": add_bos, "add_eos_token": add_eos}
    return {"tokenizer_class": _OLDER_GENERIC}  # which does what tokenizer.json says
