#!/usr/bin/env bash
# A sweep of 20 cells by a real Slurm of two nodes, both of them here: in the middle one node dies and the driver is killed;
# what the next driver merges must be, byte for byte, what one machine merges.
#
#   run.sh PROGRAM    PROGRAM is llamaprobe; slurmctld, slurmd and munged must be installed
#
# Everything lies in a temporary folder and listens on the loopback; all that was started ends with the script.
set -euo pipefail
program=$(realpath "$1")
here=$(mktemp -d "${TMPDIR:-/tmp}/llamaprobe-slurm.XXXXXX")
chmod 755 "$here"
export SLURM_CONF=$here/slurm.conf PATH=$PATH:/usr/sbin
driver=

# The processes of a node's tasks, and the daemons that wait for them.
of_node() {
    local environment process parent
    # One program looks at all processes: a task is over in less time than one for each would take.
    for environment in $(grep -lzs "^SLURMD_NODENAME=$1$" /proc/[0-9]*/environ); do
        if grep -qzs "^SLURM_CONF=$SLURM_CONF$" "$environment"; then
            process=${environment#/proc/} process=${process%/environ}
            parent=$(sed -n 's/^PPid:\s*//p' "/proc/$process/status" 2>/dev/null || true)
            [ "$(cat "/proc/$parent/comm" 2>/dev/null)" = slurmstepd ] && echo "$parent"
            echo "$process"
        fi
    done
}

# A node as if its power were cut: the daemon and all that it has started.
kill_node() {
    local tasks
    kill -9 "$(cat "$here/slurmd.$1.pid")" || true
    tasks=$(of_node "$1")
    [ -z "$tasks" ] || kill -9 $tasks 2>/dev/null || true
}

end() {
    local status=$? daemon
    trap - EXIT
    [ -z "$driver" ] || kill -9 "$driver" 2>/dev/null || true
    kill_node node1 2>/dev/null || true
    kill_node node2 2>/dev/null || true
    for daemon in slurmctld munged; do
        kill -9 "$(cat "$here/$daemon.pid" 2>/dev/null)" 2>/dev/null || true
    done
    if [ "$status" != 0 ]; then
        tail -n 30 "$here"/*.log "$here"/out/slurm/*.log 2>/dev/null || true
    fi
    sleep 1
    rm -rf "$here"
    exit "$status"
}
trap end EXIT

fail() {
    echo "slurm: $*" >&2
    exit 1
}

# Waits until a command succeeds: wait_for SECONDS WHAT COMMAND...
wait_for() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || fail "no $what"
        sleep 0.05
    done
}

free_ports() {
    python3 -c 'import socket
held = [socket.socket() for _ in range(3)]
for s in held: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in held))'
}

start_cluster() {
    local user controller first second node
    user=$(id -un)
    read -r controller first second < <(free_ports)
    mkdir "$here/state"
    head -c 128 /dev/urandom > "$here/munge.key"
    chmod 600 "$here/munge.key"
    munged --force --socket="$here/munge.socket" --key-file="$here/munge.key" --pid-file="$here/munged.pid" \
        --log-file="$here/munged.log" --seed-file="$here/munged.seed"
    cat > "$SLURM_CONF" <<END
ClusterName=llamaprobe
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$controller
AuthType=auth/munge
AuthInfo=socket=$here/munge.socket
CredType=cred/munge
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool.%n
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.%n.pid
SlurmctldLogFile=$here/slurmctld.log
SlurmdLogFile=$here/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=4
TCPTimeout=2
MessageTimeout=5
KillWait=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$first CPUs=1 State=UNKNOWN
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$second CPUs=1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
    slurmctld
    for node in node1 node2; do slurmd -N "$node"; done
    idle() { [ "$(sinfo --noheader --Node --format=%T 2>/dev/null | grep -c '^idle$')" = 2 ]; }
    wait_for 30 "two idle nodes" idle
}

cells() { find "$here/out/cells" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l; }
has_cells() { [ "$(cells)" -ge "$1" ]; }
is_at_work() { [ -n "$(of_node "$1")" ]; }

drive() {
    "$program" sweep "$here/grid.yaml" --out "$here/out" --executor slurm --jobs 20 --jobs-per-minute 100 --threads 1 \
        --time 5 --poll 0.5 > "$here/driver.log" 2>&1 &
    driver=$!
}

begun=$SECONDS
cat > "$here/grid.yaml" <<'END'
command: probe
flags: {queries: 100, seeds: 4, measures: none, epochs: 160, device: cpu}
grid: {demos: [2, 3, 4, 5, 6], labels: [gold, flipped], r: [2, 4]}
END
start_cluster
drive
# Whatever the machine's speed nothing ends while it is looked at: a partition that is down begins no task.
partition() { scontrol update PartitionName=all State="$1"; }
wait_for 300 "four cells" has_cells 4
partition DOWN
# Between two tasks nothing dies with a node: at the beginning of the next one.
are_idle() { ! is_at_work node1 && ! is_at_work node2; }
wait_for 300 "tasks' end" are_idle
partition UP
wait_for 120 "task on node2" is_at_work node2
kill_node node2
echo "slurm: node2 is dead, $(cells) of 20 cells are done"
had=$(cells)
wait_for 300 "further cells" has_cells $((had + 2))
partition DOWN
kill -9 "$driver"
wait "$driver" 2>/dev/null || true
grep "array 1 is job .*: 20 cells in 20 tasks" "$here/driver.log" || fail "the first driver submitted something else"
had=$(cells)
[ "$had" -lt 20 ] || fail "all cells were done before the driver was killed"
echo "slurm: the driver is dead, $had of 20 cells are done"
ls "$here/out/cells" > "$here/before"
arrays=$(find "$here/out/slurm" -name '*.json' | wc -l)
partition UP
drive
wait "$driver" || fail "the second driver: $(cat "$here/driver.log")"
driver=
cat "$here/driver.log"
# The dead node's cell was submitted again, and nothing that was done.
all=$(find "$here/out/slurm" -name '*.json' | sort)
[ "$(wc -l <<< "$all")" -gt 1 ] || fail "nothing was submitted again"
for array in $(tail -n +$((arrays + 1)) <<< "$all"); do
    while read -r cell; do
        ! grep -q "$cell" "$array" || fail "cell $cell was done, and submitted again"
    done < "$here/before"
done
"$program" sweep "$here/grid.yaml" --out "$here/local" --jobs 2
for file in table.csv report.json report.html; do
    cmp "$here/out/$file" "$here/local/$file" || fail "$file differs"
done
[ "$(cells)" = 20 ] || fail "$(cells) cells"
echo "slurm: 20 cells on two nodes, of which one died, and a driver that was killed: the bytes of one machine, $((SECONDS - begun)) s"
