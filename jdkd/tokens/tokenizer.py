"""A model's tokenizer with what the rest of jdkd asks of it."""

import dataclasses
import hashlib
import itertools
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import tokenizers
import tqdm

from jdkd.runtime import distributed
from jdkd.runtime.parts import write_parts
from jdkd.tokens import tokenizer_files
from jdkd.tokens.store import TokenStore, row_offsets

_CALL_TEXTS = 4096  # Texts a call of the batched tokenizer, to bound memory and move the bar.


_PART_TEXTS = 64 * _CALL_TEXTS  # Texts whose ids are written at once.


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer with what the rest of jdkd asks of it.

    Attributes:
        directory: Where its files are.
        fast: The tokenizers object.
        special: Ids of `cls`, `sep`, `pad` and `mask`.
        last_id: The largest id; a vocabulary may have gaps.
        fingerprint: sha256 of its definition; equal tokenizers give equal ids.
    """

    directory: pathlib.Path
    fast: tokenizers.Tokenizer
    special: dict[str, int]
    last_id: int
    fingerprint: str

    def encode(self, texts: Sequence[str], length: int) -> TokenStore:
        """Tokenises a few texts in memory, truncated, with special tokens; see `write_store`."""
        ids, lengths = _encode(self._truncating(length), texts, self.dtype)
        return TokenStore(ids, row_offsets(lengths), length, self.special['pad'])

    def write_store(
        self,
        directory: pathlib.Path,
        texts: Sequence[str],
        length: int,
        *,
        prefix: str = '',
        desc: str,
    ) -> None:
        """Writes the token store of many texts; `load_store` reads it.

        Made for a resumable stage. Memory is bounded by the ids of 2^18 texts, whatever their
        number, and 12 bytes a text.

        Args:
            directory: Of the stage.
            texts: What to tokenise; taken in slices.
            length: In tokens, special ones included; longer texts are truncated.
            prefix: What the model was trained to see before each text (E5's `query: `).
            desc: Name of the progress bar.
        """
        fast = self._truncating(length)
        quiet = len(texts) < 2 * _CALL_TEXTS or not distributed.is_primary()
        bar = tqdm.tqdm(total=len(texts), desc=desc, disable=quiet)

        def write_part(i, file):
            found = []
            for start in range(
                i * _PART_TEXTS, min((i + 1) * _PART_TEXTS, len(texts)), _CALL_TEXTS
            ):
                chunk = texts[start : start + _CALL_TEXTS]
                found.append(_encode(fast, [prefix + text for text in chunk], self.dtype))
                bar.update(len(chunk))
            ids, lengths = (np.concatenate(x) for x in zip(*found, strict=True))
            np.savez(file, ids=ids, lengths=lengths)

        with bar:
            paths = write_parts(directory, 'part-{}.npz', -(-len(texts) // _PART_TEXTS), write_part)
        if not distributed.is_primary():
            return
        lengths = []
        for path in paths:
            with np.load(path) as part:
                lengths.append(part['lengths'])
        offsets = row_offsets(np.concatenate(lengths))
        np.save(directory / 'offsets.npy', offsets)
        header = {'descr': self.dtype.str, 'fortran_order': False, 'shape': (int(offsets[-1]),)}
        with (directory / 'ids.npy').open('wb') as file:
            np.lib.format.write_array_header_1_0(file, header)
            for path in paths:
                with np.load(path) as part:
                    part['ids'].tofile(file)
        for path in paths:
            path.unlink()

    def load_store(self, directory: pathlib.Path, length: int) -> TokenStore:
        """The store that `write_store` made with this tokenizer and length, memory-mapped."""
        # Plain views of the mapped files: memmap's own indexing is slow.
        ids, offsets = (
            np.asarray(np.load(directory / f'{name}.npy', mmap_mode='r'))
            for name in ('ids', 'offsets')
        )
        return TokenStore(ids, offsets, length, self.special['pad'])

    @property
    def dtype(self) -> np.dtype:
        """Of ids."""
        return np.dtype(np.uint16 if self.last_id < 2**16 else np.int32)

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

    def _truncating(self, length: int) -> tokenizers.Tokenizer:
        fast = tokenizers.Tokenizer.from_str(self.fast.to_str())
        fast.enable_truncation(length)
        return fast


def load_tokenizer(directory: pathlib.Path) -> Tokenizer:
    fast = tokenizer_files.load(directory)
    last_id = max(fast.get_vocab().values(), default=0)
    if last_id >= 2**31:
        raise ValueError(f'The tokenizer in {directory} has the id {last_id}; 32 bits are read.')
    return Tokenizer(
        directory=pathlib.Path(directory),
        fast=fast,
        special=tokenizer_files.special_ids(directory),
        last_id=last_id,
        fingerprint=hashlib.sha256(fast.to_str().encode()).hexdigest(),
    )


def _encode(
    fast: tokenizers.Tokenizer, texts: Sequence[str], dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all texts in one row, and `[len(texts)]` how many each has."""
    rows = [encoding.ids for encoding in fast.encode_batch_fast(list(texts))]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = np.fromiter(itertools.chain.from_iterable(rows), dtype, lengths.sum())
    return ids, lengths
