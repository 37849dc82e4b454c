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
# # Conversations: interrupt them, script them, hear them
#
# People do not take turns as benchmarks do. They interrupt, cough, change their minds, and hang up
# when nothing happens. This notebook interrupts the agent and listens to what came of it, writes
# such a call down as a scenario that passes or fails, finds the slow turn of a run, and compares
# two settings by how they bear a cough.

# %% tags=["parameters"]
llm = "paced"  # answers at length who asks "in detail", and repeats what interrupts it
trials = 1

# %%
from pathlib import Path

from labvoice import Expect, Lab, Say, Scenario, run_scenarios
from labvoice.report import plots, turn_taking

lab = await Lab(llm=llm, letta=False, progress=print).start()

# %% [markdown]
# ## 1. Interrupt the agent
#
# `at=1.5` says the words so that their first sound leaves 1.5 s after the first sound of the reply.
# The agent should stop soon, and answer what was said last.

# %%
call = await lab.call()
await call.hear_greeting()
await call.say(await lab.utterance("Please explain to me in detail how that works."))
turn = await call.say(await lab.utterance("Wait, what time is it now?"), at=1.5)
await call.hear()
found = call.interruption(turn)
await lab.end_call(call)
print(f"stopped after  {found.yield_latency_s:.2f} s")
print(f"answered after {found.recovery_s:.2f} s: {turn.reply}")

# %% [markdown]
# Every call is recorded: the upper waveform is what the caller sent, the lower one what it heard,
# on one clock. Look at the shaded part, in which both speak, and click into it to hear it.

# %%
lab.bench.record(call).listen()

# %% [markdown]
# ## 2. Write it down
#
# A scenario is such a call in a file: what the caller does, and what must hold of the agent's
# answer. A tester can write it, and a developer can review it.

# %%
_ = Path("hurry.scenario.yaml").write_text(
    """
name: a caller in a hurry
steps:
  - expect: {greeting: within 5 s}
  - say: Please explain to me in detail how that works.
  - say: Wait, what time is it now?
    interrupt: {after: 1.5 s of the reply}
  - expect: {yields: within 2 s, reply: within 5 s, heard: time}
  - hang up
""",
    encoding="utf-8",
)

# %% [markdown]
# The same can be said in Python. This one asks for more than the agent can do, to show what a
# failure looks like: which expectation, what was observed, what was heard, and where to listen.

# %%
impatient = Scenario(
    name="a caller without patience",
    steps=[Say("How much water should I drink every day?"), Expect(reply=0.5)],
)
result = await run_scenarios(lab, ["hurry.scenario.yaml", impatient])
for each in result.scenarios:
    print(f"{each.file.scenario.name}: {'passed' if each.passed else 'failed'}")
    print(*[f"  {line}" for attempt in each.attempts for line in attempt.words()], sep="\n")

# %% [markdown]
# `labvoice test hurry.scenario.yaml` does the same in a terminal, and exits 1 when something does
# not hold. Such files are tests of pytest too, in your agent's repository.
#
# ## 3. The slow turn
#
# The scenarios' calls are a run, as a benchmark's are: a frame, stages and recordings. Which turn
# took longest, and where did its time go?

# %%
turns = result.run.frame.query("stage == 'voice_to_voice'")
slow = turns.loc[turns["duration_s"].idxmax()]
print(f"{slow.arm}, turn {slow.turn}: {slow.duration_s * 1e3:.0f} ms")
plots.turn_waterfall(result.run, slow.trial, slow.turn)

# %%
result.run.listen(slow.trial)

# %% [markdown]
# ## 4. Two settings
#
# A cough is no interruption: the agent should go on. `labvoice` yields to half a second of any
# voice; `words-2` is the same agent, which yields once two words are understood. In the bench of
# turn-taking each call has one probe. Look at the picture: who speaks when, from the cough on.

# %%
run = await lab.bench.interrupt(
    trials, probes="cough", arms="labvoice,words-2", at=1.0, warmup=0, progress=print
)
turn_taking.who_speaks_when(run)

# %%
print("\n".join(run.turn_taking))

# %% [markdown]
# The brackets are 95 % intervals: one cough proves little. Take `trials = 10`, and also the probe
# `question`: who waits for words yields later to a real interruption. `labvoice bench interrupt`
# measures all probes, and its report draws that trade.

# %%
await lab.stop()
