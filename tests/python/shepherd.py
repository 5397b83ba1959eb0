"""Shepherd's locks, bodies and logs with redis-py and zstandard, written from the contract alone.

Arguments: port, then one of
  hold RESPONSE CONSUMER SECONDS   hold the lock for a while
  count RESPONSE CONSUMER ROUNDS   add one to `n` in the body, so many times, each time under the lock
  put ID JSON | get ID             a body
  log RESPONSE MESSAGE... | logs RESPONSE
Prints what happened.
"""

import json
import sys
import time
from datetime import datetime, timezone

import redis
import zstandard

PORT, MODE, ID, ARGS = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
LIFE = 1_210_000

bodies = redis.Redis(port=PORT, db=1)
locks = redis.Redis(port=PORT, db=2, decode_responses=True)
logs = redis.Redis(port=PORT, db=3)

RELEASE = locks.register_script(
    """
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    redis.call('DEL', KEYS[1])
    redis.call('PUBLISH', KEYS[1], 'released')
    return 1
    """
)


def say(*words):
    print(*words, flush=True)


def acquire(consumer):
    """At most twelve waits of five seconds, each cut short by a release."""
    channel = locks.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(ID)
    try:
        for _ in range(12):
            if locks.set(ID, consumer, nx=True, ex=45):
                return True
            channel.get_message(timeout=5)
        return False
    finally:
        channel.close()


def release(consumer):
    return RELEASE(keys=[ID], args=[consumer]) == 1


def get():
    return json.loads(zstandard.decompress(bodies.get(ID)))


def put(body):
    bodies.set(ID, zstandard.compress(json.dumps(body).encode()), ex=LIFE)


def main():
    if MODE == "hold":
        consumer, seconds = ARGS[0], float(ARGS[1])
        say("locked" if acquire(consumer) else "gave up")
        time.sleep(seconds)
        say("released" if release(consumer) else "not mine")
    elif MODE == "count":
        consumer, rounds = ARGS[0], int(ARGS[1])
        for _ in range(rounds):
            # Each release that another hears first costs one of the twelve waits.
            while not acquire(consumer):
                pass
            body = get()
            time.sleep(0.002)
            put({**body, "n": body["n"] + 1})
            release(consumer)
        say("done")
    elif MODE == "put":
        put(json.loads(ARGS[0]))
    elif MODE == "get":
        say(json.dumps(get()))
    elif MODE == "log":
        known = logs.get(ID)
        entries = json.loads(known) if known else []
        for message in ARGS:
            now = datetime.now(timezone.utc).isoformat()
            entries.append({"message": message, "timestamp": now, "level": "INFO"})
        logs.set(ID, json.dumps(entries, separators=(",", ":")), ex=LIFE)
    elif MODE == "logs":
        for entry in json.loads(logs.get(ID)):
            datetime.fromisoformat(entry["timestamp"])
            say(entry["level"], entry["message"])


main()
