// The interface between the call (browser) and its backend: the notebook's kernel or HTTP.
import type { Piece } from "./sound";

/** A dispatch strategy; the backend lists them. */
export interface Strategy {
  name: string;
  /** What the menu shows. */
  title: string;
  /**
   * `after`: once the microphone is on; `during`: while the browser connects; `token`: the
   * access token names the agent, the server dispatches it, and `dispatch` only confirms;
   * `ahead`: before the click, as soon as it is chosen.
   */
  when: "after" | "during" | "token" | "ahead";
  /** How long an agent that was dispatched ahead waits for the click, in seconds. */
  lifetime_s: number;
}

export interface LettaAgent {
  id: string;
  name: string;
  description?: string;
}

export interface Token {
  token: string;
  url: string;
  room: string;
}

export interface Ask {
  room?: string;
  letta_agent_id?: string;
  strategy?: string;
}

/** Result of a dispatch. Marks are seconds on the backend's monotonic clock. */
export interface DispatchAnswer {
  success: boolean;
  outcome: string;
  message: string;
  hint?: string;
  dispatch_id?: string;
  agent_name?: string;
  marks?: Record<string, number>;
  /** When the backend received the request and answered it, on the clock of `marks`. */
  clock?: { received_s: number; answered_s: number };
}

export interface Check {
  name: string;
  ok: boolean;
  detail: string;
  hint?: string;
}

/** An instant of a call, with the fields of `Mark` in `labvoice/protocol/vocabulary.py`. */
export interface Mark {
  name: string;
  /** In seconds on the browser's monotonic clock (`performance.now() / 1000`). */
  at_s: number;
  clock: "caller" | "worker";
  /** Uncertainty of the offset between the worker's clock and this one, in seconds. */
  uncertainty_s: number;
}

export interface Turn {
  number: number;
  typed: boolean;
  said: string;
  /** Instants, in seconds on the browser's monotonic clock. */
  marks: Record<string, number>;
  /** LiveKit's own figures, in seconds. */
  metrics: Record<string, number>;
  transcript: string;
  reply: string;
  user_messages: number;
  outcome: string;
}

/** All measurements of one call; sent whole at each change. */
export interface CallRecord {
  call_id: string;
  room: string;
  strategy: string;
  letta_agent_id: string;
  marks: Mark[];
  turns: Turn[];
  notes: Record<string, string | number | boolean>;
  outcome: string;
  detail: string;
  ended: boolean;
}

export interface Backend {
  token(ask: Ask): Promise<Token>;
  dispatch(ask: Ask & { room: string }): Promise<DispatchAnswer>;
  /** The Letta agents to choose from; null without Letta. */
  agents(): Promise<LettaAgent[] | null>;
  /** Creates a Letta agent with empty memory; undefined if the backend cannot. */
  createAgent?(): Promise<LettaAgent>;
  diagnose(): Promise<Check[]>;
  record(callId: string, record: CallRecord): Promise<void>;
  /**
   * Takes the recording, piece by piece; where it is missing the page keeps it and offers it as a
   * file, and null is a call that is not to be recorded.
   */
  sound?: ((callId: string, piece: Piece) => Promise<void>) | null;
}

/** A failed request to the backend, with its message. */
export class BackendError extends Error {
  constructor(
    message: string,
    readonly hint = "",
    readonly outcome = "error",
  ) {
    super(message);
  }
}

export type Link = "server" | "microphone" | "dispatch" | "agent" | "sound";
export type LinkState = "idle" | "busy" | "ok" | "bad";

/** An error, and what to do about it. */
export interface Trouble {
  link: Link;
  outcome: string;
  message: string;
  hint: string;
}
