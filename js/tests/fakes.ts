// A room, meters and a backend that do what a test tells them to.
import type { Piece } from "../src/sound";
import { vi } from "vitest";
import type { Backend, CallRecord, DispatchAnswer, Token } from "../src/types";

type Listener = (...args: never[]) => void;

/** What `BrowserCall` uses of livekit-client's Room; its agent comes when a test says so. */
export class FakeRoom {
  static all: FakeRoom[] = [];
  readonly remoteParticipants = new Map<string, unknown>();
  readonly localParticipant = {
    identity: "me",
    setMicrophoneEnabled: vi.fn(async () => ({ track: { mediaStreamTrack: {} } })),
    performRpc: vi.fn(async (): Promise<string> => {
      throw new Error("no answer");
    }),
    sendText: vi.fn(async () => undefined),
  };
  readonly connect = vi.fn(async () => undefined);
  readonly disconnect = vi.fn(async () => undefined);
  private readonly listeners = new Map<string, Listener[]>();

  constructor() {
    FakeRoom.all.push(this);
  }

  on(event: string, listener: Listener): this {
    this.listeners.set(event, [...(this.listeners.get(event) ?? []), listener]);
    return this;
  }

  emit(event: string, ...args: unknown[]): void {
    for (const listener of this.listeners.get(event) ?? []) listener(...(args as never[]));
  }

  registerTextStreamHandler(): void {}
  /** Gives a reader of the agent's session events a whole message. */
  sessionEvent: (bytes: Uint8Array) => void = () => undefined;
  registerByteStreamHandler(_: string, onStream: (reader: { readAll(): Promise<Uint8Array[]> }) => void): void {
    this.sessionEvent = (bytes) => onStream({ readAll: async () => [bytes] });
  }

  /** The agent joins and listens. */
  agentJoins(): void {
    const attributes = { "lk.agent.state": "listening" };
    this.emit("participantConnected", { kind: 4, identity: "agent-1", attributes });
  }
}

export class FakeMeters {
  static onPiece: ((piece: Piece) => void) | null = null;
  async record(onPiece: (piece: Piece) => void): Promise<void> {
    FakeMeters.onPiece = onPiece;
  }
  async flush(): Promise<void> {}
  async watch(): Promise<void> {}
  async resume(): Promise<void> {}
  async close(): Promise<void> {}
}

export const TOKEN: Token = { token: "t", url: "ws://127.0.0.1:9", room: "room-1" };
export const CAME: DispatchAnswer = { success: true, outcome: "ok", message: "", dispatch_id: "AD_1" };

/** A backend that agrees to everything; keeps the records. */
export function backend(more: Partial<Backend> = {}): Backend & { records: CallRecord[] } {
  const records: CallRecord[] = [];
  return {
    token: vi.fn(async () => TOKEN),
    dispatch: vi.fn(async () => CAME),
    agents: vi.fn(async () => null),
    diagnose: vi.fn(async () => []),
    record: vi.fn(async (_: string, record: CallRecord) => {
      records.push(structuredClone(record));
    }),
    records,
    ...more,
  };
}

/** A promise, and what settles it. */
export function later<T>(): { promise: Promise<T>; resolve: (value: T) => void } {
  let resolve!: (value: T) => void;
  const promise = new Promise<T>((done) => (resolve = done));
  return { promise, resolve };
}
