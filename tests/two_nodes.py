"""Two nodes on one machine: network namespaces with a link between them that can be cut."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


def why_no_nodes() -> str | None:
    """Names what this machine lacks for `two_nodes`; None if nothing is missing."""
    if shutil.which("ip") is None:
        return "the program ip is missing: apt-get install iproute2"
    try:
        with two_nodes():
            return None
    except subprocess.CalledProcessError as error:
        return f"network namespaces need root: {error.stderr.strip()}"


class Nodes:
    """Two network namespaces, each with one end of a link."""

    def __init__(self) -> None:
        self.names = [f"fastadaad-{os.getpid()}-{number}" for number in (0, 1)]
        self._links = [f"fa{os.getpid() % 100000}n{number}" for number in (0, 1)]

    def make(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self._links[0], "type", "veth", "peer", "name", self._links[1])
        for name, link, address in zip(self.names, self._links, ADDRESSES, strict=True):
            ip("link", "set", link, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")

    def cut(self) -> None:
        """Cuts the link: packets of one node no longer reach the other, and neither gets an error."""
        ip("-n", self.names[0], "link", "set", self._links[0], "down")

    def mend(self) -> None:
        ip("-n", self.names[0], "link", "set", self._links[0], "up")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)  # the link goes with it

    def start(self, number: int, command: list[str], log: Path, **environment: str) -> subprocess.Popen:
        """Starts `command` on a node, with its output in `log`."""
        given = os.environ | environment | {"GLOO_SOCKET_IFNAME": self._links[number]}
        with open(log, "w") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.names[number], *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=given,
                start_new_session=True,
            )


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    try:
        nodes.make()
        yield nodes
    finally:
        nodes.remove()
