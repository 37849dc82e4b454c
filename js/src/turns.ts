// From voices, words and figures to turns: what belongs to which, on the browser's clock.
import type { Item } from "./session_events";
import type { Turn } from "./types";
import type { Voice } from "./voice";

/** A shorter sound that nobody recognised as speech is a noise, not a turn. */
const SHORTEST_TURN_S = 0.3;

/** Collects the turns of a call. */
export class Turns {
  readonly all: Turn[] = [];
  greeting = "";
  greetingHeard_s: number | null = null;
  private readonly messages = new Map<string, Turn>();
  private agentSpeaks = false;

  private get last(): Turn | undefined {
    return this.all.at(-1);
  }

  private begin(typed: boolean, said: string): Turn {
    const turn: Turn = {
      number: this.all.length,
      typed,
      said,
      marks: {},
      metrics: {},
      transcript: typed ? said : "",
      reply: "",
      user_messages: 0,
      outcome: "no_reply",
    };
    this.all.push(turn);
    return turn;
  }

  private static answered(turn: Turn): boolean {
    return "reply_heard" in turn.marks || turn.reply !== "";
  }

  /** The user's voice began; a turn that is not answered yet goes on. */
  userStarts(voice: Voice): void {
    const last = this.last;
    if (last && this.agentSpeaks) last.outcome = "interrupted";
    const goesOn = last && !last.typed && !Turns.answered(last);
    const turn = goesOn ? last : this.begin(false, "");
    turn.marks["user_speech_start"] ??= voice.start_s;
  }

  /** The user's voice ended. */
  userEnds(voice: Voice): void {
    const last = this.last;
    if (!last || last.typed) return;
    if (!("reply_heard" in last.marks)) {
      last.marks["user_speech_end"] = voice.end_s;
    }
  }

  typed(text: string, at_s: number): void {
    const last = this.last;
    if (last && this.agentSpeaks) last.outcome = "interrupted";
    this.begin(true, text).marks["typed"] = at_s;
  }

  /** The agent was stopped by the button; of a word or two LiveKit makes no message. */
  stopped(): void {
    if (this.last) this.last.outcome = "interrupted";
  }

  /** The agent's voice began. */
  agentStarts(voice: Voice): void {
    this.agentSpeaks = true;
    const last = this.last;
    if (!last) {
      this.greetingHeard_s ??= voice.start_s;
    } else if (!("reply_heard" in last.marks)) {
      last.marks["reply_heard"] = voice.start_s;
      const end = last.marks["user_speech_end"];
      if (last.outcome === "interrupted") return; // it was cut off before it could be heard
      // Still speaking, or the end lies behind: the agent fell into the user's word.
      last.outcome = !last.typed && (end === undefined || end > voice.start_s) ? "interrupted" : "ok";
    }
  }

  agentEnds(): void {
    this.agentSpeaks = false;
  }

  /** A message of the conversation, with LiveKit's figures. */
  item(item: Item): void {
    const turn = this.last;
    if (item.role === "assistant" && !turn) {
      this.greeting = item.text;
    } else if (turn && item.role === "user") {
      this.messages.set(item.id, turn);
      turn.user_messages += 1;
      if (!turn.typed) turn.transcript = `${turn.transcript} ${item.text}`.trim();
      turn.metrics = { ...item.metrics, ...turn.metrics };
    } else if (turn && item.role === "assistant") {
      // A reply that was cut off arrives after the next turn has begun.
      const before = this.all.at(-2);
      const owner = item.interrupted && before && turn.user_messages === 0 ? before : turn;
      owner.reply = `${owner.reply} ${item.text}`.trim();
      owner.metrics = { ...item.metrics, ...owner.metrics };
      if (item.interrupted) owner.outcome = "interrupted";
      this.messages.set(item.id, owner);
    }
  }

  /** What the session's events leave out: stages by message id, in seconds. */
  figures(byMessage: Record<string, Record<string, number>>): void {
    for (const [id, stages] of Object.entries(byMessage)) {
      const turn = this.messages.get(id);
      if (turn) turn.metrics = { ...stages, ...turn.metrics };
    }
  }

  /** The turns without noises, numbered anew. */
  counted(): Turn[] {
    return this.all
      .filter((turn) => {
        const { user_speech_start: start, user_speech_end: end } = turn.marks;
        const long = start !== undefined && (end ?? start) - start >= SHORTEST_TURN_S;
        return turn.typed || turn.transcript !== "" || Turns.answered(turn) || long;
      })
      .map((turn, number) => ({ ...turn, number }));
  }
}
