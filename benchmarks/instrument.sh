#!/usr/bin/env bash
# What the instrument itself gets wrong, into a folder, about 25 minutes:
#   benchmarks/instrument.sh [--busy] [FOLDER]
# A calibration of all its variants; the same arm twice (A/A); and 100 ms added by a link (A/B).
set -euo pipefail
cd "$(dirname "$0")/.."

busy=
if [ "${1:-}" = --busy ]; then
  busy=yes
  shift
fi
folder=${1:-instrument-$(date -u +%Y-%m-%dT%H%M)}
if [ -z "$busy" ] && ! python3 -c 'import os, sys; sys.exit(os.getloadavg()[0] > 0.5 * os.cpu_count())'; then
  echo "the machine is busy (load $(cut -d' ' -f1 /proc/loadavg)); the error would be the load's" >&2
  echo "hint: wait until it is idle, or give --busy and say so beside the figures" >&2
  exit 1
fi
mkdir -p "$folder"
.venv/bin/labvoice calibrate --trials 6 --arms plain,quiet,breath,noise,music \
  --out "$folder/calibrate.jsonl"
.venv/bin/labvoice bench turns --arm a=own --arm b=own --link none --trials 20 --llm paced \
  --out "$folder/aa.jsonl"
.venv/bin/labvoice bench turns --arm plain=own --arm late=own --link none \
  --link late:down.delay=100ms --trials 20 --llm paced --out "$folder/ab.jsonl"
.venv/bin/python benchmarks/instrument.py "$folder" | tee "$folder/verdict.txt"
