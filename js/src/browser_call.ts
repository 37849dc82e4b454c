// One call in the browser: joins, publishes the microphone, requests the dispatch, sets the marks.
import {
  ConnectionQuality,
  DataStreamError,
  DisconnectReason,
  ParticipantKind,
  Room,
  RoomEvent,
  Track,
  type ByteStreamReader,
  type LocalAudioTrack,
  type Participant,
  type RemoteParticipant,
  type TextStreamReader,
} from "livekit-client";
import { Ahead, marksOf, type Asked } from "./asked";
import { Meters, now_s } from "./meter";
import { readSessionMessage } from "./session_events";
import { Sound, type Piece } from "./sound";
import { HEARING, initial, next, type Event, type State } from "./state";
import { Transcript, type Line } from "./transcript";
import {
  agentLeftTrouble,
  autoplayTrouble,
  backendTrouble,
  connectTrouble,
  disconnectedTrouble,
  dispatchTrouble,
  here,
  microphoneTrouble,
} from "./troubles";
import { Turns } from "./turns";
import type {
  Ask,
  Backend,
  CallRecord,
  Mark,
  Strategy,
  Token,
  Trouble,
  Turn,
} from "./types";
import { VoiceDetector } from "./voice";

const STATE_ATTRIBUTE = "lk.agent.state";
const RPC_CLOCK = "labvoice.clock"; // all three as in labvoice/protocol/vocabulary.py
const RPC_MARKS = "labvoice.marks";
const RPC_INTERRUPT = "labvoice.interrupt";
const RPC_TIMEOUT_MS = 2000;
const LAST_FIGURES_MS = 500;
const CLOCK_ROUNDS = 5;
const RECORD_EVERY_MS = 300;

export interface LogLine {
  /** Seconds since the click. */
  at_s: number;
  text: string;
}

export interface Choice {
  strategy: Strategy;
  letta_agent_id: string;
  device_id: string;
}

export interface Levels {
  you: number;
  agent: number;
}

/** A random id; works on an insecure page too, which has no `randomUUID`. */
const callId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, "0")).join("");

function askOf(choice: Choice): Ask {
  const ask: Ask = { strategy: choice.strategy.name };
  if (choice.letta_agent_id) ask.letta_agent_id = choice.letta_agent_id;
  return ask;
}

/** A call; created once, can be connected repeatedly. Views listen for `change`. */
export class BrowserCall {
  state: State = initial;
  log: LogLine[] = [];
  levels: Levels = { you: 0, agent: 0 };
  callId = "";
  roomName = "";
  marks: Record<string, Mark> = {};
  private transcript = new Transcript();
  private turns = new Turns();
  private room: Room | null = null;
  private meters: Meters | null = null;
  private sound = new Sound();
  private agentIdentity = "";
  private choice: Choice | null = null;
  private readonly ahead: Ahead;
  private ending: Promise<void> | null = null;
  private notes: CallRecord["notes"] = {};
  private outcome = "error";
  private detail = "";
  private lastRecord = "";
  private recordTimer: ReturnType<typeof setTimeout> | undefined;
  private readonly sounds = new Set<HTMLMediaElement>();
  private readonly listeners = new Set<() => void>();

  constructor(private readonly backend: Backend) {
    this.ahead = new Ahead(backend);
  }

  onChange(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  get lines(): readonly Line[] {
    return this.transcript.lines;
  }

  get countedTurns(): Turn[] {
    return this.turns.counted();
  }

  get connected(): boolean {
    return this.state.phase === "connecting" || this.state.phase === "live";
  }

  // -- connecting -----------------------------------------------------------------------

  /** Dispatches the agent before the click, if the strategy is `ahead`; `connect` joins it. */
  prepare(choice: Choice): Promise<Token> | null {
    if (choice.strategy.when === "ahead")
      return this.ahead.prepare(askOf(choice), choice.strategy.lifetime_s);
    this.ahead.take();
    return null;
  }

  async connect(choice: Choice): Promise<void> {
    if (this.connected) return;
    this.reset(choice);
    this.mark("click");
    this.send({ type: "click" });
    globalThis.addEventListener?.("pagehide", this.leave);
    // Created right after the click, otherwise the browser may block the sound.
    const meters = (this.meters = new Meters());
    if (this.backend.sound !== null)
      meters.record((piece) => this.onSoundPiece(piece)).catch(() => this.say("the call is not recorded"));
    const room = (this.room = new Room());
    const ask = askOf(choice);
    const mine = () => this.room === room;
    let url = "";
    try {
      const token = await (this.prepare(choice) ?? this.backend.token(ask));
      const before = this.ahead.take();
      if (!mine()) return;
      this.mark("token_issued");
      url = token.url;
      this.roomName = token.room;
      this.watch(room, meters);
      if (choice.strategy.when === "token") this.askForAgent();
      const early =
        choice.strategy.when === "during" ? this.dispatch({ ...ask, room: token.room }, mine) : null;
      await room.connect(token.url, token.token);
      if (!mine()) return;
      this.mark("room_connected");
      this.send({ type: "room_connected" });
      this.say("connected to the room");
      await this.publishMicrophone(room, meters, choice.device_id);
      if (!mine()) return;
      await (early ?? this.dispatch({ ...ask, room: token.room }, mine, before));
    } catch (error) {
      if (!mine()) return;
      const trouble = url ? connectTrouble(error, url, here()) : backendTrouble(error);
      this.fail(trouble);
    }
  }

  private reset(choice: Choice): void {
    this.choice = choice;
    this.state = { ...initial, phase: "idle" };
    this.log = [];
    this.callId = callId();
    this.roomName = "";
    this.marks = {};
    this.transcript = new Transcript();
    this.sound = new Sound();
    this.turns = new Turns();
    this.agentIdentity = "";
    this.notes = {};
    this.outcome = "error";
    this.detail = "";
    this.lastRecord = "";
    this.levels = { you: 0, agent: 0 };
  }

  private async publishMicrophone(room: Room, meters: Meters, device: string): Promise<void> {
    try {
      if (!here().secure) throw new DOMException("no media devices", "SecurityError");
      const options = device ? { deviceId: { exact: device } } : {};
      const published = await room.localParticipant.setMicrophoneEnabled(true, options);
      const track = published?.track as LocalAudioTrack | undefined;
      if (!track || this.room !== room) return;
      this.mark("mic_published");
      this.send({ type: "mic_published" });
      this.say("microphone on");
      const voice = new VoiceDetector(
        {
          onStart: (found) => this.onVoice(() => this.turns.userStarts(found)),
          onEnd: (found) => this.onVoice(() => this.turns.userEnds(found)),
        },
        true,
      );
      await meters.watch(track.mediaStreamTrack, (rms, at_s) => {
        this.levels.you = rms;
        voice.feed(this.state.muted ? 0 : rms, at_s);
      });
    } catch (error) {
      if (this.room !== room) return;
      const trouble = microphoneTrouble(error, here());
      this.send({ type: "trouble", trouble, fatal: false });
      this.say(trouble.message);
    }
  }

  private askForAgent(): void {
    if (this.marks["dispatch_requested"]) return;
    this.say("requesting dispatch");
    this.mark("dispatch_requested");
    this.send({ type: "dispatch_requested" });
  }

  private async dispatch(
    ask: Ask & { room: string },
    mine: () => boolean,
    before: Asked | null = null,
  ): Promise<void> {
    if (this.choice?.strategy.when !== "ahead") this.askForAgent();
    const sent_s = now_s();
    try {
      const answer = await this.backend.dispatch(ask);
      if (!mine()) return;
      const back_s = now_s();
      if (!answer.success) {
        this.fail(dispatchTrouble(answer));
        return;
      }
      // An agent that was there needed no request: the one before the click counts.
      const found = Object.keys(answer.marks ?? {}).length === 0;
      for (const [name, at_s, error_s] of marksOf(found && before ? before : { answer, sent_s, back_s }))
        this.mark(name, at_s, "caller", error_s);
      this.note("dispatch_id", answer.dispatch_id);
      this.note("agent_name", answer.agent_name);
      this.send({ type: "dispatch_confirmed" });
      this.say("dispatch confirmed");
    } catch (error) {
      if (mine()) this.fail(backendTrouble(error, "dispatch"));
    }
  }

  private watch(room: Room, meters: Meters): void {
    const isAgent = (who: Participant) => who.kind === ParticipantKind.AGENT;

    const onAgent = (who: RemoteParticipant) => {
      if (!isAgent(who) || who.identity === this.agentIdentity) return;
      const first = !this.agentIdentity;
      this.agentIdentity = who.identity;
      this.mark("agent_visible");
      this.send({ type: "agent_visible" });
      this.say(first ? "agent connected" : "another agent took over");
      onState(who.attributes[STATE_ATTRIBUTE]);
    };
    const onState = (state: string | undefined) => {
      if (!state || state === this.state.agent) return;
      if (this.state.agent === "speaking") this.turns.speechOver();
      this.send({ type: "agent_state", state });
      if (HEARING.includes(state) && !this.marks["agent_listening"]) {
        this.mark("agent_listening");
        this.outcome = "ok";
        this.say("start speaking");
        void this.fetchWorker();
      }
      if (state === "listening" && this.marks["agent_listening"]) void this.fetchWorker();
    };
    const onSound = async (track: Track, who: Participant) => {
      if (!isAgent(who) || track.kind !== Track.Kind.Audio) return;
      onAgent(who as RemoteParticipant);
      this.mark("agent_audio_subscribed");
      const element = track.attach();
      element.className = "labvoice-sound";
      document.body.append(element);
      this.sounds.add(element);
      this.send({ type: "agent_audio_subscribed" });
      const voice = new VoiceDetector({
        onStart: (found) => this.onVoice(() => this.turns.agentStarts(found)),
        onEnd: (found) => this.onVoice(() => this.turns.agentEnds(found.end_s)),
      });
      await meters.watch(track.mediaStreamTrack, (rms, at_s) => {
        this.levels.agent = rms;
        voice.feed(rms, at_s);
      }, 1);
    };

    room
      .on(RoomEvent.ParticipantConnected, onAgent)
      .on(RoomEvent.ParticipantDisconnected, (who) => {
        if (who.identity === this.agentIdentity) this.onAgentLeft();
      })
      .on(RoomEvent.ParticipantAttributesChanged, (changed, who) => {
        if (who.identity === this.agentIdentity) onState(changed[STATE_ATTRIBUTE]);
      })
      .on(RoomEvent.TrackSubscribed, (track, _, who) => void onSound(track, who))
      .on(RoomEvent.ConnectionQualityChanged, (quality, who) => {
        if (who.identity === this.agentIdentity && quality === ConnectionQuality.Lost)
          this.say("nothing is heard of the agent any more");
      })
      .on(RoomEvent.Reconnecting, () => this.say("the connection was lost; trying again"))
      .on(RoomEvent.Reconnected, () => this.say("connected again"))
      .on(RoomEvent.AudioPlaybackStatusChanged, () => {
        const blocked = !room.canPlaybackAudio;
        if (blocked !== this.state.audioBlocked)
          this.send({ type: "audio_blocked", blocked, trouble: autoplayTrouble() });
      })
      .on(RoomEvent.Disconnected, (reason) => this.onDisconnected(room, reason))
      .on(RoomEvent.Connected, () => room.remoteParticipants.forEach(onAgent));

    /** A stream that ends with the call or its agent is not an error. */
    const unlessCutOff = (reading: Promise<void>) =>
      reading.catch((error: unknown) => {
        if (!(error instanceof DataStreamError)) throw error;
      });

    const readWords = async (reader: TextStreamReader, identity: string) => {
      const attributes = reader.info.attributes ?? {};
      const segment = attributes["lk.segment_id"] ?? reader.info.id;
      const who = identity === room.localParticipant.identity ? "you" : "agent";
      let words = "";
      for await (const chunk of reader) {
        words += chunk;
        this.transcript.set(segment, who, words, false);
        this.changed();
      }
      // The agent's text comes as one stream that ends, the user's as one stream for each revision.
      const final = who === "agent" || attributes["lk.transcription_final"] === "true";
      this.transcript.set(segment, who, words, final);
      this.changed();
    };
    room.registerTextStreamHandler("lk.transcription", (reader, { identity }) => {
      void unlessCutOff(readWords(reader, identity));
    });

    const readEvent = async (reader: ByteStreamReader) => {
      const chunks = await reader.readAll();
      const event = readSessionMessage(new Uint8Array(await new Blob(chunks as BlobPart[]).arrayBuffer()));
      if (!event || this.room !== room) return;
      if ("agentState" in event) {
        onState(event.agentState);
        return;
      }
      const { id, role, text } = event.item;
      if (role === "assistant") this.transcript.spoken(id, text);
      this.onVoice(() => this.turns.item(event.item));
    };
    room.registerByteStreamHandler("lk.agent.session", (reader) => {
      void unlessCutOff(readEvent(reader));
    });
  }

  /** Fetches the worker's marks, moved to this clock, and figures missing in the session's events. */
  private async fetchWorker(): Promise<void> {
    const local = this.room?.localParticipant;
    if (!local) return;
    const ask = (method: string) =>
      local.performRpc({
        destinationIdentity: this.agentIdentity,
        method,
        payload: "",
        responseTimeout: RPC_TIMEOUT_MS,
      });
    try {
      const known = JSON.parse(await ask(RPC_MARKS)) as {
        marks: Record<string, number>;
        figures?: Record<string, Record<string, number>>;
        memory?: { state?: string; memory_load_s?: number | null };
        worker_id?: string;
        job_id?: string;
      };
      this.turns.figures(known.figures ?? {});
      this.note("memory", known.memory?.state);
      this.note("memory_load_s", known.memory?.memory_load_s ?? undefined);
      this.note("worker_id", known.worker_id);
      this.note("job_id", known.job_id);
      if (!this.marks["session_started"] && known.marks["session_started"]) {
        let best = { offset_s: 0, half_s: Infinity };
        for (let round = 0; round < CLOCK_ROUNDS; round++) {
          const asked_s = now_s();
          const { wall_s } = JSON.parse(await ask(RPC_CLOCK)) as { wall_s: number };
          const half_s = (now_s() - asked_s) / 2;
          if (half_s < best.half_s) best = { offset_s: wall_s - (asked_s + half_s), half_s };
        }
        for (const [name, wall_s] of Object.entries(known.marks))
          if (wall_s) this.mark(name, wall_s - best.offset_s, "worker", best.half_s);
      }
      this.changed();
    } catch {
      // An agent that is not labvoice's answers neither request; its marks stay unknown.
      this.note("worker_marks", false);
    }
  }

  private onVoice(take: () => void): void {
    take();
    if (this.turns.greetingHeard_s !== null) this.mark("greeting_heard", this.turns.greetingHeard_s);
    if (this.turns.greeting) this.note("greeting", this.turns.greeting);
    this.changed();
  }

  private onSoundPiece(piece: Piece): void {
    if (!Sound.takes(piece)) return;
    if (this.backend.sound)
      this.backend.sound(this.callId, piece).catch(() => this.say("a part of the recording was lost"));
    else this.sound.add(piece);
  }

  /** The recording, for a page to keep; null while the call lasts, and where a backend keeps it. */
  get recording(): Blob | null {
    return this.connected ? null : this.sound.file;
  }

  private onAgentLeft(): void {
    const trouble = agentLeftTrouble();
    this.send({ type: "agent_left", trouble });
    this.turns.agentLost();
    this.detail = trouble.message;
    this.say("agent left");
  }

  private onDisconnected(room: Room, reason?: DisconnectReason): void {
    if (this.room !== room || !this.connected) return;
    // While it connects, `connect` throws a more specific error.
    if (!this.marks["room_connected"]) return;
    this.fail(disconnectedTrouble(DisconnectReason[reason ?? 0] ?? "UNKNOWN_REASON"));
  }

  // -- user actions ---------------------------------------------------------------------

  async mute(muted: boolean): Promise<void> {
    if (!this.room) return;
    await this.room.localParticipant.setMicrophoneEnabled(!muted);
    this.send({ type: "muted", muted });
    this.say(muted ? "microphone muted" : "microphone on again");
  }

  /** Interrupts the agent's speech at once. */
  async interrupt(): Promise<void> {
    if (!this.room || !this.agentIdentity) return;
    const busy = this.state.agent === "thinking" || this.state.agent === "speaking";
    await this.room.localParticipant.performRpc({
      destinationIdentity: this.agentIdentity,
      method: RPC_INTERRUPT,
      payload: "",
      responseTimeout: RPC_TIMEOUT_MS,
    });
    if (busy) this.turns.stopped();
    this.say("agent interrupted");
  }

  async type(text: string): Promise<void> {
    if (!this.room || !text.trim()) return;
    this.turns.typed(text, now_s());
    this.transcript.set(`typed-${this.turns.all.length}`, "you", text, true);
    this.changed();
    await this.room.localParticipant.sendText(text, { topic: "lk.chat" });
  }

  async startAudio(): Promise<void> {
    await this.meters?.resume();
    await this.room?.startAudio();
  }

  /** Ends the call; further requests have no effect. */
  hangUp(): Promise<void> {
    return (this.ending ??= this.end().finally(() => {
      this.ending = null;
    }));
  }

  private async end(): Promise<void> {
    if (!this.connected) return;
    const { room } = this;
    this.say("hung up");
    const patience = new Promise((done) => setTimeout(done, LAST_FIGURES_MS));
    await Promise.race([this.fetchWorker(), patience]);
    await this.meters?.flush();
    if (this.room !== room) return; // it ended meanwhile; another may have started
    this.send({ type: "hang_up" });
    await this.close();
  }

  /** The page is reloaded or closed: nothing can be awaited. */
  private readonly leave = (): void => {
    if (!this.connected) return;
    this.detail = "The page was reloaded or closed during the call.";
    this.send({ type: "hang_up" });
    void this.close();
  };

  /** Sets the result of a user's request; null if it succeeded. */
  notify(notice: Trouble | null): void {
    if (notice !== this.state.notice) this.send({ type: "notice", notice });
  }

  private fail(trouble: ReturnType<typeof agentLeftTrouble>): void {
    if (this.outcome !== "ok") this.outcome = trouble.outcome;
    this.detail = trouble.message;
    this.send({ type: "trouble", trouble, fatal: true });
    this.say(trouble.message);
    void this.close();
  }

  /** Stops everything that runs; the state and the measurements stay. */
  private async close(): Promise<void> {
    const { room, meters } = this;
    this.room = this.meters = null;
    globalThis.removeEventListener?.("pagehide", this.leave);
    this.levels = { you: 0, agent: 0 };
    for (const element of this.sounds) element.remove();
    this.sounds.clear();
    this.record(true);
    await room?.disconnect();
    await meters?.close();
    this.changed();
  }

  // -- reports --------------------------------------------------------------------------

  private mark(name: string, at_s = now_s(), clock: Mark["clock"] = "caller", uncertainty_s = 0): void {
    this.marks[name] ??= { name, at_s, clock, uncertainty_s };
  }

  private note(name: string, value: string | number | boolean | undefined): void {
    if (value !== undefined && value !== "") this.notes[name] = value;
  }

  private say(text: string): void {
    this.log.push({ at_s: now_s() - (this.marks["click"]?.at_s ?? now_s()), text });
    this.changed();
  }

  private send(event: Event): void {
    this.state = next(this.state, event);
    this.changed();
  }

  private changed(): void {
    for (const listener of this.listeners) listener();
    if (!this.connected || this.recordTimer !== undefined) return;
    this.recordTimer = setTimeout(() => {
      this.recordTimer = undefined;
      if (this.room) this.record(false);
    }, RECORD_EVERY_MS);
  }

  private record(ended: boolean): void {
    const record: CallRecord = {
      call_id: this.callId,
      room: this.roomName,
      strategy: this.choice?.strategy.name ?? "",
      letta_agent_id: this.choice?.letta_agent_id ?? "",
      marks: Object.values(this.marks),
      turns: this.countedTurns,
      notes: this.notes,
      outcome: this.outcome,
      detail: this.detail,
      ended,
    };
    const now = JSON.stringify(record);
    if (now === this.lastRecord) return;
    this.lastRecord = now;
    this.backend.record(this.callId, record).catch((error: unknown) => {
      // Harmless before the end: the next record has everything again.
      if (ended && this.callId === record.call_id) this.notify(backendTrouble(error));
    });
  }
}
