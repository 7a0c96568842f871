"""The worker process on its own: a socket, a ring, and the words at both ends of its life."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipeline.config import EngineConfig, PatternConfig
from pipeline.host import messages as m
from pipeline.host.ring import make_ring_file

pytestmark = pytest.mark.contract


class Worker:
    """A started worker process."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair()
        self.control.settimeout(30)
        self.ring_fd = make_ring_file("visavis-test")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.worker", "--name", "visavis-test-worker"]
            + ["--control-fd", str(theirs.fileno()), "--ring-fd", str(self.ring_fd)],
            pass_fds=(theirs.fileno(), self.ring_fd),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        self._decoder = m.MessageDecoder()
        self._inbox: list[m.Message] = []

    def say(self, message: m.Message) -> None:
        self.control.sendall(m.encode_message(message))

    def configure(self, **pattern: object) -> None:
        config = EngineConfig(name="pattern", pattern=PatternConfig.model_validate(pattern))
        self.say(m.Configure(rank=0, config_json=config.model_dump_json(), log_level=20))

    def hear(self) -> m.Message:
        while not self._inbox:
            data = self.control.recv(1 << 16)
            assert data, "the worker hung up"
            heard = self._decoder.feed(data)
            self._inbox += [said for said in heard if not isinstance(said, m.Heartbeat | m.LogRecord)]
        return self._inbox.pop(0)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        self.process.stdin.close()
        self.process.stderr.close()
        self.control.close()
        os.close(self.ring_fd)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def test_a_worker_says_hello_then_ready_and_ends_when_told(worker: Worker) -> None:
    assert worker.hear() == m.Hello(pid=worker.process.pid, protocol_version=m.PROTOCOL_VERSION)
    worker.configure()
    ready = worker.hear()
    assert isinstance(ready, m.Ready)
    assert ready.info.name == "pattern"
    worker.say(m.Shutdown())
    assert worker.process.wait(20) == 0


def test_a_worker_that_fails_says_why_and_whether_trying_again_helps(worker: Worker) -> None:
    worker.hear()
    worker.configure(fault="raise", fault_at_warm_up=True)
    failed = worker.hear()
    assert isinstance(failed, m.Failed)
    assert (failed.error, failed.is_permanent) == ("RuntimeError", False)
    assert "_commit_fault" in failed.traceback
    assert worker.process.wait(20) == 1


def test_a_configuration_from_another_world_is_reported(worker: Worker) -> None:
    worker.hear()
    worker.say(m.Configure(rank=0, config_json='{"name": "nothing"}', log_level=20))
    failed = worker.hear()
    assert isinstance(failed, m.Failed)
    assert failed.error == "ValidationError"
    assert worker.process.wait(20) == 1


def test_a_worker_whose_server_hangs_up_ends_quietly(worker: Worker) -> None:
    worker.hear()
    worker.control.close()
    assert worker.process.wait(20) == 0
    assert worker.process.stderr is not None
    assert worker.process.stderr.read() == b""


def test_a_worker_deep_in_work_ends_when_its_lifeline_does(worker: Worker) -> None:
    worker.hear()
    worker.configure(warm_up_ms=60_000)
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(20) == 1
