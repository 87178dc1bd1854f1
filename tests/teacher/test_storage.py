"""Files of a cache in a folder, and in a real server of S3's protocol on this machine."""

import errno
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from moto.s3.exceptions import S3ClientError
from moto.s3.models import S3Backend
from moto.s3.responses import S3Response

from kdray.errors import ConfigError
from kdray.teacher.storage import Folder, Storage, open_storage
from tests.conftest import KEY, SECRET, bucket_url

BIG = 12 << 20  # more than one part of an upload, which has 10 MB


pytestmark = pytest.mark.usefixtures("endpoint")  # credentials for all


@pytest.fixture
def s3(endpoint, tmp_path) -> Storage:
    return open_storage(bucket_url(endpoint, tmp_path), tmp_path / "mirror")


@pytest.fixture(params=["path", "file", "s3", "memory"])
def any_storage(request, tmp_path) -> Storage:
    where = {
        "path": str(tmp_path / "cache"),
        "file": f"file://{tmp_path}/a%20cache",
        "s3": bucket_url(request.getfixturevalue("endpoint"), tmp_path) if request.param == "s3" else "",
        "memory": f"memory://{tmp_path.name}/cache",  # of this process only; stands for what fsspec reaches
    }[request.param]
    return open_storage(where, tmp_path / "mirror")


def run(code: str, *arguments, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], **options)


def test_files_come_and_go(any_storage):
    store = any_storage
    assert store.list() == {} and store.list("x/y") == {} and store.folders() == []
    for missing in (store.read, store.local):
        with pytest.raises(FileNotFoundError, match="part-0"):
            missing("part-0")

    store.write("part-0", b"first")
    store.write("part-0", b"again!")
    store.write("index/empty", b"")
    store.write("index/deep/big", os.urandom(100) * (BIG // 100))
    assert store.list() == {"part-0": 6}
    assert store.list("index") == {"empty": 0}
    assert store.list("index/deep") == {"big": BIG // 100 * 100}
    assert store.folders() == ["index"]
    assert store.read("part-0") == b"again!" and store.read("index/empty") == b""
    assert store.read("index/deep/big") == store.local("index/deep/big").read_bytes()

    store.remove("part-0")
    store.remove("part-0")
    assert store.list() == {} and store.folders() == ["index"]


def test_a_storage_is_sent_to_workers(any_storage):
    any_storage.write("a", b"1")
    assert pickle.loads(pickle.dumps(any_storage)).read("a") == b"1"


# A folder


def test_paths_are_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_storage("a/b").path == tmp_path / "a/b"
    assert open_storage("~/b").path == tmp_path / "home/b"
    assert open_storage("file:///a/b").path == open_storage("file://localhost/a/b").path == Path("/a/b")
    with pytest.raises(ConfigError, match="three slashes"):
        open_storage("file://a/b")


WRITER = """
import sys
from kdray.teacher.storage import open_storage
store, start, count = open_storage(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for i in range(start, start + count):
    store.write(f"part-{i % 7}", bytes([i % 251]) * (1_000_000 + i % 251))
    print(i, flush=True)
"""


def assert_whole(store: Folder) -> None:
    for name in store.list():
        data = store.read(name)
        assert data == bytes([len(data) - 1_000_000]) * len(data), name


def test_a_killed_writer_leaves_whole_files_only(tmp_path):
    left = 0
    for attempt in range(4):
        store = Folder("", tmp_path / str(attempt))
        writer = run(WRITER, store.path, attempt * 40, 1 << 30, stdout=subprocess.PIPE)
        for _ in range(8):
            writer.stdout.readline()
        deadline = time.time() + 5
        while not list(store.path.glob(".writing-*")) and time.time() < deadline:
            pass  # so that the kill comes in the middle of a write
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        assert_whole(store)
        assert len(store.list()) == 7
        unfinished = list(store.path.glob(".writing-*"))
        left += len(unfinished)

        store.sweep(older_than=60)
        assert list(store.path.glob(".writing-*")) == unfinished  # its writer might live
        store.sweep(older_than=-1)
        assert sorted(os.listdir(store.path)) == sorted(store.list())
    assert left  # otherwise no kill was in the middle


def test_two_writers_of_one_name(tmp_path):
    store = Folder("", tmp_path)
    writers = [run(WRITER, tmp_path, start, 150, stdout=subprocess.DEVNULL) for start in (0, 100)]
    while any(writer.poll() is None for writer in writers):
        assert_whole(store)  # at any time
    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(store.list()) == len(os.listdir(tmp_path)) == 7


FULL = """
import resource, signal, sys
from kdray.teacher.storage import open_storage
store = open_storage(sys.argv[1])
store.write("a", b"whole")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
try:
    store.write("a", bytes(3 << 20))
except OSError as error:
    sys.exit(error.errno)
"""


def test_a_write_that_fails_leaves_nothing(tmp_path):
    assert run(FULL, tmp_path).wait() == errno.EFBIG
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"whole"


def test_a_full_disk_leaves_nothing(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        store = Folder("", tmp_path)
        store.write("a", b"whole")
        with pytest.raises(OSError) as raised:
            store.write("a", bytes(3 << 20))
        assert raised.value.errno == errno.ENOSPC
        assert os.listdir(tmp_path) == ["a"] and store.read("a") == b"whole"
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# A store


def test_an_upload_that_fails_changes_nothing(s3, monkeypatch):
    s3.write("a", b"whole")
    upload = S3Backend.upload_part

    def refuse_the_second(self, bucket, upload_id, part, value):
        if part == 2:
            raise S3ClientError("AccessDenied", f"{KEY} may not")
        return upload(self, bucket, upload_id, part, value)

    monkeypatch.setattr(S3Backend, "upload_part", refuse_the_second)
    for name in ("a", "b"):
        with pytest.raises(ConfigError, match="the store s3://"):
            s3.write(name, bytes(3 * BIG))
    assert s3.list() == {"a": 5} and s3.read("a") == b"whole"
    monkeypatch.undo()


INTERRUPTED = """
import sys
from kdray.teacher.storage import open_storage
try:
    open_storage(sys.argv[1]).write("a", b"the new one")
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_an_interrupted_upload_is_whole_or_not_there(s3, endpoint, tmp_path, monkeypatch):
    """Ctrl-C between the opening of an object and its writing, where pyarrow would store an empty one."""
    s3.write("a", b"whole")
    create = S3Backend.create_multipart_upload

    def interrupt(*arguments, **options):
        writer.send_signal(signal.SIGINT)
        return create(*arguments, **options)

    monkeypatch.setattr(S3Backend, "create_multipart_upload", interrupt)
    # A shell lets what it starts in the background ignore Ctrl-C, and so would its children.
    hears = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    writer = run(INTERRUPTED, bucket_url(endpoint, tmp_path), **hears)
    assert writer.wait() == 7
    assert s3.read("a") in (b"whole", b"the new one")


def test_the_mirror_is_filled_once(s3, monkeypatch):
    s3.write("x/part", bytes(BIG))
    downloads = []
    get = S3Response.get_object

    def count(*arguments, **options):
        downloads.append(arguments)
        return get(*arguments, **options)

    monkeypatch.setattr(S3Response, "get_object", count)
    copies = [pickle.loads(pickle.dumps(s3)) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda store: store.local("x/part"), copies))
    assert len(paths) == 1 and paths.pop().read_bytes() == bytes(BIG)
    assert len(downloads) == 1


def test_the_mirror_follows_the_store(s3, endpoint, tmp_path):
    s3.write("part", b"long content")
    path = s3.local("part")
    inode = path.stat().st_ino
    assert s3.local("part").stat().st_ino == inode  # reused
    path.write_bytes(b"cut")
    assert s3.local("part").read_bytes() == b"long content"
    s3.write("part", b"other")
    assert s3.local("part").read_bytes() == b"other"

    other = open_storage(bucket_url(endpoint, tmp_path).replace("caches/one", "caches/two"), tmp_path / "mirror")
    other.write("part", b"OTHER")
    assert other.local("part").read_bytes() == b"OTHER" and s3.local("part").read_bytes() == b"other"


def test_a_missing_bucket_is_told(endpoint, tmp_path):
    store = open_storage(f"s3://nowhere/x?scheme=http&endpoint_override={endpoint}", tmp_path)
    for call in (store.list, store.folders, lambda: store.read("a"), lambda: store.local("a")):
        with pytest.raises(ConfigError, match=r"(?s)s3://nowhere/x.*Bucket 'nowhere' not found.*Create the bucket"):
            call()
    with pytest.raises(ConfigError, match=r"NO_SUCH_BUCKET.*Create the bucket"):
        store.write("a", b"1")


def test_denied_access_is_told(s3, monkeypatch):
    s3.write("a", b"1")

    def deny(*arguments, **options):
        raise S3ClientError("AccessDenied", f"{KEY} may not")

    monkeypatch.setattr(S3Backend, "list_objects", deny)
    with pytest.raises(ConfigError, match="credentials"):
        s3.list()


@pytest.mark.parametrize(
    "url", ["s3://b/x?scheme=http&endpoint_override=", "gs://b/x?anonymous=true&scheme=http&endpoint_override="]
)
def test_a_closed_port_is_told_soon(url, tmp_path, monkeypatch):
    monkeypatch.setattr("kdray.teacher.store_url.REQUEST_TIMEOUT", 1)  # Google's library goes on trying for so long
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = open_storage(f"{url}127.0.0.1:{port}", tmp_path)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port}.*Check the endpoint"):
        store.list()
    assert time.monotonic() - start < 5


def test_a_store_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("kdray.teacher.store_url.REQUEST_TIMEOUT", 1)
    monkeypatch.setattr("kdray.teacher.store_url.ATTEMPTS", 2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"s3://b/x?scheme=http&endpoint_override=127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConfigError, match="Check the endpoint"):
            open_storage(url, tmp_path).list()


# What fsspec reaches


def test_listings_are_not_remembered(tmp_path, monkeypatch):
    remembered = {}
    find = MemoryFileSystem.find

    def remember(self, path, **options):
        return remembered.setdefault(path, find(self, path, **options))

    monkeypatch.setattr(MemoryFileSystem, "find", remember)
    monkeypatch.setattr(MemoryFileSystem, "invalidate_cache", lambda self, path=None: remembered.clear())
    store = open_storage(f"memory://{tmp_path.name}")
    store.write("a", b"1")
    assert store.list() == {"a": 1}
    MemoryFileSystem.store[f"/{tmp_path.name}/b"] = MemoryFile(data=b"22")  # as by another process
    assert store.list() == {"a": 1, "b": 2}


def test_a_write_through_fsspec_is_whole_or_not_there(tmp_path, monkeypatch):
    store = open_storage(f"memory://{tmp_path.name}")
    store.write("a", b"whole")

    def fail(*arguments, **options):
        raise TimeoutError("timed out")

    monkeypatch.setattr(MemoryFileSystem, "mv", fail)
    with pytest.raises(ConfigError, match=r"timed out\. Check the endpoint"):
        store.write("a", b"new")
    assert store.read("a") == b"whole"
    assert MemoryFileSystem().ls(f"/{tmp_path.name}", detail=False) == [f"/{tmp_path.name}/a"]


# URLs


def test_secrets_are_not_shown(tmp_path, endpoint):
    userinfo = f"{KEY}:{SECRET.replace('/', '%2F')}"
    store = open_storage(f"s3://{userinfo}@nowhere/x?scheme=http&endpoint_override={endpoint}", tmp_path)
    assert store.where == f"s3://nowhere/x?scheme=http&endpoint_override={endpoint}"
    with pytest.raises(ConfigError) as raised:
        store.list()
    shown = [store.where, repr(store), repr(store._url), str(raised.value)]
    shown += [open_storage(f"memory://bob:{SECRET.replace('/', '%2F')}@h/x?token={SECRET}").where]
    for url in (f"s3://{KEY}:{SECRET}@b/x", f"s3://b/x?secret_key={SECRET}", f"gs://{userinfo}@b", f"s3://{KEY}@b"):
        with pytest.raises(ConfigError) as raised:
            open_storage(url)
        shown.append(str(raised.value))
    for text in shown:
        assert not any(secret in text for secret in (KEY, SECRET, "se/cret", "cret+of", "%2Fcret")), text


def test_a_message_of_the_store_is_cleaned(s3, endpoint, tmp_path, monkeypatch):
    url = bucket_url(endpoint, tmp_path).replace("s3://", f"s3://{KEY}:{SECRET.replace('/', '%2F')}@")

    def deny(*arguments, **options):
        raise S3ClientError("InvalidAccessKeyId", f"{KEY} with {SECRET} is unknown")

    monkeypatch.setattr(S3Backend, "list_objects", deny)
    with pytest.raises(ConfigError, match=r"\*\*\* with \*\*\* is unknown"):
        open_storage(url, tmp_path).list()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3:///x", "needs a bucket"),
        ("s3://b?regoin=x", "no option 'regoin'. Did you mean 'region'"),
        ("s3://b?anonymous=yes", "anonymous is true or false"),
        ("s3://host:9000/b", "endpoint_override"),
        ("nosuch://b/x", "not known: nosuch"),
        ("abfs://c@account/x", "Install adlfs"),
        ("simplecache::s3://b/x", "name the store itself"),
    ],
)
def test_a_url_that_cannot_be_understood(url, message):
    with pytest.raises(ConfigError, match=message) as raised:
        open_storage(url)
    assert raised.value.exit_code == 2


def test_endpoint_and_credentials_of_the_environment(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
    store = open_storage(f"s3://b-environment-{os.getpid()}/x?allow_bucket_creation=true", tmp_path)
    store.write("a", b"1")
    assert store.list() == {"a": 1}
