"""A model as far as its memory goes: bytes of weights and of KV, layer by layer.

Pure values, made by the readers of GGUF and safetensors. Invariant: what a file does not say is
left at the value that needs more memory, never less. Requirements: ORCH-3003, ORCH-3052.
"""

from __future__ import annotations

from dataclasses import dataclass


class ModelFileError(ValueError):
    """A model's file is cut, foreign, hostile or unreadable; the message names file and numbers."""


class ModelFileBroken(ModelFileError):
    """Its weights are not there, or not all of them: no engine can load it."""


@dataclass(frozen=True, slots=True)
class LayerGeometry:
    """One repeating layer. `kv_bytes_per_token` are 16 bit wide; `window_tokens` bounds the tokens
    that its attention looks back, None does not."""

    weights_bytes: int
    kv_bytes_per_token: int
    window_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ModelGeometry:
    """One model. `embedding_bytes` is the table of input embeddings; `output_bytes` what stands
    after the last layer, 0 where the table is used again (`tied`); `other_bytes` what is neither
    (a vision tower, say). `ctx_trained` 0: the file does not say."""

    name: str
    architecture: str
    layers: tuple[LayerGeometry, ...]
    embedding_bytes: int
    output_bytes: int
    other_bytes: int
    vocab: int
    embedding: int
    feed_forward: int
    ctx_trained: int = 0

    @property
    def tied(self) -> bool:
        return self.output_bytes < self.embedding_bytes // 8  # a last norm is not an output matrix

    @property
    def weights_bytes(self) -> int:
        layers = sum(layer.weights_bytes for layer in self.layers)
        return layers + self.embedding_bytes + self.output_bytes + self.other_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Of one token within every layer's window."""
        return sum(layer.kv_bytes_per_token for layer in self.layers)
