"""Decides four writes over a control socket: let be, refuse, change, pretend."""
import base64
import json
import socket
import sys

control = socket.socket(socket.AF_UNIX)
control.connect(sys.argv[1])
lines = control.makefile("r")
asked = []


def receive():
    return json.loads(lines.readline())


def command(name, **arguments):
    control.sendall(json.dumps({"execute": name, "arguments": arguments}).encode())
    while True:
        message = receive()
        if "error" in message:
            raise SystemExit(message)
        if "return" in message:
            return message["return"]
        asked.append(message)


receive()
command("qmp_capabilities")
command("fault-register")
print("ready", flush=True)
answers = [
    {"answer": "proceed"},
    {"answer": "fail", "error": "ENOSPC"},
    {"answer": "proceed", "data": base64.b64encode(b"\xee" * 512).decode()},
    {"answer": "succeed"},
]
for answer in answers:
    while not (asked and asked[0]["event"] == "FAULT_ASK"):
        del asked[:1]
        if not asked:
            asked.append(receive())
    question = asked.pop(0)["data"]
    print(question["offset"] // 512, question["operation"], question["bytes"], base64.b64decode(question["data"])[0])
    command("fault-answer", ask=question["ask"], **answer)
