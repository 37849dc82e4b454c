#!/usr/bin/env bash
# Takes the figures of README's "Measured" in one sitting, one bench after the other, into a folder:
#   benchmarks/figures.sh [--busy] [FOLDER] [BENCH...]
# A busy machine (load average of a minute over 0.5 per processor) is refused unless --busy is given.
set -uo pipefail
cd "$(dirname "$0")/.."

busy=
if [ "${1:-}" = --busy ]; then
  busy=yes
  shift
fi
folder=${1:-figures-$(date -u +%Y-%m-%dT%H%M)}
shift || true
if [ -z "$busy" ] && ! python3 -c 'import os, sys; sys.exit(os.getloadavg()[0] > 0.5 * os.cpu_count())'; then
  echo "the machine is busy (load $(cut -d' ' -f1 /proc/loadavg)); figures would be of the load" >&2
  echo "hint: wait until it is idle, or give --busy and say so beside the figures" >&2
  exit 1
fi
mkdir -p "$folder"

status=0
# bench NAME ARGUMENT...: one bench with its run file and its table; a failed one stops no other.
bench() {
  local name=$1
  shift
  if [ -n "$chosen" ] && [[ " $chosen " != *" $name "* ]]; then return; fi
  {
    echo "# $(date -u +%FT%TZ), $(nproc) processors, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)"
    echo "# labvoice bench $*"
  } | tee "$folder/$name.txt"
  .venv/bin/labvoice bench "$@" 2>&1 | tee -a "$folder/$name.txt" || status=1
}

chosen="$*"
bench connect connect --arms stock,stock-naive,sequential,concurrent,token,ahead --llm paced \
  --trials 20 --out "$folder/connect.jsonl"
bench turns turns --arms stock,stock-naive,labvoice --llm paced --trials 20 --out "$folder/turns.jsonl"
bench small turns --llm small --trials 20 --out "$folder/small.jsonl"
bench burst burst --rooms 50 --trials 5 --out "$folder/burst.jsonl"
bench failover failover --kill job,worker,hang --llm paced --trials 10 --out "$folder/failover.jsonl"
bench interrupt interrupt --arms labvoice,words-2 --arm starter=examples/inference_agent.py \
  --llm paced --trials 3 --out "$folder/interrupt.jsonl"
# Agents of four kinds: labvoice's own, one in the starter's shape, that file at the revision which
# added it (it has not changed since, so its ratio to starter shows the run's own noise), and Pipecat.
if [ -z "$chosen" ] || [[ " $chosen " == *" agents "* || " $chosen " == *" levers "* ]]; then
  python=$(realpath "$folder")/pipecat/bin/python
  [ -x "$python" ] || .venv/bin/uv venv --quiet --python .venv/bin/python "$folder/pipecat"
  .venv/bin/uv pip install --quiet --python "$python" "pipecat-ai[livekit,openai]==1.14.0"
fi
pipecat="bot:${python:-python} examples/pipecat_bot.py {url} {token} {room}"
bench agents turns --arm own= --arm starter=examples/inference_agent.py \
  --arm before=examples/inference_agent.py@c2c65ca --arm pipecat="$pipecat" \
  --llm paced --trials 12 --out "$folder/agents.jsonl"
# What each lever of the reply gives (docs/performance.md), on 40 utterances; an hour.
off=(LABVOICE_PREFLIGHT=silence LABVOICE_TURN_DETECTOR=v1-mini LABVOICE_MIN_ENDPOINTING_DELAY_S=0.4
  LABVOICE_MAX_ENDPOINTING_DELAY_S=1.0)
preflight=(LABVOICE_PREFLIGHT=speech)
either=(LABVOICE_TURN_DETECTOR=either LABVOICE_MIN_ENDPOINTING_DELAY_S=0.3 LABVOICE_MAX_ENDPOINTING_DELAY_S=0.8)
soon=(LABVOICE_TURN_DETECTOR=smart-turn LABVOICE_MIN_ENDPOINTING_DELAY_S=0.2 "${either[@]:2}")
levers=()
# lever ARM SETTING...: an arm with the levers off, but for these settings.
lever() {
  local name=$1
  shift
  levers+=(--arm "$name=own")
  for value in "${off[@]}" "$@"; do
    levers+=(--env "$name:$value")
  done
}
lever before
lever preflight "${preflight[@]}"
lever either "${either[@]}"
lever soon "${soon[@]}"
lever all "${preflight[@]}" "${soon[@]}"
bench levers turns --arms stock,stock-naive "${levers[@]}" --arm pipecat="$pipecat" \
  --llm paced --trials 40 --out "$folder/levers.jsonl"
bench end-of-turn endpointing --offline --out "$folder/end-of-turn.jsonl"
bench links turns --arm none=own --arm wifi=own --arm 4g=own --arm satellite=own --arm train=own \
  --link wifi:wifi --link 4g:4g --link satellite:satellite --link train:train --llm paced \
  --trials 10 --out "$folder/links.jsonl"
bench sounds turns --arm quiet=own --arm street=own --arm voices=own --arm telephone=own --arm far=own \
  --arm echo=own --noise street:street --noise voices:voices --snr 10 --line telephone:telephone \
  --microphone far:far --echo echo:20 --llm paced --trials 10 --out "$folder/sounds.jsonl"
bench echo load --ramp 1..100 --whole --echo-agent --rate 3 --for 40 --no-recording --out "$folder/echo.jsonl"
bench leaks leaks --calls 500 --out "$folder/leaks.jsonl" --json "$folder/leaks.json"
exit $status
