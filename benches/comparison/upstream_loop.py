"""Upstream's own loop around an empty worker: `load` adds TASKS tasks, `run` works them off, IN_FLIGHT at a time, and
prints the seconds that took. UPSTREAM is a checkout of the Shepherd platform."""

import asyncio
import logging
import os
import sys
import time
from urllib.parse import urlsplit

url = urlsplit(os.environ["REDIS_URL"])
os.environ.update(REDIS_HOST=url.hostname, REDIS_PORT=str(url.port), REDIS_PASSWORD="")
sys.path.insert(0, os.environ["UPSTREAM"])
os.chdir(os.environ["UPSTREAM"])

from shepherd_utils import shared  # noqa: E402

TASKS, IN_FLIGHT = int(os.environ["TASKS"]), int(os.environ["IN_FLIGHT"])
TASK = {
    "query_id": "0123abcd", "response_id": "r", "workflow": '[{"id":"s"},{"id":"next"}]', "log_level": "40",
    "otel": '{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}', "metadata": "{}",
}


async def nothing(*_):
    """The loop opens a database connection, which it does not use."""


shared.initialize_db = nothing
logging.disable(logging.CRITICAL)


async def load():
    await shared.broker_client.xgroup_create("s", "consumer", "0", mkstream=True)
    for _ in range(TASKS):
        await shared.broker_client.xadd("s", TASK)


async def run():
    started, count, running = time.perf_counter(), 0, set()
    async for task, context, logger, limiter in shared.get_tasks("s", "consumer", "c", IN_FLIGHT):
        one = shared.run_task_lifecycle("s", "consumer", task, context, logger, limiter, nothing)
        running.add(asyncio.create_task(one))
        count += 1
        if count == TASKS:
            await asyncio.gather(*running)
            print(time.perf_counter() - started, flush=True)
            os._exit(0)


asyncio.run(load() if sys.argv[1] == "load" else run())
