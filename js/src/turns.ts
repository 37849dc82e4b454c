// Assigns voices, messages and figures to turns, on the browser's clock.
// labvoice/caller/turns.py has the same rules; tests/turn_rules.json is the table by which both
// are tested.
import type { Item } from "./session_events";
import type { Turn } from "./types";
import type { Voice } from "./voice";

/** A shorter sound that was not recognised as speech is a noise, not a turn. */
const SHORTEST_TURN_S = 0.3;
/** Silence in a reply after which its answer begins: longer than any between two sentences. */
const FILLER_GAP_S = 1;
/** A first part of a reply that lasts longer is no filler. */
const FILLER_LONGEST_S = 3;
/** A voice that begins so near to where its message does is that message. */
const NEAR_S = 0.5;

/** The beginning of a stretch of the agent's voice in a turn. */
interface AgentVoice {
  at_s: number;
  /** How many messages of the user there were by then. */
  messages: number;
  /** When the agent's voice before it ended; null if unknown. */
  before_s: number | null;
  /** Whether the agent had finished what it said before. */
  anew: boolean;
}

/** What else determines a turn's outcome. */
interface State {
  /** The messages whose figures are the turn's. */
  messageIds: string[];
  /** When the agent's voice began in this turn. */
  voices: AgentVoice[];
  /** When the messages of the reply were spoken, on the agent's clock, where it tells. */
  messages: [number, number][];
  /** Whether the reply was cut off. */
  cut: boolean;
  /** Whether the agent spoke when the turn began. */
  overAgent: boolean;
  /** Whether the outcome is final. */
  finished: boolean;
}

/** Collects the turns of a call. */
export class Turns {
  readonly all: Turn[] = [];
  greeting = "";
  greetingHeard_s: number | null = null;
  private readonly states = new Map<Turn, State>();
  private agentSpeaks = false;
  private isSpeechOver = false;
  private agentEnded_s: number | null = null;

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
    this.states.set(turn, {
      messageIds: [],
      voices: [],
      messages: [],
      cut: false,
      overAgent: this.agentSpeaks,
      finished: false,
    });
    return turn;
  }

  private state(turn: Turn): State {
    return this.states.get(turn)!;
  }

  private static answered(turn: Turn): boolean {
    return "reply_heard" in turn.marks || turn.reply !== "";
  }

  /** The reply that is being spoken counts as interrupted. */
  private cutOff(): void {
    if (!this.last) return;
    this.state(this.last).cut = true;
    this.judge(this.last);
  }

  /** The user's voice began; an unanswered turn continues. */
  userStarts(voice: Voice): void {
    if (this.agentSpeaks) this.cutOff();
    const last = this.last;
    const goesOn = last && !last.typed && !Turns.answered(last) && !this.state(last).finished;
    const turn = goesOn ? last : this.begin(false, "");
    turn.marks["user_speech_start"] ??= voice.start_s;
  }

  /** The user's voice ended. */
  userEnds(voice: Voice): void {
    const last = this.last;
    if (!last || last.typed) return;
    last.marks["user_speech_end"] = voice.end_s;
    this.judge(last);
  }

  typed(text: string, at_s: number): void {
    if (this.agentSpeaks) this.cutOff();
    this.begin(true, text).marks["typed"] = at_s;
  }

  /** The agent was stopped by the button; LiveKit makes no message of one or two words. */
  stopped(): void {
    this.cutOff();
  }

  /** The agent's voice began. */
  agentStarts(voice: Voice): void {
    this.agentSpeaks = true;
    const last = this.last;
    const begun = { at_s: voice.start_s, before_s: this.agentEnded_s, anew: this.isSpeechOver };
    this.isSpeechOver = false;
    if (!last) {
      this.greetingHeard_s ??= voice.start_s;
      return;
    }
    this.state(last).voices.push({ ...begun, messages: last.user_messages });
    this.judge(last);
  }

  /** The agent's voice ended, where known at that instant. */
  agentEnds(at_s: number | null = null): void {
    this.agentSpeaks = false;
    this.agentEnded_s = at_s;
  }

  /** The agent has finished what it said: the next voice is another message. */
  speechOver(): void {
    this.isSpeechOver = true;
  }

  /** The agent left; later voices are not a reply to this turn. */
  agentLost(): void {
    const last = this.last;
    if (last && (this.agentSpeaks || !("reply_heard" in last.marks))) {
      last.outcome = "agent_lost";
      this.state(last).finished = true;
    }
    this.agentSpeaks = false;
  }

  /** A message of the conversation, with LiveKit's figures. */
  item(item: Item): void {
    const turn = this.last;
    if (item.role === "assistant") this.speechOver();
    if (!turn) {
      if (item.role === "assistant") this.greeting = item.text;
    } else if (item.role === "user") {
      turn.user_messages += 1;
      if (!turn.typed) turn.transcript = `${turn.transcript} ${item.text}`.trim();
      if (!this.dated(turn)) {
        // The reply that is dated is the one to come.
        turn.metrics = {};
        this.state(turn).messageIds = [];
        this.state(turn).messages = [];
      }
      this.take(turn, item);
    } else if (item.role === "assistant") {
      this.reply(turn, item);
    }
  }

  private reply(turn: Turn, item: Item): void {
    let owner: Turn | undefined = turn;
    if (turn.user_messages === 0) {
      // The last utterance is not transcribed yet: this may be the end of the reply before.
      const before = this.all.at(-2);
      const waits = before
        ? before.user_messages > 0 && before.reply === "" && !this.state(before).finished
        : this.greeting === "" && !turn.typed;
      // A filler may be heard before what it answers is told.
      const heard = "reply_heard" in turn.marks && !this.state(turn).overAgent;
      if (item.interrupted || (waits && !heard)) owner = before;
    }
    if (!owner) {
      this.greeting = item.text;
      return;
    }
    owner.reply = `${owner.reply} ${item.text}`.trim();
    this.take(owner, item);
    if (item.interrupted) this.state(owner).cut = true;
    else if (item.spoken) this.state(owner).messages.push(item.spoken);
    this.judge(owner);
  }

  private take(turn: Turn, item: Item): void {
    this.state(turn).messageIds.push(item.id);
    // Those of a filler are not the reply's.
    const reply = "e2e_latency" in item.metrics && !("e2e_latency" in turn.metrics);
    turn.metrics = reply ? { ...turn.metrics, ...item.metrics } : { ...item.metrics, ...turn.metrics };
  }

  /** Whether a reply was heard after the user's last word. */
  private dated(turn: Turn): boolean {
    const { reply_heard: heard, user_speech_end: end } = turn.marks;
    return heard !== undefined && (turn.typed || (end !== undefined && heard >= end));
  }

  /**
   * Dates a turn's reply and sets its outcome from all events so far.
   *
   * The reply is dated by the first voice after the user's last word. A voice before it makes the
   * turn interrupted; then the reply to the rest is the next voice after another message of the
   * user's, and without one the early voice dates the reply, which has no latency. A reply to the
   * whole that breaks off soon, and goes on with another message or after a gap, began with a
   * filler: what follows is the answer. Two messages whose times the agent tells are told apart by
   * these, however short the pause between them is.
   */
  private judge(turn: Turn): void {
    const { voices, messages: spoken, cut, overAgent, finished } = this.state(turn);
    if (finished) return;
    const start_s = turn.marks["user_speech_start"] ?? -Infinity;
    const end_s = turn.typed ? -Infinity : (turn.marks["user_speech_end"] ?? Infinity);
    // What began before a word was understood, while the agent spoke, is its former reply.
    const early = voices.filter(
      ({ at_s, messages }) => start_s <= at_s && at_s < end_s && (messages > 0 || !overAgent),
    );
    const answered = early[0] ? Math.max(1, early[0].messages) : -1;
    const late = voices.filter(({ at_s, messages }) => at_s >= end_s && messages > answered);
    const heard = late[0] ?? early[0];
    const instants = [["reply_heard", heard?.at_s], ["answer_heard", Turns.answer(late, spoken)]] as const;
    for (const [name, at_s] of instants)
      if (at_s !== undefined) turn.marks[name] = at_s;
      else delete turn.marks[name];
    if (cut || early.length > 0) turn.outcome = "interrupted";
    else turn.outcome = heard ? "ok" : "no_reply";
  }

  /** When what follows a filler began; undefined if the reply has none. */
  private static answer(voices: AgentVoice[], messages: [number, number][]): number | undefined {
    const [first, ...others] = voices;
    const [filler, next] = [...messages].sort((one, other) => one[0] - other[0]);
    if (first && filler && next) {
      if (filler[1] - filler[0] > FILLER_LONGEST_S) return undefined;
      const at_s = first.at_s + next[0] - filler[0];
      const off = (voice: AgentVoice) => Math.abs(voice.at_s - at_s);
      // By the ear, where it has heard the pause.
      const near = others.filter((voice) => off(voice) <= NEAR_S).sort((one, other) => off(one) - off(other));
      return near[0]?.at_s ?? at_s;
    }
    for (const voice of others) {
      const ended_s = voice.before_s;
      if (ended_s !== null && ended_s - first!.at_s > FILLER_LONGEST_S) return undefined;
      if (voice.anew || (ended_s !== null && voice.at_s - ended_s >= FILLER_GAP_S)) return voice.at_s;
    }
    return undefined;
  }

  /** Figures missing in the session's events: stages by message id, in seconds. */
  figures(byMessage: Record<string, Record<string, number>>): void {
    for (const turn of this.all)
      for (const id of this.state(turn).messageIds)
        turn.metrics = { ...byMessage[id], ...turn.metrics };
  }

  /** The turns without noises, renumbered. */
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
