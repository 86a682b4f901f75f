"""Two hosts made of network namespaces train one model, and one of them goes away."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HOSTS = """
set -e
mount -t tmpfs tmpfs /run
mkdir /run/netns
ip netns add one
ip netns add two
ip link add name left type veth peer name right
ip link set left netns one
ip link set right netns two
ip -n one addr add 10.0.0.1/24 dev left
ip -n two addr add 10.0.0.2/24 dev right
ip -n one link set left up
ip -n two link set right up
ip -n one link set lo up
ip -n two link set lo up

printf '127.0.0.1 localhost\\n10.0.0.1 one\\n10.0.0.2 two\\n' >/run/hosts
mount --bind /run/hosts /etc/hosts

host() {  # name, device, address, number of the node, command
    name=$1; device=$2; address=$3; node=$4; shift 4
    GLOO_SOCKET_IFNAME=$device ip netns exec $name unshare --uts sh -c 'hostname "$0"; exec "$@"' $name \\
        "$PYTHON" -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --node-rank $node --local-addr $address \\
        --rdzv-backend c10d --rdzv-id test --rdzv-endpoint 10.0.0.1:29400 -m visus "$@"
}

host two right 10.0.0.2 1 "$@" >"$OUT/two.log" 2>&1 &
host one left 10.0.0.1 0 "$@"
"""
NAMESPACE = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c"]
SMALL = ["train", "digits", "--model", "small", "-b", "50", "--amp", "off", "--threads", "1", "--name", "run"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("ip")
        or not shutil.which("unshare")
        or subprocess.run(
            [*NAMESPACE, HOSTS.partition("host()")[0]], check=False, capture_output=True
        ).returncode
        != 0,
        reason="no network namespaces here",
    ),
]


def on_two_hosts(tmp_path, epochs):
    arguments = [*SMALL, "--epochs", str(epochs), "--out", str(tmp_path), "--json"]
    settings = {"PYTHON": sys.executable, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*NAMESPACE, HOSTS, "sh", *arguments],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def of_the_other_host(out):
    """The processes of host two: torchrun and what it has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = folder.joinpath("cmdline").read_bytes()
            variables = folder.joinpath("environ").read_bytes()
        except OSError:
            continue
        if str(out).encode() in arguments and (b"10.0.0.2" in arguments or b"\0RANK=1\0" in variables):
            found.append(int(folder.name))
    return found


def test_two_hosts_train_one_model(tmp_path):
    output, log = on_two_hosts(tmp_path, 2).communicate(timeout=250)
    assert output, log + (tmp_path / "two.log").read_text()
    assert json.loads(output)["steps"] == 52
    assert "of each batch 25 in each of 2 processes" in log
    assert "Loss" not in (tmp_path / "two.log").read_text()


def test_a_host_that_goes_away_ends_the_other_and_one_alone_goes_on(tmp_path):
    process = on_two_hosts(tmp_path, 60)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.05)
    for pid in of_the_other_host(tmp_path):
        os.kill(pid, signal.SIGKILL)
    log = process.communicate(timeout=30)[1]
    assert process.returncode != 0
    assert "a process on another machine, of 2, ended before its time" in log
    resumed = [sys.executable, "-m", "visus", "train", "--resume", tmp_path / "run", "--json"]
    done = subprocess.run(resumed, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["epochs"] == 60
