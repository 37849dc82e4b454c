// Messages of all errors: what was observed, and what to do about it.
import { BackendError, type DispatchAnswer, type Link, type Trouble } from "./types";

/** Address of the page, from `location` and `window`. */
export interface Place {
  protocol: string;
  hostname: string;
  secure: boolean;
}

export const here = (): Place => ({
  protocol: location.protocol,
  hostname: location.hostname,
  secure: window.isSecureContext && Boolean(navigator.mediaDevices),
});

const LOOPBACK = /^(localhost|127\.\d+\.\d+\.\d+|\[?::1\]?)$/;
const loopback = (host: string) => LOOPBACK.test(host);
const inEditor = (place: Place) =>
  place.protocol.startsWith("vscode") || /(^|\.)vscode-(cdn|webview|resource)/.test(place.hostname);

const trouble = (link: Link, message: string, hint: string, outcome = "error"): Trouble => ({
  link,
  outcome,
  message,
  hint,
});

const TYPE = "Until then you can type to the agent.";

/** Why there is no microphone: `error` is from `getUserMedia`, `again` says how to retry. */
export function microphoneTrouble(
  error: unknown,
  place: Place,
  again = "hang up and connect again",
): Trouble {
  const name = error instanceof Error ? error.name : "";
  if (inEditor(place))
    return trouble(
      "microphone",
      "VS Code's notebook view gives no page a microphone.",
      "Open the notebook in a browser: run `labvoice lab` in the terminal. " + TYPE,
    );
  if (!place.secure)
    return trouble(
      "microphone",
      `Browsers give the microphone only to secure pages, and ${place.hostname} is not one.`,
      "Open the page as http://localhost (for a remote machine, forward its port to your own), " +
        "or serve it over https. " + TYPE,
    );
  if (name === "NotAllowedError" || name === "SecurityError")
    return trouble(
      "microphone",
      "The microphone was denied to this page.",
      `Click the icon beside the page's address, allow the microphone, ${again}. ` +
        "If nothing asks, the system's privacy settings deny it to the browser. " + TYPE,
    );
  if (name === "NotFoundError")
    return trouble(
      "microphone",
      "There is no microphone on this computer.",
      `Plug one in, ${again}. ` + TYPE,
    );
  if (name === "OverconstrainedError")
    return trouble(
      "microphone",
      "The microphone that was chosen is gone.",
      `Choose another one, ${again}. ` + TYPE,
    );
  if (name === "NotReadableError" || name === "AbortError")
    return trouble(
      "microphone",
      "The microphone cannot be opened; another program is probably using it.",
      `Close what records from it (a meeting, another tab), ${again}. ` + TYPE,
    );
  const detail = error instanceof Error ? error.message : String(error);
  return trouble(
    "microphone",
    `The microphone could not be turned on: ${detail}`,
    `Choose another one, ${again}. ` + TYPE,
  );
}

/** Why the browser is not in the room: `error` is from `room.connect`. */
export function connectTrouble(error: unknown, url: string, place: Place): Trouble {
  const status = (error as { status?: number } | null)?.status;
  const detail = error instanceof Error ? error.message : String(error);
  if (status === 401 || status === 403)
    return trouble(
      "server",
      `The LiveKit server at ${url} refuses the token.`,
      "Compare LIVEKIT_API_KEY and LIVEKIT_API_SECRET with the server's, and both clocks.",
    );
  const address = new URL(url);
  if (loopback(address.hostname) && inEditor(place))
    return trouble(
      "server",
      `This view cannot reach ${url}: VS Code shows it apart from the machine of the kernel.`,
      "Open the notebook in a browser on that machine with `labvoice lab`, or set LIVEKIT_URL to " +
        "a server that both can reach.",
    );
  if (loopback(address.hostname) && !loopback(place.hostname))
    return trouble(
      "server",
      `The LiveKit server listens at ${url}, on the machine of the kernel; this browser is on ` +
        "another one and cannot reach it.",
      "Set LIVEKIT_URL to a server that both can reach (LiveKit Cloud is one), or work on that " +
        "machine itself. Forwarding the port is not enough: the voice travels by UDP.",
    );
  if (address.protocol === "ws:" && place.protocol === "https:" && !loopback(address.hostname))
    return trouble(
      "server",
      `A page served over https may not connect to ${url}.`,
      "Give the server a certificate and use wss://.",
    );
  return trouble(
    "server",
    `No LiveKit server answers this browser at ${url}: ${detail}`,
    loopback(address.hostname)
      ? "Is the lab still running? Through a forwarded port the signalling passes and the voice, " +
          "which travels by UDP, does not: then set LIVEKIT_URL to a server that both can reach."
      : "Check the address, and that no firewall closes it.",
  );
}

/** A dispatch that did not end with one agent in the room. */
export function dispatchTrouble(answer: DispatchAnswer): Trouble {
  return trouble(
    "dispatch",
    answer.message || "The agent did not come.",
    answer.hint || "The diagnosis tells which part is missing.",
    answer.outcome,
  );
}

/** A request to the kernel or the HTTP service that failed. */
export function backendTrouble(error: unknown, link: Link = "server"): Trouble {
  if (error instanceof BackendError)
    return trouble(link, error.message, error.hint, error.outcome);
  return trouble(link, error instanceof Error ? error.message : String(error), "Try again.");
}

export const autoplayTrouble = (): Trouble =>
  trouble(
    "sound",
    "The browser plays no sound before you have clicked in this page.",
    "Press “Start audio”.",
  );

export const agentLeftTrouble = (): Trouble =>
  trouble(
    "agent",
    "The agent left the room.",
    "Its worker ended the job, or died. If a supervisor watches the room, another agent comes; " +
      "otherwise hang up and connect again.",
    "agent_lost",
  );

export const disconnectedTrouble = (reason: string): Trouble =>
  trouble(
    "server",
    reason === "DUPLICATE_IDENTITY"
      ? "Somebody joined the room under the same identity and took this call over."
      : reason === "ROOM_DELETED"
        ? "The room was deleted while the call ran."
        : `The connection to the LiveKit server ended (${reason.toLowerCase().replaceAll("_", " ")}).`,
    "Connect again; what the call measured is kept.",
  );
