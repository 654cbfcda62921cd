"""Keys of a recipe that take a credential, by their names, however they are written.

A recipe is copied into outputs and manifests, so that such keys are refused wherever they stand, and no message repeats
what they hold.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

CREDENTIAL = re.compile(  # of names in small letters, words joined by _
    r"^tokens?$|(hub|hf|huggingface|auth|access|api|bearer|secret|refresh|session|bot|github|wandb|private)_?tokens?$"
    r"|(^|_)(api|access|secret|private|ssh|signing|encryption|master|account|storage|subscription|shared|deploy)_?keys?"
    r"(_?id)?$|(^|_)(x|open)?api_?keys?$|accesskeys?$"
    r"|passw(or)?d$|passphrase$|passcode$|(^|_)(pass|pwd|pat|jwt|oauth|auth|bearer|authorization|cookies?)$|secrets?$"
    r"|credentials?$|connection_?string$|webhook(_?url)?$|(http|auth|request)_headers?$"
)
TOKEN = re.compile(r"(?:^|_)([^_]+)_tokens?$")
# What a token of text is called, as in `pad_token` and `image_token`; any other one that is a word is a service's.
OF_TEXT = frozenset(
    (
        *("pad", "bos", "eos", "unk", "sep", "cls", "mask", "start", "end", "stop", "special", "prefix", "suffix"),
        *("middle", "image", "video", "audio", "vision", "speech", "fim", "eot", "eom", "eod", "boi", "eoi", "boa"),
        *("eoa", "fake", "new", "max", "min", "num", "sot", "suppress", "virtual", "placeholder"),
    )
)
MARKED = ("<", "[", "{", "|")  # how a token of text begins
URL = re.compile(r"[a-z][a-z0-9+.-]{0,30}://[^/\s:@]*:[^/\s@]+@", re.IGNORECASE)  # with a password
FREE = (  # mappings whose keys are the user's words, and no settings
    ("tokenizer", "special_tokens"),
    ("tokenizer", "chat_template_kwargs"),
    ("datasets", "mapping"),
)


def is_credential(name: Any, value: Any = "") -> bool:
    """Whether a key of this name takes a credential; `value` tells a token of text from one of a service."""
    if not isinstance(name, str):
        return False
    name = _normalize(name)
    if CREDENTIAL.search(name):
        return True
    found = TOKEN.search(name)
    if not found or found[1] in OF_TEXT:
        return False
    return any(isinstance(leaf, str) and not leaf.startswith(MARKED) for leaf in _list_leaves(value))


def names_credential(text: str) -> bool:
    """Whether a word of `text` is the name of a key that takes a credential, or a URL in it holds a password."""
    words = re.findall(r"[\w-]+", unicodedata.normalize("NFKC", _drop_invisible(text)))
    return any(map(is_credential, words)) or URL.search(text) is not None


def list_credentials(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of the keys below `value` that hold a credential."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        here = (*path, name)
        if tuple(part for part in here if not isinstance(part, int)) in FREE:
            continue
        if _holds_text(item) and is_credential(name, item):
            yield here
        elif isinstance(item, (dict, list)):
            yield from list_credentials(item, here)
        elif isinstance(item, str) and URL.search(item):
            yield here


def _holds_text(value: Any) -> bool:
    """Whether a value is a text or a number, or one is in it; true, false and nothing are no credentials."""
    return any(type(leaf) in (str, int, float) and leaf != "" for leaf in _list_leaves(value))


def _list_leaves(value: Any) -> Iterator[Any]:
    """What is in lists and mappings, at any depth."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, (dict, list)):
            left += value.values() if isinstance(value, dict) else value
        else:
            yield value


def _normalize(name: str) -> str:
    """A name in small letters, words joined by _: `hubToken`, `HUB-TOKEN` and look-alikes of those are `hub_token`."""
    name = unicodedata.normalize("NFKC", _drop_invisible(name)).strip()
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[\s.-]+", "_", name)
    return name.lower()


def _drop_invisible(text: str) -> str:
    return text if text.isascii() else "".join(each for each in text if unicodedata.category(each) != "Cf")
