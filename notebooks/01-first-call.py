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
# # First call
#
# A voice agent on LiveKit is four programs that must find each other: a **server** (the SFU),
# a **worker** that waits for jobs, a **model server** with the language model, and a **caller**.
# When the agent "never joins", one of the steps between them failed, and no message says which.
#
# This notebook goes through one call step by step, and measures every step on the caller's own
# clock. Run the cells from the top; everything runs on this machine, with no key.

# %% tags=["parameters"]
llm = "paced"  # "small" is a real little language model; "paced" always answers the same way
trials = 3
warmup = 1
calls = 1

# %% [markdown]
# ## 1. The stack
#
# `Lab` starts the missing parts and waits until each is ready: the server must accept the lab's
# key, the model must complete a token, the worker must be registered under its name. The first
# start on a machine downloads models and compiles the server; later ones take seconds.

# %%
from IPython.display import Audio, display

from labvoice import Lab
from labvoice.report import plots

lab = await Lab(llm=llm, letta=False, progress=print).start()  # memory comes in notebook 06
lab

# %% [markdown]
# ## 2. Connect, dispatch, and prove that the agent joined
#
# The caller makes a token, connects to a fresh room, publishes its microphone, and asks the
# server to **dispatch** the agent by name. LiveKit answers that request with an id even when no
# worker will ever take the job, so labvoice also checks that the agent is in the room.
#
# What goes wrong here: a worker under another name, a worker that is full, a worker that was not
# yet registered. Each ends in an error that names the cause; try `agent_name="nobody"`.

# %%
call = await lab.call()
greeting = await call.hear_greeting()
print("the agent says:", greeting)
call.dispatch

# %% [markdown]
# The picture shows the marks of this connection. Blue is the caller, orange the worker, whose
# clock was compared with the caller's over the room. Look at the 200 ms between
# `dispatch_requested` and `job_received`: the server waits that long for workers to bid.

# %%
connection = lab.bench.record(call)
display(plots.connection_waterfall(connection))

# %% [markdown]
# ## 3. Speak, and listen
#
# The caller sends speech in real time, like a person, and receives the reply as audio. The key
# figure is **voice to voice**: from the last voiced sample that left the caller to the first voiced
# sample of the reply that reached it.

# %%
question = await lab.utterance("What is the weather like in London today?")
turn = await call.say(question)
await call.hear()
print("said:      ", turn.said)
print("understood:", turn.transcript)
print("answered:  ", turn.reply)
print(f"voice to voice: {turn.voice_to_voice_s * 1000:.0f} ms")

# %%
samples, rate = call.heard_audio(turn)
Audio(samples, rate=rate)

# %% [markdown]
# Where does the time go? LiveKit's own figures explain most of it. The rest, the path of the audio
# from the caller to the agent and back, is shown as `transport`.

# %%
await lab.end_call(call)
display(plots.turn_waterfall(lab.bench.record(call)))

# %% [markdown]
# ## 4. Again, and count
#
# One call is not a measurement. A run repeats it, each time in a new room, and keeps every raw mark
# and every failure in a file.

# %%
connections = await lab.bench.connect(trials, warmup=warmup, progress=print)
connections

# %%
display(plots.distributions(connections))

# %%
turns = await lab.bench.turns(calls, warmup=0, progress=print)
turns

# %%
display(plots.distributions(turns))

# %% [markdown]
# The frame is tidy: one row for each stage of each trial.

# %%
turns.frame.head(12)

# %% [markdown]
# ## 5. A report, and the end
#
# The report is one HTML file. Stopping the lab ends every process that it started; so does
# restarting the kernel.

# %%
from pathlib import Path

from labvoice.report.html import write_report

report = write_report([connections, turns], Path("runs/first-call.html"))
await lab.stop()
report
