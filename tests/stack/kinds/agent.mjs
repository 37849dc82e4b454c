// An agent of @livekit/agents, with models by name from LiveKit Inference.
import { fileURLToPath } from 'node:url';
import { ServerOptions, cli, defineAgent, voice } from '@livekit/agents';

export default defineAgent({
  entry: async (ctx) => {
    await ctx.connect();
    const session = new voice.AgentSession({
      stt: 'deepgram/nova-3',
      llm: 'openai/gpt-4.1-mini',
      tts: 'cartesia/sonic-3',
    });
    const agent = new voice.Agent({ instructions: 'You are brief.' });
    await session.start({ agent, room: ctx.room });
    session.say('Hello, who is calling?');
  },
});

cli.runApp(new ServerOptions({ agent: fileURLToPath(import.meta.url), agentName: 'js-agent' }));
