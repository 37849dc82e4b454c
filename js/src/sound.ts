// The recording of a call made in the page: left the microphone, right the agent, on one clock.

/** Pieces come every two seconds; what is lost with a page that closes is no more than that. */
const PIECE_S = 2;
const RATE_HZ = 24000;
/** The page and the notebook's kernel keep it in memory, 5.8 MB a minute. */
const LONGEST_S = 30 * 60;

/** Takes input 0 as the left channel and input 1 as the right, at about 24 kHz. */
export const SOUND_WORKLET = `
registerProcessor("labvoice-sound", class extends AudioWorkletProcessor {
  constructor() {
    super();
    this.step = Math.max(1, Math.round(sampleRate / ${RATE_HZ}));
    this.rate_hz = sampleRate / this.step;
    this.size = 2 * Math.round(${PIECE_S} * this.rate_hz);
    this.sums = [0, 0];
    this.n = this.first = this.filled = 0;
    this.began_s = null;
    this.out = new Int16Array(this.size);
    this.port.onmessage = () => this.post(true);
  }
  post(last) {
    const samples = this.out.slice(0, this.filled);
    const about = { first: this.first, rate_hz: this.rate_hz, began_s: this.began_s ?? 0, last };
    this.port.postMessage({ ...about, samples }, [samples.buffer]);
    this.first += this.filled / 2;
    this.filled = 0;
  }
  process(inputs) {
    this.began_s ??= currentTime;
    const sides = [inputs[0][0], inputs[1][0]];
    for (let i = 0; i < 128; i++) {
      for (let side = 0; side < 2; side++) this.sums[side] += sides[side] ? sides[side][i] : 0;
      if (++this.n < this.step) continue;
      for (let side = 0; side < 2; side++) {
        const sample = Math.round((this.sums[side] / this.n) * 32767);
        this.out[this.filled++] = Math.max(-32768, Math.min(32767, sample));
        this.sums[side] = 0;
      }
      this.n = 0;
      if (this.filled === this.size) this.post(false);
    }
    return true;
  }
});`;

export interface Piece {
  /** Number of its first frame since the recording's beginning. */
  first: number;
  rate_hz: number;
  /** When the recording began, in seconds on the page's clock. */
  start_s: number;
  /** Frames of two samples, left and right. */
  samples: Int16Array;
}

/** The pieces of one call, as far as the page keeps them. */
export class Sound {
  private pieces: Piece[] = [];

  /** Whether there is room for a piece. */
  static takes(piece: Piece): boolean {
    return piece.first < LONGEST_S * piece.rate_hz;
  }

  add(piece: Piece): void {
    this.pieces.push(piece);
  }

  /** The recording as a WAV file; null where nothing was recorded. */
  get file(): Blob | null {
    const [piece] = this.pieces;
    if (!piece) return null;
    const rate_hz = Math.round(piece.rate_hz);
    const length = this.pieces.reduce((sum, one) => sum + one.samples.byteLength, 0);
    const header = new DataView(new ArrayBuffer(44));
    const word = (at: number, text: string) =>
      [...text].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
    word(0, "RIFF");
    header.setUint32(4, 36 + length, true);
    word(8, "WAVEfmt ");
    header.setUint32(16, 16, true);
    header.setUint16(20, 1, true); // PCM
    header.setUint16(22, 2, true);
    header.setUint32(24, rate_hz, true);
    header.setUint32(28, rate_hz * 4, true);
    header.setUint16(32, 4, true);
    header.setUint16(34, 16, true);
    word(36, "data");
    header.setUint32(40, length, true);
    return new Blob([header, ...this.pieces.map((one) => one.samples as BlobPart)], { type: "audio/wav" });
  }
}
