"""A model's tokenizer, which fills token stores and finds words."""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers

from jdkd.corpus.lengths import SAMPLE, evenly_spaced
from jdkd.runtime import distributed, files, progress
from jdkd.runtime.parts import join_rows, write_parts
from jdkd.tokens import tokenizer_files
from jdkd.tokens.store import TokenStore, row_offsets
from jdkd.tokens.words import Words, find_words

Text = str | tuple[str, str]  # A text, or a pair of texts.
_CALL_TEXTS = 4096  # Texts a call of the batched tokenizer; bounds memory and moves the bar.
_PART_TEXTS = 64 * _CALL_TEXTS  # Texts of a part file of a resumable stage.
_COUNTED = 512  # Tokens that `count` counts, at most.


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer."""

    directory: pathlib.Path
    fast: tokenizers.Tokenizer
    special: dict[str, int]  # Ids of `cls`, `sep`, `pad` and `mask`.
    last_id: int  # The largest; a vocabulary may have gaps.
    fingerprint: str  # sha256 of its definition; equal tokenizers give equal ids.
    truncation_side: str = 'right'  # Or 'left': the end of a long text that is cut.
    token_types: bool = True  # Whether the checkpoint's model is given the types of tokens.

    def encode(self, texts: Sequence[Text], length: int, *, types: int = 0) -> TokenStore:
        """Tokenises a few texts in memory, truncated, with special tokens; see `write_store`."""
        ids, lengths, _ = _encode(self._truncating(length), texts, types, self._dtype(types))
        return self._store(ids, row_offsets(lengths), length)

    def count(self, texts: Sequence[Text]) -> np.ndarray:
        """Tokens of up to `lengths.SAMPLE` evenly spaced texts, special ones too, at most 512."""
        rows = evenly_spaced(len(texts), SAMPLE)
        if not len(rows):
            return np.zeros(0, int)
        return self.encode([texts[int(row)] for row in rows], _COUNTED).lengths

    def write_store(
        self,
        directory: pathlib.Path,
        texts: Sequence[Text],
        length: int,
        *,
        types: int = 0,
        desc: str,
    ) -> dict[str, int] | None:
        """Tokenises many texts and writes their token store, which `load_store` reads.

        Serves as the build of a resumable stage. Memory is bounded by the ids of 2^18 texts and 12
        bytes a text.

        Args:
            texts: The texts, or pairs of texts, which are taken in slices.
            length: Most tokens of a text, special ones included; longer texts are truncated.
            types: Number that is added to the ids of token type 1, those of a pair's second text;
                `DualEncoder` with `pairs` tells them apart by it.
            desc: Name of the progress bar.

        Returns:
            `texts` and how many of them were `cut`, on the first process.
        """
        fast, dtype = self._truncating(length), self._dtype(types)
        bar = progress.bar(len(texts), desc, 'texts', quiet=len(texts) < 2 * _CALL_TEXTS)

        def write_part(i, file):
            chunks = []
            end = min((i + 1) * _PART_TEXTS, len(texts))
            for start in range(i * _PART_TEXTS, end, _CALL_TEXTS):
                chunk = texts[start : start + _CALL_TEXTS]
                chunks.append(_encode(fast, chunk, types, dtype))
                bar.update(len(chunk) * distributed.process_count())
            ids, lengths, cut = map(np.concatenate, zip(*chunks, strict=True))
            np.savez(file, ids=ids, lengths=lengths, cut=cut.sum())

        with bar:
            count = -(-len(texts) // _PART_TEXTS)
            paths = write_parts(directory, 'part-{}.npz', count, write_part)
        if not distributed.is_primary():
            return None
        num_cut = sum(int(_load_part(path, 'cut')) for path in paths)
        offsets = row_offsets(np.concatenate([_load_part(path, 'lengths') for path in paths]))
        np.save(directory / 'offsets.npy', offsets)
        join_rows(directory / 'ids.npy', (_load_part(p, 'ids') for p in paths), int(offsets[-1]))
        for path in paths:
            path.unlink()
        return {'texts': len(texts), 'cut': num_cut}

    def load_store(self, directory: pathlib.Path, length: int) -> TokenStore:
        """Memory-maps the store that `write_store` wrote with this tokenizer and length."""
        ids, offsets = (files.map_array(directory / f'{name}.npy') for name in ('ids', 'offsets'))
        return self._store(ids, offsets, length)

    def words(self, texts: Sequence[str], length: int) -> list[Words]:
        """Finds the words among the first `length` tokens of each text, without special ones."""
        fast, words = self._truncating(length), []
        for start in range(0, len(texts), _CALL_TEXTS):
            chunk = list(texts[start : start + _CALL_TEXTS])
            words += find_words(fast.encode_batch(chunk, add_special_tokens=False))
        return words

    @property
    def mask(self) -> str:
        """The mask token as it stands in a text."""
        return str(self.fast.id_to_token(self.special['mask']))

    def _store(self, ids: np.ndarray, offsets: np.ndarray, length: int) -> TokenStore:
        from_left = self.truncation_side == 'left'
        return TokenStore(ids, offsets, length, self.special['pad'], cuts_left=from_left)

    def _dtype(self, types: int) -> np.dtype:
        """Type of ids in stores."""
        return np.dtype(np.uint16 if types + self.last_id < 2**16 else np.int32)

    @functools.cached_property
    def _by_length(self) -> dict[int, tokenizers.Tokenizer]:
        return {}

    def _truncating(self, length: int) -> tokenizers.Tokenizer:
        """A copy that cuts texts; kept, because a copy takes a tenth of a second."""
        if length not in self._by_length:
            fast = tokenizers.Tokenizer.from_str(self.fast.to_str())
            fast.encode_special_tokens = self.fast.encode_special_tokens
            fast.enable_truncation(length, direction=self.truncation_side)
            self._by_length[length] = fast
        return self._by_length[length]


def load_tokenizer(directory: pathlib.Path) -> Tokenizer:
    """Loads the tokenizer of a checkpoint.

    Raises:
        FileNotFoundError: There are no tokenizer files.
        ValueError: They are damaged, need their own code, or lack a special token.
    """
    loaded = tokenizer_files.load(directory)
    fast = loaded.fast
    last_id = max(fast.get_vocab().values(), default=0)
    if last_id >= 2**31:
        raise ValueError(f'The tokenizer in {directory} has the id {last_id}, beyond 32 bits.')
    special = tokenizer_files.special_ids(loaded, directory)
    if special['mask'] not in fast.get_added_tokens_decoder():
        # A plain word so far, which would not be found in a text.
        fast.add_special_tokens([str(fast.id_to_token(special['mask']))])
    return Tokenizer(
        directory=pathlib.Path(directory),
        fast=fast,
        special=special,
        last_id=last_id,
        fingerprint=_fingerprint(loaded),
        truncation_side=loaded.truncation_side,
        token_types=loaded.token_types,
    )


def _fingerprint(loaded: tokenizer_files.LoadedTokenizer) -> str:
    definition = loaded.fast.to_str()
    # Settings that are not part of that text, where they are unusual.
    definition += 'truncates left' * (loaded.truncation_side == 'left')
    definition += 'splits special tokens' * loaded.fast.encode_special_tokens
    return hashlib.sha256(definition.encode()).hexdigest()


def _load_part(path: pathlib.Path, name: str) -> np.ndarray:
    with np.load(path) as part:
        return part[name]


def _encode(
    fast: tokenizers.Tokenizer, texts: Sequence[Text], types: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the concatenated ids of all texts, the number of each, and whether it was cut."""
    encodings = fast.encode_batch_fast(list(texts))
    rows = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = np.fromiter(itertools.chain.from_iterable(rows), dtype, lengths.sum())
    if types:
        each = itertools.chain.from_iterable(encoding.type_ids for encoding in encodings)
        ids += dtype.type(types) * np.fromiter(each, dtype, len(ids))
    return ids, lengths, np.array([bool(encoding.overflowing) for encoding in encodings], bool)
