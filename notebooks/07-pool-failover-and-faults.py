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
# # Pool, failover and faults
#
# When the process of an agent dies in the middle of a call, LiveKit's open-source server notices
# after some 21 s and does nothing about it, although another worker stands idle; the dispatch says
# *running* for good. labvoice's **supervisor** watches the agents' own heartbeats, removes the
# dead one, dispatches another and hands the conversation on. Here you kill things and look.

# %% tags=["parameters"]
trials = 1

# %%
from IPython.display import display

from labvoice.errors import DispatchError
from labvoice import Lab
from labvoice.report import plots

lab = await Lab(workers=2, llm="paced", letta=False, progress=print).start()
lab.pool

# %% [markdown]
# The monitor shows the same live; leave it open while you go on.

# %%
lab.monitor()

# %% [markdown]
# ## 1. Kill the agent in mid-call
#
# `lab.faults` breaks parts of the lab on purpose. `kill_job` sends `SIGKILL` to the job's process:
# it cannot say good-bye, as with an out-of-memory kill.

# %%
call = await lab.call()
await call.hear_greeting()
killed = lab.faults.kill_job(call)
await call.wait_for_replacement()
print(f"another agent listens after {call.marks['replacement_listening'] - killed.at_s:.2f} s")
await lab.end_call(call)

# %% [markdown]
# What the supervisor and the pool did, in order. Look at when each thing was noticed:

# %%
lab.pool.events

# %% [markdown]
# ## 2. Measure it
#
# `recovery` runs from the death to the new agent's listening. Three kinds of death: the job's
# process killed (`job`), the whole worker killed (`worker`), the job's process stopped (`hang`):
# it is there, its connection is open, and it says nothing.

# %%
run = await lab.bench.failover(trials, kills="job", progress=print)
display(run)
display(plots.distributions(run))

# %% [markdown]
# ## 3. A pool that is full
#
# A worker takes `LABVOICE_MAX_JOBS` jobs at once. When all of them are full, the server finds
# nobody and says so in its log only. labvoice names it, so that you scale and do not debug.

# %%
await lab.wait_idle()
rooms = []
try:
    for number in range(2 * lab.settings.max_jobs + 1):
        name = lab.settings.agent_name
        rooms.append((await lab.dispatcher.dispatch(f"full-{number}", name, timeout_s=4)).room)
except DispatchError as error:
    print(f"after {len(rooms)} agents: {error.outcome}: {error.observed}\nhint: {error.hint}")

# %%
await lab.stop()
