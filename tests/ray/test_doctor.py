"""`kdray doctor` on a cluster with a node that does not see one folder."""

import subprocess
import sys

import pytest

from kdray.launch.checkup import Folder, checkup
from tests.ray.clusters import somebody, two_nodes


@pytest.fixture(scope="module")
def session(folder):
    with two_nodes(folder / "hidden") as session:
        yield session


def lines(session, name, path, must):
    """What is told of the nodes, and of one folder."""
    *nodes, (line, bad) = checkup([Folder(name, path, must)], session.ray, session.addresses())
    assert len(nodes) == 2 and all(" CPUs; GPUs: " in line and not bad for line, bad in nodes)
    return line, bad


def far(session, folder) -> str:
    """The id, as it is shown, of the node that does not see the folder."""
    line, _ = lines(session, "runs", folder / "hidden" / "runs", must=True)
    (node,) = (node[:8] for node in session.addresses() if node[:8] in line)
    return node


def test_what_all_nodes_see(session, folder):
    line, bad = lines(session, "runs", folder / "new" / "runs", must=True)
    assert not bad and f"runs {folder / 'new' / 'runs'}: seen and written by all 2 nodes, " in line
    assert not (folder / "new").exists(), "it leaves what it made"
    assert lines(session, "data", folder / "nowhere", must=False) == (f"data {folder / 'nowhere'}: not there", False)


def test_what_one_node_does_not_see(session, folder):
    node = far(session, folder)
    (folder / "hidden" / "data").mkdir(exist_ok=True)
    for path in ("runs", "data"):
        line, bad = lines(session, "runs", folder / "hidden" / path, must=True)
        assert bad and f"NOT seen, or not to be written, by {line.split(' by ')[1].split(' ')[0]} ({node})" in line
    line, bad = lines(session, "data", folder / "hidden" / "data", must=False)
    assert bad and "NOT there on " in line and f"({node}): put it on storage that every node shares" in line
    # A folder of the same path, of that node's own.
    line, bad = lines(session, "data", folder / "hidden", must=False)
    assert not bad and f"({node})'s own, or read-only: a run compares fingerprints" in line
    assert [path.name for path in (folder / "hidden").iterdir()] == ["data"]


@pytest.mark.thorough
def test_the_command(session, folder):
    """A block for a bug report, and an exit code; where others have the CPUs, it waits and says so."""
    theirs = somebody()
    command = [sys.executable, "-m", "kdray", "doctor", "--num-workers", "2", "--address", session.address]
    with subprocess.Popen(
        command, cwd=folder / "hidden", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as doctor:
        told = [doctor.stderr.readline() for _ in range(2)]
        assert told[1].startswith("waiting for room in the cluster: wanted 2 × "), told
        session.ray.kill(theirs)
        out, err = doctor.communicate(timeout=600)
    assert doctor.returncode == 2, out + err
    shown = out.splitlines()
    assert shown[0] == "```text" and shown[-1] == "```" and "all is well" not in shown
    assert sum(line.startswith("node ") for line in shown) == 2
    assert any(line.startswith("Ray: 2 workers added up over gloo: ok") for line in shown)
    assert any(line.startswith("PROBLEM: the cluster is not in order: runs ") for line in shown)
    assert far(session, folder) in err and "Traceback" not in err
