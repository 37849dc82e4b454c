// Detects voice in a track: stretches, dated by their first and last voiced frame.

/** A 10 ms frame above this RMS (full scale 1.0) is voiced; as in labvoice/caller/ear.py. */
export const VOICED_RMS = 0.004;
const ONSET_FRAMES = 3;
const HANGOVER_S = 0.4;
const ROOM_NOISE_FACTOR = 3;

export interface Voice {
  start_s: number;
  end_s: number;
}

export interface VoiceEvents {
  onStart(voice: Voice): void;
  onEnd(voice: Voice): void;
}

/**
 * Takes the RMS of 10 ms frames and reports the start and end of voice.
 *
 * Adapts to a microphone's noise: the threshold is a multiple of the quietest second so far that
 * is not digital silence.
 */
export class VoiceDetector {
  private run = 0;
  private runStart_s = 0;
  private current: Voice | null = null;
  private floor = Infinity;
  private second: number[] = [];

  constructor(
    private readonly events: VoiceEvents,
    private readonly learnsNoise = false,
  ) {}

  get threshold(): number {
    if (!this.learnsNoise || this.floor === Infinity) return VOICED_RMS;
    return Math.max(VOICED_RMS, ROOM_NOISE_FACTOR * this.floor);
  }

  /** Takes one frame that ended at `at_s`, in seconds. */
  feed(rms: number, at_s: number): void {
    // Zero means a track that is muted or has not started, not a quiet room.
    if (this.learnsNoise && rms > 0) this.learn(rms);
    if (rms > this.threshold) {
      if (this.current) {
        this.current.end_s = at_s;
        return;
      }
      if (this.run === 0) this.runStart_s = at_s;
      this.run += 1;
      if (this.run >= ONSET_FRAMES) {
        this.run = 0;
        this.current = { start_s: this.runStart_s, end_s: at_s };
        this.events.onStart(this.current);
      }
      return;
    }
    this.run = 0;
    if (this.current && at_s - this.current.end_s >= HANGOVER_S) this.finish();
  }

  /** Ends an open stretch: the track has ended. */
  finish(): void {
    const voice = this.current;
    this.current = null;
    if (voice) this.events.onEnd(voice);
  }

  private learn(rms: number): void {
    this.second.push(rms);
    if (this.second.length < 100) return;
    const sorted = this.second.sort((a, b) => a - b);
    this.floor = Math.min(this.floor, sorted[20] ?? Infinity);
    this.second = [];
  }
}
