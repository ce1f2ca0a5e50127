"""A small OpenAI-compatible server, with a tiny random model of transformers and with faults.

As a program: `python -m tests.helpers.llm_server --port 8000`.
"""

import argparse
import contextlib
import functools
import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any

# body -> log-probabilities of the first token, or the text of an answer.
Model = Callable[[dict[str, Any]], dict[str, float] | str]
# (number of the request, body) -> status, headers and content in place of an answer; or None.
Fault = Callable[[int, dict[str, Any]], tuple[int, dict[str, str], str] | None]


class Server:
    """A server at `url` while its context lasts.

    Attributes:
        bodies: The request of each answer that was sent as a whole.
        requests: All requests, the failed ones included: (seconds, path, headers).
    """

    def __init__(self, model: Model, *, fault: Fault = lambda i, body: None, port: int = 0):
        self.model, self.fault = model, fault
        self.bodies: list[dict[str, Any]] = []
        self.requests: list[tuple[float, str, dict[str, str]]] = []
        self.lock = threading.Lock()
        handler = functools.partial(_Handler, self)
        self._http = http.server.ThreadingHTTPServer(('127.0.0.1', port), handler)
        self._http.daemon_threads = True
        self.url = f'http://127.0.0.1:{self._http.server_address[1]}/v1'

    def __enter__(self) -> 'Server':
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def serve_forever(self) -> None:
        self._http.serve_forever()

    @property
    def prompts(self) -> list[str]:
        """The prompts of all answers."""
        with self.lock:
            return [prompt_of(body) for body in self.bodies]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def __init__(self, server: Server, *args: Any):
        self.owner = server
        super().__init__(*args)

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802
        self._send(200, {}, json.dumps({'object': 'list', 'data': [{'id': 'tiny'}]}))

    def do_POST(self) -> None:  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers['content-length'])))
        with self.owner.lock:
            number = len(self.owner.requests)
            self.owner.requests.append((time.monotonic(), self.path, dict(self.headers)))
        fault = self.owner.fault(number, body)
        if fault is not None:
            self._send(*fault)
            return
        self._send(200, {}, json.dumps(_response(self.path, body, self.owner.model(body))))
        with self.owner.lock:
            self.owner.bodies.append(body)

    def _send(self, status: int, headers: dict[str, str], content: str) -> None:
        data = content.encode()
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            for name, value in {'content-length': str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)


def _response(path: str, body: dict[str, Any], answer: dict[str, float] | str) -> dict[str, Any]:
    """The answer as vLLM and OpenAI give it."""
    chat = path.endswith('/chat/completions')
    words = len(prompt_of(body).split())
    usage = {'prompt_tokens': words, 'completion_tokens': 1, 'total_tokens': words + 1}
    choice: dict[str, Any] = {'index': 0, 'finish_reason': 'length', 'logprobs': None}
    text = answer
    if isinstance(answer, dict):
        count = body['top_logprobs'] if chat else body['logprobs']
        top = dict(sorted(answer.items(), key=lambda item: -item[1])[:count])
        text = next(iter(top))
        listed = [{'token': t, 'logprob': v, 'bytes': list(t.encode())} for t, v in top.items()]
        choice['logprobs'] = {'top_logprobs': [top], 'tokens': [text]}
        if chat:
            choice['logprobs'] = {'content': [{**listed[0], 'top_logprobs': listed}]}
    choice |= {'message': {'role': 'assistant', 'content': text}} if chat else {'text': text}
    return {'id': 'x', 'object': 'x', 'model': body['model'], 'choices': [choice], 'usage': usage}


def prompt_of(body: dict[str, Any]) -> str:
    return body['prompt'] if 'prompt' in body else body['messages'][-1]['content']


@functools.cache
def random_llama() -> Callable[[str], dict[str, float]]:
    """Prompt -> log-probabilities of the next token, by a random Llama of two layers.

    Its tokenizer knows the words yes and no and hashes all others to 62 tokens.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    vocabulary = ['Yes', 'no', *(f'token{i}' for i in range(62))]
    lock = threading.Lock()

    def logprobs(prompt: str) -> dict[str, float]:
        words = re.findall(r'\w+', prompt)[-200:] or ['']
        ids = [2 + hashlib.sha256(word.encode()).digest()[0] % 62 for word in words]
        with lock, torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        values = torch.log_softmax(logits, -1).tolist()
        return dict(zip(vocabulary, values, strict=True))

    return logprobs


def overlap(query: str, passage: str) -> int:
    """How many different words of a query a passage has."""
    return len(set(re.findall(r'\w+', query.lower())) & set(re.findall(r'\w+', passage.lower())))


def judge(body: dict[str, Any]) -> dict[str, float] | str:
    """A model that counts common words, as logits of yes and no or as the order of a window."""
    prompt = prompt_of(body)
    query = re.findall(r'Query: (.*)', prompt)[-1]
    window = re.findall(r'^\[(\d+)\] (.*)', prompt, re.MULTILINE)
    if window:
        best = sorted(window, key=lambda item: -overlap(query, item[1]))
        return ' > '.join(f'[{number}]' for number, _ in best)
    passage = re.findall(r'Passage: (.*)', prompt)[0]
    logit = 2.0 * overlap(query, passage) - 2.0
    return {'yes': logit - 3, 'no': -3.0, 'maybe': -9.0}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--port', type=int, default=8000)
    parser.add_argument('--model', choices=('llama', 'overlap'), default='llama')
    args = parser.parse_args()
    model = judge if args.model == 'overlap' else lambda body: random_llama()(prompt_of(body))
    server = Server(model, port=args.port)
    print(f'serves {args.model} at {server.url}', flush=True)
    server.serve_forever()


if __name__ == '__main__':
    main()
