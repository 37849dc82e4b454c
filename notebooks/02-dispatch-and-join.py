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
# # Dispatch and join: why an agent never joins
#
# "I dispatched the agent and it never joined." LiveKit answers `CreateDispatch` with an id even
# when no worker will ever take the job. What happens after that answer is a chain, and this
# notebook breaks it link by link, to show what each break looks like:
#
# 1. a **worker** registers with the server under a *name*, and reports its load;
# 2. a client **dispatches** that name into a room; the server creates the room if necessary;
# 3. the server polls the workers of that name, waits 200 ms for bids, and offers one the job;
# 4. the worker accepts, hands the job to a warm process, and its **agent** connects to the room;
# 5. the other participants see the agent, at once if it publishes a track, otherwise up to 3 s
# later.

# %% tags=["parameters"]
trials = 3
warmup = 1

# %%
import asyncio
import time

import pandas as pd
from IPython.display import display
from livekit import api, rtc

from labvoice.dispatch.tokens import caller_token
from labvoice.errors import DispatchError
from labvoice import Lab
from labvoice.report import plots

lab = await Lab(workers=0, llm="paced", letta=False, progress=print).start()
lab

# %% [markdown]
# ## 1. No worker
#
# The server runs, and no worker is registered yet. The server answers the dispatch with an id; its
# log has one line at level Info, and the caller gets no error. labvoice looks for the agent in the
# room, retries a lost request, and finally names the cause.


# %%
async def attempt(name, timeout_s=3):
    try:
        done = await lab.dispatcher.dispatch(f"room-{time.time_ns()}", name, timeout_s=timeout_s)
        print("ok:", done.agent_identity, "after", done.attempts, "attempt(s)")
    except DispatchError as error:
        print(f"{error.outcome}: {error.observed}\nhint: {error.hint}")


await attempt("letta-voice-agent")

# %% [markdown]
# ## 2. Another name
#
# The most frequent cause: the worker says `agent_name="voice-agent"`, the caller
# asks for `letta-voice-agent`. For the server these are two different agents.

# %%
await lab.add_workers()
await attempt("letta-voice-agnet")

# %% [markdown]
# ## 3. The right name
#
# A second dispatch to the same room keeps the existing agent. LiveKit's own
# `CreateDispatch` is not idempotent: a second call would put a second agent into the room.

# %%
first = await lab.dispatch("twice")
again = await lab.dispatch("twice")
print(first.agent_identity)
print(again.agent_identity, "— the same one, dispatches made:", again.attempts)
await lab.dispatcher.api.room.delete_room(api.DeleteRoomRequest(room="twice"))

# %% [markdown]
# ## 4. The 200 ms poll
#
# The server chooses a worker through a poll that it closes after a fixed 200 ms (psrpc's
# affinity short-circuit). Look at `job_request`, from the request until the worker receives the
# job: no trial is faster, even on an idle machine. It cannot be removed, but it can be overlapped
# with the caller's own connection.

# %%
run = await lab.bench.connect(trials, warmup=warmup, progress=print)
display(run)
display(plots.connection_waterfall(run))

# %%
requests = run.frame.query("stage == 'job_request'")["duration_s"] * 1e3
print(f"job_request: least {requests.min():.0f} ms, median {requests.median():.0f} ms")

# %% [markdown]
# ## 5. The 3 s tick
#
# A participant that publishes nothing is announced to the others only at the room's next tick,
# every 3 s. An agent that connects first and publishes its audio later *looks* absent. Here two
# participants join without any agent: one publishes nothing, the other a track at once.


# %%
async def seconds_until_seen(publishes):
    name = f"tick-{time.time_ns()}"
    settings = lab.settings

    def token(identity):
        return caller_token(
            settings.livekit_api_key, settings.livekit_api_secret, name, identity
        )

    watcher, newcomer, seen = rtc.Room(), rtc.Room(), asyncio.Event()
    await watcher.connect(settings.livekit_url, token("watcher"))
    watcher.on("participant_connected", lambda _: seen.set())
    await asyncio.sleep(0.5 + 0.7 * (time.time_ns() % 3))  # anywhere between two ticks
    await newcomer.connect(settings.livekit_url, token("newcomer"))
    started_s = time.monotonic()
    if publishes:
        source = rtc.AudioSource(48000, 1)
        track = rtc.LocalAudioTrack.create_audio_track("silence", source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        await newcomer.local_participant.publish_track(track, options)
    await asyncio.wait_for(seen.wait(), 10)
    took_s = time.monotonic() - started_s
    await newcomer.disconnect()
    await watcher.disconnect()
    return took_s


seen = pd.DataFrame(
    [
        {"publishes": publishes, "seen after (ms)": 1e3 * await seconds_until_seen(publishes)}
        for publishes in (False, True)
        for _ in range(trials)
    ]
)
seen.groupby("publishes").agg(["median", "max"]).round()

# %% [markdown]
# labvoice's agent therefore publishes its audio track as its first act, before it loads anything
# else. If your own agent "joins after three seconds", look there first.

# %%
await lab.stop()
