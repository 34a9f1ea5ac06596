"""Train against a server that speaks W&B's protocol, and read back what arrived.

The server is the package `openwandb`, which `make test-wandb` installs in its own environment.
"""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from programs import Program, wait_for

SERVER = os.environ.get("OPENWANDB") or shutil.which("openwandb")
KEY = "local" + 40 * "0"
STEPS, VALIDATE_EVERY = 40, 10

pytestmark = [
    pytest.mark.wandb_server,
    pytest.mark.skipif(SERVER is None, reason="needs openwandb, see `make test-wandb`"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start a server and return its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    directory = tmp_path_factory.mktemp("server")
    address = f"http://127.0.0.1:{port}"
    command = [SERVER, "serve", "--host", "127.0.0.1", "--port", str(port)]
    with open(directory / "server.log", "w") as log:
        process = subprocess.Popen([*command, "--data-dir", directory], stdout=log, stderr=log)
    try:

        def is_up():
            try:
                return urlopen(address, timeout=5).status == 200
            except URLError:
                return False

        wait_for(is_up)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def get(address, path):
    credentials = base64.b64encode(f"api:{KEY}".encode()).decode()
    request = Request(f"{address}/api/{path}", headers={"Authorization": f"Basic {credentials}"})
    return json.loads(urlopen(request, timeout=30).read())


def online(address):
    return {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}


def start_training(run_dir, root, environment):
    words = ["experiment=mnist", "model=st_fcn", "model.width=4", "logger=wandb"]
    words += [f"data.root={root}", f"hydra.run.dir={run_dir}", "data.eval_batch_size=50"]
    words += [f"trainer.max_steps={STEPS}", f"recipe.validate_every={VALIDATE_EVERY}"]
    words += ["checkpoint_minutes=0.01"]
    return Program("train.py", *words, environment=environment, merge=True)


def finish(process):
    output, _ = process.communicate()
    assert process.returncode == 0, output


def check_run(address, run_dir):
    """Check the curves, pictures, tables and configuration of a finished run."""
    (run_id,) = (run_dir / "wandb_id").read_text().split()
    run = get(address, f"v2/runs/{run_id}")["run"]
    assert run["state"] == "finished"
    config = {name: node["value"] for name, node in json.loads(run["config_json"]).items()}
    assert config["seed"] == 1
    metrics = get(address, f"v2/runs/{run_id}/metrics")["metrics_by_key"]
    result = json.loads((run_dir / "metrics.json").read_text())
    steps = [point["value"] for point in metrics["trainer/global_step"]]
    assert steps == sorted(steps)
    errors = [point["value"] for point in metrics["val/error"]]
    assert len(errors) == STEPS // VALIDATE_EVERY  # none is missing or repeated
    assert min(errors) == pytest.approx(result["metrics"]["val/best_error"], abs=1e-3)
    assert metrics["test/error"][-1]["value"] == pytest.approx(
        result["metrics"]["test/error"], abs=1e-3
    )
    files = [file["name"] for file in get(address, f"v1/runs/{run_id}/files")["files"]]
    assert any(name.startswith("media/images/") for name in files)
    assert any(name.startswith("media/table/") for name in files)
    return run_id


def test_a_killed_run_resumes_as_one_run(server, tmp_path, mnist_root):
    run_dir = tmp_path / "run"
    process = start_training(run_dir, mnist_root, online(server))
    last = run_dir / "checkpoints" / "last.ckpt"
    wait_for(lambda: last.is_file() or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run_dir / "metrics.json").exists()
    finish(start_training(run_dir, mnist_root, online(server)))
    run_id = check_run(server, run_dir)
    runs = get(server, "v2/projects/default/spatial-transformer/runs")["runs"]
    assert [run["run_id"] for run in runs] == [run_id]


def test_an_offline_run_is_synced(server, tmp_path, mnist_root):
    run_dir = tmp_path / "run"
    offline = {"WANDB_BASE_URL": server, "WANDB_MODE": "offline"}
    finish(start_training(run_dir, mnist_root, offline))
    sync = [sys.executable, "-m", "wandb", "sync", *run_dir.glob("wandb/offline-run-*")]
    subprocess.run(sync, env={**os.environ, **online(server)}, check=True, timeout=120)
    check_run(server, run_dir)
