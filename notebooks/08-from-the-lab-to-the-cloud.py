# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From the lab to the cloud
#
# Everything up to here ran on this machine, with no key. The same notebooks, benchmarks and
# widgets measure the services of your production when their keys stand in `.env`. This notebook
# shows what each key changes and how you can tell that it does. **Without keys it runs as well**,
# says what is missing, and measures the embedded parts.

# %% tags=["parameters"]
trials = 2

# %%
import pandas as pd
from IPython.display import display

from labvoice.lab import Lab
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
# A secret is never shown: it prints as asterisks, stands in no run file and on no command line.
#
# ```
# # .env
# LIVEKIT_URL=wss://YOUR-PROJECT.livekit.cloud
# LIVEKIT_API_KEY=API…
# LIVEKIT_API_SECRET=…
# DEEPGRAM_API_KEY=…
# ```
#
# ## 1. The lab with what is set
#
# A part that is yours shows the state `external`: the lab neither starts nor stops it. The worker
# still runs here and registers with your server, so mind the name: in a project where a worker of
# the same name is deployed, the server may give the job to either. Take another name for the lab:
# `LABVOICE_AGENT_NAME=lab-agent`.

# %%
lab = await Lab(letta=False, progress=print, **({} if settings.openai_api_key else {"llm": "paced"})).start()
lab

# %%
run = await lab.bench.connect(trials, warmup=0, progress=print)
display(run)
display(plots.connection_waterfall(run))

# %% [markdown]
# With a server across the internet, look at two things. `room_connected` moves by several round
# trips (websocket, ICE, DTLS), for the browser as for this caller. And `transport` in a turn grows
# by the way there and back plus a deeper jitter buffer. The stages between do not change with the
# distance to the user, for the agent stands beside the server or where you run it.
#
# ## 2. The browser and the cloud
#
# The Connect button of notebook 03 works from anywhere once `LIVEKIT_URL` is a server that both
# the browser and this kernel reach. That is also the way out in VS Code, on JupyterHub and behind
# `ssh`: a browser on another machine cannot reach the lab's own server, for the voice travels by
# UDP, which a forwarded port does not carry.
#
# ## 3. Automatic dispatch
#
# LiveKit dispatches a worker **without a name** into every new room by itself. It is convenient in
# a demo and a trap in production: each room of the project gets an agent, test rooms included; two
# such deployments compete for every room; and nobody learns when no agent comes, since nobody has
# asked. Give the agent a name, dispatch it explicitly, and confirm. In an access token the name
# may travel along, and the server dispatches as it makes the room:

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
# ## 4. Compare
#
# Take a run here and one with the keys, then `labvoice compare base.jsonl cloud.jsonl
# --allow-different-hosts`. Raw marks, versions and configuration are in each file; the secrets
# are not.

# %%
run.header.arms

# %%
await lab.stop()
