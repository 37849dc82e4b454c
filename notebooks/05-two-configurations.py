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
# # Two configurations side by side
#
# "It feels faster" is not a measurement, and neither is one number from this morning beside one
# from now: the machine was busier, the sentence was longer, the turn detector had a bad day. This
# notebook changes **one** thing, keeps everything else, and says how sure the difference is.
#
# What we change: the silence after which a turn may end (`min_endpointing_delay_s`). It is the
# first knob that everybody turns, and it has a price, which is counted below: a pause inside a
# sentence is taken for its end.

# %% tags=["parameters"]
calls = 2
turns_each = 2
base_delay_s = 0.8
new_delay_s = 0.3

# %%
from IPython.display import display

from labvoice.bench.compare import compare
from labvoice.lab import Lab
from labvoice.report import plots


async def measure(delay_s):
    async with Lab(
        llm="paced", letta=False, min_endpointing_delay_s=delay_s, max_endpointing_delay_s=1.0
    ) as lab:
        print(f"delay {delay_s} s")
        return await lab.bench.turns(calls, turns=turns_each, warmup=0, progress=print)


base = await measure(base_delay_s)
new = await measure(new_delay_s)

# %% [markdown]
# ## 1. The comparison
#
# The ratio of the medians with a bootstrap interval over calls, and the Mann–Whitney test. With as
# few calls as here it will often say that it is not sure; that is the right answer. Runs that were
# taken on different machines are refused unless you insist.

# %%
comparison = compare(base, new)
comparison

# %%
display(plots.distributions(base))
display(plots.distributions(new))

# %% [markdown]
# ## 2. The price

# %%
for name, run in (("base", base), ("new", new)):
    print(f"{name}: {run.recognition}")

# %% [markdown]
# ## 3. As a gate
#
# The same comparison guards a repository: it exits with 1 when a headline stage became slower
# than allowed.
#
#     labvoice compare base.jsonl new.jsonl --max-regression 0.10

# %%
print("passed:", comparison.passed)
