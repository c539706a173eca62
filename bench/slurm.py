"""A real SLURM of one node, in a folder of its own, with ports of its own; APT has its packages.

It has no accounting database, and what it gives out is not enforced: two processors, and two GPUs
that are files of no use, so that a job sees in CUDA_VISIBLE_DEVICES what it got.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

APT = "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
CONF = """ClusterName=stress
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MinJobAge=300
KillWait=30
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """What of it is not on this machine."""
    paths = f"{os.environ['PATH']}:/usr/sbin"
    found = [name for name in NEEDED if not shutil.which(name, path=paths)]
    return found + ([] if os.geteuid() == 0 else ["root's rights"])


class Slurm:
    """`environment` is that of a process which may use it; `stop()` ends it and every job."""

    def __init__(self, folder: Path):
        for name in ("state", "spool", "bin"):
            (folder / name).mkdir(parents=True)
        host, ports = socket.gethostname().split(".")[0], free_ports(2)
        self.folder, self.daemons, conf = folder, [], folder / "slurm.conf"
        conf.write_text(CONF.format(host=host, ports=ports, folder=folder))
        (folder / "gres.conf").write_text("Name=gpu File=/dev/tty[0-1]\n")
        # a job step of Snakemake's is stripped of SLURM_*, SLURM_CONF with it
        wrapper = folder / "bin/srun"
        wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {shutil.which("srun")} "$@"\n')
        wrapper.chmod(0o755)
        paths = f"{folder / 'bin'}:{os.environ['PATH']}:/usr/sbin"
        self.environment = os.environ | {"SLURM_CONF": str(conf), "PATH": paths}
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        where = [f"--{what}-file={folder}/munge.{what}" for what in ("key", "pid", "log", "seed")]
        try:
            where += [f"--socket={folder}/munge.socket"]
            self._start("munged", "--foreground", "--force", *where)
            self._wait(lambda: (folder / "munge.socket").exists())
            self._start("slurmctld", "-D", "-f", str(conf))
            self._start("slurmd", "-D", "-f", str(conf))
            self._wait(lambda: self.ask("sinfo", "-h", "-o", "%T") == "idle")
        except BaseException:
            self.stop()
            raise

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return done.stdout.strip()

    def forget(self) -> None:
        """Wait until all jobs have ended, and no question about them is answered any more."""
        conf = self.folder / "slurm.conf"
        kept = conf.read_text()
        conf.write_text(kept.replace("MinJobAge=300", "MinJobAge=2"))
        self.ask("scontrol", "reconfigure")
        while self.ask("squeue", "-h", "--states=all"):
            time.sleep(1)
        conf.write_text(kept)
        self.ask("scontrol", "reconfigure")

    def stop(self) -> None:
        self.ask("scancel", "--user", str(os.geteuid()))
        end = time.monotonic() + 40
        while self.ask("squeue", "-h") and time.monotonic() < end:
            time.sleep(0.5)
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(20)

    def _start(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}.out").open("w")
        self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def _wait(self, condition) -> None:
        end = time.monotonic() + 30
        while not condition():
            if time.monotonic() > end or any(d.poll() is not None for d in self.daemons):
                logs = [p.read_text()[-500:] for p in sorted(self.folder.glob("*.out"))]
                raise RuntimeError("SLURM does not start: " + " · ".join(logs))
            time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
