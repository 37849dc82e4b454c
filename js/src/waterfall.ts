// The rows of the live waterfall, from marks and figures; milliseconds since the click or the turn.
import type { Mark, Turn } from "./types";

export type Kind = "headline" | "caller" | "worker" | "agent" | "rest";

export interface Row {
  name: string;
  title: string;
  start_ms: number;
  /** Null while it is open. */
  end_ms: number | null;
  kind: Kind;
}

type Step = [name: string, from: string, to: string, kind: Kind, title: string];

// Stage names are those of labvoice/protocol/vocabulary.py where they have one there.
const STEPS: Step[] = [
  ["token", "click", "token_issued", "caller", "the token is made"],
  ["room", "token_issued", "room_connected", "caller", "the browser joins the room"],
  ["microphone", "room_connected", "mic_published", "caller", "the microphone is published"],
  ["dispatch", "dispatch_requested", "dispatch_acknowledged", "caller", "the server takes the request"],
  ["job_request", "dispatch_requested", "job_received", "worker", "the server looks for a worker, 200 ms at least"],
  ["job start", "job_received", "entrypoint_started", "worker", "the worker accepts and hands the job to a process"],
  ["agent connects", "entrypoint_started", "agent_connected", "worker", "the agent joins the room"],
  ["join", "dispatch_requested", "agent_visible", "headline", "from the request until the browser sees the agent"],
  ["connection", "click", "agent_listening", "headline", "from the click until the agent listens"],
  ["time_to_greeting", "click", "greeting_heard", "headline", "from the click until the greeting is heard"],
];

/** The started rows of a connection; the worker's rows once they are known. */
export function connectionRows(marks: Record<string, Mark>): Row[] {
  const click = marks["click"];
  if (!click) return [];
  const ms = (mark: Mark) => (mark.at_s - click.at_s) * 1000;
  return STEPS.flatMap(([name, from, to, kind, title]) => {
    const [start, end] = [marks[from], marks[to]];
    if (!start || (!end && kind === "worker")) return [];
    if (end && end.at_s < start.at_s) return []; // by a worker's clock that went wrong
    return [{ name, title, kind, start_ms: ms(start), end_ms: end ? ms(end) : null }];
  });
}

/** LiveKit's stages of a reply, each of which ends where the one before it here begins. */
const GENERATION = ["playback_latency", "tts_node_ttfb", "llm_node_ttfs"];
const TITLES: Record<string, string> = {
  voice_to_voice: "from your last voiced sample to the first of the reply",
  answer: "from your last voiced sample to the first of what follows the filler",
  "typed to voice": "from the moment you sent it to the first voiced sample of the reply",
  end_of_turn_delay: "LiveKit: until it is sure that you have finished",
  transcription_delay: "LiveKit: until the final transcript, inside the former",
  llm_node_ttft: "LiveKit: until the model's first token",
  llm_node_ttfs: "LiveKit: until the first sentence goes to synthesis",
  tts_node_ttfb: "LiveKit: until the first audio",
  playback_latency: "LiveKit: until that audio leaves the agent",
  e2e_latency: "LiveKit: all of it, as the agent sees it",
  transport: "what those figures do not explain: network, jitter buffers, queues",
};

/** Start of a turn's time: the end of the utterance, or when it was typed. */
export const turnZero = (turn: Turn): number | undefined =>
  turn.marks[turn.typed ? "typed" : "user_speech_end"];

/** LiveKit's figures of a turn that can be: neither negative nor longer than the turn. */
function plausible({ marks, metrics }: Turn): Record<string, number> {
  const ends = [marks["reply_heard"], marks["answer_heard"]].filter((at) => at !== undefined);
  const longest_s = (ends.length ? Math.max(...ends) : Infinity) - (marks["user_speech_start"] ?? 0);
  return Object.fromEntries(Object.entries(metrics).filter(([, took_s]) => took_s >= 0 && took_s <= longest_s));
}

/** The rows of a turn, placed as in labvoice/report/plots.py; growing while it is unanswered. */
export function turnRows(turn: Turn): Row[] {
  const zero = turnZero(turn);
  if (zero === undefined) return [];
  const heard = turn.marks["reply_heard"];
  const total_ms = heard === undefined ? null : (heard - zero) * 1000;
  const m = plausible(turn);
  const rows: Row[] = [];
  const row = (name: string, start_ms: number, end_ms: number | null, kind: Kind) =>
    rows.push({ name, title: TITLES[name] ?? "", start_ms, end_ms, kind });
  const from = (name: string, start_ms: number) => {
    const length_s = m[name];
    if (length_s !== undefined) row(name, start_ms, start_ms + length_s * 1000, "agent");
  };
  row(turn.typed ? "typed to voice" : "voice_to_voice", 0, total_ms, "headline");
  const answer = turn.marks["answer_heard"];
  if (answer !== undefined) row("answer", 0, (answer - zero) * 1000, "headline");
  from("e2e_latency", 0);
  from("transcription_delay", 0);
  from("end_of_turn_delay", 0);
  const generated_s = GENERATION.reduce((sum, name) => sum + (m[name] ?? 0), 0);
  // LiveKit has no total for a typed turn, whose reply starts at once.
  const e2e_s = m["e2e_latency"] ?? (turn.typed && generated_s > 0 ? generated_s : undefined);
  if (e2e_s === undefined) return rows;
  let begin_ms = e2e_s * 1000;
  const placed: [string, number][] = [];
  for (const name of GENERATION) {
    begin_ms -= (m[name] ?? 0) * 1000;
    placed.unshift([name, begin_ms]);
  }
  from("llm_node_ttft", begin_ms);
  for (const [name, start_ms] of placed) from(name, start_ms);
  // Longer than until a filler was heard: it is the figure of the answer.
  const ofAnswer = total_ms !== null && answer !== undefined && e2e_s * 1000 > total_ms;
  const end_ms = ofAnswer ? (answer - zero) * 1000 : total_ms;
  if (end_ms !== null) row("transport", e2e_s * 1000, end_ms, "rest");
  return rows;
}

/** The end of the axis that holds all rows, in milliseconds: a round number. */
export function axisEnd(rows: Row[], now_ms: number): number {
  const end = Math.max(100, ...rows.map((row) => row.end_ms ?? now_ms));
  const step = 10 ** Math.floor(Math.log10(end)) / 2;
  return Math.ceil(end / step) * step;
}
