// Levels of a track, 10 ms at a time, dated on the browser's monotonic clock; and its recording.
import { SOUND_WORKLET, type Piece } from "./sound";

const WORKLET = `
registerProcessor("labvoice-meter", class extends AudioWorkletProcessor {
  constructor() { super(); this.size = Math.round(sampleRate / 100); this.sum = 0; this.n = 0; this.out = []; }
  process(inputs) {
    const samples = inputs[0][0];
    if (!samples) return true;
    for (let i = 0; i < samples.length; i++) {
      this.sum += samples[i] * samples[i];
      if (++this.n < this.size) continue;
      this.out.push(Math.sqrt(this.sum / this.n), currentTime + (i + 1) / sampleRate);
      this.sum = this.n = 0;
    }
    if (this.out.length >= 6) { this.port.postMessage(this.out); this.out = []; }
    return true;
  }
});`;

const FLUSH_MS = 200;

export type OnFrame = (rms: number, at_s: number) => void;

/** The page's clock, in seconds. */
export const now_s = (): number => performance.now() / 1000;

/** One AudioContext for a call: both directions are dated by the same clock. */
export class Meters {
  private readonly context = new AudioContext();
  private readonly ready: Promise<void>;
  private readonly nodes: AudioNode[] = [];
  /** Offset from the context's time to the page's: the smallest so far, because messages lag. */
  private offset_s = Infinity;
  private sound: AudioWorkletNode | null = null;
  private flushed: () => void = () => undefined;

  constructor() {
    // A page with a content security policy must allow `blob:` as a script source.
    const url = URL.createObjectURL(new Blob([WORKLET, SOUND_WORKLET], { type: "text/javascript" }));
    this.ready = this.context.audioWorklet
      .addModule(url)
      .finally(() => URL.revokeObjectURL(url));
  }

  /** Begins to record both sides; `onPiece` gets the sound as it comes. */
  async record(onPiece: (piece: Piece) => void): Promise<void> {
    await this.ready;
    if (this.context.state === "closed") return;
    const sound = new AudioWorkletNode(this.context, "labvoice-sound", {
      numberOfInputs: 2,
      channelCount: 1,
      channelCountMode: "explicit",
    });
    this.run(sound);
    this.sound = sound;
    sound.port.onmessage = ({ data }: MessageEvent<Piece & { began_s: number; last: boolean }>) => {
      this.offset_s = Math.min(this.offset_s, now_s() - this.context.currentTime);
      const { first, rate_hz, samples } = data;
      if (samples.length) onPiece({ first, rate_hz, samples, start_s: data.began_s + this.offset_s });
      if (data.last) this.flushed();
    };
  }

  /** Brings what was recorded since the last piece; nobody waits longer than a moment. */
  async flush(): Promise<void> {
    const { sound } = this;
    if (!sound) return;
    await new Promise<void>((done) => {
      this.flushed = done;
      setTimeout(done, FLUSH_MS);
      sound.port.postMessage(null);
    });
  }

  /** A node that leads nowhere is never run. */
  private run(node: AudioNode): void {
    const silence = this.context.createGain();
    silence.gain.value = 0;
    node.connect(silence).connect(this.context.destination);
    this.nodes.push(node, silence);
  }

  /** Begins to measure a track; it is recorded as the left side (0) or the right one (1). */
  async watch(track: MediaStreamTrack, onFrame: OnFrame, side: 0 | 1 = 0): Promise<void> {
    await this.ready;
    if (this.context.state === "closed") return;
    const source = this.context.createMediaStreamSource(new MediaStream([track]));
    const meter = new AudioWorkletNode(this.context, "labvoice-meter");
    source.connect(meter);
    this.run(meter);
    this.nodes.push(source);
    if (this.sound) source.connect(this.sound, 0, side);
    meter.port.onmessage = ({ data }: MessageEvent<number[]>) => {
      this.offset_s = Math.min(this.offset_s, now_s() - this.context.currentTime);
      for (let i = 0; i < data.length; i += 2) onFrame(data[i]!, data[i + 1]! + this.offset_s);
    };
  }

  /** Resumes the context; a browser may suspend it until the user has clicked. */
  async resume(): Promise<void> {
    if (this.context.state !== "suspended") return;
    this.offset_s = Infinity;
    await this.context.resume();
  }

  async close(): Promise<void> {
    for (const node of this.nodes) node.disconnect();
    if (this.context.state !== "closed") await this.context.close();
  }
}
