// Reads the agent session's events (`lk.agent.session`); livekit-client exports no schema for them.
// Field numbers: livekit/protocol, agent/livekit_agent_session.proto.

export interface Item {
  id: string;
  role: "user" | "assistant" | "";
  text: string;
  interrupted: boolean;
  /** LiveKit's own figures, in seconds. */
  metrics: Record<string, number>;
  /** When it was spoken, first to last word, in seconds on the agent's clock; null if unknown. */
  spoken: [number, number] | null;
}

export type SessionEvent = { agentState: string } | { item: Item } | null;

const STATES = ["initializing", "idle", "listening", "thinking", "speaking"];
const ROLES: Record<number, Item["role"]> = { 2: "user", 3: "assistant" };
const METRICS: Record<number, string> = {
  3: "transcription_delay",
  4: "end_of_turn_delay",
  5: "on_user_turn_completed_delay",
  6: "llm_node_ttft",
  7: "tts_node_ttfb",
  8: "e2e_latency",
  10: "llm_node_ttfs",
};

type Field = number | Uint8Array;

/** Reads one message's fields; of a number, its wire value, and of a double, that double. */
function fields(bytes: Uint8Array): Map<number, Field[]> {
  const found = new Map<number, Field[]>();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  const varint = (): number => {
    let value = 0;
    let scale = 1;
    for (;;) {
      const byte = view.getUint8(at++);
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
      scale *= 128;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    let value: Field;
    switch (tag & 7) {
      case 0:
        value = varint();
        break;
      case 1:
        value = view.getFloat64(at, true);
        at += 8;
        break;
      case 2: {
        const length = varint();
        value = bytes.subarray(at, at + length);
        at += length;
        break;
      }
      case 5:
        value = view.getFloat32(at, true);
        at += 4;
        break;
      default:
        throw new RangeError(`unknown wire type ${tag & 7}`);
    }
    const number = tag >>> 3;
    found.set(number, [...(found.get(number) ?? []), value]);
  }
  return found;
}

const inside = (of: Map<number, Field[]> | null, number: number): Map<number, Field[]> | null => {
  const value = of?.get(number)?.[0];
  return value instanceof Uint8Array ? fields(value) : null;
};
const text = (of: Map<number, Field[]>, number: number): string => {
  const value = of.get(number)?.[0];
  return value instanceof Uint8Array ? new TextDecoder().decode(value) : "";
};

/** A protobuf Timestamp of a message, in seconds; null if it has none. */
const instant = (of: Map<number, Field[]> | null, number: number): number | null => {
  const stamp = inside(of, number);
  return stamp && Number(stamp.get(1)?.[0] ?? 0) + Number(stamp.get(2)?.[0] ?? 0) / 1e9;
};

/** Reads an AgentSessionMessage; null for one that is not used here. */
export function readSessionMessage(bytes: Uint8Array): SessionEvent {
  const event = inside(fields(bytes), 3);
  const state = inside(event, 10);
  if (state) return { agentState: STATES[Number(state.get(2)?.[0] ?? 0)] ?? "" };
  const message = inside(inside(inside(event, 12), 1), 1);
  if (!message) return null;
  const metrics: Record<string, number> = {};
  const told = inside(message, 7);
  const [started, stopped] = [instant(told, 1), instant(told, 2)];
  for (const [number, values] of told ?? []) {
    const name = METRICS[number];
    if (name && typeof values[0] === "number") metrics[name] = values[0];
  }
  const parts = (message.get(3) ?? []).map((part) => text(fields(part as Uint8Array), 1));
  return {
    item: {
      id: text(message, 1),
      role: ROLES[Number(message.get(2)?.[0] ?? 0)] ?? "",
      text: parts.filter(Boolean).join(" "),
      interrupted: Boolean(message.get(4)?.[0]),
      metrics,
      spoken: started !== null && stopped !== null ? [started, stopped] : null,
    },
  };
}
