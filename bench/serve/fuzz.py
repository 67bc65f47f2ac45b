"""Sends a server malformed requests, and asks schemathesis to make more of its OpenAPI file.

    python3 bench/serve/fuzz.py [--count 100000] [--schema]

Starts `tessera serve smollm2` itself (a release build has to be there, and the model). No answer may be a 5xx, the
server must live, and its memory must not grow. `--schema` needs `pip install schemathesis`. Prints counts of the
answers by status; exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

from running import wait

ROOT = Path(__file__).resolve().parents[2]
THREADS = 8
POSTS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize", "/admin/model",
         "/v1/methods/cascade/check"]  # fmt: skip
GETS = ["/v1/models", "/v1/methods", "/health", "/metrics", "/openapi.json", "/methods/fasa", "/docs", "/"]
GOOD = [
    {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "temperature": 0, "seed": 1},
    {"prompt": "Hello", "max_tokens": 1, "echo": True, "logprobs": 2, "stop": ["x"], "n": 1},
    {"input": ["a", "b"], "encoding_format": "base64"},
    {"content": "text"},
    {"tokens": [1, 2, 3]},
    {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "stream": True, "top_p": 0.5,
     "methods": [{"id": "cascade", "budget": 4}],
     "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
    {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1,
     "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
]  # fmt: skip
ODD = [None, True, -1, 0, 1e308, -1e-308, 2**63, 2**64, "", "\u0000", "a" * 5000, [], {}, [[]], [None], "\ud83d\ude00", 0.1,
       [1e9], {"type": "json_schema"}, "(" * 200, {"a": {"b": [1]}}]  # fmt: skip


def changed(value: object, rng: random.Random) -> object:
    """`value` with one place of it made wrong."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(sorted(value))
        copy = dict(value)
        kind = rng.random()
        if kind < 0.15:
            del copy[key]
        elif kind < 0.3:
            copy["".join(rng.choices("abcdefgh_\u00e9\u0000", k=rng.randint(1, 12)))] = copy.pop(key)
        else:
            copy[key] = changed(value[key], rng)
        return copy
    if isinstance(value, list) and value and rng.random() < 0.6:
        copy = list(value)
        place = rng.randrange(len(copy))
        copy[place] = changed(copy[place], rng)
        return copy
    return rng.choice(ODD)


def body(rng: random.Random) -> bytes:
    """A body that is wrong, or could be."""
    kind = rng.random()
    if kind < 0.6:
        made = rng.choice(GOOD)
        for _ in range(rng.randint(1, 3)):
            made = changed(made, rng)
        return json.dumps(made).encode("utf-8", "surrogatepass")
    if kind < 0.85:
        text = bytearray(json.dumps(rng.choice(GOOD)).encode())
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(text))
            if rng.random() < 0.5:
                text[place] = rng.randrange(256)
            elif rng.random() < 0.5:
                del text[place : place + rng.randint(1, 9)]
            else:
                text[place:place] = text[: rng.randint(0, 30)]
            if not text:
                text = bytearray(b" ")
        return bytes(text)
    if kind < 0.9:
        return b"[" * rng.randint(1, 20000)
    if kind < 0.95:
        return b'{"messages":' + b'{"a":' * rng.randint(1, 3000)
    return rng.randbytes(rng.randint(0, 400))


def raw(rng: random.Random) -> bytes:
    """What is hardly HTTP."""
    path = rng.choice(POSTS + GETS)
    return rng.choice([
        rng.randbytes(rng.randint(1, 200)),
        b"GET " + path.encode() + b"\r\n\r\n",
        b"GET " + path.encode() + b" HTTP/9.9\r\n\r\n",
        b"POST " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n{}",
        b"POST " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
        b"POST " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
        b"POST " + path.encode() + b" HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /" + b"a" * rng.randint(1, 70000) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * rng.randint(1, 300) + b"\r\n",
        b"GET /methods/..%2f..%2fetc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ])  # fmt: skip


def status_of_raw(port: int, sent: bytes) -> str:
    """The status that raw bytes are answered with."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
        try:
            link.sendall(sent)
            link.shutdown(socket.SHUT_WR)
            first = link.recv(64)
        except (ConnectionError, OSError):
            return "closed"
    return first.split()[1].decode() if first.startswith(b"HTTP/1") else "closed"


def worker(port: int, seed: int, count: int, seen: collections.Counter, failures: list[str], lock: threading.Lock) -> None:
    """Sends `count` requests."""
    rng = random.Random(seed)
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    own: collections.Counter = collections.Counter()
    for _ in range(count):
        kind = rng.random()
        told = ""
        try:
            if kind < 0.1:
                sent = raw(rng)
                status = status_of_raw(port, sent)
            else:
                method = rng.choice(["POST"] * 12 + ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
                path = rng.choice(POSTS if method == "POST" else POSTS + GETS)
                sent = body(rng)
                headers = {"Content-Type": rng.choice(["application/json", "text/plain", "x", ""])}
                if rng.random() < 0.02:
                    headers["Origin"] = "http://evil.example"
                try:
                    link.request(method, path, sent, headers)
                    answer = link.getresponse()
                except (ConnectionError, http.client.RemoteDisconnected):
                    # A server may end a connection whose last body it did not read: a new one has to work.
                    link.close()
                    link.request(method, path, sent, headers)
                    answer = link.getresponse()
                told = answer.read()[:300].decode("utf-8", "replace")
                status = str(answer.status)
        except (ConnectionError, http.client.HTTPException, OSError) as error:
            link.close()
            status, told = "broken off", repr(error)
        own[status] += 1
        if status == "broken off" or (status.startswith("5") and status not in ("503", "504")):
            with lock:
                failures.append(f"{status}: {told} for {sent[:300]!r}")
    with lock:
        seen.update(own)


def memory(process: subprocess.Popen) -> float:
    """Resident MB."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="malformed requests; memory is judged from 20,000 on")
    parser.add_argument("--schema", action="store_true")
    parser.add_argument("--port", type=int, default=18475)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    url = f"http://127.0.0.1:{arguments.port}"
    # Few tokens: it is requests that are tried here, not the model.
    command = [ROOT / "target/release/tessera", "serve", "smollm2", "--offline", "--port", str(arguments.port),
               "--max-tokens", "4", "--no-checks", "--max-cache", "64"]  # fmt: skip
    server = subprocess.Popen(command)
    failed = False
    try:
        wait(url)
        failures: list[str] = []
        lock = threading.Lock()

        def burst(count: int, seed: int) -> collections.Counter:
            seen: collections.Counter = collections.Counter()
            each = [count // THREADS + (i < count % THREADS) for i in range(THREADS)]
            threads = [threading.Thread(target=worker, args=(arguments.port, seed + i, n, seen, failures, lock)) for i, n in enumerate(each)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return seen

        # Caches grow to their limit first.
        warm = burst(arguments.count // 5, arguments.seed + 1000)
        before = memory(server)
        start = time.monotonic()
        seen = burst(arguments.count - arguments.count // 5, arguments.seed) + warm
        after = memory(server)
        counts = ", ".join(f"{status} {n}" for status, n in sorted(seen.items()))
        print(f"{seen.total()} requests, the last 80 % in {time.monotonic() - start:.0f} s: {counts}")
        print(f"memory {before:.0f} -> {after:.0f} MB; {len(failures)} failed")
        for failure in failures[:10]:
            print(failure)
        urllib.request.urlopen(url + "/health").close()
        grown = arguments.count >= 20_000 and after > before * 1.05
        failed = bool(failures) or grown
        if arguments.schema:
            run = [sys.executable, "-m", "schemathesis.cli", "run", url + "/openapi.json", "--checks", "not_a_server_error",
                   "--max-examples", "60", "--seed", str(arguments.seed), "--no-color"]  # fmt: skip
            done = subprocess.run(run, capture_output=True, text=True)
            print(done.stdout[-3000:], done.stderr[-2000:])
            failed |= done.returncode != 0
        failed |= server.poll() is not None
    finally:
        server.terminate()
        failed |= server.wait(60) != 0
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
