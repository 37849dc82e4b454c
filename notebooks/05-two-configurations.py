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
# # Compare two configurations
#
# "It feels faster" is not a measurement, and neither is one number from this morning against one
# from now: machine load, sentence and turn detection differ. This notebook changes **one** setting
# at a time, keeps everything else, and shows the uncertainty of the difference.

# %% tags=["parameters"]
trials = 2
calls = 2

# %%
from IPython.display import display

from labvoice import Lab, Target, compare
from labvoice.report import plots

lab = await Lab(llm="paced", letta=False, progress=print).start()

# %% [markdown]
# ## 1. In one run: when to dispatch
#
# Configurations that can run at the same time are **arms** of one run, interleaved in a random
# order in each round, so that a busy moment affects both equally. Here: the agent is dispatched
# after the caller has connected (`sequential`), or while it connects (`concurrent`).

# %%
run = await lab.bench.connect(trials, warmup=0, arms="sequential,concurrent", progress=print)
run

# %%
plots.distributions(run)

# %% [markdown]
# Look at two rows: `ready` runs from the request, `connection` from the click: the request goes
# out earlier, takes as long as before, and ends earlier for the user. The line under the table
# compares the arms **round by round**: effects on the whole round, such as a slow second of the
# machine or a long sentence, cancel out. All stages, with their intervals:

# %%
for pair, stages in run.ratios().items():
    for stage, ratio in stages.items():
        print(f"{pair} {stage}: {ratio}")

# %% [markdown]
# ## 2. In two runs: when a turn ends
#
# A setting of the worker can also be compared across two runs. This one changes the silence after
# which a turn may end. A short silence answers sooner, but takes a pause inside a sentence for its
# end. `Target.own` is labvoice's agent with settings of its own, which gets a worker in the same
# lab.


# %%
async def measure(delay_s):
    agent = Target.own(min_endpointing_delay_s=delay_s, max_endpointing_delay_s=1.0)
    return await lab.bench.turns(calls, arms={"own": agent}, warmup=0, progress=print)


base = await measure(0.8)
new = await measure(0.3)
await lab.stop()

# %% [markdown]
# The ratio of the medians with a bootstrap interval over calls, and the Mann–Whitney test. With as
# few calls as here it is often inconclusive; that is the right answer. Runs from different machines
# are refused unless you allow them.

# %%
comparison = compare(base, new)
comparison

# %%
display(plots.distributions(base))
display(plots.distributions(new))

# %% [markdown]
# The cost, split turns:

# %%
for name, each in (("0.8 s", base), ("0.3 s", new)):
    print(f"{name}: {each.recognition}")

# %% [markdown]
# ## 3. As a gate
#
# The same comparison is a gate for CI: it exits with 1 if a headline stage regressed.
#
#     labvoice compare base.jsonl new.jsonl --max-regression 0.10

# %%
print("passed:", comparison.passed)
