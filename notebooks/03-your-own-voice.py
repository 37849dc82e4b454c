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
# # Connect with your own voice
#
# So far the caller was simulated. Now you are the caller: the browser joins the room with your
# microphone, the agent is dispatched and confirmed, and you talk. The browser's measurements are in
# the same frame as those of simulated calls, so you can compare your call with a benchmark.
#
# You need a microphone, and a browser on the machine on which this kernel runs: the LiveKit
# server of the lab listens on this machine only. Headphones help; through loudspeakers the agent
# may hear itself.

# %% tags=["parameters"]
llm = "paced"  # "small" is a real little language model; "paced" always answers the same way
letta = False  # True: the button below lets you choose, or make, the agent whose memory is used
trials = 2

# %%
from IPython.display import display

from labvoice import Lab
from labvoice.report import plots

lab = await Lab(llm=llm, letta=letta, progress=print).start()
lab

# %% [markdown]
# ## 1. Press Connect
#
# Five status lights show the five links of the chain; if a call fails, one of them turns red, with
# the cause and a hint below it.
#
# - **Server**: the browser has a token and is in the room. The kernel makes the token, for this
#   room and ten minutes; no secret reaches the page.
# - **Microphone**: your track is published. If it is denied, you can still type.
# - **Dispatch**: the server was asked for the agent *by name*, and the agent was seen in the room.
# - **Agent**: the browser itself sees the agent.
# - **Sound**: the agent's track arrives and may be played.
#
# With `letta = True` you can also choose a **Memory**: press *New agent* when Letta is up (its
# first start on a machine takes minutes), connect, and tell it something about you, such as the
# name of your dog. Hang up and connect again: it remembers, because the next call reads the same
# memory.
#
# Look at the waterfall as it grows: the 200 ms in `job_request` are the server's wait for
# workers to bid. Under *Dispatch* choose *While the browser connects*, and those 200 ms overlap
# with the connection.

# %%
button = lab.connect_button()
button

# %% [markdown]
# Try to **interrupt** the agent, by the button and by talking into its answer; **type** a
# question; **mute** yourself; **hang up** and connect again. Two views of the same button
# (run `button` in another cell) show the same call.
#
# ## 2. What was measured
#
# Hang up, then run this cell. It may be run during the call as well.

# %%
if button.calls:
    print(button.call)
    display(button.call.run)  # the same as figures
else:
    print("no call yet: press Connect above, talk, then run this cell again")

# %%
if button.calls:
    own = button.call.run
    display(plots.connection_waterfall(own))
    if any(turn.voice_to_voice_s for turn in button.call.turns):
        display(plots.turn_waterfall(own))
        display(own.frame.head(12))

# %% [markdown]
# ## 3. Compared with a benchmark
#
# The same stages, measured by the simulated caller. Your `mic_published` is later, because the
# browser opens a real device, and your `voice_to_voice` includes the browser's jitter buffer and
# audio stack, which a simulated caller does not have.

# %%
simulated = await lab.bench.connect(trials, warmup=0, progress=print)
display(simulated)
display(plots.distributions(simulated))

# %%
import pandas as pd

frames = {"simulated": simulated.frame}
if button.calls:
    frames["your own call"] = button.call.frame
beside = pd.concat(frames, names=["caller"]).reset_index("caller")
beside[beside["turn"].isna()].pivot_table("duration_s", "stage", "caller", "median") * 1e3

# %% [markdown]
# Closing the kernel ends everything that the lab has started; so does `await lab.stop()`.
