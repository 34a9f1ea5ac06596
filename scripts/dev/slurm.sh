#!/usr/bin/env bash
# A SLURM of one node on this machine, for development and tests: scripts/dev/slurm.sh start | stop
# Needs root and Debian or a relative of it; `start` installs the packages where they are missing. Takes under a minute.
set -euo pipefail

conf=/etc/slurm/slurm.conf
state=/var/lib/spatial-transformer-slurm

check_owner() {
    if [ -e "$conf" ] && ! grep -q "$state" "$conf"; then
        echo "scripts/dev/slurm.sh: $conf is there already, and not of this script; it stays as it is" >&2
        exit 1
    fi
}

start() {
    [ "$(id -u)" = 0 ] || { echo "scripts/dev/slurm.sh: needs root, to install and to start services" >&2; exit 1; }
    check_owner
    if ! type slurmctld slurmd munged >/dev/null 2>&1; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
    fi
    mkdir -p "$(dirname "$conf")" "$state" /run/munge
    local host memory
    host=$(hostname -s)
    memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
    cat >"$conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
# A requeued job waits only a moment, for the tests' sake.
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=5
MinJobAge=60
ReturnToService=2
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    mkdir -p "$state/ctld" "$state/d"
    [ -e /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 status=none
    chown -R munge: /etc/munge /run/munge
    chmod 400 /etc/munge/munge.key
    pgrep -x munged >/dev/null || runuser -u munge -- munged
    pgrep -x slurmctld >/dev/null || slurmctld
    pgrep -x slurmd >/dev/null || slurmd
    for _ in $(seq 60); do
        case "$(sinfo --noheader --format=%T 2>/dev/null)" in
            idle* | mixed* | allocated*) sinfo; return ;;
            down* | drain*) scontrol update nodename="$host" state=resume 2>/dev/null || true ;;
        esac
        sleep 1
    done
    echo "scripts/dev/slurm.sh: the node did not come up; see $state/*.log" >&2
    exit 1
}

stop() {
    check_owner
    pkill -x 'slurm(d|ctld)' || true
    while pgrep -x 'slurm(d|ctld)' >/dev/null; do sleep 0.1; done  # they write state as they end
    rm -rf "$state" "$conf"
}

case "${1:-}" in
    start | stop) "$1" ;;
    *) sed -n '2,3p' "$0"; exit 2 ;;
esac
