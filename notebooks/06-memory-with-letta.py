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
# # Memory with Letta: hybrid against Letta streaming
#
# Letta gives an agent memory across calls: blocks of text which it edits itself. Letting Letta
# write every reply puts its agent loop between the user's last word and the agent's first.
# labvoice's **hybrid** mode keeps it off that path: the fast model answers, with Letta's blocks in
# its instructions, and each finished turn is written back to Letta in the background, durably.
#
# | mode | who answers | memory |
# | --- | --- | --- |
# | `hybrid` | the fast model | read at the start, written back after each turn |
# | `letta` | Letta, streaming | Letta's own |
# | `direct` | the fast model | none |
#
# The embedded Letta's model is a *scripted LLM*, not a language model: it writes facts that you
# state to memory with Letta's own tools. With `LETTA_BASE_URL` set, your own Letta is used instead.

# %% tags=["parameters"]
llm = "paced"
turns_each = 2

# %%
import pandas as pd
from IPython.display import display

from labvoice import Lab
from labvoice.report import plots

lab = await Lab(llm=llm, fresh=True, progress=print).start()
await lab.letta_server.until_up()
lab

# %% [markdown]
# ## 1. Tell it something
#
# The first start of Letta on a machine installs it (minutes); later ones take seconds, and a call
# never waits for it: an agent answers without memory until it is loaded.

# %%
agent = await lab.letta.create("notebook", human="The user's name is Ada.")
call = await lab.call(letta_agent=agent)
await call.hear_greeting()
await call.say(await lab.utterance("My dog is called Rex."))
turn = await call.hear()
print("understood:", turn.transcript)
print("answered:  ", turn.reply)
await call.until_synced()
await lab.end_call(call)
print("Letta now knows:", (await lab.letta.blocks(agent))["human"])

# %% [markdown]
# Look at `memory_sync`: it is the time from the end of the turn until the fact is stored in Letta.
# It runs in the background; `voice_to_voice` does not include it.

# %%
told = lab.bench.record(call)
told

# %% [markdown]
# ## 2. The next call remembers it
#
# Another call, a new room, perhaps another worker: the blocks are read as the session starts.

# %%
call = await lab.call(letta_agent=agent)
await call.hear_greeting()
await call.until_memory()
print(call.memory)
await lab.end_call(call)
lab.bench.record(call)

# %% [markdown]
# ## 3. What memory costs, mode by mode

# %%
question = await lab.utterance("How much water should I drink every day?")
frames = {}
for mode in ("direct", "hybrid", "letta"):
    call = await lab.call(letta_agent=agent, mode=mode)
    await call.hear_greeting()
    for _ in range(turns_each):
        await call.say(question)
        turn = await call.hear()
        print(f"{mode:7} voice to voice {turn.voice_to_voice_s * 1e3:.0f} ms: {turn.reply}")
    await lab.end_call(call)
    frames[mode] = lab.bench.record(call).frame
    await lab.wait_idle()

# %%
beside = pd.concat(frames, names=["mode"]).reset_index("mode")
stages = ["voice_to_voice", "end_of_turn_delay", "llm_node_ttft", "letta_ttft", "llm_node_ttfs"]
table = beside.pivot_table("duration_s", "stage", "mode", "median") * 1e3
display(table.reindex(stages).dropna(how="all").round())

# %%
plots.turn_waterfall(told)

# %% [markdown]
# `hybrid` takes as long as `direct`: memory adds no latency. `letta` adds the time of Letta's agent
# loop and of its model, which here answers at once.
#
# ## 4. The agents

# %%
await lab.letta.agents()

# %%
await lab.stop()
