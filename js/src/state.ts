// The call's states and transitions; pure, so that every path can be tested.
import type { Link, LinkState, Trouble } from "./types";

export type Phase = "idle" | "connecting" | "live" | "ended" | "failed";

export interface State {
  phase: Phase;
  links: Record<Link, LinkState>;
  /** LiveKit's agent state: initializing, listening, thinking, speaking. */
  agent: string;
  muted: boolean;
  audioBlocked: boolean;
  trouble: Trouble | null;
  /** Error of the user's last request, if it failed; not of a link. */
  notice: Trouble | null;
}

export type Event =
  | { type: "click" }
  | { type: "room_connected" }
  | { type: "mic_published" }
  | { type: "dispatch_requested" }
  | { type: "dispatch_confirmed" }
  | { type: "agent_visible" }
  | { type: "agent_audio_subscribed" }
  | { type: "agent_state"; state: string }
  | { type: "agent_left"; trouble: Trouble }
  | { type: "muted"; muted: boolean }
  | { type: "audio_blocked"; blocked: boolean; trouble: Trouble }
  | { type: "trouble"; trouble: Trouble; fatal: boolean }
  | { type: "notice"; notice: Trouble | null }
  | { type: "hang_up" };

const LINKS: Record<Link, LinkState> = {
  server: "idle",
  microphone: "idle",
  dispatch: "idle",
  agent: "idle",
  sound: "idle",
};
/** LiveKit's states in which the agent hears; an early greeting may skip the first. */
export const HEARING = ["listening", "thinking", "speaking"];

export const initial: State = {
  phase: "idle",
  links: LINKS,
  agent: "",
  muted: false,
  audioBlocked: false,
  trouble: null,
  notice: null,
};

const link = (state: State, name: Link, to: LinkState): State => ({
  ...state,
  links: { ...state.links, [name]: to },
});

/** Clears the error of a link that works again. */
function mended(state: State, name: Link): State {
  const ok = link(state, name, "ok");
  return state.trouble?.link === name ? { ...ok, trouble: null } : ok;
}

/** What was found is kept when a call is over; what was under way was not reached. */
function settled(links: State["links"]): State["links"] {
  const found = { ...links };
  for (const name of Object.keys(found) as Link[]) if (found[name] === "busy") found[name] = "idle";
  return found;
}

/** Returns the state after an event; a late event of an ended call changes nothing. */
export function next(state: State, event: Event): State {
  if (event.type === "notice") return { ...state, notice: event.notice };
  const over = state.phase === "idle" || state.phase === "ended" || state.phase === "failed";
  if (event.type === "click") {
    if (!over) return state;
    const links: State["links"] = { ...LINKS, server: "busy", microphone: "busy" };
    return { ...initial, phase: "connecting", links };
  }
  if (over) return state;
  switch (event.type) {
    case "room_connected":
      return mended(state, "server");
    case "mic_published":
      return mended(state, "microphone");
    case "dispatch_requested":
      return link(link(state, "dispatch", "busy"), "agent", "busy");
    case "dispatch_confirmed":
      return mended(state, "dispatch");
    case "agent_visible":
      return mended(link(state, "sound", "busy"), "agent");
    case "agent_audio_subscribed":
      return state.audioBlocked ? state : mended(state, "sound");
    case "agent_state": {
      const to = { ...state, agent: event.state };
      return HEARING.includes(event.state) ? { ...to, phase: "live" } : to;
    }
    case "agent_left":
      return { ...link(state, "agent", "bad"), agent: "", trouble: event.trouble };
    case "muted":
      return { ...state, muted: event.muted };
    case "audio_blocked": {
      const to = { ...state, audioBlocked: event.blocked };
      return event.blocked
        ? { ...link(to, "sound", "bad"), trouble: state.trouble ?? event.trouble }
        : mended(to, "sound");
    }
    case "trouble": {
      const to = { ...link(state, event.trouble.link, "bad"), trouble: event.trouble };
      return event.fatal ? { ...to, phase: "failed", agent: "", links: settled(to.links) } : to;
    }
    case "hang_up":
      return { ...state, phase: "ended", agent: "", audioBlocked: false, trouble: null, links: settled(state.links) };
  }
}
