// Levels of a track, 10 ms at a time, dated on the browser's monotonic clock.

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

  constructor() {
    // A page with a content security policy must allow `blob:` as a script source.
    const url = URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" }));
    this.ready = this.context.audioWorklet
      .addModule(url)
      .finally(() => URL.revokeObjectURL(url));
  }

  /** Starts to measure a track. */
  async watch(track: MediaStreamTrack, onFrame: OnFrame): Promise<void> {
    await this.ready;
    if (this.context.state === "closed") return;
    const source = this.context.createMediaStreamSource(new MediaStream([track]));
    const meter = new AudioWorkletNode(this.context, "labvoice-meter");
    const silence = this.context.createGain();
    silence.gain.value = 0;
    // A node without an output is never run.
    source.connect(meter).connect(silence).connect(this.context.destination);
    this.nodes.push(source, meter, silence);
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
