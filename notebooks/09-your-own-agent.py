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
# # Your own agent
#
# So far labvoice's own agent was measured. Any other is measured in the same way, unmodified: a
# script, a command line in any language, a git revision, an agent that is registered on a server
# already, or a bot that joins by itself. Nothing is imported into it. This notebook writes a small
# agent, as LiveKit's starter shows it, calls it, and measures it beside a variant of itself and
# beside labvoice's own agent. Replace `my_agent.py` by yours.

# %% tags=["parameters"]
trials = 1

# %%
from pathlib import Path

from IPython.display import display

from labvoice import Lab, Target
from labvoice.report import plots

Path("my_agent.py").write_text(
    '''
import os

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, cli

server = AgentServer()


@server.rtc_session(agent_name="my-agent")
async def entrypoint(ctx: JobContext) -> None:
    session = AgentSession(
        stt="deepgram/nova-3",
        llm="openai/gpt-4.1-mini",
        tts="cartesia/sonic-3",
        turn_handling={"endpointing": {"min_delay": float(os.environ.get("MIN_DELAY", "0.5"))}},
    )
    await session.start(agent=Agent(instructions="You are brief."), room=ctx.room)
    await ctx.connect()
    await session.say("Hello, how can I help you?")


if __name__ == "__main__":
    cli.run_app(server)
''',
    encoding="utf-8",
)

# %% [markdown]
# ## 1. Start it and call it
#
# The lab starts the script as its author does (`python my_agent.py start`), with `LIVEKIT_URL`,
# key and secret set to its own server, and reads the agent's name from that server's log. The
# models of LiveKit Inference are served by the lab's gateway, with no key: embedded models answer
# under the names that the agent asks for.

# %%
lab = await Lab(workers=0, letta=False, supervise=False, llm="paced", progress=print).start()
agent = await lab.add_target(Target.program("my_agent.py"))
print(agent)

# %%
call = await lab.call(agent_name=agent)
await call.hear_greeting()
await call.say(await lab.utterance("Are you open on Sunday?"))
await call.hear()
await call.end()
lab.bench.record(call)
call

# %% [markdown]
# What an agent does not tell is missing, not zero, and the first line says why: a foreign worker
# sends no marks, so `job_request` and the worker's part of the connection are not known. Look at
# what each model's name stood for here. The figures are of the agent's code and settings, not of
# those models:

# %%
(await lab.gateway.report())["models"]

# %% [markdown]
# ## 2. Arms
#
# Agents side by side take turns in one run: in each round every arm hears the same words. An arm
# may be another script, the script as it was (`Target.program("my_agent.py", revision="main")`),
# other variables of its environment, labvoice's own agent with a setting changed, or the agent of
# your server (`"name:my-agent"`).

# %%
run = await lab.bench.turns(
    trials,
    warmup=0,
    arms={
        "mine": Target.program("my_agent.py"),
        "hasty": Target.program("my_agent.py", env={"MIN_DELAY": "0.1"}),
        "own": Target.own(),
    },
    progress=print,
)
run

# %% [markdown]
# Look at `end_of_turn_delay`: the variable moves it, and `voice_to_voice` with it. One call of each
# arm shows the figures, and proves nothing: the warnings say so, and `labvoice compare` would. Take
# `trials = 12` for a comparison.

# %%
display(plots.turn_waterfall(run))
display(plots.distributions(run))

# %%
await lab.stop()
