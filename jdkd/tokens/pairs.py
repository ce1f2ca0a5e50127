"""Joins tokenised queries and passages, and counts the tokens of padded rows."""

import numpy as np


def join_pairs(
    query_tokens: np.ndarray, passage_tokens: np.ndarray, pad_id: int, separators: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Joins tokenised queries and passages to rows of [CLS] query [SEP] passage [SEP].

    Args:
        query_tokens: `[M, Lq]` ids, each row [CLS] query [SEP], padded on the right.
        passage_tokens: `[M, Lp]` ids, each row [CLS] passage [SEP], padded on the right.
        pad_id: Id of the padding token.
        separators: 1, or 2 for [CLS] query [SEP] [SEP] passage [SEP]; see `Family.separators`.

    Returns:
        `[M, Lq + Lp - 2 + separators]` ids, padded on the right, and int32 token types of the same
        shape: 1 on the passage and its [SEP], and on the second [SEP] before it, 0 elsewhere. Two
        rows of padding give a row of padding.

    Raises:
        ValueError: The numbers of rows differ.
    """
    if len(query_tokens) != len(passage_tokens):
        raise ValueError(
            f'{len(query_tokens)} queries cannot be joined with {len(passage_tokens)} passages; '
            'give one query row for each passage row.'
        )
    query_length = row_lengths(query_tokens, pad_id)[:, None]
    passage_length = row_lengths(passage_tokens, pad_id)[:, None]
    width = query_tokens.shape[1] + passage_tokens.shape[1] - 2 + separators
    columns = np.arange(width)[None]
    is_query = columns < query_length
    # Column in the passage row, whose [CLS] is dropped or replaced by a second [SEP].
    from_passage = columns - query_length + 2 - separators
    is_passage = ~is_query & (from_passage < passage_length)
    query = np.take_along_axis(query_tokens, np.minimum(columns, query_tokens.shape[1] - 1), axis=1)
    at = np.clip(from_passage, 0, passage_tokens.shape[1] - 1)
    passage = np.take_along_axis(passage_tokens, at, axis=1)
    if separators == 2:
        last = np.take_along_axis(query_tokens, np.maximum(query_length - 1, 0), axis=1)
        passage = np.where(from_passage == 0, last, passage)
    tokens = np.where(is_query, query, np.where(is_passage, passage, pad_id))
    dtype = np.result_type(query_tokens, passage_tokens)
    return tokens.astype(dtype), is_passage.astype(np.int32)


def row_lengths(tokens: np.ndarray, pad_id: int) -> np.ndarray:
    """Returns the `[B]` tokens of each row of `[B, L]` ids, up to the last that is no padding."""
    real = tokens != pad_id
    return np.where(real.any(axis=1), tokens.shape[1] - real[:, ::-1].argmax(axis=1), 0)
