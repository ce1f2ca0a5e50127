"""Token store: every text is tokenised once, kept as padded ids in a memory-mapped array."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
import tqdm

from jdkd.models import pretrained

_CHUNK = 4096  # Texts a call of the batched tokenizer, to bound memory and move the bar.


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer with what the rest of jdkd asks of it.

    Attributes:
        directory: Where its files are.
        fast: The tokenizers object.
        special: Ids of `cls`, `sep`, `pad` and `mask`.
        fingerprint: sha256 of its definition; equal tokenizers give equal ids.
    """

    directory: pathlib.Path
    fast: tokenizers.Tokenizer
    special: dict[str, int]
    fingerprint: str

    def encode(self, texts: Sequence[str], length: int, *, desc: str | None = None) -> np.ndarray:
        """`[len(texts), length]` ids with special tokens, truncated and padded on the right.

        Args:
            texts: What to tokenise.
            length: In tokens, special ones included.
            desc: Shows a progress bar of this name.
        """
        fast = tokenizers.Tokenizer.from_str(self.fast.to_str())
        fast.enable_truncation(length)
        dtype = np.uint16 if fast.get_vocab_size() <= 2**16 else np.int32
        ids = np.full((len(texts), length), self.special['pad'], dtype)
        starts = range(0, len(texts), _CHUNK)
        for start in tqdm.tqdm(starts, desc=desc, disable=desc is None or len(starts) < 2):
            chunk = fast.encode_batch_fast(list(texts[start : start + _CHUNK]))
            for row, encoding in zip(ids[start:], chunk, strict=False):
                row[: len(encoding.ids)] = encoding.ids
        return ids

    def decode(self, ids: np.ndarray, *, mask: str = '') -> list[str]:
        """Text of each row of ids.

        Args:
            ids: `[n, length]`.
            mask: What a mask token reads as: another tokenizer's mask token, or nothing.
        """
        drop = {self.special[name] for name in ('cls', 'sep', 'pad')}
        texts = self.fast.decode_batch(
            [[t for t in row if t not in drop] for row in ids.tolist()], skip_special_tokens=False
        )
        own_mask = self.fast.id_to_token(self.special['mask'])
        # WordPiece splits at underscores: what was max_len must not come back as max _ len.
        return [re.sub(r' ?_ ?', '_', text.replace(own_mask, mask)) for text in texts]


def load(directory: pathlib.Path) -> Tokenizer:
    fast = pretrained.load_tokenizer(directory)
    return Tokenizer(
        directory=pathlib.Path(directory),
        fast=fast,
        special=pretrained.special_ids(directory),
        fingerprint=hashlib.sha256(fast.to_str().encode()).hexdigest(),
    )


def prefixed(prefix: str, texts: Iterable[str]) -> list[str]:
    """Texts behind the prefix that a model was trained with (E5's `query: `)."""
    return [prefix + text for text in texts] if prefix else list(texts)
