# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From the lab to the cloud
#
# Everything so far ran on this machine, without a key. The same notebooks, benchmarks and widgets
# measure your production services when their keys are in `.env`. This notebook shows the effect of
# each key. **It also runs without keys**, reports what is missing, and measures the embedded parts.

# %% tags=["parameters"]
trials = 2
calls = 1
turns_each = 2

# %%
import pandas as pd
from IPython.display import display

from labvoice import Lab
from labvoice.report import plots
from labvoice.settings import load_settings

settings = load_settings()
services = pd.DataFrame(
    [
        (
            "LiveKit Cloud or your own server",
            "LIVEKIT_URL, LIVEKIT_API_KEY, LIVEKIT_API_SECRET",
            bool(settings.livekit_url),
            "a LiveKit server is started here",
        ),
        (
            "Deepgram (speech to text, text to speech)",
            "DEEPGRAM_API_KEY",
            bool(settings.deepgram_api_key),
            "Moonshine and Piper",
        ),
        (
            "OpenAI or what speaks like it",
            "OPENAI_API_KEY, OPENAI_BASE_URL, LABVOICE_LLM_MODEL",
            bool(settings.openai_api_key or settings.openai_base_url),
            "SmolLM2-135M, or the paced model",
        ),
        (
            "Letta Cloud or your own Letta",
            "LETTA_API_KEY, LETTA_BASE_URL",
            bool(settings.letta_base_url),
            "an embedded Letta server",
        ),
    ],
    columns=["service", "set in .env", "set here", "without it"],
)
services.style.hide(axis="index").set_properties(**{"text-align": "left"})

# %% [markdown]
# A secret is never shown: it prints as asterisks, and is in no run file and on no command line.
#
# ```
# # .env
# LIVEKIT_URL=wss://YOUR-PROJECT.livekit.cloud
# LIVEKIT_API_KEY=API…
# LIVEKIT_API_SECRET=…
# DEEPGRAM_API_KEY=…
# ```
#
# ## 1. The lab with your settings
#
# An external part shows the state `external`: the lab neither starts nor stops it. The worker
# still runs here and registers with your server, so choose its name: if a worker of the same name
# is deployed in the project, the server may give the job to either. Use another name for the lab:
# `LABVOICE_AGENT_NAME=lab-agent`.

# %%
# Without your own endpoint the paced model answers: fixed replies, no download.
llm = None if settings.resolved_llm == "openai" else "paced"
lab = await Lab(llm=llm, letta=bool(settings.letta_base_url), progress=print).start()
lab

# %%
run = await lab.bench.connect(trials, warmup=0, progress=print)
display(run)
display(plots.connection_waterfall(run))

# %% [markdown]
# A connection passes through the LiveKit server and the worker only. The other three services
# show in a **turn**: Deepgram in `transcription_delay` and `tts_node_ttfb`, the model in
# `llm_node_ttft` and `llm_node_ttfs`, Letta in `memory_load` and `memory_sync`. Look at those rows
# before and after you set a key; the columns `llm`, `llm_model` and `stt` of the frame say what was
# measured.

# %%
arms = ["hybrid"] if lab.has_letta else ""  # with Letta, agents remember, in labvoice's own mode
turns = await lab.bench.turns(calls, turns=turns_each, warmup=0, arms=arms, progress=print)
display(turns)
display(plots.turn_waterfall(turns))
turns.frame[["llm", "llm_model", "stt"]].drop_duplicates()

# %% [markdown]
# With a server across the internet, look at two things. `room_connected` moves by several round
# trips (websocket, ICE, DTLS), for the browser as for this caller. And `transport` in a turn grows
# by the round trip plus a deeper jitter buffer. The stages between do not change with the distance
# to the user, because the agent runs near the server or where you start it.
#
# ## 2. The browser and the cloud
#
# The Connect button of notebook 03 works from anywhere once `LIVEKIT_URL` is a server that both
# the browser and this kernel reach. That is also the way out in VS Code, on JupyterHub and behind
# `ssh`: a browser on another machine cannot reach the lab's own server, because audio uses UDP,
# which a forwarded port does not carry.
#
# ## 3. Automatic dispatch
#
# LiveKit dispatches a worker **without a name** into every new room by itself. It is convenient in
# a demo and a trap in production: each room of the project gets an agent, test rooms included; two
# such deployments compete for every room; and nobody notices a missing agent, because nobody
# requested it. Give the agent a name, dispatch it explicitly, and confirm. The name can be part of
# the access token; the server then dispatches when it creates the room:

# %%
from livekit import api

grants = api.VideoGrants(room_join=True, room="my-room")
token = (
    api.AccessToken("API-KEY", "not-a-real-secret-but-long-enough")
    .with_identity("me")
    .with_grants(grants)
    .with_room_config(
        api.RoomConfiguration(
            agents=[api.RoomAgentDispatch(agent_name=lab.settings.agent_name)]
        )
    )
)
token.claims.room_config

# %% [markdown]
# (It is ignored for a room that exists already.)
#
# Here is a call without an explicit dispatch. The lab starts a second worker, without a name, and
# the caller only connects. Look at `job_received`: the 200 ms in which the server chooses are there
# all the same. The dispatch says that the agent was *found there*. On an external server this cell
# does nothing, because such a worker would also get other users' rooms.

# %%
if settings.livekit_url:
    print("left out: on your own server a worker without a name would take every new room")
else:
    await lab.add_workers(1, agent_name="")
    automatic = await lab.call(strategy="automatic")
    await automatic.hear_greeting()
    await lab.end_call(automatic)
    lab.bench.record(automatic)
    display(automatic)
    display(automatic.dispatch)

# %% [markdown]
# ## 4. Compare
#
# Take a run here and one with the keys, then `labvoice compare base.jsonl cloud.jsonl
# --allow-different-hosts`. Raw marks, versions and configuration are in each file; the secrets
# are not.

# %%
run.header.arms

# %%
await lab.stop()
