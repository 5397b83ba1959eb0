"""Adds tasks as the platform's server and its callbacks do: Python and redis-py, from the contract alone.

Arguments: port, stream, then the answers that the worker is to give. One task for each form of the
`workflow` field and each answer; the answer is in the task's metadata, its query is `form/answer`.
"""

import json
import sys

import redis

PORT, STREAM, ANSWERS = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
HERE, NEXT = {"id": STREAM}, {"id": "b", "parameters": {"n": [1, 2]}}
FORMS = {
    "list": json.dumps([HERE, NEXT]),
    "users": json.dumps([NEXT]),
    "twice": json.dumps([HERE, HERE, NEXT]),
    "last": json.dumps([HERE]),
    "empty-list": "[]",
    "null": json.dumps(None),
    "empty": "",
    "missing": None,
    "broken": "{",
    "no-list": json.dumps({"id": "b"}),
}

client = redis.Redis(port=PORT)
for form, workflow in FORMS.items():
    for answer in ANSWERS:
        task = {
            "target": STREAM,
            "query_id": f"{form}/{answer}",
            "response_id": "0123abcd",
            "callback_id": "89abcdef",
            "log_level": "20",
            "otel": "{}",
            "metadata": json.dumps({"answer": answer}),
        }
        if workflow is not None:
            task["workflow"] = workflow
        client.xadd(STREAM, task)
