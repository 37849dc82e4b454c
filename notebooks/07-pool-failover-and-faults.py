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
# # Pool, failover and faults
#
# When the process of an agent dies in the middle of a call, LiveKit's open-source server notices
# after some 21 s and does nothing about it, even if another worker is idle; the dispatch stays
# *running*. labvoice's **supervisor** watches the agents' heartbeats, removes the dead one,
# dispatches another and passes on the conversation. This notebook injects faults and shows the
# result.

# %% tags=["parameters"]
trials = 1

# %%
from IPython.display import display

from labvoice.errors import DispatchError
from labvoice import Lab
from labvoice.report import plots

lab = await Lab(workers=2, max_jobs=2, llm="paced", letta=False, progress=print).start()
lab.pool

# %% [markdown]
# The monitor shows the same live; leave it open while you continue.

# %%
lab.monitor()

# %% [markdown]
# ## 1. Kill the agent in mid-call
#
# `lab.faults` injects faults. `kill_job` sends `SIGKILL` to the job's process, which cannot clean
# up, as in an out-of-memory kill.

# %%
call = await lab.call()
await call.hear_greeting()
killed = lab.faults.kill_job(call)
await call.wait_for_replacement()
print(f"another agent listens after {call.marks['replacement_listening'] - killed.at_s:.2f} s")
await lab.end_call(call)
lab.bench.record(call)

# %% [markdown]
# The events of supervisor and pool, in order. Look at the time of each detection:

# %%
lab.pool.events

# %% [markdown]
# ## 2. Measure it
#
# `recovery` runs from the fault until the new agent listens. Three kinds of fault: the job's
# process is killed (`job`), the whole worker is killed (`worker`), the job's process is stopped
# (`hang`): it exists and its connection is open, but it does not respond.

# %%
run = await lab.bench.failover(trials, kills="job", progress=print)
display(run)
display(plots.distributions(run))

# %% [markdown]
# ## 3. A pool that is full
#
# A worker takes `LABVOICE_MAX_JOBS` jobs at once, here 2. If all workers are full, the server finds
# none and reports it only in its log. labvoice raises an error with the cause.

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
