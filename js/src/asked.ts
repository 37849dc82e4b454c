// Dispatch requests, also before the click, with their marks on the page's clock.
import { now_s } from "./meter";
import type { Ask, Backend, DispatchAnswer, Token } from "./types";

/** A dispatch's answer, with the times of request and answer. */
export interface Asked {
  answer: DispatchAnswer;
  sent_s: number;
  back_s: number;
}

/** The marks of a dispatch, moved to this clock: name, instant and uncertainty in seconds. */
export function marksOf({ answer, sent_s, back_s }: Asked): [string, number, number][] {
  const { marks = {}, clock } = answer;
  if (!clock) return [];
  // Assumes equal delays in both directions.
  const held_s = clock.answered_s - clock.received_s;
  const half_s = Math.max(0, back_s - sent_s - held_s) / 2;
  const offset_s = sent_s + half_s - clock.received_s;
  return Object.entries(marks).map(([name, at_s]) => [name, at_s + offset_s, half_s]);
}

interface Room {
  key: string;
  since_s: number;
  token: Promise<Token>;
  asked: Asked | null;
}

/** A room in which an agent waits for the click, and the result of its dispatch. */
export class Ahead {
  private room: Room | null = null;

  constructor(private readonly backend: Backend) {}

  /** Dispatches the agent, unless the same agent waits already and is recent enough. */
  prepare(ask: Ask, lifetime_s: number): Promise<Token> {
    const key = ask.letta_agent_id ?? "";
    const since_s = now_s();
    if (this.room?.key === key && since_s - this.room.since_s < lifetime_s) return this.room.token;
    const token = this.backend.token(ask).then(async (made) => {
      const sent_s = now_s();
      // Confirmed again after the click, where a failure is shown.
      const answer = await this.backend.dispatch({ ...ask, room: made.room }).catch(() => null);
      if (answer?.success) room.asked = { answer, sent_s, back_s: now_s() };
      return made;
    });
    const room: Room = (this.room = { key, since_s, token, asked: null });
    token.catch(() => {
      if (this.room === room) this.room = null; // another one may have been chosen meanwhile
    });
    return token;
  }

  /** Returns the result of the dispatch, and forgets the room, which is for one call. */
  take(): Asked | null {
    const asked = this.room?.asked ?? null;
    this.room = null;
    return asked;
  }
}
