"""Uploads by huggingface_hub's own client over HTTP, to a server that stands in for the hub."""

import base64
import functools
import hashlib
import http.server
import json
import threading
import urllib.parse

import huggingface_hub
import pytest

from jdkd.models import hub

TOKEN = 'hf_secret1234'


class Hub(http.server.BaseHTTPRequestHandler):
    """The parts of the hub's API that an upload needs; keeps what it is given."""

    def __init__(self, kept, *args):
        self.kept = kept
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header('content-type', 'application/json')
        self.send_header('content-length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @property
    def content(self):
        if self.headers.get('transfer-encoding') == 'chunked':
            data = b''
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get('content-length') or 0))

    def do_PUT(self):  # noqa: N802
        self.kept['lfs'][self.path.rpartition('/')[2]] = self.content
        self.answer(200, {})

    def do_POST(self):  # noqa: N802
        content, url = self.content, f'http://{self.headers["host"]}'
        path = urllib.parse.urlsplit(self.path).path
        if self.headers['authorization'] != f'Bearer {TOKEN}':
            self.answer(401, {'error': 'Invalid username or password.'})
        elif path == '/api/repos/create':
            self.kept['created'].append(json.loads(content))
            self.answer(200, {'url': f'{url}/org/name'})
        elif path == '/api/validate-yaml':  # Of the model card.
            self.answer(200, {'errors': [], 'warnings': []})
        elif path == '/api/models/org/name/preupload/main':
            names = [file['path'] for file in json.loads(content)['files']]
            modes = ('lfs' if name.endswith('.safetensors') else 'regular' for name in names)
            files = [
                {'path': name, 'uploadMode': mode, 'shouldIgnore': False}
                for name, mode in zip(names, modes, strict=True)
            ]
            self.answer(200, {'files': files})
        elif path == '/org/name.git/info/lfs/objects/batch':
            objects = json.loads(content)['objects']
            for item in objects:
                item['actions'] = {'upload': {'href': f'{url}/lfs/{item["oid"]}'}}
            self.answer(200, {'transfer': 'basic', 'objects': objects})
        elif path == '/api/models/org/name/commit/main':
            self.kept['commit'] += [json.loads(line) for line in content.splitlines()]
            done = {'commitOid': 'a' * 40, 'commitUrl': f'{url}/org/name/commit/{"a" * 40}'}
            self.answer(200, {'success': True, 'hookOutput': '', **done})
        else:
            self.answer(404, {'error': path})


@pytest.fixture
def kept(monkeypatch):
    kept = {'created': [], 'lfs': {}, 'commit': []}
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Hub, kept))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept['url'] = f'http://127.0.0.1:{server.server_address[1]}'
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', kept['url'])
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    # Large files then go by Git LFS, whose protocol is public, and not to Xet's storage.
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_DISABLE_XET', True)
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    yield kept
    server.shutdown()
    server.server_close()


@pytest.fixture
def student(tmp_path):
    (tmp_path / '1_Pooling').mkdir()
    (tmp_path / '1_Pooling/config.json').write_text('{}')
    (tmp_path / 'README.md').write_text('# A student\n')
    (tmp_path / 'model.safetensors').write_bytes(bytes(range(256)) * 64)
    return tmp_path


def test_a_push_creates_the_repository_and_uploads_every_file(student, kept):
    url = hub.push(student, 'org/name')
    assert url == f'{kept["url"]}/org/name/commit/{"a" * 40}'
    (created,) = kept['created']
    assert (created['organization'], created['name']) == ('org', 'name')
    values = {
        entry['value']['path']: base64.b64decode(entry['value']['content'])
        for entry in kept['commit']
        if entry['key'] == 'file'
    }
    assert values == {'README.md': b'# A student\n', '1_Pooling/config.json': b'{}'}
    weights = (student / 'model.safetensors').read_bytes()
    sha256 = hashlib.sha256(weights).hexdigest()
    assert kept['lfs'] == {sha256: weights}
    (pointer,) = [entry['value'] for entry in kept['commit'] if entry['key'] == 'lfsFile']
    assert (pointer['path'], pointer['oid']) == ('model.safetensors', sha256)
    (header,) = [entry['value'] for entry in kept['commit'] if entry['key'] == 'header']
    assert header['summary'] == 'Exported by jdkd'


def test_a_token_that_is_refused_is_one_sentence(student, kept, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
    with pytest.raises(ConnectionError, match="could not be pushed to 'org/name'") as error:
        hub.push(student, 'org/name')
    assert 'hf_wrong' not in str(error.value) and '\n' not in str(error.value)
    assert not kept['created'] and not kept['commit']


def test_push_without_a_network_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(ConnectionError) as error:
        hub.push(tmp_path, 'org/name')
    message = str(error.value)
    assert message.startswith(f"{tmp_path} is complete, but could not be pushed to 'org/name' (")
    assert 'HF_TOKEN' in message and '\n' not in message


@pytest.mark.parametrize('repo', ['name', 'a/b/c', 'org/my model', ''])
def test_push_to_what_is_no_repository(tmp_path, repo):
    with pytest.raises(ValueError, match='is no repository; give organisation/name'):
        hub.push(tmp_path, repo)
