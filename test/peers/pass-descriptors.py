"""Passes descriptors to a program's QMP socket, and prints what it answers.

usage: pass-descriptors.py FOLDER PROGRAM [ARGUMENT]...
"""
import atexit
import json
import os
import socket
import subprocess
import sys
import time

folder, program = sys.argv[1], sys.argv[2:]
os.chdir(folder)
for name, byte in (("f", b"\1"), ("g", b"\2")):
    with open(name, "wb") as file:
        file.write(byte * 1048576)
inherited = os.open("g", os.O_RDWR)
options = ["-add-fd", f"fd={inherited},set=7,opaque=given", "-qmp", "unix:qmp.sock,server=on,wait=off"]
process = subprocess.Popen(program + options, pass_fds=[inherited])
atexit.register(process.kill)


class Client:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        end = time.time() + 30
        while True:
            try:
                self.socket.connect("qmp.sock")
                break
            except OSError:
                if time.time() > end:
                    raise
                time.sleep(0.02)
        self.lines = self.socket.makefile("r")
        self.lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command, arguments=None, fds=()):
        message = {"execute": command, **({"arguments": arguments} if arguments else {})}
        data = [json.dumps(message).encode() + b"\n"]
        if fds:
            socket.send_fds(self.socket, data, list(fds))
        else:
            self.socket.sendall(data[0])
        while True:
            answer = json.loads(self.lines.readline())
            if "event" not in answer:
                break
        print(command, json.dumps(arguments), len(fds), json.dumps(answer, sort_keys=True))
        return answer

    def open(self, name, path, **more):
        options = {"driver": "file", "node-name": name, "filename": path, **more}
        self.execute("blockdev-add", options)

    def close(self):
        self.lines.close()
        self.socket.close()


client = Client()
execute = client.execute
reading = os.open("f", os.O_RDONLY)
both = os.open("f", os.O_RDWR)
writing = os.open("g", os.O_WRONLY)

execute("query-fdsets")
execute("add-fd")
for name in ("a", "1a", ""):
    execute("getfd", {"fdname": name})
for name in ("a", "1b", "a"):
    execute("getfd", {"fdname": name}, [reading])
execute("closefd", {"fdname": "a"})
execute("closefd", {"fdname": "a"})
def socket_options(name):
    return {"addr": {"type": "fd", "data": {"str": name}}, "server": False}


ours, theirs = socket.socketpair()
for name in ("s", "t"):
    execute("getfd", {"fdname": name}, [ours.fileno()])
for name in ("99", str(reading), "none", "t"):
    execute("chardev-add", {"id": "c", "backend": {"type": "socket", "data": socket_options(name)}})
execute("chardev-remove", {"id": "c"})
theirs.sendall(b"x" * 64)
for name in ("99", "none", "s"):
    server = {"type": "fd", "str": name}
    execute("blockdev-add", {"driver": "nbd", "node-name": "nbd", "server": server})
execute("add-fd", {"opaque": "one"}, [reading])
execute("add-fd", {"fdset-id": 5, "opaque": "two"}, [both])
execute("add-fd", {}, [writing])
execute("add-fd", {"fdset-id": 5}, [reading])
execute("add-fd", {"fdset-id": -1}, [reading])
execute("add-fd", {"fdset-id": 4294967296}, [reading])
execute("query-fdsets")
execute("remove-fd", {"fdset-id": 99})
execute("remove-fd", {"fdset-id": 5, "fd": 9999})
client.open("n0", "/dev/fdset/0", **{"read-only": True})
client.open("n0w", "/dev/fdset/0")
client.open("n0a", "/dev/fdset/0", **{"auto-read-only": True})
client.open("n5", "/dev/fdset/5")
client.open("n5r", "/dev/fdset/5", **{"read-only": True})
client.open("n1", "/dev/fdset/1")
client.open("n1d", "/dev/fdset/1", cache={"direct": True})
client.open("n7", "/dev/fdset/7")
for number in ("9", "x", "", "-1"):
    client.open("n9", "/dev/fdset/" + number)
execute("human-monitor-command", {"command-line": 'qemu-io n5 "write -P 9 0 4k"'})
print("written", open("f", "rb").read(1))
execute("query-fdsets")
execute("remove-fd", {"fdset-id": 5})
execute("query-fdsets")
client.open("n5c", "/dev/fdset/5", **{"read-only": True})
execute("human-monitor-command", {"command-line": 'qemu-io n5 "write -P 8 0 4k"'})
print("written", open("f", "rb").read(1))
execute("blockdev-del", {"node-name": "n5"})
execute("blockdev-del", {"node-name": "n5r"})
execute("query-fdsets")
execute("add-fd", {"opaque": "three"}, [reading, both])
execute("query-fdsets")
execute("query-status", None, [reading])
execute("add-fd")
execute("add-fd")
execute("nbd-server-start", {"addr": {"type": "fd", "data": {"str": "nothing"}}})
listener = socket.socket(socket.AF_UNIX)
listener.bind("nbd.sock")
listener.listen()
execute("getfd", {"fdname": "nbd"}, [listener.fileno()])
execute("nbd-server-start", {"addr": {"type": "fd", "data": {"str": "nbd"}}})
execute("closefd", {"fdname": "nbd"})
guest = socket.socket(socket.AF_UNIX)
guest.connect("nbd.sock")
print(guest.recv(8))
client.close()
time.sleep(0.3)

# Sets that no file is open by go with the last client.
client = Client()
client.execute("query-fdsets")
client.execute("quit")
process.wait()
