"""A worker as the contract describes it, written from the contract alone.

usage: fleet.py PORT STREAM CONSUMER [--leave-after SECONDS]
"""
import json
import signal
import sys
import time

import redis

port, stream, consumer = int(sys.argv[1]), sys.argv[2], sys.argv[3]
server = redis.Redis(port=port)
leaving = False


def leave(signum, frame):
    global leaving
    leaving = True


signal.signal(signal.SIGTERM, leave)
try:
    server.xgroup_create(stream, "consumer", "0", mkstream=True)
except redis.ResponseError:
    pass
started = time.time()
beaten = 0.0
while not leaving:
    try:
        if time.time() - beaten >= 5:
            beat = {
                "stream": stream,
                "consumer": consumer,
                "started_at": started,
                "last_seen": time.time(),
                "task_limit": 10,
            }
            server.set(f"worker:heartbeat:{stream}:{consumer}", json.dumps(beat), ex=15)
            beaten = time.time()
        for _, entries in server.xreadgroup("consumer", consumer, {stream: ">"}, count=1, block=200) or []:
            for entry, _ in entries:
                server.xack(stream, "consumer", entry)
                server.xdel(stream, entry)
    except redis.ConnectionError:
        time.sleep(0.2)
    except redis.ResponseError as error:
        if "NOGROUP" in str(error):
            server.xgroup_create(stream, "consumer", "0", mkstream=True)
        else:
            time.sleep(0.2)
marker = {"stream": stream, "consumer": consumer, "signum": 15, "ts": time.time()}
server.set(f"worker:shutdown:{stream}:{consumer}", json.dumps(marker), ex=120)
server.delete(f"worker:heartbeat:{stream}:{consumer}")
