"""Token store: every text is tokenised once; the ids lie one after another, memory-mapped."""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import tokenizers
import tqdm

from jdkd.models import tokenizer
from jdkd.models.transformer import row_lengths
from jdkd.runtime import distributed, stages

_CHUNK = 4096  # Texts a call of the batched tokenizer, to bound memory and move the bar.
_PART = 64 * _CHUNK  # Texts whose ids are written at once.


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStore:
    """Ids of many texts without padding.

    Lengths are stored, not found by looking for padding: a text may spell out the padding token.

    Attributes:
        ids: `[sum of lengths]` of all texts; uint16 where the vocabulary fits.
        offsets: `[n + 1]` int64; text i has `ids[offsets[i]:offsets[i + 1]]`.
        length: Tokens that no text exceeds.
        pad_id: What rows are padded with.
    """

    ids: np.ndarray
    offsets: np.ndarray
    length: int
    pad_id: int

    @classmethod
    def of_rows(cls, rows: np.ndarray, pad_id: int) -> 'TokenStore':
        """The store of padded rows `[n, length]`; see `transformer.row_lengths`."""
        lengths = row_lengths(rows, pad_id)
        real = np.arange(rows.shape[1]) < lengths[:, None]
        return cls(rows[real], _offsets(lengths), rows.shape[1], pad_id)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """Ids of one text."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def dtype(self) -> np.dtype:
        return self.ids.dtype

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """`[n]` int32 tokens of each text, special ones included."""
        return np.diff(self.offsets).astype(np.int32)

    def rows(
        self, rows: np.ndarray, length: int | None = None, *, end: int | None = None
    ) -> np.ndarray:
        """`[..., length]` ids of texts `[...]`, padded on the right.

        Args:
            rows: Texts to take, in any shape.
            length: Tokens of a row, longer texts are cut; None for the store's.
            end: What the last token of a cut text becomes: the separator; None to leave it.
        """
        rows, length = np.asarray(rows), self.length if length is None else length
        starts = self.offsets[rows][..., None]
        lengths = self.offsets[rows + 1][..., None] - starts
        columns = np.arange(length)
        real = columns < lengths
        out = np.full(real.shape, self.pad_id, self.dtype)
        out[real] = self.ids[(starts + columns)[real]]
        if end is not None:
            out[lengths[..., 0] > length, -1] = end
        return out


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
        """Ids of a few texts in memory, with special tokens, truncated; `write` is for many."""
        ids, lengths = _encode(self._truncating(length), texts, self.dtype)
        return TokenStore(ids, _offsets(lengths), length, self.special['pad'])

    def write(
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
        quiet = len(texts) < 2 * _CHUNK or not distributed.is_first()
        bar = tqdm.tqdm(total=len(texts), desc=desc, disable=quiet)

        def write_part(i, file):
            found = []
            for start in range(i * _PART, min((i + 1) * _PART, len(texts)), _CHUNK):
                chunk = texts[start : start + _CHUNK]
                found.append(_encode(fast, [prefix + text for text in chunk], self.dtype))
                bar.update(len(chunk))
            ids, lengths = (np.concatenate(x) for x in zip(*found, strict=True))
            np.savez(file, ids=ids, lengths=lengths)

        with bar:
            paths = stages.parts(directory, 'part-{}.npz', -(-len(texts) // _PART), write_part)
        if not distributed.is_first():
            return
        lengths = []
        for path in paths:
            with np.load(path) as part:
                lengths.append(part['lengths'])
        offsets = _offsets(np.concatenate(lengths))
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
        """The store that `write` made with this tokenizer and length, memory-mapped."""
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


def load(directory: pathlib.Path) -> Tokenizer:
    fast = tokenizer.load(directory)
    last_id = max(fast.get_vocab().values(), default=0)
    if last_id >= 2**31:
        raise ValueError(f'The tokenizer in {directory} has the id {last_id}; 32 bits are read.')
    return Tokenizer(
        directory=pathlib.Path(directory),
        fast=fast,
        special=tokenizer.special_ids(directory),
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


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
