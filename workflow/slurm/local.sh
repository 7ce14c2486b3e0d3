#!/usr/bin/env bash
# A whole Slurm on this machine, for one study: what profiles/slurm does, tried without a cluster. Needs root and
# Debian's packages: apt-get install slurm-wlm munge; and pip install -c constraints.txt -e '.[slurm]'.
#
#     sudo workflow/slurm/local.sh params/studies/demo.yaml
#
# No GPU is asked for. The daemons keep their files in a temporary folder; they are stopped and /etc/slurm/slurm.conf is
# removed at the end. A machine that has such a file already is part of a cluster: use the profile there.
set -euo pipefail
cd "$(dirname "$0")/../.."
study=${1:?name a study file, such as params/studies/demo.yaml}
host=$(hostname -s) here=$(mktemp -d)
conf=/etc/slurm/slurm.conf # where jobs look for it
[ ! -e "$conf" ] || { echo "$conf exists: this machine has a Slurm of its own." >&2; exit 1; }
mkdir "$here/state" "$here/spool"
export PATH="$PWD/.venv/bin:$PATH"
cat > "$conf" <<END
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.pid
SlurmctldLogFile=$here/slurmctld.log
SlurmdLogFile=$here/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MinJobAge=3600
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) RealMemory=$(awk '/MemAvailable/ {print int($2 / 1024)}' /proc/meminfo)
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE
END
stop() {
    ! squeue -h -o %A > "$here/left" || xargs -r scancel < "$here/left" || true
    for daemon in slurmd slurmctld munged; do
        [ ! -f "$here/$daemon.pid" ] || kill "$(cat "$here/$daemon.pid")" || true
    done
    rm -f "$conf"
}
trap stop EXIT
mkdir -p /run/munge && chown munge: /run/munge
if ! pgrep -x munged > /dev/null; then
    runuser -u munge -- munged
    cp /run/munge/munged.pid "$here/munged.pid"
fi
slurmctld
slurmd
timeout 60 bash -c 'until sinfo -h -o %T | grep -q idle; do sleep 1; done'
sinfo
rules=(adapt_shard adapt generate_shard generate train analysis beyond)
snakemake -s workflow/Snakefile --workflow-profile workflow/profiles/slurm --configfile "$study" "${@:2}" \
    --latency-wait 5 --seconds-between-status-checks 5 --slurm-init-seconds-before-status-checks 5 \
    --slurm-no-account --slurm-status-command squeue \
    --set-resources "${rules[@]/%/:gpu=0}" "${rules[@]/%/:mem_mb=2000}" "${rules[@]/%/:cpus_per_task=1}"
scontrol show jobs -o | sed -E 's/.*JobId=([0-9]+).*JobState=([A-Z]+).*RunTime=([0-9:]+).*Comment=(\S*).*/\1 \2 \3 \4/'
