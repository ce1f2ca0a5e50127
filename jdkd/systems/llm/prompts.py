"""Prompts, and what the answers to them say: a logit, or the order of a window's passages."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jdkd.config import LLMSpec

# The least log-probability that counts: servers say -9999, or -inf, for what was cut off.
LEAST = -30.0

_TOKENS_PER_PASSAGE = 8  # Of a listwise answer: `[12] > ` and some room.
_IDENTIFIER = re.compile(r'\[(\d+)\]')


def fill(template: str, values: Mapping[str, str]) -> str:
    """Puts values in place of `{name}`, literally: braces within values stay as they are."""
    return re.sub(r'\{(\w+)\}', lambda match: values.get(match[1], match[0]), template)


def pair_prompt(spec: LLMSpec, query: str, title: str, text: str) -> str:
    """The prompt of a query and a passage; see `LLMSpec.prompt`."""
    passage = text if '{title}' in spec.prompt else f'{title} {text}'.strip()
    values = {'query': query, 'title': title, 'passage': _cut(passage, spec.passage_words)}
    return fill(spec.prompt, values)


def window_prompt(spec: LLMSpec, query: str, passages: Sequence[str]) -> str:
    """The prompt of a query and a window of passages; see `ListwiseConfig.prompt`.

    What looks like an identifier within a passage is put in parentheses, as RankVicuna does.
    """
    cut = (_cut(passage, spec.passage_words) for passage in passages)
    shown = (_IDENTIFIER.sub(r'(\1)', passage) for passage in cut)
    numbered = '\n\n'.join(f'[{i}] {passage}' for i, passage in enumerate(shown, 1))
    values = {'query': query, 'passages': numbered, 'count': str(len(passages))}
    return fill(spec.listwise.prompt, values)


def _cut(text: str, words: int) -> str:
    return ' '.join(text.split()[:words]) if words else text


def body(spec: LLMSpec, prompt: str) -> dict[str, Any]:
    """The JSON body of a request, which decides the answer: keys of kept answers digest it."""
    values: dict[str, Any] = {'model': spec.model, 'temperature': 0}
    if spec.endpoint == 'chat':
        values['messages'] = [{'role': 'user', 'content': prompt}]
    else:
        values['prompt'] = prompt
    if spec.listwise.window:
        values['max_tokens'] = _TOKENS_PER_PASSAGE * spec.listwise.window
    else:
        chat = {'logprobs': True, 'top_logprobs': spec.top_logprobs}
        values |= {'max_tokens': 1}
        values |= chat if spec.endpoint == 'chat' else {'logprobs': spec.top_logprobs}
    values |= spec.extra
    return {key: value for key, value in values.items() if value is not None}


def read_text(response: Any) -> str:
    """The text of a response.

    Raises:
        ValueError: if it has none, saying what it lacks.
    """
    choice = _choice(response)
    message = choice.get('message')
    text = message.get('content') if isinstance(message, dict) else choice.get('text')
    if not isinstance(text, str):
        raise ValueError('it has no text')
    return text


def read_yes_no(response: Any, spec: LLMSpec) -> list[float] | None:
    """Log-probabilities of yes and no as the first token of a response; None if it lists neither.

    All tokens that are the word, but for case and spaces, add up. A word that is not among the
    `top_logprobs` counts as much as the least likely token that is: it cannot be more (ours).

    Raises:
        ValueError: if there are no log-probabilities, saying what it lacks.
    """
    words = [spec.yes.strip().casefold(), spec.no.strip().casefold()]
    listed = [(token.strip().casefold(), value) for token, value in _first_logprobs(response)]
    own = [[value for token, value in listed if token == word] for word in words]
    if not any(own):
        return None
    least = min(value for _, value in listed)
    return [float(np.logaddexp.reduce(values)) if values else least for values in own]


def _first_logprobs(response: Any) -> list[tuple[str, float]]:
    """Tokens and log-probabilities at the place of the first token."""
    logprobs = _choice(response).get('logprobs')
    if not isinstance(logprobs, dict):
        raise ValueError('it has no logprobs, which the server must support')
    try:
        if 'content' in logprobs:  # As /chat/completions gives it, and llama.cpp always.
            listed = logprobs['content'][0]['top_logprobs']
            pairs = [(item['token'], item['logprob']) for item in listed]
        else:
            pairs = list(logprobs['top_logprobs'][0].items())
        values = [(str(token), max(float(value), LEAST)) for token, value in pairs]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise ValueError('its logprobs have no top_logprobs of a first token') from None
    if not values or any(math.isnan(value) for _, value in values):
        raise ValueError('its top_logprobs are empty or no numbers')
    return values


def _choice(response: Any) -> dict[str, Any]:
    choices = response.get('choices') if isinstance(response, dict) else None
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise ValueError('it has no choices')
    return choices[0]


def read_tokens(response: Any) -> tuple[int, int]:
    """Tokens of prompt and answer that a response says it took; 0 where it does not say."""
    usage = response.get('usage') if isinstance(response, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    counts = (usage.get('prompt_tokens'), usage.get('completion_tokens'))
    prompt, answer = (count if isinstance(count, int) else 0 for count in counts)
    return prompt, answer


def parse_permutation(text: str, count: int) -> tuple[list[int], dict[str, int]]:
    """The order of `count` passages that an answer such as `[2] > [1]` gives, from 0.

    Passages that it leaves out follow in their old order; identifiers that come again, or that no
    passage has, are dropped. What a reasoning model thinks does not count.

    Returns:
        The order, and how many were `missing`, `repeated` and `unknown`.
    """
    answer = text.rpartition('</think>')[2]
    named = [int(i) - 1 for i in _IDENTIFIER.findall(answer) or re.findall(r'\d+', answer)]
    known = [i for i in named if 0 <= i < count]
    order = list(dict.fromkeys(known))
    rest = [i for i in range(count) if i not in order]
    faults = {
        'missing': len(rest),
        'repeated': len(known) - len(order),
        'unknown': len(named) - len(known),
    }
    return order + rest, faults


def windows(count: int, window: int, step: int) -> list[slice]:
    """Windows that slide over `count` places from the end to the top, as RankGPT's do.

    Sun et al., 2023, https://arxiv.org/abs/2304.09542. The last one begins at the top; a single
    place needs none.

    >>> windows(5, 3, 2)
    [slice(2, 5, None), slice(0, 3, None)]
    """
    end, slices = count, []
    while count > 1:
        start = max(end - window, 0)
        slices.append(slice(start, end))
        if start == 0:
            break
        end -= step
    return slices
