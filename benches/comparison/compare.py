"""Runs every contender in turn on one private Redis and prints tasks per second and Redis commands per task.

Arguments: the worker benchmark's program, apalis' program, a Python with requirements.txt installed, and, if upstream's
loop is to run too, a Python with its requirements. See scripts/bench-workers.
"""

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

OURS, APALIS, PYTHON, *UPSTREAM_PYTHON = sys.argv[1:]
HERE = os.path.dirname(os.path.abspath(__file__))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
# Tasks in flight, and the number of tasks for the two Rust loops and the Python loops.
SIZES = [(1, 20_000, 500), (10, 60_000, 1_000), (100, 60_000, 2_000)]
# apalis' script that claims ready tasks fails above about 8,000 of them ("too many results to unpack").
APALIS_TASKS = 7_000


def contenders():
    yield "bare minimum by hand", [OURS], "run-bare", True
    yield "this library", [OURS], "run", True
    yield "apalis 1.0, Redis", [APALIS], "run", APALIS_TASKS
    yield "taskiq 1.2, streams", [PYTHON, f"{HERE}/taskiq_loop.py"], "run", False
    yield "FastStream 0.7, streams", [PYTHON, f"{HERE}/faststream_loop.py"], "run", False
    if UPSTREAM_PYTHON:
        yield "upstream's own loop", [UPSTREAM_PYTHON[0], f"{HERE}/upstream_loop.py"], "run", False


def info(port, *words):
    with socket.create_connection(("127.0.0.1", port)) as link:
        parts = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        link.sendall(f"*{len(words)}\r\n{parts}".encode())
        answer = b""
        while not answer.endswith(b"\r\n") or (answer.startswith(b"$") and len(answer) < int(answer[1:].split(b"\r\n")[0])):
            answer += link.recv(65536)
    return answer.decode(errors="replace")


def commands(port):
    """Commands carried out so far, those inside scripts included."""
    lines = info(port, "INFO", "stats").splitlines()
    return next(int(line.split(":")[1]) for line in lines if line.startswith("total_commands_processed"))


def measure(port, program, verb, tasks, in_flight):
    env = dict(os.environ, REDIS_URL=f"redis://127.0.0.1:{port}", TASKS=str(tasks), IN_FLIGHT=str(in_flight))
    info(port, "FLUSHALL")
    subprocess.run([*program, "load"], env=env, check=True, timeout=300)
    before = commands(port)
    printed = subprocess.run([*program, verb], env=env, check=True, timeout=300, stdout=subprocess.PIPE, text=True)
    seconds = float(printed.stdout.split()[-1])
    return tasks / seconds, (commands(port) - before) / tasks


def main():
    folder = tempfile.mkdtemp(prefix="shepherd-bench-")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder, "--loglevel", "warning"]
    server = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
    try:
        time.sleep(1)
        print("| in flight | | tasks/s | this library is faster by | commands per task |")
        print("| --- | --- | --- | --- | --- |")
        for in_flight, many, few in SIZES:
            found = {name: [] for name, *_ in contenders()}
            for _ in range(ROUNDS):
                for name, program, verb, size in contenders():
                    tasks = {True: many, False: few}.get(size, size)
                    found[name].append(measure(port, program, verb, tasks, in_flight))
            ours = statistics.median(rate for rate, _ in found["this library"])
            for name, rounds in found.items():
                rate = statistics.median(rate for rate, _ in rounds)
                spent = statistics.median(spent for _, spent in rounds)
                print(f"| {in_flight} | {name} | {rate:,.0f} | {ours / rate:.2f} | {spent:.2f} |", flush=True)
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


main()
