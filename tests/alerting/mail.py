"""A mail server that prints what it takes, one JSON a line.

usage: mail.py starttls|implicit|plain

Nobody called gone has a mailbox (550); that of busy is full at the first try (452).
"""
import asyncio
import email
import email.policy
import json
import ssl
import sys

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult


class Keeper:
    put_off = False

    async def handle_RCPT(self, server, session, envelope, address, options):
        print("recipient: " + address, flush=True)
        if address.startswith("gone@"):
            return "550 no such mailbox"
        if address.startswith("busy@") and not self.put_off:
            self.put_off = True
            return "452 mailbox full"
        envelope.rcpt_tos.append(address)
        return "250 good"

    async def handle_DATA(self, server, session, envelope):
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        parts = [part for part in mail.walk() if not part.is_multipart()]
        taken = {
            "to": envelope.rcpt_tos[0],
            "from": envelope.mail_from,
            "tls": server.transport.get_extra_info("ssl_object") is not None,
            "user": session.auth_data,
            "subject": mail["subject"],
            "message-id": mail["message-id"],
            "in-reply-to": mail["in-reply-to"],
            "references": mail["references"],
            "types": [part.get_content_type() for part in parts],
            "plain": parts[0].get_content(),
            "html": parts[1].get_content(),
            "pictures": {part["content-id"]: len(part.get_content()) for part in parts[2:]},
        }
        print("mail: " + json.dumps(taken), flush=True)
        return "250 taken"


def login(server, session, envelope, mechanism, data):
    good = data.login == b"shepherd" and data.password == b"verysecret"
    return AuthResult(success=good, handled=False, auth_data=data.login.decode())


mode = sys.argv[1]
context = None
if mode != "plain":
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain("cert.pem", "key.pem")


class Server(Controller):
    def factory(self):
        return SMTP(
            self.handler,
            tls_context=context if mode == "starttls" else None,
            require_starttls=mode == "starttls",
            authenticator=login,
            auth_required=mode != "plain",
            auth_require_tls=mode != "implicit",
        )


controller = Server(Keeper(), hostname="127.0.0.1", port=0)
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
wrapped = context if mode == "implicit" else None
server = loop.run_until_complete(loop.create_server(controller.factory, host="127.0.0.1", port=0, ssl=wrapped))
print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
loop.run_forever()
