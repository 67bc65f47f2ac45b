"""Many clients at once: `tessera serve` beside llama-server on the same file and threads.

    cargo build --release
    python3 bench/serve/load.py [--clients 1,4,16,64] [--seconds 20] [--soak 600] [--only tessera]

Every client asks one request after the other, streamed: a chat of 10 to 400 words (seeded, shared by no two requests), 32 to 128 tokens,
greedy. The servers are measured in turns, `--repeat` times. Printed are the tokens a second over all clients, the median and the 95th
percentile of the time to the first token, and failed requests. `--soak` runs clients that also leave in the middle, and
prints how the server's memory went; it exits with 1 if a request failed. `--sample` is the short form of both for the gate: only this
server, 16 clients for 20 seconds and then 64 for about 40.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench" / "side_by_side"))

WORDS = (
    "river stone market letter winter garden engine island copper signal harbour forest paper window lantern bridge "
    "carpet mountain orange village pencil violin cloud ticket desert rabbit kitchen puzzle anchor feather"
).split()


def request(rng: random.Random) -> tuple[str, int]:
    """A chat's question, and how many tokens of answer."""
    count = rng.choice([10, 30, 80, 200, 400])
    text = " ".join(rng.choice(WORDS) for _ in range(count))
    return f"Write a story with these words: {text}", rng.choice([32, 64, 128])


@dataclass
class Tally:
    """What the clients saw."""

    tokens: int = 0
    first: list[float] = field(default_factory=list)
    whole: int = 0
    left: int = 0
    failed: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def ask(port: int, rng: random.Random, tally: Tally, until: float, leave: bool) -> None:
    """One streamed request; counts tokens as they come, until the measuring ends."""
    question, most = request(rng)
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": most, "temperature": 0, "stream": True}
    start = time.monotonic()
    going = leave and rng.random() < 0.2
    quits = rng.randrange(1, 12)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status} {response.read(300)!r}")
        seen, done = 0, False
        for line in response:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                done = True
                break
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            choices = event.get("choices") or [{}]
            if not choices[0].get("delta", {}).get("content"):
                continue
            now = time.monotonic()
            with tally.lock:
                if seen == 0 and now < until:
                    tally.first.append(now - start)
                tally.tokens += now < until
            seen += 1
            if going and seen >= quits:
                with tally.lock:
                    tally.left += 1
                return
        if not done:
            raise RuntimeError("the stream ended without [DONE]")
        with tally.lock:
            tally.whole += 1
    except Exception as error:  # noqa: BLE001 - whatever it was, the request failed
        with tally.lock:
            tally.failed.append(repr(error))
    finally:
        connection.close()


def clients(port: int, count: int, seconds: float, seed: int, leave: bool = False) -> Tally:
    """`count` clients at work; those that are in the middle of a request when the time ends finish it."""
    tally = Tally()
    until = time.monotonic() + seconds

    def work(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        while time.monotonic() < until and len(tally.failed) < 20:
            ask(port, rng, tally, until, leave)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


class Server:
    """A server process."""

    def __init__(self, name: str, command: list[str], port: int) -> None:
        self.name, self.port = name, port
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        start = time.monotonic()
        while time.monotonic() - start < 120:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise SystemExit(f"{name} is not ready")

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait(30)


def percentile(values: list[float], share: float) -> float:
    """By rank; 0 for none."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def soak(server: Server, count: int, seconds: float) -> bool:
    """Clients that come, go and leave; prints the memory after each part. Returns whether all was well."""
    memory = []
    total = Tally()
    parts = 10 if seconds >= 100 else 2
    for number in range(parts):
        part = clients(server.port, count, seconds / parts, 77 + number, leave=True)
        total.tokens += part.tokens
        total.whole += part.whole
        total.left += part.left
        total.failed += part.failed
        memory.append(resident(server.process.pid))
    shown = " ".join(f"{m / 1e6:.0f}" for m in memory)
    print(f"soak, {count} clients, {seconds:.0f} s: {total.whole} answered, {total.left} left, {len(total.failed)} failed")
    warm = memory[min(2, parts - 2)]
    print(f"resident MB after each part: {shown} (last / warm: {memory[-1] / max(warm, 1):.3f})")
    for failure in total.failed[:5]:
        print(f"  {failure}")
    return not total.failed


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", default="1,4,16,64")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--soak", type=float, default=0)
    parser.add_argument("--only", choices=["tessera", "llama"])
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tessera", default=str(ROOT / "target" / "release" / "tessera"))
    arguments = parser.parse_args()
    if arguments.sample:
        arguments.only, arguments.clients, arguments.repeat, arguments.soak = "tessera", "16", 1, 40
    counts = [int(count) for count in arguments.clients.split(",") if count]
    listed = subprocess.run([arguments.tessera, "list", "--json"], capture_output=True, text=True, check=True)
    path = next(m["path"] for m in json.loads(listed.stdout) if m["name"] == arguments.model)
    most, threads = max([*counts, 64]), str(arguments.threads)
    servers = []
    if arguments.only != "llama":
        command = [arguments.tessera, "serve", arguments.model, "--port", "8391", "--threads", threads, "--max-queue", "256"]
        servers.append(Server("tessera", command, 8391))
    if arguments.only != "tessera":
        import llama_setup

        binary = llama_setup.ensure_server(llama_setup.default_dir())
        # Continuous batching is its default; the cache holds what all its slots can come to need.
        command = [str(binary), "-m", path, "--port", "8392", "-t", threads, "-tb", threads, "--parallel", str(min(most, 64)),
                   "-c", str(1536 * min(most, 64)), "--no-webui", "-fa", "on", "--jinja"]
        servers.append(Server("llama-server", command, 8392))
    well = True
    try:
        for count in counts:
            rows: dict[str, list[Tally]] = {server.name: [] for server in servers}
            for turn in range(arguments.repeat):
                for server in servers if turn % 2 == 0 else servers[::-1]:
                    rows[server.name].append(clients(server.port, count, arguments.seconds, turn))
            for name, tallies in rows.items():
                rate = statistics.median(t.tokens / arguments.seconds for t in tallies)
                first = [seconds for t in tallies for seconds in t.first]
                failed = sum(len(t.failed) for t in tallies)
                print(f"{count:3} clients, {name}: {rate:.1f} tokens/s, first token after {percentile(first, 0.5):.2f} s "
                      f"(95 %: {percentile(first, 0.95):.2f} s), {sum(t.whole for t in tallies)} answered, {failed} failed", flush=True)
                for failure in [f for t in tallies for f in t.failed][:3]:
                    print(f"  {failure}")
                well &= failed == 0 or name != "tessera"
        if arguments.soak:
            for server in servers:
                if server.name == "tessera":
                    well &= soak(server, 64, arguments.soak)
    finally:
        for server in servers:
            server.stop()
    if not well:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
