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
# # The latency of a turn, stage by stage
#
# The latency that a user notices is **voice to voice**: from the last voiced sample of the question
# to the first voiced sample of the reply. This notebook shows its stages.
#
# - `end_of_turn_delay`: how long the agent waits before it believes that you have finished. The
#   silence that it needs is most of it; transcription runs inside (`transcription_delay`).
# - `llm_node_ttft`, `llm_node_ttfs`: the model's first token, and the first whole sentence.
# - `tts_node_ttfb`: from that sentence to the first audio. `playback_latency`: until it leaves.
# - `e2e_latency`: LiveKit's sum of these, seen from the agent.
# - `transport`: the rest of voice to voice. Network, jitter buffers, queues at both ends.
#   LiveKit's figures stop at the agent's socket; this is the part that only a caller can measure.

# %% tags=["parameters"]
llm = "paced"  # first token after 200 ms, then 35 ms a token: the pipeline is what is measured
calls = 2
turns_each = 2

# %%
from IPython.display import Audio, display

from labvoice import Lab
from labvoice.report import plots

lab = await Lab(llm=llm, letta=False, progress=print).start()

# %% [markdown]
# ## 1. One turn
#
# Look at two bars first: the grey one is LiveKit's own total, the green one is what the caller
# waits for. Where bars overlap, work was done ahead: recognition runs while you speak, and with
# preemptive generation the model begins before the end of the turn is certain.

# %%
call = await lab.call()
await call.hear_greeting()
turn = await call.say(await lab.utterance("How much water should I drink every day?"))
await call.hear()
await lab.end_call(call)
print(f"said:       {turn.said}\nunderstood: {turn.transcript}\nanswered:   {turn.reply}")
plots.turn_waterfall(lab.bench.record(call))

# %%
Audio(call.heard_audio(turn)[0], rate=call.heard_audio(turn)[1])

# %% [markdown]
# ## 2. Many turns
#
# One turn is not a measurement: whether the turn detector is sure of your last word changes it by
# half a second. A run repeats it in new rooms. Turns of one call are not independent samples, so
# the interval of the median is bootstrapped over calls.

# %%
run = await lab.bench.turns(calls, turns=turns_each, warmup=0, progress=print)
run

# %%
plots.distributions(run)

# %% [markdown]
# The share of each stage, by means, because only means add up:

# %%
parts = ["end_of_turn_delay", "llm_node_ttfs", "tts_node_ttfb", "playback_latency", "transport"]
means = run.frame.groupby("stage")["duration_s"].mean()
share = means.reindex(parts).dropna().to_frame("mean_s")
share["of voice_to_voice"] = (share["mean_s"] / means["voice_to_voice"]).map("{:.0%}".format)
share

# %% [markdown]
# They need not add up to 100 %: work done ahead is counted in two bars. Ways to reduce them: a
# shorter `LABVOICE_MIN_ENDPOINTING_DELAY_S` (it splits turns in two when it is too short: watch
# *turns split in two* above), a model with a faster first token, a reply that begins with a short
# sentence, and a server near the caller.
#
# ## 3. What was understood

# %%
run.notes[["turn", "said", "transcript", "wer", "user_messages"]].dropna(subset="said")

# %%
await lab.stop()
