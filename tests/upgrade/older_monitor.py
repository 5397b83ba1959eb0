"""The older monitor at work, as the contract describes it from outside and written from that alone.

usage: older_monitor.py REDIS_PORT SLACK_URL INTERVAL_SECONDS

It keeps worker states in `monitor:worker_state:*`, obeys `alert:cooldown:*`, records series, drains task durations
and sends alerts to Slack. Each tick, event, alert and drained list is one line of JSON; at SIGTERM, what its pages
would show.
"""
import json
import signal
import sys
import time
import urllib.request

import redis

port, slack, interval = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
server = redis.Redis(port=port, decode_responses=True)
stopping = False


def stop(signum, frame):
    global stopping
    stopping = True


signal.signal(signal.SIGTERM, stop)

# name, stream, entries above which it fires, seconds for which that must hold, cooldown in seconds
RULES = [("backlog_queue", "queue", 20, 0, 600), ("backlog_finished", "finished", 20, 15, 600)]
broken_since = {}


def say(**what):
    print(json.dumps(what), flush=True)


def values_of(pattern):
    keys = list(server.scan_iter(pattern, count=200))
    return [json.loads(value) for value in (server.mget(keys) if keys else []) if value]


def alert(rule, severity, detail, cooldown, now):
    if server.exists(f"alert:cooldown:{rule}"):
        return
    server.set(f"alert:cooldown:{rule}", "1", ex=cooldown)
    record = {"ts": now, "rule": rule, "severity": severity, "detail": detail, "message": detail}
    server.lpush("monitor:alerts:history", json.dumps(record))
    server.ltrim("monitor:alerts:history", 0, 199)
    say(alert=rule)
    body = json.dumps({"text": f"{rule}: {detail}"}).encode()
    urllib.request.urlopen(urllib.request.Request(slack, body, {"content-type": "application/json"}), timeout=5)


def judge(name, alive, shut_down, now):
    raw = server.get(f"monitor:worker_state:{name}")
    last = json.loads(raw) if raw else {}
    was, count_was = last.get("state", "unknown"), int(last.get("last_alive", 0))
    if alive > 0:
        state = "alive"
    elif was == "alive":
        state = "scaled_down" if shut_down else "crashed"
    else:
        state = was
    event = None
    if state != was and state == "alive":
        event = ("scale_up", count_was, alive, was)
    elif state != was:
        event = ("scale_down", count_was, 0, state)
    elif state == "alive" and alive != count_was:
        event = ("scale_up" if alive > count_was else "scale_down", count_was, alive, "alive")
    record = {
        "state": state,
        "last_alive": alive or count_was,
        "state_changed_at": now if state != was else last.get("state_changed_at", now),
        "last_seen_alive": now if alive else last.get("last_seen_alive", 0),
    }
    server.set(f"monitor:worker_state:{name}", json.dumps(record))
    server.sadd("monitor:known_workers", name)
    if event is None:
        return
    say(event=[name, *event])
    if event[0] == "scale_down" and event[2] == 0:
        kind = "worker_crashed" if state == "crashed" else "worker_zero"
        alert(f"{kind}:{name}", "critical", f"{name} from {event[1]} to 0", 600, now)


def rules(lengths, now):
    for name, stream, threshold, duration, cooldown in RULES:
        if lengths[stream] <= threshold:
            broken_since.pop(name, None)
        elif now - broken_since.setdefault(name, now) >= duration:
            alert(name, "warning", f"{stream} has {lengths[stream]} entries", cooldown, now)


def record(samples, now):
    for name, value in samples.items():
        server.zadd(f"monitor:hist:{name}", {f"{now}:{json.dumps(value)}": now})
        server.sadd("monitor:hist:index", name)


def drain():
    for key in list(server.scan_iter("monitor:task_durations:*", count=200)):
        taken, _ = server.pipeline().lrange(key, 0, -1).delete(key).execute()
        say(drained=[key.rsplit(":", 1)[1], len(taken)])


def values_recorded(name):
    return sorted({text.split(":", 1)[1] for text in server.zrange(f"monitor:hist:{name}", 0, -1)})


tick = 0
while not stopping:
    now = time.time()
    beats = [beat for beat in values_of("worker:heartbeat:*") if now - beat["last_seen"] <= 15]
    shut_down = {marker["stream"] for marker in values_of("worker:shutdown:*")}
    known = set(server.smembers("monitor:known_workers"))
    for name in sorted(known | {beat["stream"] for beat in beats}):
        judge(name, sum(beat["stream"] == name for beat in beats), name in shut_down, now)
    lengths = {stream: server.xlen(stream) for _, stream, *_ in RULES}
    rules(lengths, now)
    if tick % 5 == 0:
        record({"pg:callbacks_pending": 0, **{f"xlen:{name}": length for name, length in lengths.items()}}, now)
        drain()
    tick += 1
    say(tick=tick)
    time.sleep(interval)

series = sorted(server.smembers("monitor:hist:index"))
say(
    shows={
        "known": sorted(server.smembers("monitor:known_workers")),
        "alerts": sorted(json.loads(text)["rule"] for text in server.lrange("monitor:alerts:history", 0, -1)),
        "series": {name: values_recorded(name) for name in series},
        "swept": server.mget("monitor:janitor:last_retention_sweep", "monitor:janitor:last_query_retention_sweep"),
    }
)
