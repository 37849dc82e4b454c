// Tests the microphone before a call: it exists, may be used, and has a signal.
import { h } from "./dom";
import { Meters } from "./meter";
import { here, microphoneTrouble } from "./troubles";
import { VoiceDetector } from "./voice";

const LASTS_MS = 10_000;
const SPEAK = "Say something: the bar moves with your voice.";
const HEARD = "Your voice is heard.";
const SILENT = "Nothing was heard. Unmute the microphone, move closer, or choose another one.";

export interface Preflight {
  element: HTMLElement;
  /** Ends a running test and releases the microphone. */
  stop(): void;
}

/**
 * Creates the button that tests a microphone for ten seconds, with its meter and text.
 *
 * `device` returns the id to open, empty for the browser's default; `opened` is called when it is
 * open, because a browser lists the names of microphones only then.
 */
export function preflight(device: () => string, opened: () => void): Preflight {
  let running: AbortController | null = null;
  const bar = h("i");
  const track = h("div", { class: "lv-track", "aria-hidden": "true", hidden: true }, bar);
  const words = h("span", { role: "status" });
  const button = h(
    "button",
    { type: "button", class: "lv-quiet", click: () => (running ? running.abort() : void test()) },
    "Test microphone",
  );
  const element = h("div", { class: "lv-preflight" }, button, track, words);

  async function test(): Promise<void> {
    const { signal } = (running = new AbortController());
    let meters: Meters | undefined;
    let stream: MediaStream | undefined;
    let heard = false;
    button.textContent = "Stop the test";
    words.textContent = "";
    try {
      stream = await open(device());
      opened();
      meters = new Meters(); // a page that records may play sound, however long ago the click was
      const voice = new VoiceDetector(
        {
          onStart: () => {
            heard = true;
            words.textContent = HEARD;
          },
          onEnd: () => undefined,
        },
        true,
      );
      for (const one of stream.getAudioTracks())
        await meters.watch(one, (rms, at_s) => {
          // -60 dB to 0 dB over the whole width, as in the call.
          const wide = rms > 0 ? Math.max(0, 1 + Math.log10(rms) / 3) : 0;
          bar.style.transform = `scaleX(${wide.toFixed(3)})`;
          voice.feed(rms, at_s);
        });
      track.hidden = false;
      words.textContent = SPEAK;
      await over(signal);
      words.textContent = heard ? HEARD : SILENT;
    } catch (error) {
      const { message, hint } = microphoneTrouble(error, here(), "test again");
      words.textContent = `${message} ${hint}`;
    } finally {
      for (const one of stream?.getTracks() ?? []) one.stop();
      running = null;
      track.hidden = true;
      button.textContent = "Test microphone";
      await meters?.close();
    }
  }

  return { element, stop: () => running?.abort() };
}

async function open(id: string): Promise<MediaStream> {
  if (!here().secure) throw new DOMException("no media devices", "SecurityError");
  return navigator.mediaDevices.getUserMedia({ audio: id ? { deviceId: { exact: id } } : true });
}

/** Waits until the time is over or the test is stopped. */
function over(signal: AbortSignal): Promise<void> {
  return new Promise((done) => {
    if (signal.aborted) return done();
    const timer = setTimeout(done, LASTS_MS);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      done();
    });
  });
}
