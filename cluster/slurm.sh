#!/usr/bin/env bash
# Slurm: one Ray over all nodes of an allocation, one conversion on it.
#
#   sbatch cluster/slurm.sh /shared/Llama-2-70b /shared/llama-2-70b-hf --device cuda
#   AWS_PROFILE=models sbatch cluster/slurm.sh s3://models/Llama-2-70b s3://models/llama-2-70b-hf
#
# distconv must be installed on a path that every node sees (DISTCONV_BIN, the bin folder of a
# virtual environment), or be on PATH. The same command again continues after a time limit.
#SBATCH --job-name=distconv
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=01:00:00
#SBATCH --signal=B:TERM@60
set -euo pipefail

export PATH="${DISTCONV_BIN:+$DISTCONV_BIN:}$PATH"
export RAY_USAGE_STATS_ENABLED=0
# Every node must hold the same token; who is not given it cannot use this Ray.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE RAY_AUTH_TOKEN
export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=2000 RAY_health_check_failure_threshold=3

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | cut -d ' ' -f 1)
port=$((20000 + SLURM_JOB_ID % 20000))

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --block --node-ip-address="$address" --port="$port" --include-dashboard=false &
for node in "${nodes[@]:1}"; do
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" ray start --block --address="$address:$port" &
done

# Until all have joined, or two minutes: those that come later are not used, a lost one is no failure.
for _ in $(seq 60); do
    joined=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
        ray status --address="$address:$port" 2>/dev/null | grep -c ' node_' || true)
    [ "$joined" -ge "${#nodes[@]}" ] && break
    sleep 2
done

code=0
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    distconv convert "$@" --address "$address:$port" &
driver=$!
# The time limit's signal goes on to the driver, which then leaves a folder that can be continued.
trap 'kill -TERM "$driver" 2>/dev/null || true' TERM
wait "$driver" || code=$?
# A signal ends the first wait, and the driver's own end is waited for here.
wait "$driver" 2>/dev/null || code=$?
exit "$code"
