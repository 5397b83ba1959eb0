"""A worker of another make: Python and redis-py, written from the contract alone.

Arguments: port, stream, seconds of work for each task, seconds of idleness before it takes over.
Prints its consumer's name, then `start ID` and `done ID` for each task.
"""

import json
import os
import signal
import sys
import threading
import time
import uuid

import redis

PORT, STREAM, WORK, FLOOR = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
GROUP = "consumer"
CONSUMER = uuid.uuid4().hex[:8]
TASK_LIMIT = int(os.environ.get("TASK_LIMIT", "4"))
INTERVAL = float(os.environ.get("RECLAIM_INTERVAL_SEC", "0.2"))
BATCH = int(os.environ.get("RECLAIM_MAX_BATCH", "50"))
HEARTBEAT = f"worker:heartbeat:{STREAM}:{CONSUMER}"

client = redis.Redis(port=PORT, decode_responses=True)
leaving = threading.Event()
permits = threading.Semaphore(TASK_LIMIT)
running = set()
started_at = time.time()

# Forward, acknowledge, delete, in this order and in one step; a task of somebody else is left alone.
FINISH = client.register_script(
    """
    local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)
    if not held[1] or held[1][2] ~= ARGV[2] then return 0 end
    if KEYS[2] ~= '' then redis.call('XADD', KEYS[2], '*', unpack(ARGV, 4)) end
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
    redis.call('XDEL', KEYS[1], ARGV[3])
    return 1
    """
)


def say(*words):
    # In one piece: print writes word by word, between those of other threads.
    sys.stdout.write(" ".join(words) + "\n")


def beat():
    while not leaving.is_set():
        value = {"stream": STREAM, "consumer": CONSUMER, "started_at": started_at,
                 "last_seen": time.time(), "task_limit": TASK_LIMIT}
        client.set(HEARTBEAT, json.dumps(value), ex=15)
        leaving.wait(5)


def finish(task, fields, begun):
    workflow = json.loads(fields.get("workflow", "[]"))
    if workflow and workflow[0]["id"] == STREAM:
        workflow.pop(0)
    following = workflow[0]["id"] if workflow else ("" if STREAM == "finish_query" else "finish_query")
    passed_on = dict(fields, workflow=json.dumps(workflow))
    flat = [part for pair in passed_on.items() for part in pair]
    if FINISH(keys=[STREAM, following], args=[GROUP, CONSUMER, task, *flat]):
        durations = f"monitor:task_durations:{STREAM}"
        client.lpush(durations, int((time.time() - begun) * 1000))
        client.ltrim(durations, 0, 9999)
        say("done", task)


def work(task, fields, begun):
    try:
        say("start", task)
        time.sleep(WORK)
        finish(task, fields, begun)
    finally:
        running.discard(task)
        permits.release()


def start(task, fields, begun):
    running.add(task)
    threading.Thread(target=work, args=(task, fields, begun), daemon=True).start()


def reclaim():
    """Two gates: idle for longer than the floor, and an owner without a heartbeat."""
    for entry in client.xpending_range(STREAM, GROUP, "-", "+", BATCH, idle=int(FLOOR * 1000)):
        owner, task = entry["consumer"], entry["message_id"]
        if owner == CONSUMER or client.exists(f"worker:heartbeat:{STREAM}:{owner}"):
            continue
        if not permits.acquire(blocking=False):
            return
        taken = client.xclaim(STREAM, GROUP, CONSUMER, int(FLOOR * 1000), [task])
        if taken:
            begun = time.time() - entry["time_since_delivered"] / 1000
            say("reclaimed", task, "from", owner)
            start(taken[0][0], taken[0][1], begun)
        else:
            permits.release()


def main():
    signal.signal(signal.SIGTERM, lambda *_: leaving.set())
    try:
        client.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    except redis.ResponseError as e:
        if "BUSYGROUP" not in str(e):
            raise
    threading.Thread(target=beat, daemon=True).start()
    while not client.exists(HEARTBEAT):
        time.sleep(0.01)
    say("consumer", CONSUMER)
    swept = 0.0
    while not leaving.is_set():
        if time.time() - swept > INTERVAL:
            swept = time.time()
            reclaim()
        if not permits.acquire(timeout=0.1):
            continue
        read = client.xreadgroup(GROUP, CONSUMER, {STREAM: ">"}, count=1, block=100)
        if read:
            task, fields = read[0][1][0]
            start(task, fields, time.time())
        else:
            permits.release()
    while running:
        time.sleep(0.01)
    marker = {"stream": STREAM, "consumer": CONSUMER, "signum": int(signal.SIGTERM), "ts": time.time()}
    pipe = client.pipeline()
    pipe.set(f"worker:shutdown:{STREAM}:{CONSUMER}", json.dumps(marker), ex=120)
    pipe.delete(HEARTBEAT)
    pipe.execute()


main()
