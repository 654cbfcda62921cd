"""GGUF files made byte by byte: a small Llama whose tokens are bytes, to be changed as a forger would."""

import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

NUMBERS = {"u8": (0, "B"), "u16": (2, "H"), "u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "B")}
NUMBERS |= {"u64": (10, "Q"), "f64": (12, "d")}
TEXT, LIST = 8, 9
F32, F16, Q8_0, I8 = 0, 1, 8, 24
WIDTH, INNER = 32, 64
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁Hello"]
TYPES = [2, 3, 3, *[6] * 256, 1]  # unknown, control, bytes, normal
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"


def pack_text(text: str | bytes) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(content)) + content


def pack_value(kind: str, value) -> bytes:
    """A value after the number of its type: of NUMBERS, `text`, or a list of either as `[u32]`."""
    if kind.startswith("["):
        inner = kind[1:-1]
        items = b"".join(pack_value(inner, item)[4:] for item in value)
        return struct.pack("<IIQ", LIST, TEXT if inner == "text" else NUMBERS[inner][0], len(value)) + items
    if kind == "text":
        return struct.pack("<I", TEXT) + pack_text(value)
    number, layout = NUMBERS[kind]
    return struct.pack(f"<I{layout}", number, value)


@dataclass
class Tensor:
    name: str | bytes
    shape: list[int]
    kind: int = F32
    data: bytes | None = None  # left out: zeros
    offset: int | None = None  # left out: where it is

    def __post_init__(self):
        if self.data is None:
            self.data = bytes(4 * prod(self.shape))


def make_keys() -> dict[str | bytes, bytes]:
    sizes = {"block_count": 1, "context_length": 256, "embedding_length": WIDTH, "feed_forward_length": INNER}
    sizes |= {"attention.head_count": 2, "attention.head_count_kv": 1, "rope.dimension_count": 16}
    return {
        "general.architecture": pack_value("text", "llama"),
        "general.alignment": pack_value("u32", 32),
        **{f"llama.{name}": pack_value("u32", size) for name, size in sizes.items()},
        "llama.attention.layer_norm_rms_epsilon": pack_value("f32", 1e-6),
        "tokenizer.ggml.model": pack_value("text", "llama"),
        "tokenizer.ggml.tokens": pack_value("[text]", TOKENS),
        "tokenizer.ggml.token_type": pack_value("[i32]", TYPES),
        "tokenizer.ggml.scores": pack_value("[f32]", [0.0] * len(TOKENS)),
        "tokenizer.ggml.bos_token_id": pack_value("u32", 1),
        "tokenizer.ggml.eos_token_id": pack_value("u32", 2),
        "tokenizer.ggml.add_bos_token": pack_value("bool", 1),
        "tokenizer.chat_template": pack_value("text", TEMPLATE),
    }


def make_tensors() -> list[Tensor]:
    block = {"attn_norm": [WIDTH], "attn_q": [WIDTH, 32], "attn_k": [WIDTH, 16], "attn_v": [WIDTH, 16]}
    block |= {"attn_output": [32, WIDTH], "ffn_norm": [WIDTH], "ffn_gate": [WIDTH, INNER], "ffn_up": [WIDTH, INNER]}
    block |= {"ffn_down": [INNER, WIDTH]}
    shapes = {"token_embd": [WIDTH, len(TOKENS)], "output_norm": [WIDTH]}
    shapes |= {f"blk.0.{name}": shape for name, shape in block.items()}
    return [Tensor(f"{name}.weight", shape) for name, shape in shapes.items()]


@dataclass
class GgufFile:
    """A file that llama.cpp runs, unless it is changed."""

    keys: dict[str | bytes, bytes] = field(default_factory=make_keys)
    tensors: list[Tensor] = field(default_factory=make_tensors)
    magic: bytes = b"GGUF"
    version: int = 3
    key_count: int | None = None
    tensor_count: int | None = None
    alignment: int = 32
    padding: bytes = b"\0"
    tail: bytes = b""
    cut: int | None = None  # bytes that are left away at the end

    def set(self, key: str | bytes, kind: str, value) -> None:
        self.keys[key] = pack_value(kind, value)

    def pad(self, content: bytes) -> bytes:
        return content + self.padding * (-len(content) % self.alignment)

    def pack(self) -> bytes:
        counts = (
            len(self.tensors) if self.tensor_count is None else self.tensor_count,
            len(self.keys) if self.key_count is None else self.key_count,
        )
        header, data = self.magic + struct.pack("<IQQ", self.version, *counts), b""
        header += b"".join(pack_text(key) + value for key, value in self.keys.items())
        for tensor in self.tensors:
            place = len(data) if tensor.offset is None else tensor.offset
            layout = f"<I{len(tensor.shape)}QIQ"
            header += pack_text(tensor.name)
            header += struct.pack(layout, len(tensor.shape), *tensor.shape, tensor.kind, place)
            data += self.pad(tensor.data)
        return (self.pad(header) + data + self.tail)[: None if self.cut is None else -self.cut]

    def write(self, path: Path) -> Path:
        path.write_bytes(self.pack())
        return path
