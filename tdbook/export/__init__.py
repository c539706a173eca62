"""Models out: GGUF files, cards, llama.cpp, decoding and its speed."""

from tdbook.export.gguf_file import to_gguf

__all__ = ["to_gguf"]
