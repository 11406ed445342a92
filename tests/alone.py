"""Runs a command alone and watched: a script, to be run by root in namespaces of its own.

    unshare --net --mount python tests/alone.py PLACE COMMAND ...

All roads of its network lead to the loopback, where a name server knows every name and each packet
is noted. Its disk is a layer over the real one; only PLACE is the real folder. Prints as JSON what
was asked for, where to connections were opened, how many packets there were, what was written
outside PLACE or left in PLACE/home and PLACE/tmp, its exit code and what it said last.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path

SOMEWHERE = bytes([192, 0, 2, 1])  # an address that nobody has
FILES = {"etc/resolv.conf": "nameserver 127.0.0.1\n", "etc/nsswitch.conf": "hosts: files dns\n"}


def alone(place: Path, command: list[str]) -> dict[str, object]:
    """Run a command; see the module."""
    root = _disk(place)
    names, packets = set[str](), list[bytes]()
    for line in ("link set lo up", "route add default dev lo"):
        subprocess.run(["ip", *line.split()], check=True)
    noted = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    noted.bind(("lo", 0))
    asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asked.bind(("127.0.0.1", 53))
    threading.Thread(target=_answer, args=(asked, names), daemon=True).start()
    threading.Thread(target=_note, args=(noted, packets), daemon=True).start()

    def enter() -> None:
        here = Path.cwd()
        os.chroot(root)
        os.chdir(here)

    done = subprocess.run(command, preexec_fn=enter, capture_output=True, text=True, check=False)
    return {
        "names": sorted(names),
        "connections": sorted({to for packet in packets if (to := _opens(packet))}),
        "packets": len(packets),
        "written": sorted(_written(place)),
        "code": done.returncode,
        "said": (done.stdout + done.stderr)[-2000:],
    }


def _disk(place: Path) -> Path:
    """The root of a layered disk, with PLACE and what is no disk in it."""
    layer = place / "layer"
    for folder in (place / "home", place / "tmp", layer):
        folder.mkdir()
    _mount("-t", "tmpfs", "tmpfs", str(layer))
    for name in ("upper", "work", "root"):
        (layer / name).mkdir()
    for file, text in FILES.items():
        (layer / "upper" / file).parent.mkdir(exist_ok=True)
        (layer / "upper" / file).write_text(text, encoding="utf-8")
    root = layer / "root"
    layers = f"lowerdir=/,upperdir={layer / 'upper'},workdir={layer / 'work'}"
    _mount("-t", "overlay", "overlay", "-o", layers, str(root))
    for kind in ("proc", "sys", "dev"):
        _mount("--rbind", f"/{kind}", str(root / kind))
    _mount("-t", "tmpfs", "tmpfs", str(root / "dev/shm"))
    _mount("--bind", str(place), f"{root}{place}")
    return root


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _answer(server: socket.socket, names: set[str]) -> None:
    """Give every name the same address, and no other kind of record."""
    while True:
        question, asker = server.recvfrom(4096)
        labels, at = [], 12
        while question[at]:
            labels.append(question[at + 1 : at + 1 + question[at]].decode("ascii", "replace"))
            at += 1 + question[at]
        names.add(".".join(labels))
        wants_address = question[at + 1 : at + 3] == b"\0\1"
        head = question[:2] + b"\x81\x80" + struct.pack(">4H", 1, int(wants_address), 0, 0)
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + SOMEWHERE if wants_address else b""
        server.sendto(head + question[12 : at + 5] + record, asker)


def _note(watched: socket.socket, packets: list[bytes]) -> None:
    while True:
        packets.append(watched.recv(65535))


def _opens(packet: bytes) -> str:
    """Address and port that an Ethernet frame opens a TCP connection to, or nothing."""
    ip = packet[14:]
    if packet[12:14] != b"\x08\x00" or ip[9] != socket.IPPROTO_TCP:
        return ""
    tcp = ip[(ip[0] & 15) * 4 :]
    return (
        f"{socket.inet_ntoa(ip[16:20])}:{struct.unpack('>H', tcp[2:4])[0]}" if tcp[13] & 2 else ""
    )


def _written(place: Path) -> list[str]:
    upper = place / "layer/upper"
    found = [f"/{f.relative_to(upper)}" for f in _files(upper)]
    found = [f for f in found if f[1:] not in FILES]
    for folder in (place / "home", place / "tmp", place / "layer/root/dev/shm"):
        found += [str(f) for f in _files(folder)]
    return found


def _files(folder: Path) -> list[Path]:
    return [f for f in folder.rglob("*") if not stat.S_ISDIR(f.lstat().st_mode)]


if __name__ == "__main__":
    print(json.dumps(alone(Path(sys.argv[1]), sys.argv[2:])))
