#!/usr/bin/env bash
# The comparison on a machine with two cards, both at work at once: each card has servers, a client
# and half of the cores of its own.
#
#     workloads/gpu/two_cards.sh DIR BUDGET_S STEP...
#
# Steps: first (seed 1, all systems), seeds (seeds 2 and 3, without the baselines that were far from
# the best), near (all three seeds, without the baselines that were far from the best in the records
# of an earlier comparison, NEAR), lpm (baseline d, seed 1). What DIR has already is not run again.
set -u
ulimit -n 65536 || true
out=$1 budget_s=$2
shift 2
half=$(($(nproc) / 2))
W_SCALE=${W_SCALE:-0.4} PRIMITIVE_SCALE=${PRIMITIVE_SCALE:-0.1667}

stage() { # card, scale, workloads, stage, seeds...
    local card=$1 scale=$2 workloads=$3 stage=$4
    shift 4
    taskset -c $((card * half))-$(((card + 1) * half - 1)) \
        python3 -m workloads.gpu.run_sglang "$stage" --device "$card" --out "$out/card$card" --keep \
        --models "/tmp/halo-models-$card" \
        --scale "$scale" --workloads "$workloads" --within "${WITHIN:-0.08}" \
        --server-flags="${SERVER_FLAGS:-}" \
        --budget-s $((budget_s - SECONDS)) "$@"
}

stop_servers() { # card
    local pid
    for pid in $(pgrep -f -- "--port 31${1}0[18] "); do kill -KILL -- "-$pid" 2>/dev/null; done
    sleep 3
}

card() { # card, workloads with tools, primitives
    for step in "${steps[@]}"; do
        case $step in
        first) kind=main seeds="--seeds 1" ;;
        seeds) kind=main seeds="--first-seed 2 --seeds 3" ;;
        near) kind=main seeds="--first-seed ${FIRST:-1} --seeds ${LAST:-3} --near $NEAR" ;;
        lpm)
            kind=lpm seeds="--seeds 1"
            stop_servers "$1"
            ;;
        esac
        stage "$1" "$W_SCALE" "$2" "$kind" $seeds
        stage "$1" "$PRIMITIVE_SCALE" "$3" "$kind" $seeds
    done
}

steps=("$@")
mkdir -p "$out"
card 0 w1,w2,w3 parallel,trading >"$out/card0.log" 2>&1 &
card 1 w4,w5,w6 mapred,debate,reflect,iterative >"$out/card1.log" 2>&1 &
wait
grep -h seed "$out"/card?.log
